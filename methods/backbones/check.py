"""Is a family of backbones cut right? What `list backbones --check` asks of a model, timm's own beside it.

Equal bits are asked where both sides run the same operations on the same images.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from datasets.errors import UsageError
from methods.backbones.backbone import Backbone, create_backbone
from methods.backbones.family import BackboneConfig, Size, find_family
from methods.graph.operations import Operation, build_module

_SIZE = (64, 64)
_BATCH = 2


def faults(name: str) -> Iterator[str]:
    """What is wrong with the cut of a timm model, a line each; nothing where it is right.

    Raises UsageError for a name that no family has, and where the model cannot be built or cut at all.
    """
    size = _size_of(name)
    given = size if find_family(name).fixed_size else None
    arguments: dict[str, Any] = {} if given is None else {"img_size": given}
    model = timm.create_model(name, **arguments)
    _move_from_start(model)
    with tempfile.TemporaryDirectory(prefix="sharebench-check-") as folder:
        file = Path(folder) / "weights.safetensors"
        save_file({key: value.contiguous() for key, value in model.state_dict().items()}, file)
        backbone = create_backbone(BackboneConfig(name, image_size=given), weights=file, seed=0)
    model.eval()
    backbone.module().eval()
    images = torch.randn(_BATCH, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = cast(Tensor, cast(Any, model).forward_features(images))
        if not torch.isfinite(expected).all():
            yield "timm's forward_features is not finite on random images and weights; nothing can be compared"
        elif not torch.equal(backbone.forward_features(images), expected):
            yield "tail(blocks(stem(images))) differs from timm's forward_features"
        yield from _blocks(backbone, images)
        yield from _sublayers(backbone, images)
        yield from _operations(backbone, images)
        yield from _training(backbone, images)


def _size_of(name: str) -> Size:
    """64 x 64 pixels, or what the model was made for where its patches and windows need that."""
    if not find_family(name).fixed_size:
        return _SIZE
    made_for = timm.get_pretrained_cfg(name)
    height, width = _SIZE if made_for is None else made_for.input_size[-2:]
    return int(height), int(width)


def _move_from_start(module: nn.Module) -> None:
    """Weights and statistics that leave nothing at a neutral value, so that a part which is left out shows."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator)
                tensor.mul_(0.8 + 0.4 * noise).add_(0.02 * (noise - 0.5))


def _blocks(backbone: Backbone, images: Tensor) -> Iterator[str]:
    x = backbone.stem(images)
    for number, block in enumerate(backbone.blocks):
        y, kind = block(x), type(block.module).__name__
        if block.skip is not None:
            before = x.clone()
            if not torch.equal(block.execute(x, block.skip(x)), y):
                yield f"block {number} ({kind}): execute(x, skip(x)) differs from the block"
            if not torch.equal(x, before):
                yield f"block {number} ({kind}): execute changes its input"
            n_branch, n_skip = _count(block.branch()), _count(block.skip)
            if n_branch + n_skip != _count(block.module):
                yield (
                    f"block {number} ({kind}): branch and skip hold {n_branch:,} + {n_skip:,} parameters, the block "
                    f"{_count(block.module):,}"
                )
        x = y


def _sublayers(backbone: Backbone, images: Tensor) -> Iterator[str]:
    """Whether the sub-layers of a block make up the block. Not bit by bit: they need not run on its shapes."""
    x = backbone.stem(images)
    for number, block in enumerate(backbone.blocks):
        y, kind = block(x), type(block.module).__name__
        sublayers, skip = block.sublayers(), block.skip
        if sublayers and skip is not None:
            stream = skip(x)
            for sublayer in sublayers:
                added = stream
                for piece in sublayer.chain:
                    added = piece(added)
                stream = stream + added
            if not torch.allclose(stream, y, rtol=1e-4, atol=1e-5 * float(y.abs().max())):
                yield f"block {number} ({kind}): its sub-layers give another output"
            pieces = [piece for sublayer in sublayers for piece in sublayer.chain]
            if _count(nn.ModuleList([skip, *pieces])) != _count(block.module):
                yield f"block {number} ({kind}): its sub-layers hold other parameters"
        x = y


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _operations(backbone: Backbone, images: Tensor) -> Iterator[str]:
    """Whether every part comes back from its JSON configuration."""
    x = images
    parts: list[tuple[str, Operation]] = [("stem", backbone.stem_operation())]
    parts += [(f"block {number}", backbone.block_operation(number)) for number in range(len(backbone.blocks))]
    for what, operation in [*parts, ("tail", backbone.tail_operation())]:
        y = operation.module(x)
        if not isinstance(operation.module, nn.Identity):
            again = build_module(operation.kind, json.loads(json.dumps(operation.config)))
            again.load_state_dict(operation.module.state_dict())
            if not torch.equal(again.eval()(x), y):
                yield f"{what} comes back from its configuration as another module"
        x = y


def _training(backbone: Backbone, images: Tensor) -> Iterator[str]:
    """Whether a training pass of a block leaves the same output and statistics as execute of its skip."""
    x = backbone.stem(images)
    for number, block in enumerate(backbone.blocks):
        if block.skip is not None:
            plain, split = copy.deepcopy(block).train(), copy.deepcopy(block).train()
            skip = split.skip
            assert skip is not None
            same = torch.equal(plain(x), split.execute(x, skip(x)))
            if not same or not all(map(torch.equal, plain.buffers(), split.buffers())):
                kind = type(block.module).__name__
                yield f"block {number} ({kind}): a training pass differs from execute(x, skip(x))"
        x = block(x)


def summary(name: str) -> tuple[list[str], bool]:
    """(lines for people, whether the cut is right) of one model."""
    try:
        found = list(faults(name))
    except (UsageError, AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:
        found = [f"cannot be built or cut: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"]
    if found:
        return [f"{name}: wrong", *(f"  {fault}" for fault in found)], False
    return [f"{name}: right; parts equal timm's forward_features, skips, training and files too"], True
