"""How similar single-task networks are: Pearson correlation of their weights and of their losses (dmo 2, steps 2 to 4).

T tasks; S_W, S_L, S are symmetric [T, T] with ones on the diagonal.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

FloatArray = npt.NDArray[np.float64]


@torch.no_grad()
def weight_similarity(weights: Sequence[Sequence[Tensor]]) -> FloatArray:
    """S_W: Pearson correlation of all weights of every two networks. weights: [T][tensors], equal shapes by position.

    Sums are accumulated tensor by tensor in float64, so 20 networks are never stacked as a whole. Means are taken
    first: what is then summed is centred, and no digits cancel. NaN where a network's weights are all equal.
    """
    n = sum(tensor.numel() for tensor in weights[0])
    means = torch.stack([sum_of(tensors) / n for tensors in weights])
    products = torch.zeros(len(weights), len(weights), dtype=torch.float64)
    for tensors in zip(*weights, strict=True):
        rows = torch.stack([tensor.detach().flatten().double().cpu() for tensor in tensors])
        rows -= means[:, None]
        products += rows @ rows.T
    return _correlations(products.numpy())


def sum_of(tensors: Sequence[Tensor]) -> Tensor:
    """The sum of all elements in float64, on the CPU."""
    return torch.stack([tensor.detach().double().sum().cpu() for tensor in tensors]).sum()


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
