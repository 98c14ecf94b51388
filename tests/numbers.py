"""Comparing floats on any machine."""

from __future__ import annotations

import torch
from torch import Tensor

# Of n additions in float64 in another order: n eps = 1e6 * 2.2e-16, with a hundredfold margin for the network after
# them. The faults that tests look for are above 1e-5: in sums of float32 they would drown.
ROUNDING = 1e-8


def assert_same(actual: Tensor, expected: Tensor, name: str = "") -> None:
    """Equal but for the order in which kernels add: float64 tensors, apart by `ROUNDING` of their largest number.

    Of the largest and not of each number, as what is added cancels; numbers below 1 count as 1. NaN equals NaN.
    """
    assert actual.dtype == expected.dtype == torch.float64, "the test must use the fixture float64"
    largest = float(expected.detach().nan_to_num().abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(
        actual,
        expected,
        rtol=0,
        atol=ROUNDING * max(1.0, largest),
        equal_nan=True,
        msg=lambda found: f"{name}: {found}" if name else found,
    )
