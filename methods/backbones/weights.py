"""Initial weights of a backbone: a file of a timm model's state, or timm's own pretrained weights.

Nothing is loaded halfway: a key that is missing, unexpected or of another shape is an error that names it. Only what
belongs to the model's own classifier is dropped, and where a file lacks it, not missed.
"""

from __future__ import annotations

import pickle
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import safetensors
import safetensors.torch
import timm
import torch
from timm.models import clean_state_dict
from torch import Tensor, nn

from datasets.errors import UsageError, nearest

# Where training scripts put the state dict in a checkpoint; as in timm's loader, averaged weights come first.
_ENTRIES = ("state_dict_ema", "model_ema", "state_dict", "model")
_COUNTER = "num_batches_tracked"  # of batch norms; older files lack it, and nothing reads it where momentum is a number


def pretrained_tag(name: str) -> str:
    """timm's tag of the weights that `pretrained` loads for a model, a1_in1k of resnet50.a1_in1k; empty for none."""
    config = timm.models.get_pretrained_cfg(name)
    return (config.tag or "") if config is not None else ""


def read_state(path: Path) -> tuple[dict[str, Tensor], str]:
    """(state dict, the entry that held it, '' at top) of a .safetensors file or a torch file, on the CPU; wrappers'
    prefixes (`module.`, `_orig_mod.`) are taken off as timm does. Torch files are read without unpickling objects.

    Raises UsageError where there is no file, it cannot be read, or it holds something else.
    """
    if not path.is_file():
        choice = nearest(str(path), ("none", "pretrained"), n=1)[0]
        raise UsageError(
            f"No weights file {str(path)!r}; expected a file, 'none' or 'pretrained'; nearest: {choice!r}."
        )
    loaded = _read(path)
    entry = next((key for key in _ENTRIES if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping)), "")
    found = cast("Mapping[str, object]", loaded)[entry] if entry else loaded
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise UsageError(
            f"{str(path)!r} holds no state dict: expected names with tensors, at top or in {' or '.join(_ENTRIES)}."
        )
    return clean_state_dict(dict(found)), entry


def _read(path: Path) -> object:
    """What a file holds. Raises UsageError in one line of our own: torch's has several, and advises unsafe loading."""
    expected = "expected a .safetensors file, or a torch file with a state dict (torch.save(model.state_dict(), ...))"
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with torch.serialization.safe_globals([Namespace]):  # timm keeps the arguments of a training there
            return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError, safetensors.SafetensorError) as error:
        raise UsageError(f"Weights file {str(path)!r} {_what_it_is(path)}; {expected}.") from error


def _what_it_is(path: Path) -> str:
    """Of a file that could not be read, in words that follow its name."""
    with path.open("rb") as file:
        start = file.read(512).lstrip().lower()
    if not start:
        return "is empty"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page, as a download that failed leaves it"
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file that it points to"
    if path.suffix != ".safetensors" and start.startswith((b"pk", b"\x80")):
        try:
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError):
            names = []
        if names:
            return f"holds Python objects besides tensors ({min(names)}), which are not loaded: they can run code"
    return "cannot be read: it is damaged or of another format"


def _shape(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else "x".join(map(str, tensor.shape)) or "scalar"


def load_weights(model: nn.Module, path: Path, dropped: tuple[str, ...]) -> str:
    """Load a timm model's state from a file, in place. Gives the entry of the file that was taken, '' for none.

    dropped: prefixes of keys that are neither loaded nor missed. Raises UsageError in one line that names the first key
    that does not fit, its shape in the model and in the file, a prefix that all keys of the file share, and the file.
    """
    state, entry = read_state(path)
    given = {key: value for key, value in state.items() if not key.startswith(dropped)}
    expected = {key: value for key, value in model.state_dict().items() if not key.startswith(dropped)}
    wrong = [
        key
        for key in expected
        if (key in given or not key.endswith(_COUNTER)) and _shape(given.get(key)) != _shape(expected[key])
    ]
    wrong += [key for key in given if key not in expected]
    if wrong:
        key = wrong[0]
        more = f" ({len(wrong) - 1} more keys do not fit)" if len(wrong) > 1 else ""
        where = f", entry {entry!r}," if entry else ""
        prefix = next((name.removesuffix(key) for name in given if name.endswith(f".{key}")), "")
        hint = f" Keys of the file start with {prefix!r}; take that off." if prefix else ""
        raise UsageError(
            f"Weights file {str(path)!r}{where} does not fit: {key!r} is {_shape(expected.get(key))} in the model and "
            f"{_shape(given.get(key))} in the file{more}.{hint}"
        )
    model.load_state_dict(given, strict=False)
    return entry
