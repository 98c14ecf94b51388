"""Words that parameters take and modules with torch read."""

from __future__ import annotations

from typing import Literal

Degenerate = Literal["error", "one"]  # the distances of an image whose features are all equal
FeatureDtype = Literal["float32", "float64"]  # of the products of features
Estimator = Literal["bmtas", "exact"]  # of the expected compute
