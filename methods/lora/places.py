"""Which layers have shared updates and which have each task's own, and what of the backbone is trained besides."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import nn

from datasets.errors import UsageError
from methods.backbones.backbone import Backbone
from methods.backbones.family import find_family
from methods.backbones.forms import StageEntry
from methods.backbones.sublayers import is_dense
from methods.lora.parameters import LoraParams, Suffix
from methods.lora.updates import is_norm, layers_of, weights_of

LEAST_COVERED = 0.5  # of the weights of convolutions and linear layers


@dataclasses.dataclass(frozen=True)
class Places:
    """Names of layers are those in `Backbone.module()`.

    shared: layers with a shared update. own: layers with an update of each task's own. apart: shared updates that are
    operations by themselves while they are trained, since a task's stream reads W x and the shared one W x + s B A x.
    blocks: numbers of the blocks with updates of each task's own, in order, up to the last one. cut: those of them
    that are cut into sub-layers; the others run whole for every task.
    """

    shared: tuple[str, ...]
    own: tuple[str, ...]
    apart: tuple[str, ...]
    blocks: tuple[int, ...]
    cut: tuple[int, ...]


def places_of(backbone: Backbone, p: LoraParams) -> Places:
    """Raises UsageError for more blocks than there are, and for `task_blocks: stage_last`."""
    body, bias = backbone.module(), find_family(backbone.config.name).position_bias
    names = {id(module): name for name, module in body.named_modules()}
    blocks = task_blocks(backbone, p)
    shared: list[str] = []
    own: list[str] = []
    apart: list[str] = []
    cut: list[int] = []
    for index, block in enumerate(backbone.blocks):
        layers = [names[id(layer)] for layer in layers_of(block.module, bias).values()]
        if index not in blocks:
            shared += layers
            continue
        dense = [names[id(part)] for sub in block.sublayers() for part in sub.chain if is_dense(part)]
        if not dense:
            own += layers
            continue
        cut.append(index)
        own += dense
        shared += [name for name in layers if name not in dense]
        if index == blocks[0]:
            apart += read_twice(dense, p)
    shared += [names[id(layer)] for layer in layers_of(backbone.tail, bias).values()]
    return Places((*shared, *apart), tuple(own), tuple(apart), blocks, tuple(cut))


def read_twice(dense: Sequence[str], p: LoraParams) -> Sequence[str]:
    """Dense layers of the first cut block that keep a shared update. Beside the shared stream tasks read none of the
    last one's, so there it would train nothing; on a path of its own a task reads no shared update at all.
    """
    match p.task_path:
        case "side":
            return dense[:-1]
        case "side_with_shared":
            return dense
        case "own":
            return ()


def task_blocks(backbone: Backbone, p: LoraParams) -> tuple[int, ...]:
    """Numbers of the blocks with updates of each task's own."""
    n_blocks, asked = len(backbone.blocks), p.task_blocks
    if asked == "stage_last":
        raise UsageError(
            "task_blocks is 'stage_last', whose features after the inner stages no head here reads: they would be dead "
            "nodes. Choose 'last' or {suffix: m}."
        )
    if p.task_rank == 0 or asked == "none":
        return ()
    n = 1
    if isinstance(asked, Suffix):
        n = n_blocks if asked.suffix == "all" else asked.suffix
    if n > n_blocks:
        raise UsageError(
            f"task_blocks is {{suffix: {n}}}, and {backbone.config.name!r} has {n_blocks} blocks; choose at most "
            f"{n_blocks}, or all."
        )
    return tuple(range(n_blocks - n, n_blocks))


def require_places(backbone: Backbone, p: LoraParams) -> Places:
    """As `places_of`. Raises UsageError too where most weights would stay as they are, and for a path beside the shared
    stream inside blocks that are not cut.
    """
    found, name = places_of(backbone, p), backbone.config.name
    covered = share_covered(backbone, found, p)
    if covered < LEAST_COVERED:
        raise UsageError(
            f"Low-rank updates cover {covered:.0%} of the weights of convolutions and linear layers of {name!r}, where "
            f"at least {LEAST_COVERED:.0%} are expected; grouped convolutions have none. Choose a backbone of dense "
            "layers, such as resnet50."
        )
    if p.task_path == "side_with_shared" and set(found.blocks) - set(found.cut):
        raise UsageError(
            f"task_path is 'side_with_shared', and the last blocks of {name!r} are not cut into sub-layers; choose "
            "'own'."
        )
    return found


def share_covered(backbone: Backbone, places: Places, p: LoraParams) -> float:
    """Share of the weights of convolutions and linear layers that have an update of any kind or are trained whole."""
    body, moving = backbone.module(), {id(q) for q in trained_whole(backbone, p)}
    moving |= {id(body.get_submodule(name).get_parameter("weight")) for name in (*places.shared, *places.own)}
    sizes = [(weight.numel(), id(weight) in moving) for weight in weights_of(body)]
    return sum(n for n, is_covered in sizes if is_covered) / sum(n for n, _ in sizes)


def trained_whole(backbone: Backbone, p: LoraParams) -> list[nn.Parameter]:
    """The backbone's own parameters that are trained; everything else is frozen, biases too."""
    body, bias = backbone.module(), find_family(backbone.config.name).position_bias
    if p.train == "all":
        return list(body.parameters())
    norms = [q for module in body.modules() if is_norm(module) for q in module.parameters(recurse=False)]
    in_norms = {id(q) for q in norms}
    entries = [block.module.downsample for block in backbone.blocks if isinstance(block.module, StageEntry)]
    parts = {
        "norms": norms,
        "embeddings": [q for q in backbone.stem.parameters() if id(q) not in in_norms],
        "merging": [q for entry in entries for q in entry.parameters() if id(q) not in in_norms],
        "position_bias": [q for name, q in body.named_parameters() if not set(bias).isdisjoint(name.split("."))],
    }
    return list({id(q): q for part in p.train for q in parts[part]}.values())
