"""How similar single-task networks are: Pearson correlation of their weights and of their losses (dmo 2, steps 2 to 4).

T tasks; S_W, S_L, S are symmetric [T, T] with ones on the diagonal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

FloatArray = npt.NDArray[np.float64]

SLICE = 16_384  # weights of every network that are held in double precision at a time


@torch.no_grad()
def weight_similarity(weights: Sequence[Sequence[Tensor]]) -> FloatArray:
    """S_W: Pearson correlation of all weights of every two networks. weights: [T][tensors], equal shapes by position.

    Sums are accumulated in float64, a slice of every network at a time, so that memory does not grow with their size.
    Means are subtracted before sums are taken, so that no digits cancel. NaN where a network's weights are all
    equal.
    """
    n = sum(tensor.numel() for tensor in weights[0])
    means = torch.zeros(len(weights), 1, dtype=torch.float64)
    for rows in slices(weights):
        means += rows.sum(1, keepdim=True) / n
    products = torch.zeros(len(weights), len(weights), dtype=torch.float64)
    for rows in slices(weights):
        rows -= means
        products.addmm_(rows, rows.T)
    return _correlations(products.numpy())


def slices(weights: Sequence[Sequence[Tensor]]) -> Iterator[Tensor]:
    """The weights of all networks side by side, float64 [T, at most SLICE], on the CPU."""
    for tensors in zip(*weights, strict=True):
        flat = [tensor.detach().flatten() for tensor in tensors]
        for start in range(0, len(flat[0]), SLICE):
            yield torch.stack([tensor[start : start + SLICE].cpu() for tensor in flat]).double()


def loss_similarity(curves: Sequence[Sequence[float]]) -> FloatArray:
    """S_L: Pearson correlation of every two loss curves over the points at which both have a value. NaN where there are
    fewer than two, or where a curve is constant.
    """
    n_tasks = len(curves)
    found = np.eye(n_tasks)
    for i in range(n_tasks):
        for j in range(i):
            pair = np.array([curves[i], curves[j]], dtype=np.float64)
            pair = pair[:, np.isfinite(pair).all(0)]
            centred = pair - pair.mean(1, keepdims=True) if pair.shape[1] > 1 else np.zeros((2, 1))
            found[i, j] = found[j, i] = _correlations(centred @ centred.T)[0, 1]
    return found


def _correlations(products: FloatArray) -> FloatArray:
    """Products of centred rows, normalised; the diagonal is exactly 1."""
    norms = np.sqrt(np.diagonal(products))
    scale = np.outer(norms, norms)
    found = np.divide(products, scale, out=np.full_like(products, np.nan), where=scale > 0)
    np.fill_diagonal(found, 1.0)
    return found


def combined(s_w: FloatArray, s_l: FloatArray, alpha: float) -> FloatArray:
    """S = alpha S_W + (1 - alpha) S_L (eq. 1). A part with weight 0 is not read, so that it may be undefined."""
    if alpha in (0.0, 1.0):
        return (s_w if alpha == 1.0 else s_l).copy()
    return alpha * s_w + (1 - alpha) * s_l


def pairs_of(s: FloatArray) -> FloatArray:
    """The T (T - 1) / 2 values of unordered pairs."""
    values: FloatArray = s[np.triu_indices(len(s), 1)]
    return values


def resolved_threshold(s: FloatArray, threshold: float | str) -> float:
    """tau_sim as a number. threshold: a number, or `quantile:q` of the pairs with linear interpolation."""
    if isinstance(threshold, str):
        return float(np.quantile(pairs_of(s), float(threshold.partition(":")[2])))
    return threshold
