"""Task affinity by representation similarity analysis. Source: branched 2.4 and 2.5.

Symbols: N tasks (i, j), D locations (d), K probe images (a, b). x_{i,d,a}: the whole feature map as one vector, not
pooled. RDM_{i,d}[a, b] = 1 - Pearson(x_{i,d,a}, x_{i,d,b}); A[d, i, j] = Spearman of the upper triangles of RDM_{i,d}
and RDM_{j,d}, without the diagonal.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from datasets.contracts import Batch
from datasets.errors import UsageError
from methods.branched.choices import Degenerate, FeatureDtype
from methods.graph.task_graph import TaskGraph, Value

FloatArray = npt.NDArray[np.float64]

CHUNK_BYTES = 4 * 2**20  # of centred features that are held at a time: what stays in a cache
FEATURE_BYTES = 512 * 2**20  # of float32 features held at a time, where one location alone does not have more


def pairwise_dissimilarity(
    features: Tensor,
    task: str,
    location: str,
    degenerate: Degenerate = "error",
    dtype: FeatureDtype = "float64",
    center_images: bool = False,
) -> FloatArray:
    """Upper triangle of the RDM, row by row without the diagonal: float64 [K (K - 1) / 2], each in [0, 2].

    features: float [K, F]. center_images: take from every feature its mean over the K images first. Raises UsageError
    for values that are not finite, and for an image whose features are all equal, unless `degenerate` is `one`: its
    distances are then 1.
    """
    if center_images:
        features = features - features.mean(0, dtype=torch.float64).to(features.dtype)
    n_images = len(features)
    low, high = features.amin(1), features.amax(1)
    if not bool((torch.isfinite(low) & torch.isfinite(high)).all()):
        raise UsageError(f"Features of task {task!r} at {location} are not finite; its network has diverged.")
    constant = low == high
    if bool(constant.any()) and degenerate == "error":
        image = int(constant.nonzero()[0])
        raise UsageError(
            f"All features of task {task!r} at {location} are equal for probe image {image} ({int(constant.sum())} of "
            f"{n_images} images): no correlation is defined. degenerate: one sets such distances to 1."
        )
    gram = _gram(features, dtype)
    norm = np.sqrt(np.diag(gram))
    norm[constant.numpy()] = 1.0
    r = gram / norm
    r /= norm[:, None]
    r[constant.numpy()] = 0.0
    r[:, constant.numpy()] = 0.0
    return 1 - np.clip(r[np.triu_indices(n_images, 1)], -1, 1)


def _gram(features: Tensor, dtype: FeatureDtype) -> FloatArray:
    """Z Z^T, float64 [K, K], of the centred features; the lower triangle is not filled, which halves the work."""
    from scipy.linalg import blas

    n_images, n_features = features.shape
    mean = features.mean(1, dtype=torch.float64, keepdim=True)
    product = blas.dsyrk if dtype == "float64" else blas.ssyrk
    gram = np.zeros((n_images, n_images), dtype=dtype, order="F")
    step = max(1, CHUNK_BYTES // (8 * n_images))
    centred = torch.empty(n_images, step, dtype=torch.float64)
    for start in range(0, n_features, step):
        chunk = features[:, start : start + step]
        z = centred[:, : chunk.shape[1]]
        torch.sub(chunk, mean, out=z)  # in float64 before the mean is off: a difference of large, nearly equal numbers
        rows = z.numpy().astype(dtype, copy=False)
        gram = product(1.0, rows.T, beta=1.0, c=gram, trans=1, lower=0, overwrite_c=1)
    return gram.astype(np.float64, copy=False)


def standard_ranks(values: FloatArray) -> FloatArray | None:
    """Average ranks, centred and of length 1, so that Spearman's rho is a dot product; None where all values are
    equal. values: [P].
    """
    from scipy.stats import rankdata

    order = np.argsort(values)
    ascending = values[order]
    if (ascending[1:] == ascending[:-1]).any():
        ranks = rankdata(values)  # the average of tied ranks; several times slower
    else:
        ranks = np.empty(len(values))
        ranks[order] = np.arange(1, len(values) + 1)
    ranks -= (len(ranks) + 1) / 2
    length = float(np.linalg.norm(ranks))
    return ranks / length if length > 0 else None


@dataclasses.dataclass(frozen=True)
class Affinity:
    """values: A, float64 [D, N, N] in [-1, 1], symmetric, ones on the diagonal; 0 where a whole RDM is constant.

    n_images: K as used. constant: (task, location) of those RDMs.
    """

    values: FloatArray
    n_images: int
    constant: tuple[tuple[str, str], ...]


def affinity(
    features: Iterable[tuple[int, int, Tensor]],
    tasks: Sequence[str],
    locations: Sequence[str],
    degenerate: Degenerate = "error",
    dtype: FeatureDtype = "float64",
    center_images: bool = False,
) -> Affinity:
    """A from features that come one (task, location) at a time: (i, d, float [K, F]), in any order.

    Held at a time: one set of features, and for each (task, location) the K (K - 1) / 2 ranks.
    """
    ranks: dict[tuple[int, int], FloatArray | None] = {}
    counts = set()
    for i, d, values in features:
        counts.add(len(values))
        distances = pairwise_dissimilarity(values, tasks[i], locations[d], degenerate, dtype, center_images)
        ranks[i, d] = standard_ranks(distances)
    if len(counts) != 1 or min(counts) < 3:
        raise UsageError(f"Affinities need the same probe images for every task, at least 3; got {sorted(counts)}.")
    found = np.zeros((len(locations), len(tasks), len(tasks)))
    for d in range(len(locations)):
        rows = [ranks[i, d] for i in range(len(tasks))]
        for i, j in itertools.combinations(range(len(tasks)), 2):
            one, other = rows[i], rows[j]
            if one is not None and other is not None:
                found[d, i, j] = found[d, j, i] = np.clip(one @ other, -1, 1)
        np.fill_diagonal(found[d], 1.0)
    constant = tuple((tasks[i], locations[d]) for (i, d), row in sorted(ranks.items()) if row is None)
    return Affinity(found, counts.pop(), constant)


def with_locations(graph: TaskGraph, task: str, blocks: Sequence[range]) -> tuple[TaskGraph, list[str]]:
    """A plain network of one task with an output for the feature after each segment, the last one after the tail, and
    the names of these outputs.
    """
    part = graph.subgraph(task)
    body = [node.name for node in part.nodes.values() if node.operation.origin == "backbone"]
    names = [f"location {number + 1}" for number in range(len(blocks))]
    for number, (name, members) in enumerate(zip(names, blocks, strict=True)):
        last = number == len(blocks) - 1
        part.output(name, Value(body[-1] if last else body[1 + members[-1]]))  # the stem is the first node
    return part, names


@torch.inference_mode()
def features_of(
    graph: TaskGraph, task: str, blocks: Sequence[range], batches: Sequence[Batch]
) -> Iterator[tuple[int, Tensor]]:
    """(d, features float32 [K, F] on the CPU) of a single-task network at every location, in eval mode.

    batches: the probe images; each image enters the network whatever input it belongs to. Locations whose features do
    not fit in `FEATURE_BYTES` together are read in several passes over the images.
    """
    located, names = with_locations(graph, task, blocks)
    for group in _passes(located, names, batches):
        module = located.module(*(names[d] for d in group)).eval()
        parts: Mapping[int, list[Tensor]] = {d: [] for d in group}
        for batch in batches:
            for images in batch.images.values():
                values = module(dict.fromkeys(located.inputs, images))
                for d in group:
                    # A clone of the rows: a slice of a larger buffer would keep the whole of it.
                    parts[d].append(values[names[d]].float().flatten(1).cpu().clone())
        for d in group:
            yield d, torch.cat(parts[d])
            parts[d].clear()


def _passes(located: TaskGraph, names: Sequence[str], batches: Sequence[Batch]) -> list[list[int]]:
    """Locations that are read in one pass, so that the features held stay below `FEATURE_BYTES`."""
    images = next(iter(batches[0].images.values()))[:1]
    n_images = sum(len(values) for batch in batches for values in batch.images.values())
    values = located.module(*names).eval()(dict.fromkeys(located.inputs, images))
    groups: list[list[int]] = [[]]
    held = 0
    for d, name in enumerate(names):
        size = 4 * n_images * values[name].numel()
        if groups[-1] and held + size > FEATURE_BYTES:
            groups.append([])
            held = 0
        groups[-1].append(d)
        held += size
    return groups
