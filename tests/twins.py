"""Small synthetic copies of data sets on disk: real names, encodings, dtypes and ignore values, a handful of images.

Content is drawn, not noise: a floor, a back wall and a box seen by a pinhole camera, so that depth and normals are
exact and agree. Everything is a function of the arguments; nothing is random.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

# Omniglot


def drawing(alphabet: str, character: int, drawer: int, size: int = 105) -> Image.Image:
    """A 1-bit image, ink 0: as many strokes as the character's number, moved a little by each drawer."""
    paper = np.ones((size, size), dtype=bool)
    offset = (len(alphabet) + drawer) % 20
    for stroke in range(character):
        paper[10 + 8 * stroke : 13 + 8 * stroke, 10 + offset : 60 + offset] = False
    return Image.fromarray(paper)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def omniglot_files(alphabets: Mapping[str, int], drawers: int = 20) -> dict[str, bytes]:
    """{Alphabet/characterNN/DDDD_KK.png: content}."""
    files = {}
    for number, (alphabet, characters) in enumerate(alphabets.items()):
        for character in range(1, characters + 1):
            for drawer in range(1, drawers + 1):
                name = f"{alphabet}/character{character:02d}/{100 * number + character:04d}_{drawer:02d}.png"
                files[name] = png(drawing(alphabet, character, drawer))
    return files


SMALL1 = {"Balinese": 2, "Early_Aramaic": 2, "Greek": 3, "Korean": 2, "Latin": 2}
SMALL2 = {"Greek": 3, "Japanese_(katakana)": 2, "Latin": 2, "Sanskrit": 2, "Tagalog": 2}


def omniglot_small_zips(folder: Path) -> None:
    """Both zips, Greek and Latin the same in both."""
    union = omniglot_files({**SMALL1, **SMALL2})
    for number, alphabets in ((1, SMALL1), (2, SMALL2)):
        base = f"images_background_small{number}"
        with zipfile.ZipFile(folder / f"{base}.zip", "w") as archive:
            archive.writestr(f"{base}/", b"")
            for name, content in union.items():
                if name.split("/")[0] in alphabets:
                    archive.writestr(f"{base}/{name}", content)


def omniglot_torchvision(folder: Path) -> None:
    """Two alphabets a set would leave the other tasks without images: all fifty, one or two characters each."""
    from datasets.omniglot_alphabets import BACKGROUND, EVALUATION

    for base, alphabets in (("images_background", BACKGROUND), ("images_evaluation", EVALUATION)):
        counts = {name: 1 + (name in SMALL1) for name in alphabets}
        for name, content in omniglot_files(counts).items():
            path = folder / "omniglot-py" / base / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


Writer = Callable[[Path], None]
# (data set, layout) -> who writes the twin into the data set's folder.
TWINS: Mapping[tuple[str, str], Writer] = {
    ("omniglot", "small_zips"): omniglot_small_zips,
    ("omniglot", "torchvision"): omniglot_torchvision,
}


def write_twin(root: Path, name: str, layout: str) -> Path:
    """The data root in which that one twin lies: `root/<layout>/<name>`."""
    base = root / f"{name}-{layout}"
    folder = base / name
    if not folder.exists():
        folder.mkdir(parents=True)
        TWINS[name, layout](folder)
    return base
