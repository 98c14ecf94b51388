"""Initial weights of a backbone: a file of a timm model's state, or timm's own pretrained weights.

Nothing is loaded halfway: a key that is missing, unexpected or of another shape is an error that names it. Only what
belongs to the model's own classifier is dropped, and where a file lacks it, not missed.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from datasets.errors import UsageError, nearest

_NESTED = ("state_dict", "model")  # where training scripts put the state dict in a checkpoint


def pretrained_tag(name: str) -> str:
    """timm's tag of the weights that `pretrained` loads for a model, a1_in1k of resnet50.a1_in1k; empty for none."""
    config = timm.models.get_pretrained_cfg(name)
    return (config.tag or "") if config is not None else ""


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a .safetensors file or a torch file, on the CPU; torch files are read without unpickling
    objects.

    Raises UsageError where there is no file, it cannot be read, or it holds something else.
    """
    if not path.is_file():
        choice = nearest(str(path), ("none", "pretrained"), n=1)[0]
        raise UsageError(
            f"No weights file {str(path)!r}; expected a file, 'none' or 'pretrained'; nearest: {choice!r}."
        )
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        loaded: object = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, safetensors.SafetensorError) as error:
        reason = str(error).strip().split("\n")[0][:160]
        raise UsageError(f"{str(path)!r} is no .safetensors file and no weights-only torch file: {reason}") from error
    for key in _NESTED:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise UsageError(f"{str(path)!r} holds no state dict: expected names with tensors, at top or in 'state_dict'.")
    return dict(loaded)


def _shape(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else "x".join(map(str, tensor.shape)) or "scalar"


def load_weights(model: nn.Module, path: Path, dropped: tuple[str, ...]) -> None:
    """Load a timm model's state from a file, in place.

    dropped: prefixes of keys that are neither loaded nor missed. Raises UsageError in one line that names the first key
    that does not fit, its shape in the model and in the file, and the file.
    """
    given = {key: value for key, value in read_state(path).items() if not key.startswith(dropped)}
    expected = {key: value for key, value in model.state_dict().items() if not key.startswith(dropped)}
    wrong = [key for key in expected if key not in given or given[key].shape != expected[key].shape]
    wrong += [key for key in given if key not in expected]
    if wrong:
        key = wrong[0]
        more = f" ({len(wrong) - 1} more keys do not fit)" if len(wrong) > 1 else ""
        raise UsageError(
            f"Weights file {str(path)!r} does not fit: {key!r} is {_shape(expected.get(key))} in the model and "
            f"{_shape(given.get(key))} in the file{more}."
        )
    model.load_state_dict(given, strict=False)
