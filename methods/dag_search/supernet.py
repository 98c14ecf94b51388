"""The central network with every edge in place, and the gates that weigh them. Sections 2, 4 and 6.

Symbols: alpha[K, N] read-in logits, beta[K, N] read-out logits, gamma[K, |E|] edge logits; sigma their sigmoid. Edges
are in the order of `FlowGraph.edges`: read-ins, inner edges, read-outs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from datasets.contracts import DatasetSpec
from methods.dag_search.flow import FlowGraph
from methods.dag_search.space import DagSpace
from methods.graph.norms import TaskNorms
from methods.graph.operations import Operation
from methods.graph.rules import BatchNormRule

Context = Callable[[], contextlib.AbstractContextManager[None]]
OPEN = 2.0  # logit of a chain gate under `gate_init: chain`, -OPEN of the others


class Gates(nn.Module):
    """A = alpha, B = beta and Gamma = gamma, with what the search must remember of them.

    path: [cycles + 1, K, edges], sigma of all gates at the start of every cycle and at the end. squeezed_steps: steps
    in which the squeeze loss of at least one task was active.
    """

    path: Tensor
    squeezed_steps: Tensor

    def __init__(self, graph: FlowGraph, n_tasks: int, cycles: int, init: str) -> None:
        super().__init__()
        n, inner = graph.n_states, len(graph.inner)
        self.graph = graph
        self.alpha = nn.Parameter(torch.zeros(n_tasks, n))
        self.beta = nn.Parameter(torch.zeros(n_tasks, n))
        self.gamma = nn.Parameter(torch.zeros(n_tasks, inner))
        if init == "chain":
            with torch.no_grad():
                for logits in (self.alpha, self.beta, self.gamma):
                    logits.fill_(-OPEN)
                self.alpha[:, 0] = self.beta[:, -1] = OPEN
                self.gamma[:, [e for e, (i, j) in enumerate(graph.inner) if j - i == 1]] = OPEN
        self.register_buffer("path", torch.full((cycles + 1, n_tasks, len(graph.edges)), float("nan")))
        self.register_buffer("squeezed_steps", torch.zeros((), dtype=torch.int64))

    def sigma(self) -> Tensor:
        """All gates, float [K, edges] in (0, 1)."""
        return torch.sigmoid(torch.cat([self.alpha, self.gamma, self.beta], dim=1))

    @torch.no_grad()
    def remember(self, cycle: int) -> None:
        """Write the gates of now into the path."""
        self.path[cycle] = self.sigma()

    def remembered(self) -> Tensor:
        """The path, float64 on the CPU. Cycles without a step, of a search that is shorter than its cycles, repeat the
        one before.
        """
        path = self.path.cpu().double()
        for cycle in range(1, len(path)):
            if path[cycle].isnan().any():
                path[cycle] = path[cycle - 1]
        return path

    def squeeze(self, kappa: int, reads: bool) -> Tensor:
        """L_sq = sum_k max(sum_E sigma(gamma_ij^k) - kappa, 0), a scalar. Section 6.

        reads: read-ins and read-outs count too, with room for one of each.
        """
        totals = torch.sigmoid(self.gamma).sum(1)
        if reads:
            totals = totals + torch.sigmoid(self.alpha).sum(1) + torch.sigmoid(self.beta).sum(1) - 2.0
        excess = torch.relu(totals - kappa)
        self.squeezed_steps += (excess.detach() > 0).any()
        return excess.sum()


class Supernet(nn.Module):
    """Every edge of the DAG for every task: a network in the sense of `Trainer.evaluate`.

    one_pass: all tasks have equal gates, so on equal images one pass serves all heads (warm-up).
    recompute: activations inside the edges' operations are not kept for the backward pass.
    """

    def __init__(
        self,
        space: DagSpace,
        data: DatasetSpec,
        heads: Mapping[str, Operation],
        gates: Gates,
        *,
        batch_norm: BatchNormRule,
        recompute: bool,
    ) -> None:
        super().__init__()
        self.space, self.data = space, data
        self.gates = gates
        self.operations = nn.ModuleList(operation.module for operation in space.operations())
        self.heads = nn.ModuleDict({task: operation.module for task, operation in heads.items()})
        # What comes before the gates sees the same activations for all tasks, where all read the same images.
        first = [space.stem, *space.read_in]
        own = [op for op in space.operations() if data.domains == "multi" or all(op is not f for f in first)]
        device = gates.alpha.device
        self.norms = TaskNorms([op.module for op in own], len(data.tasks), batch_norm).to(device)
        self.one_pass = False
        self.recompute = recompute
        n, edges = space.graph.n_states, space.graph.edges
        self.register_buffer("_exists", torch.from_numpy(space.exists).float(), persistent=False)
        # membership[e, w] = 1 where edge e enters node w; node N + 1 is t.
        membership = torch.zeros(len(edges), n + 2)
        membership[range(len(edges)), [target for _, target in edges]] = 1.0
        self.register_buffer("_membership", membership, persistent=False)
        self.register_buffer("_target", torch.tensor([target for _, target in edges]), persistent=False)
        self._has = space.exists.tolist()
        # (edge, source) of the inner edges into each state, in order.
        self._into: list[list[tuple[int, int]]] = [[] for _ in range(n + 1)]
        for e, (i, j) in enumerate(space.graph.inner):
            self._into[j].append((e, i))

    def weights(self) -> Tensor:
        """The factor of every edge's value, float [K, edges]: sigma / z. Section 4."""
        gates = self.gates.sigma() * cast(Tensor, self._exists)
        if self.space.aggregate == "sum":
            return gates
        return gates / (gates @ cast(Tensor, self._membership))[:, cast(Tensor, self._target)]

    def forward(self, images: Mapping[str, Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
        """images: {input: float [B, C, H, W]}; gives {task: prediction}."""
        weights = self.weights()
        rows = [self.data.task_names.index(task) for task in tasks]
        one_for_all = self.one_pass and self.data.domains == "single"
        # Where activations are not kept for a backward pass, a task at a time takes less memory.
        alone = self.recompute or not torch.is_grad_enabled()
        batches = [rows[:1]] if one_for_all else [[k] for k in rows] if alone else [rows]
        started: dict[str, tuple[Tensor, ...]] = {}
        features = [out for batch in batches for out in self._side_by_side(batch, images, weights[batch], started)]
        if one_for_all:
            features *= len(tasks)
        return {task: self.heads[task](feature) for task, feature in zip(tasks, features, strict=True)}

    def _side_by_side(
        self, rows: Sequence[int], images: Mapping[str, Tensor], weights: Tensor, started: dict[str, tuple[Tensor, ...]]
    ) -> list[Tensor]:
        """out of several tasks in one pass, their images one behind the other in the batch: a layer is called once, and
        samples of a batch meet in norms only, which take the tasks apart.

        started: {input: what comes before the gates}, which tasks that read one input share.
        """
        names = [self.data.input_of(self.data.task_names[k]) for k in rows]
        sizes = [len(images[name]) for name in names]
        with self.norms.each(rows, sizes):
            if self.data.domains == "single":
                if names[0] not in started:
                    started[names[0]] = self._start(images[names[0]])
                start = [torch.cat([value] * len(rows)) if len(rows) > 1 else value for value in started[names[0]]]
            else:
                start = list(self._start(torch.cat([images[name] for name in names])))
            counts = torch.tensor(sizes, device=weights.device)
            spread = weights.repeat_interleave(counts, dim=0, output_size=sum(sizes))
            scales = spread.reshape(*spread.shape, *[1] * (start[0].ndim - 1)).unbind(1)
            return list(self._states(start, scales, lambda: self.norms.each(rows, sizes, again=True)).split(sizes))

    def _start(self, image: Tensor) -> tuple[Tensor, ...]:
        """R_j(v_0) for every state j that has a read-in, once for all tasks."""
        v0 = self.space.stem.module(image)
        return tuple(op.module(v0) for op, has in zip(self.space.read_in, self._has, strict=False) if has)

    def _states(self, start: Sequence[Tensor], weights: Sequence[Tensor], again: Context) -> Tensor:
        """out: the equations of section 4, states in order. weights: [sum of batches, 1, ...] of every edge. again:
        around activations that are computed a second time.
        """
        n = self.space.graph.n_states
        reads = iter(start)
        states: list[Tensor] = []
        for j in range(1, n + 1):
            value = next(reads) * weights[j - 1] if self._has[j - 1] else None
            for e, i in self._into[j]:
                value = _accumulate(value, self._edge(e, states[i - 1], again), weights[n + e])
            states.append(cast(Tensor, value))
        out = None
        for i, e in enumerate(range(len(weights) - n, len(weights))):
            if self._has[e]:
                out = _accumulate(out, self.space.read_out[i].module(states[i]), weights[e])
        return cast(Tensor, self.space.tail.module(out))

    def _edge(self, e: int, value: Tensor, again: Context) -> Tensor:
        """o_ij of v_i."""
        align, block = self.space.edges[e].align.module, self.space.edges[e].block.module

        def run(x: Tensor) -> Tensor:
            return cast(Tensor, block(align(x)))

        if not (self.recompute and torch.is_grad_enabled()):
            return run(value)
        # Around the first pass, and around the second one, in the backward pass.
        return checkpoint(run, value, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), again()))


def _accumulate(total: Tensor | None, value: Tensor, weight: Tensor) -> Tensor:
    """total + weight value, in one pass over memory."""
    return value * weight if total is None else torch.addcmul(total, value, weight)
