"""What a layer of a backbone is, and what copies of layers cost."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from datasets.contracts import DatasetSpec
from methods.backbones.backbone import Backbone
from methods.control import ArchitectureSize
from methods.graph.cost import Shape, node_costs
from methods.graph.operations import Operation
from methods.plain import body_of, plain_graph
from methods.recon.parameters import Granularity

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclasses.dataclass(frozen=True)
class Layer:
    """What gets a copy per task or none. part: position of its part among `body_of`. parameters: {name in the part:
    elements}, one vector in this order. is_norm: whether nothing but norms is in it.
    """

    name: str
    part: int
    parameters: Mapping[str, int]
    is_norm: bool

    @property
    def size(self) -> int:
        """d: its number of parameters."""
        return sum(self.parameters.values())


def layers_of(backbone: Backbone, granularity: Granularity) -> list[Layer]:
    """The n layers in the order of the network: modules that own parameters, weight and bias together, norms too
    [official code]. What a module owns besides (position embeddings, class token, tables of biases) is in its layer.

    `block`: the parts that have parameters.
    """
    names = ["stem", *(f"blocks.{index}" for index in range(len(backbone.blocks))), "tail"]
    layers = []
    for number, (name, part) in enumerate(zip(names, body_of(backbone), strict=True)):
        found = [
            Layer(f"{name}.{path}" if path else name, number, own, isinstance(module, _NORMS))
            for path, module, own in _owners(part.module)
        ]
        if granularity == "block" and found:
            whole = {parameter: n for layer in found for parameter, n in layer.parameters.items()}
            found = [Layer(name, number, whole, all(layer.is_norm for layer in found))]
        layers += found
    return layers


def _owners(module: nn.Module) -> list[tuple[str, nn.Module, dict[str, int]]]:
    """(name, module, {parameter: elements}) of the modules that own parameters; a tied one belongs to the first."""
    tied: set[int] = set()
    found = []
    for path, owner in module.named_modules():
        own = {f"{path}.{name}" if path else name: p for name, p in owner.named_parameters(recurse=False)}
        own = {name: p for name, p in own.items() if id(p) not in tied}
        tied.update(map(id, own.values()))
        if own:
            found.append((path, owner, {name: p.numel() for name, p in own.items()}))
    return found


def own_parameters(layers: Sequence[Layer], n_parts: int) -> list[list[str]]:
    """[part]: names of the parameters that these layers hold in it."""
    names: list[list[str]] = [[] for _ in range(n_parts)]
    for layer in layers:
        names[layer.part] += layer.parameters
    return names


class Sizes:
    """The size of the network in which some layers have a copy per task, from counts made once.

    P_ref + (T - 1) sum of d over these layers + heads. A part with such a layer runs once a task, and so does all that
    follows it; where tasks have images of their own everything does.
    """

    def __init__(
        self, data: DatasetSpec, backbone: Backbone, layers: Sequence[Layer], heads: Mapping[str, Operation]
    ) -> None:
        self.layers = layers
        self.reference = backbone.n_parameters()
        self._n_tasks = len(data.tasks)
        self._splits = data.domains == "multi"
        self._heads = sum(p.numel() for head in heads.values() for p in head.module.parameters())
        shape: Shape = (1, backbone.config.in_chans, *data.native_size)
        graph = plain_graph(data, data.task_names, backbone, heads.__getitem__)
        costs = node_costs(graph, dict.fromkeys(data.inputs, shape))
        macs = {id(node.operation.module): costs[node.name].macs for node in graph.reachable()}
        self._head_macs = sum(macs[id(head.module)] for head in heads.values())
        # A part that does nothing (no tail) is no node.
        self._part_macs = [macs.get(id(part.module), 0) for part in body_of(backbone)]

    def growth(self, order: Sequence[int]) -> list[int]:
        """[K]: parameters of the backbone and of the copies of the first K of these layers, from K = 0 on."""
        copies = ((self._n_tasks - 1) * self.layers[k].size for k in order)
        return list(itertools.accumulate(copies, initial=self.reference))

    def parameters(self, chosen: Sequence[int]) -> int:
        """Of the backbone and the copies. chosen: positions of layers."""
        return self.growth(chosen)[-1]

    def size(self, chosen: Sequence[int]) -> ArchitectureSize:
        """Of the whole network: parameters, and macs_joint, or macs_sum where tasks have their own images."""
        n_parts = len(self._part_macs)
        first = 0 if self._splits else min((self.layers[k].part for k in chosen), default=n_parts)
        macs = sum(self._part_macs[:first]) + self._n_tasks * sum(self._part_macs[first:]) + self._head_macs
        return ArchitectureSize(self.parameters(chosen) + self._heads, macs)
