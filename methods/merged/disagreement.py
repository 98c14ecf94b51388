"""Where single-task weights have gone different ways: cosines and opposite signs of the task vectors, layer by layer.

A layer is a module that holds weights: all of them as one vector. tau_t: task vector of task t.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import numpy.typing as npt
import torch

from methods.merged.arithmetic import TaskVectors

FloatArray = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Disagreement:
    """Of P = T (T - 1) / 2 pairs of tasks, (0, 1), (0, 2), .., in L layers; NaN where nothing has moved.

    cosines: float64 [P, L] in [-1, 1]. opposite: float64 [P, L] in [0, 1], of the weights that both tasks have moved
    the share that they have moved to different sides; of independent vectors about half. cosine, opposite_share:
    [P], the same of whole vectors. norms: [T], |tau_t| / |theta_0|.
    """

    layers: tuple[str, ...]
    cosines: FloatArray
    opposite: FloatArray
    cosine: FloatArray
    opposite_share: FloatArray
    norms: FloatArray


def disagreement(vectors: TaskVectors) -> Disagreement:
    """Measure it, in float64, one tensor at a time."""
    layers = list(dict.fromkeys(_layer(name) for name in vectors.start))
    n = len(vectors.trained)
    products, differ, moved = (np.zeros((len(layers), n, n)) for _ in range(3))
    for name in vectors.start:
        tau = vectors.tau(name).reshape(n, -1)  # [T, size]
        signs = tau.sign()
        both = signs.abs() @ signs.abs().T
        number = layers.index(_layer(name))
        products[number] += (tau @ tau.T).cpu().numpy()
        moved[number] += both.cpu().numpy()
        differ[number] += ((both - signs @ signs.T) / 2).cpu().numpy()
    start = math.sqrt(sum(float(torch.sum(theta.double() ** 2)) for theta in vectors.start.values()))
    whole = products.sum(0)
    return Disagreement(
        layers=tuple(layers),
        cosines=_of_pairs(_cosines(products)).T,
        opposite=_of_pairs(_ratio(differ, moved)).T,
        cosine=_of_pairs(_cosines(whole)),
        opposite_share=_of_pairs(_ratio(differ.sum(0), moved.sum(0))),
        norms=np.sqrt(np.diagonal(whole)) / start,
    )


def pair_names(tasks: tuple[str, ...]) -> list[str]:
    """Names of the pairs, in their order."""
    return [f"{one} / {other}" for one, other in itertools.combinations(tasks, 2)]


def _layer(name: str) -> str:
    return name.rpartition(".")[0] or name


def _cosines(products: FloatArray) -> FloatArray:
    """From inner products [..., T, T]."""
    lengths = np.sqrt(np.diagonal(products, axis1=-2, axis2=-1))
    cosines: FloatArray = np.clip(_ratio(products, lengths[..., :, None] * lengths[..., None, :]), -1, 1)
    return cosines


def _ratio(part: FloatArray, whole: FloatArray) -> FloatArray:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


def _of_pairs(matrices: FloatArray) -> FloatArray:
    """The upper triangle: [..., T, T] -> [..., P]."""
    rows, columns = np.triu_indices(matrices.shape[-1], 1)
    return matrices[..., rows, columns]
