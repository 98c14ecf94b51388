"""State dicts of other programs brought to timm's names, every shape checked.

Known: EfficientNet-PyTorch and its port EfficientNet-Lite (`_conv_stem`, `_blocks.0._expand_conv`, ..., `_fc`), which
number blocks through where timm numbers them by stage. Their tensors are timm's as they are; values do not change.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import timm
import torch
from torch import Tensor

from datasets.errors import UsageError, unknown
from methods.backbones.backbone import supported_backbones
from methods.backbones.weights import read_state

_BLOCK = re.compile(r"_blocks\.(\d+)\.(_[a-z0-9_]+)\.(.+)")
_ENDS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_SQUEEZE = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
# Parts of a block in timm; the first block of the network expands nothing, and timm numbers its parts without that.
_EXPANDING = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
    **_SQUEEZE,
}
_PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2", **_SQUEEZE}


def timm_state(path: Path, backbone: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(state dict with the names, order and shapes of a timm model, {its name: name in the file}) from a file.

    A file that has timm's names already is taken as it is. Raises UsageError for an unknown backbone, a file that
    cannot be read without unpickling objects, names of another program, and the first tensor that is absent, left over
    or of another shape.
    """
    if backbone.split(".")[0] not in supported_backbones():
        raise unknown("backbone", backbone, supported_backbones())
    given, _ = read_state(path)
    with torch.device("meta"):
        expected = timm.create_model(backbone).state_dict()
    names = {name: name for name in given} if set(given) <= set(expected) else _names(given, expected, path, backbone)
    for name in [*expected, *names]:
        found = given.get(names.get(name, ""))
        shapes = [None if one is None else tuple(one.shape) for one in (expected.get(name), found)]
        if shapes[0] != shapes[1]:
            words = ["absent" if shape is None else "x".join(map(str, shape)) or "scalar" for shape in shapes]
            raise UsageError(
                f"Weights file {str(path)!r} is not of {backbone!r}: {name!r} is {words[0]} in the model and "
                f"{words[1]} in the file{f' ({names[name]!r})' if name in names else ''}."
            )
    return {name: given[names[name]].contiguous() for name in expected}, {name: names[name] for name in expected}


def _names(given: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path, backbone: str) -> dict[str, str]:
    """{timm's name: name in the file}. Raises UsageError for a name that is neither program's."""
    # timm's blocks in order: `blocks.STAGE.NUMBER`.
    places = list(dict.fromkeys(".".join(name.split(".")[:3]) for name in expected if name.startswith("blocks.")))
    expanding = {match[1] for name in given if (match := _BLOCK.fullmatch(name)) and match[2] == "_expand_conv"}
    names: dict[str, str] = {}
    for name in given:
        renamed = next(_renamed(name, places, expanding), None)
        if renamed is None:
            raise UsageError(
                f"Weights file {str(path)!r}: {name!r} has no counterpart in {backbone!r}; known are timm's own names "
                "and those of EfficientNet-PyTorch (_conv_stem, _blocks.0._expand_conv, ...)."
            )
        names[renamed] = name
    return names


def _renamed(name: str, places: list[str], expanding: set[str]) -> Iterator[str]:
    """timm's name of a tensor; none for an unknown one."""
    match = _BLOCK.fullmatch(name)
    if match is None:
        part, _, rest = name.partition(".")
        if part in _ENDS:
            yield f"{_ENDS[part]}.{rest}"
        return
    number, part, rest = match.groups()
    parts = _EXPANDING if number in expanding else _PLAIN
    if int(number) < len(places) and part in parts:
        yield f"{places[int(number)]}.{parts[part]}.{rest}"
