"""The forward pass under policies, soft or hard, and the three batch-norm rules. Source: adashare.md 2.3 and 2.7.

Blocks that all tasks execute are computed once for all tasks as long as their inputs are equal: in the warm-up all of
them, in the search those before the first free unit, and that unit's branch and shortcut too, since only its mix
differs. In training the units behind it run on the batches of all tasks at once. The official code runs one pass per
task in every case; results are equal but for rounding, norm statistics included.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from datasets.contracts import SINGLE_INPUT, DatasetSpec
from methods.adashare.policy import Policies, Policy, execute_probabilities
from methods.backbones.backbone import Backbone, Block
from methods.graph.copies import copied
from methods.graph.norms import has_statistics, other_parameters
from methods.graph.operations import Operation
from methods.graph.rules import BatchNormRule
from methods.graph.stacked import stacked

Decision = Tensor | bool  # executed, skipped, or mixed with weight p
Decisions = Sequence[Sequence[Decision]]  # [K][L]


def task_backbones(backbone: Backbone, n_tasks: int, rule: BatchNormRule) -> list[Backbone]:
    """One backbone a task, all with the weights of `backbone`, which is the first of them.

    shared: the same object. per_task_stats: own norm statistics. per_task: own statistics and own affine parameters of
    every norm; all other weights are shared.
    """
    if rule == "shared":
        return [backbone] * n_tasks
    module = backbone.module()
    kept = other_parameters(module) if rule == "per_task" else list(module.parameters())
    return [backbone, *(copied(backbone, kept) for _ in range(n_tasks - 1))]


class SkipNetwork(nn.Module):
    """A backbone that each task runs under its own decisions, and a head for each. `network(images, tasks)` as graphs.

    backbones: of each task, see `task_backbones`. heads: {task: operation}. Subclasses define what is decided and what
    is common.
    """

    def __init__(self, data: DatasetSpec, backbones: Sequence[Backbone], heads: Mapping[str, Operation]) -> None:
        super().__init__()
        self.tasks = data.task_names
        self.inputs = [data.input_of(task) for task in self.tasks]
        self.backbones = list(backbones)
        self.parts = nn.ModuleList(backbone.module() for backbone in dict.fromkeys(self.backbones))
        self.operations = dict(heads)
        self.heads = nn.ModuleList(heads[task].module for task in self.tasks)
        self.units = self.backbones[0].units
        self._unit_of = {block: unit for unit, block in enumerate(self.units)}
        self._stacks: dict[tuple[int, ...], Backbone] = {}

    @property
    def n_blocks(self) -> int:
        """Blocks of the backbone, units or not."""
        return len(self.backbones[0].blocks)

    def decide(self) -> Decisions:
        """Decisions for one call, [K][L]; all executed."""
        return [[True] * len(self.units)] * len(self.tasks)

    def n_common(self) -> int | None:
        """Leading blocks that all tasks execute on an equal input: computed once. None where inputs differ."""
        return None

    def forward(self, images: Mapping[str, Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
        """images: {input: float [B, C, H, W]}; gives {task: prediction}."""
        decisions = self.decide()
        positions = [self.tasks.index(task) for task in tasks]
        n_common = self.n_common()
        if n_common is not None:
            features = self._together(images[SINGLE_INPUT], n_common, positions, decisions)
        else:
            features = {k: self._apart(k, images[self.inputs[k]], decisions[k]) for k in positions}
        return {self.tasks[k]: self.heads[k](x) for k, x in features.items()}

    def _apart(self, k: int, image: Tensor, decisions: Sequence[Decision]) -> Tensor:
        """Features of one task, by a pass of its own."""
        return self._rest(k, self.backbones[k].stem(image), 0, decisions)

    def _rest(self, k: int, x: Tensor, start: int, decisions: Sequence[Decision]) -> Tensor:
        """Blocks from `start` on, and the tail."""
        backbone = self.backbones[k]
        for index in range(start, self.n_blocks):
            unit = self._unit_of.get(index)
            x = self.unit(backbone.blocks[index], x, True if unit is None else decisions[unit])
        return backbone.tail(x)

    def unit(self, block: Block, x: Tensor, decision: Decision) -> Tensor:
        """x_{l+1} = p execute(x, s) + (1 - p) s with s = S_l(x); no activation on s."""
        if decision is True:
            return block(x)
        s = _skip(block, x)
        return s if decision is False else _mix(decision, block.execute(x, s), s)

    def _together(
        self, image: Tensor, n_common: int, positions: Sequence[int], decisions: Decisions
    ) -> dict[int, Tensor]:
        """Features of several tasks on one image: the common blocks once, each task apart from where they part."""
        backbone = self.backbones[0]
        with self._statistics_of_all(n_common, len(positions)):
            x = backbone.stem(image)
            for block in backbone.blocks[:n_common]:
                x = block(x)
            if n_common == self.n_blocks:
                return dict.fromkeys(positions, backbone.tail(x))
            first = backbone.blocks[n_common]
            unit, s = self._unit_of[n_common], _skip(first, x)
            chosen = {k: decisions[k][unit] for k in positions}
            executed = first.execute(x, s) if any(p is not False for p in chosen.values()) else s
        soft = [p for p in chosen.values() if isinstance(p, Tensor)]
        if len(soft) == len(positions) > 1:
            x = _mix(torch.stack(soft).view(-1, *[1] * s.dim()), executed, s).flatten(0, 1)
            return self._rest_at_once(positions, x, n_common + 1, decisions)
        mixed = {k: _mix(p, executed, s) for k, p in chosen.items()}
        return {k: self._rest(k, x, n_common + 1, decisions[k]) for k, x in mixed.items()}

    def _rest_at_once(self, positions: Sequence[int], x: Tensor, start: int, decisions: Decisions) -> dict[int, Tensor]:
        """As `_rest`, for several tasks with soft decisions. x: their batches one behind the other."""
        key = tuple(positions)
        if key not in self._stacks:
            backbones = [self.backbones[k] for k in positions]
            self._stacks[key] = stacked(backbones[0], [backbone.module() for backbone in backbones])
        backbone, batch = self._stacks[key], len(x) // len(positions)
        for index in range(start, self.n_blocks):
            unit, block = self._unit_of.get(index), backbone.blocks[index]
            if unit is None:
                x = block(x)
                continue
            p = torch.stack([cast(Tensor, decisions[k][unit]) for k in positions])
            x = self.unit(block, x, p.repeat_interleave(batch).view(-1, *[1] * (x.dim() - 1)))
        return dict(zip(positions, backbone.tail(x).chunk(len(positions)), strict=True))

    @contextmanager
    def _statistics_of_all(self, n_common: int, n_tasks: int) -> Iterator[None]:
        """One pass over common blocks moves statistics as a pass for each task would."""
        yield


def _skip(block: Block, x: Tensor) -> Tensor:
    """S_l(x)."""
    assert block.skip is not None
    return cast(Tensor, block.skip(x))


def _mix(decision: Decision, executed: Tensor, s: Tensor) -> Tensor:
    if decision is True:
        return executed
    return s if decision is False else decision * executed + (1 - decision) * s


class FixedNetwork(SkipNetwork):
    """A network under one drawn policy, with one set of statistics that all tasks move: the official retraining.

    pollute: in training, the branch of a unit that a task skips and another executes is run for its norm statistics,
    as in the official code, which multiplies it by 0. No gradient comes from it in either way.
    """

    def __init__(
        self,
        data: DatasetSpec,
        backbones: Sequence[Backbone],
        heads: Mapping[str, Operation],
        policy: Policy,
        pollute: bool,
    ) -> None:
        super().__init__(data, backbones, heads)
        self.policy = policy
        kept = [any(decisions) for decisions in zip(*policy, strict=True)]
        self.polluted = (
            {id(self.backbones[0].blocks[block]) for block, is_kept in zip(self.units, kept, strict=True) if is_kept}
            if pollute
            else set()
        )

    def decide(self) -> Decisions:
        """The policy."""
        return self.policy

    def unit(self, block: Block, x: Tensor, decision: Decision) -> Tensor:
        """As in `SkipNetwork`; in training a polluted block that is skipped still moves its statistics."""
        if decision is False and self.training and id(block) in self.polluted:
            with torch.no_grad():
                block(x)
        return super().unit(block, x, decision)


class SearchNetwork(SkipNetwork):
    """The network of warm-up and search, with the policies, the best of them so far and their course.

    streams: named generators, `gumbel` for training and `evaluation` for Bernoulli draws. warming_up: all units run.
    Buffers: best_logits [K, L, 2] with score and number of completed cycles, reference (metrics of the first policy
    that was judged), course [n_cycles + 1, K, L] of alpha, NaN where not reached.
    """

    best_logits: Tensor
    best_score: Tensor
    best_cycle: Tensor
    reference: Tensor
    course: Tensor

    def __init__(
        self,
        data: DatasetSpec,
        backbones: Sequence[Backbone],
        heads: Mapping[str, Operation],
        policies: Policies,
        streams: Mapping[str, torch.Generator],
        n_cycles: int,
        rule: BatchNormRule,
    ) -> None:
        super().__init__(data, backbones, heads)
        self.policies, self.streams, self.rule = policies, dict(streams), rule
        self.warming_up = True
        self.one_image = data.domains == "single" and rule != "per_task"
        n_metrics = sum(len(task.metrics) for task in data.tasks)
        logits = policies.logits.detach()
        self.register_buffer("best_logits", logits.clone())
        self.register_buffer("best_score", torch.tensor(float("-inf"), dtype=torch.float64))
        self.register_buffer("best_cycle", torch.tensor(-1))
        self.register_buffer("reference", torch.full((n_metrics,), float("nan"), dtype=torch.float64))
        self.register_buffer("course", torch.full((n_cycles + 1, *logits.shape[:2]), float("nan")))
        self._norms: dict[int, list[list[_NormBase]]] = {}

    @property
    def warm_up_passes(self) -> int:
        """Passes that a step of the warm-up makes: one where all tasks see one image through one set of norms."""
        return 1 if self.one_image else len(self.tasks)

    def decide(self) -> Decisions:
        """All executed in the warm-up, one relaxed draw a task in training, one hard draw a task in evaluation."""
        if self.warming_up:
            return super().decide()
        if self.training:
            return self.policies.sample(self.streams["gumbel"])
        return self.policies.draw(self.streams["evaluation"])

    def n_common(self) -> int | None:
        """The blocks before the first free unit, where tasks share image and norms."""
        if not self.one_image:
            return None
        return self.n_blocks if self.warming_up else self.units[self.policies.first_free]

    @contextmanager
    def _statistics_of_all(self, n_common: int, n_tasks: int) -> Iterator[None]:
        """shared: statistics move as by one update per task. per_task_stats: every task's move alike.

        In the warm-up one update serves all tasks, and `end_warm_up` follows it.
        """
        if not self.training or self.warming_up:
            yield
        elif self.rule == "shared":
            with _updates(self._common_norms(n_common)[0], n_tasks):
                yield
        else:
            yield
            self._copy_statistics(self._common_norms(n_common))

    def _common_norms(self, n_common: int) -> list[list[_NormBase]]:
        """The norms up to and including block `n_common`, for each set of norms."""
        if n_common not in self._norms:
            self._norms[n_common] = [
                [norm for module in (parts.stem, *parts.blocks[: n_common + 1]) for norm in _norms(module)]
                for parts in map(Backbone.module, dict.fromkeys(self.backbones))
            ]
        return self._norms[n_common]

    @staticmethod
    @torch.no_grad()
    def _copy_statistics(sets: Sequence[Sequence[_NormBase]]) -> None:
        first, *others = sets
        for norms in others:
            for source, target in zip(first, norms, strict=True):
                for mine, theirs in zip(source.buffers(), target.buffers(), strict=True):
                    theirs.copy_(mine)

    @torch.no_grad()
    def end_warm_up(self) -> None:
        """From here on tasks follow their policies. The statistics of one pass that fed all heads become every
        task's.
        """
        self.warming_up = False
        if self.one_image:
            self._copy_statistics([_norms(parts) for parts in self.parts])

    def best_alpha(self) -> Tensor:
        """Execute probabilities [K, L] of the best policy, on the CPU."""
        return execute_probabilities(self.best_logits).cpu()


def _norms(module: nn.Module) -> list[_NormBase]:
    """The norms that keep running statistics."""
    return [cast(_NormBase, part) for part in module.modules() if has_statistics(part)]


@contextmanager
def _updates(norms: Sequence[_NormBase], times: int) -> Iterator[None]:
    """Within the block one call moves running statistics as `times` calls on the same batch would:
    r <- (1 - m)^times r + (1 - (1 - m)^times) batch.
    """
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        if norm.momentum is not None:  # None is a plain mean over calls: equal batches count once as well as often
            norm.momentum = 1 - (1 - norm.momentum) ** times
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.add_(times - 1)
