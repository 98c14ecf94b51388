"""Networks as one would deploy them: one flat graph of operators, in which batch norms are part of the convolutions."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

_CONVOLUTIONS = (torch.ops.aten.conv2d.default, torch.ops.aten.conv2d.padding)
_NORM = torch.ops.aten.batch_norm.default


def folded(module: nn.Module, *example: object) -> fx.GraphModule:
    """A module that is in eval mode as a flat graph with its batch norms folded; outputs agree up to rounding.

    example: inputs; the graph runs for inputs of their shapes only. A norm is folded where it is all that reads a
    convolution, and stays where it follows anything else. The module itself is left as it is.
    """
    with torch.no_grad():
        graph_module = torch.export.export(module, example, strict=False).module()
        for node in list(graph_module.graph.nodes):
            if node.target is _NORM:
                _fold(graph_module, node)
    graph_module.graph.eliminate_dead_code()
    graph_module.graph.lint()
    graph_module.recompile()
    graph_module.delete_all_unused_submodules()
    return graph_module.requires_grad_(False)


def _fold(graph_module: fx.GraphModule, norm: fx.Node) -> None:
    """Give the convolution in front of a norm the weights of both, where nothing else reads it."""
    convolution = norm.args[0]
    assert isinstance(convolution, fx.Node)
    if convolution.target not in _CONVOLUTIONS or len(convolution.users) > 1:
        return
    _, scale, shift, mean, variance, training, _, epsilon, *_ = norm.args
    if training or mean is None or variance is None:
        return
    image, weight, bias, *rest = [*convolution.args, None][: max(3, len(convolution.args))]
    values = [_constant(graph_module, node) for node in (weight, bias, mean, variance, scale, shift)]
    kernel, offset, centre, spread, gamma, beta = values
    assert kernel is not None
    assert centre is not None
    assert spread is not None
    fused = fuse_conv_bn_weights(kernel, offset, centre, spread, cast(float, epsilon), gamma, beta)
    names = [f"{norm.name}_{part}" for part in ("weight", "bias")]
    for name, parameter in zip(names, fused, strict=True):
        graph_module.register_parameter(name, nn.Parameter(parameter.detach(), requires_grad=False))
    with graph_module.graph.inserting_before(convolution):
        held = [graph_module.graph.get_attr(name) for name in names]
        new = graph_module.graph.call_function(convolution.target, (image, *held, *rest), dict(convolution.kwargs))
    norm.replace_all_uses_with(new)
    graph_module.graph.erase_node(norm)
    graph_module.graph.erase_node(convolution)


def _constant(graph_module: fx.GraphModule, node: object) -> Tensor | None:
    """The tensor that a node of kind `get_attr` stands for; None for None."""
    if node is None:
        return None
    assert isinstance(node, fx.Node)
    assert node.op == "get_attr"
    found: object = graph_module
    for part in str(node.target).split("."):
        found = getattr(found, part)
    assert isinstance(found, Tensor)
    return found
