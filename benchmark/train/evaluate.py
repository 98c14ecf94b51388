"""The evaluation pass: every sample exactly once, sums divided once at the end. Spec: measurement 1.1."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from benchmark.train.loaders import RoleLoader
from benchmark.train.memory import is_out_of_memory
from datasets.kinds import get_kind
from datasets.kinds.metrics import Evaluator, get_metric
from datasets.protocols import get_protocol
from methods.contracts import Metrics, Score


class CoverageError(RuntimeError):
    """An evaluation that did not see every sample exactly once."""


@contextmanager
def exact_float32() -> Iterator[None]:
    """TF32 off for matrix products and convolutions (PyTorch leaves it on for convolutions); put back afterwards."""
    matmul, convolution = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, convolution


def check_coverage(seen: Sequence[np.ndarray], n_samples: int, what: str) -> None:
    """Raise CoverageError unless the indices are 0 .. n_samples - 1, each once; names the first five faults."""
    indices = np.concatenate(seen) if seen else np.empty(0, dtype=np.int64)
    counts = np.bincount(indices, minlength=n_samples)
    missing = np.flatnonzero(counts[:n_samples] == 0)[:5].tolist()
    repeated = np.flatnonzero(counts > 1)[:5].tolist()
    outside = np.flatnonzero(counts[n_samples:])[:5].tolist()
    if missing or repeated or outside:
        raise CoverageError(
            f"Evaluation of {what} must see {n_samples} samples once each; missing {missing}, repeated {repeated}, "
            f"beyond the end {[n_samples + index for index in outside]}."
        )


def evaluate(
    network: nn.Module, loader: RoleLoader, tasks: Sequence[str], batch_size: int | None = None
) -> tuple[Metrics, dict[str, int]]:
    """({task: {metric: score}}, {task: samples evaluated}) in eval mode and float32; train/eval mode is put back.

    network: see `methods.contracts.Trainer.evaluate`. batch_size: None takes the loader's. Where memory does not
    suffice, everything is evaluated again in batches of half the size, down to one image. Raises CoverageError.
    """
    size = loader.evaluation_batch(tasks) if batch_size is None else batch_size
    while True:
        try:
            return _evaluate(network, loader, tasks, size)
        except (RuntimeError, MemoryError) as error:
            if size == 1 or not is_out_of_memory(error):
                raise
        # Beyond the handler, whose traceback would keep the tensors of the failed pass.
        size //= 2
        torch.cuda.empty_cache()


@torch.inference_mode()
def _evaluate(
    network: nn.Module, loader: RoleLoader, tasks: Sequence[str], batch_size: int
) -> tuple[Metrics, dict[str, int]]:
    spec = loader.spec
    flags = get_protocol(spec.protocol, spec.name)
    evaluators = {task: get_kind(spec.task(task).kind).evaluator(spec.task(task), flags) for task in tasks}
    seen: dict[str, list[np.ndarray]] = {name: [] for name in loader.inputs_of(tasks)}
    mode = network.training
    network.eval()
    try:
        with exact_float32():
            for batch in loader.ordered(tasks, batch_size=batch_size):
                present = [task for task in tasks if task in batch.targets]
                predictions = network(batch.images, present)
                for task in present:
                    evaluators[task].update(predictions[task].float(), batch.targets[task])
                for name, index in batch.index.items():
                    seen[name].append(index.numpy())
    finally:
        network.train(mode)
    for name, indices in seen.items():
        check_coverage(indices, loader.n_samples(name), f"{loader.role.value} of {spec.name}, input {name!r}")
    n_evaluated = {task: loader.n_samples(spec.input_of(task)) for task in tasks}
    return {task: scores_of(evaluators[task]) for task in tasks}, n_evaluated


def scores_of(evaluator: Evaluator) -> dict[str, Score]:
    """The metrics that the task lists, with unit and direction from the registry."""
    scores = {}
    for name, result in evaluator.result().items():
        row = get_metric(name)
        unit = (evaluator.task.unit or "label units") if row.unit == "label_units" else row.unit
        scores[name] = Score(
            result.value, unit, row.higher_is_better, result.n_units, result.n_nonfinite, dict(result.detail)
        )
    return scores
