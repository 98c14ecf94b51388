"""Whose statistics, and whose weights, a batch norm of a shared network has."""

from __future__ import annotations

from typing import Literal

# shared: one set for all tasks. per_task_stats: statistics of each task's own. per_task: scale and shift too.
BatchNormRule = Literal["shared", "per_task_stats", "per_task"]
