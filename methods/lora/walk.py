"""The walk through a backbone that makes a task graph of it and of its low-rank updates.

It goes task after task. Equal operations on equal inputs become one node of the graph, so what tasks share is computed
once without a word about it here. x is the shared stream, x_t that of task t.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from torch import Tensor, nn

from methods.backbones.backbone import Backbone
from methods.backbones.sublayers import is_dense
from methods.graph.copies import copied
from methods.graph.operations import Operation, parameterless
from methods.graph.task_graph import TaskGraph, Value
from methods.lora.parameters import TaskPath
from methods.lora.updates import LowRank, added_names, block_operation, update_operation

if TYPE_CHECKING:
    from methods.lora.network import LowRankNetwork


class DropMask(nn.Module):
    """Of stochastic depth, one number for each image: 1 / keep or 0 in training, 1 in evaluation."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.keep = 1 - rate

    def forward(self, images: Tensor) -> Tensor:
        """images: float [B, ...]; float [B]."""
        mask = images.new_ones(len(images))
        return mask.bernoulli_(self.keep).div_(self.keep) if self.training else mask


class MaskedAdd(nn.Module):
    """x + mask * f, the mask a number for each image."""

    def forward(self, x: Tensor, f: Tensor, mask: Tensor) -> Tensor:
        """x, f: float [B, ...]; mask: float [B]."""
        return x + f * mask.to(f.dtype).view(-1, *[1] * (f.dim() - 1))


class Walk:
    """One way through the network for every task.

    backbone: with the shared updates that are not operations by themselves.
    """

    def __init__(self, network: LowRankNetwork, backbone: Backbone, *, is_deployed: bool) -> None:
        self.network, self.backbone, self.is_deployed = network, backbone, is_deployed
        self.names = {id(part): name for name, part in backbone.module().named_modules()}

    def graph(self) -> TaskGraph:
        """The whole network, without nodes that no task needs."""
        data, places = self.network.data, self.network.places
        graph = TaskGraph(data.inputs)
        for task in data.task_names:
            image = graph.input(data.input_of(task))
            x = graph.add(self.backbone.stem_operation(), image)
            for index in range(len(self.backbone.blocks)):
                if index not in places.blocks:
                    x = graph.add(_with_origins(self.backbone.block_operation(index)), x)
                elif index in places.cut:
                    path: TaskPath = self.network.path if index == places.blocks[0] else "own"
                    x = self._cut_block(graph, index, task, x, path)
                else:
                    x = graph.add(self._whole_block(index, task), x)
            x = graph.add(_with_origins(self.backbone.tail_operation()), x)
            graph.output(task, graph.add(self.network.heads[task], x))
        return graph.pruned()

    def _whole_block(self, index: int, task: str) -> Operation:
        """A block that one task runs by itself."""
        plain = self.backbone.block_operation(index)
        block = copied(plain.module, plain.module.parameters())
        start = f"blocks.{index}.module."
        own = {name: update for name, update in self.network.own[task].items() if name.startswith(start)}
        return block_operation(plain, block, {name.removeprefix(start): self._update(u) for name, u in own.items()})

    def _cut_block(self, graph: TaskGraph, index: int, task: str, x: Value, path: TaskPath) -> Value:
        """x_t after the block. x_t is x up to the first update of the task, which follows attention."""
        skip = self.backbone.skip_operation(index)
        assert skip is not None, "only blocks with a skip path are cut"
        x = x_t = graph.add(_with_origins(skip), x)
        chains = self.backbone.sublayer_operations(index)
        for number, (chain, sublayer) in enumerate(zip(chains, self.backbone.blocks[index].sublayers(), strict=True)):
            f, f_t = x, x_t
            for operation in chain:
                if is_dense(operation.module):
                    f, f_t = self._layer(graph, operation, task, f, f_t, path)
                else:
                    operation = _with_origins(operation)
                    f, f_t = graph.add(operation, f), graph.add(operation, f_t)
            masks = self._masks(graph, (index, number), sublayer.drop, task)
            x, x_t = self._residual(graph, x, f, masks), self._residual(graph, x_t, f_t, masks)
        return x_t

    def _masks(self, graph: TaskGraph, place: tuple[int, int], rate: float, task: str) -> list[Value]:
        """The mask of stochastic depth, which all streams of an image share; none where nothing is dropped."""
        if rate == 0 or self.is_deployed:
            return []
        operation = Operation("lora.drop_mask", {"rate": rate, "place": place}, DropMask(rate), "added")
        return [graph.add(operation, graph.input(self.network.data.input_of(task)))]

    @staticmethod
    def _residual(graph: TaskGraph, x: Value, f: Value, masks: list[Value]) -> Value:
        if not masks:
            return graph.add(parameterless("add"), x, f)
        return graph.add(Operation("lora.masked_add", {}, MaskedAdd(), "added"), x, f, *masks)

    def _update(self, update: LowRank) -> LowRank:
        return update.without_dropout() if self.is_deployed else update

    def _layer(
        self, graph: TaskGraph, w: Operation, task: str, x: Value, x_t: Value, path: TaskPath
    ) -> tuple[Value, Value]:
        """(y, y_t) of a layer. Official code: y = W x + b + s B A x and y_t = W x + b + s_t B_t A_t x_t (`side`), which
        lacks this layer's shared update; `matrixv2` adds it. `own` is ours: y_t = W x_t + b + s_t B_t A_t x_t.
        """
        name = self.names[id(w.module)]
        own = graph.add(update_operation(self._update(self.network.own[task][name])), x_t)
        if path == "own":
            y_t = graph.add(parameterless("add"), graph.add(w, x_t), own)
            return y_t, y_t
        y = dense = graph.add(w, x)
        if name in self.network.shared and (not self.is_deployed or self.network.kept_apart(name)):
            shared = graph.add(update_operation(self._update(self.network.shared[name])), x)
            y = graph.add(parameterless("add"), dense, shared)
        return y, graph.add(parameterless("add"), dense if path == "side" else y, own)


def _with_origins(operation: Operation) -> Operation:
    """The operation, with the updates inside it counted as added."""
    names = added_names(operation.module)
    return dataclasses.replace(operation, origins=dict.fromkeys(names, "added")) if names else operation
