"""`omniglot`: handwritten characters of many alphabets; a task is one alphabet. Multi-domain. Spec: datasets 10.

Source: https://github.com/brendenlake/omniglot (Lake, Salakhutdinov, Tenenbaum 2015). PNG 105 x 105, ink 0, paper 1;
20 people drew each character: `Alphabet/characterNN/DDDD_KK.png`, KK = drawer 01 to 20. Images are inverted here (ink
1). Ours, since no official split into train and test exists: 50 / 20 / 30 % of the drawers of each alphabet.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pydantic

from datasets.contracts import DatasetSpec, Split, TaskSpec, Tier
from datasets.errors import ProtocolError, unknown
from datasets.on_disk.files import Archive, Array, FileError, expect, image_array, read_bytes, reduced
from datasets.on_disk.loader import FileLoader, FileOptions
from datasets.on_disk.sources import Fault, Field, Source, number_label, scale_uint8
from datasets.registry import DatasetOptions, ExpectedFiles, register_dataset

# {alphabet: number of characters}. The eight of the small sets were counted in the official zips. The others are
# recalled; their sums, 964 in the background and 659 in the evaluation set, are the published ones, and loading counts
# the characters of each.
SMALL: Mapping[str, int] = {
    "Balinese": 24,
    "Early_Aramaic": 22,
    "Greek": 24,
    "Japanese_(katakana)": 47,
    "Korean": 40,
    "Latin": 26,
    "Sanskrit": 42,
    "Tagalog": 17,
}
BACKGROUND: Mapping[str, int] = {
    **SMALL,
    "Alphabet_of_the_Magi": 20,
    "Anglo-Saxon_Futhorc": 29,
    "Arcadian": 26,
    "Armenian": 41,
    "Asomtavruli_(Georgian)": 40,
    "Bengali": 46,
    "Blackfoot_(Canadian_Aboriginal_Syllabics)": 14,
    "Braille": 26,
    "Burmese_(Myanmar)": 34,
    "Cyrillic": 33,
    "Futurama": 26,
    "Grantha": 43,
    "Gujarati": 48,
    "Hebrew": 22,
    "Inuktitut_(Canadian_Aboriginal_Syllabics)": 16,
    "Japanese_(hiragana)": 52,
    "Malay_(Jawi_-_Arabic)": 40,
    "Mkhedruli_(Georgian)": 41,
    "N_Ko": 33,
    "Ojibwe_(Canadian_Aboriginal_Syllabics)": 14,
    "Syriac_(Estrangelo)": 23,
    "Tifinagh": 55,
}
EVALUATION: Mapping[str, int] = {
    "Angelic": 20,
    "Atemayar_Qelisayer": 26,
    "Atlantean": 26,
    "Aurek-Besh": 26,
    "Avesta": 26,
    "Ge_ez": 26,
    "Glagolitic": 45,
    "Gurmukhi": 45,
    "Kannada": 41,
    "Keble": 26,
    "Malayalam": 47,
    "Manipuri": 40,
    "Mongolian": 30,
    "Old_Church_Slavonic_(Cyrillic)": 45,
    "Oriya": 46,
    "Sylheti": 28,
    "Syriac_(Serto)": 23,
    "Tengwar": 25,
    "Tibetan": 42,
    "ULOG": 26,
}

VERSION = "v1"
SIZE = 105
DRAWERS = 20
SIDES: Mapping[str, tuple[int, int]] = {"train": (0, 10), "val": (10, 14), "test": (14, 20)}  # ranks of the drawers
ZIPS: Mapping[str, str] = {  # published sha256
    "images_background_small1.zip": "f38eb80f801274ac2b4dff5b24289016bfaba4a7d5bb50deebf27104ad6cb8a4",
    "images_background_small2.zip": "3ccaa407515a8778e5d0861875af38b17e418f301ad5bb3b5a6b65d901a41c7f",
}
FOLDERS: Mapping[str, Mapping[str, int]] = {"images_background": BACKGROUND, "images_evaluation": EVALUATION}
_NAME = re.compile(r"(?P<alphabet>[^/]+)/(?P<character>character\d\d)/(?P<file>\d{4}_(?P<drawer>\d\d))\.png")
_TIERS: Mapping[str, Tier] = {"small_zips": "verified on genuine files", "torchvision": "verified on twins"}
_MEAN, _STD = 0.081, 0.273  # measured on the train split of the small sets, all eight alphabets


class OmniglotOptions(FileOptions):
    """How the drawers are split, and how large the images are."""

    split: Literal["drawer", "per_character"] = pydantic.Field(
        default="drawer",
        description="`drawer` keeps everything that a person drew in an alphabet on one side; `per_character` splits "
        "the drawers of each character anew",
    )
    size: Literal[105, 35, 21, 15] = pydantic.Field(
        default=105, description="side of the images in pixels: as in the files (105), or reduced by averaging squares"
    )


def task_name(alphabet: str) -> str:
    """The alphabet in lower-case letters, digits and underscores: `Japanese_(katakana)` is `japanese_katakana`."""
    return re.sub(r"[^a-z0-9]+", "_", alphabet.lower()).strip("_")


def alphabets_of(layout: str) -> dict[str, int]:
    """{alphabet: number of characters} in alphabetical order."""
    return dict(sorted((SMALL if layout == "small_zips" else {**BACKGROUND, **EVALUATION}).items()))


class _Drawing:
    """One PNG: where it lies, and what its name says."""

    def __init__(self, container: Archive | Path, member: str) -> None:
        match = _NAME.fullmatch("/".join(member.split("/")[-3:]))
        if match is None:
            raise FileError(
                f"{_path(container)}: unexpected file {member!r}; expected Alphabet/characterNN/DDDD_KK.png."
            )
        self.container, self.member = container, member
        self.alphabet, self.character, self.drawer = match["alphabet"], match["character"], int(match["drawer"])
        self.id = f"{self.alphabet}/{self.character}/{match['file']}"

    def path(self) -> Path:
        """The file on disk: the archive, or the PNG."""
        return self.container.path if isinstance(self.container, Archive) else self.container / self.member

    def read(self) -> Array:
        """uint8 [105, 105], ink 255."""
        name = f"{_path(self.container)}/{self.member}"
        data = self.container.read(self.member) if isinstance(self.container, Archive) else read_bytes(self.path())
        return np.asarray(255 - expect(image_array(data, name), (SIZE, SIZE), ["uint8"], name))


@dataclasses.dataclass(frozen=True)
class _Pictures:
    drawings: Sequence[_Drawing]
    size: int

    def __call__(self, index: int) -> Array:
        return reduced(self.drawings[index].read(), self.size)


def _path(container: Archive | Path) -> Path:
    return container.path if isinstance(container, Archive) else container


def _drawings(folder: Path, layout: str) -> Iterator[_Drawing]:
    """All drawings, each once. Raises FileError where the two small sets hold different images under one name."""
    if layout == "small_zips":
        checksums: dict[str, int] = {}
        for name in ZIPS:
            archive = Archive(folder / name)
            for member, checksum in archive.members().items():
                drawing = _Drawing(archive, member)
                if drawing.id not in checksums:
                    checksums[drawing.id] = checksum
                    yield drawing
                elif checksums[drawing.id] != checksum:  # Greek and Latin are in both
                    raise FileError(f"{archive.path}: {member!r} differs from the image of that name in the other zip.")
        return
    for name in FOLDERS:
        base = folder / "omniglot-py" / name
        for path in base.glob("*/*/*.png"):
            yield _Drawing(base, path.relative_to(base).as_posix())


def side_of(split: str, key: str) -> frozenset[int]:
    """The drawers of a split: ranks in the order of sha256(`key/KK`), KK = 01 .. 20."""
    order = sorted(range(1, DRAWERS + 1), key=lambda drawer: hashlib.sha256(f"{key}/{drawer:02d}".encode()).digest())
    first, last = SIDES[split]
    return frozenset(order[first:last])


def _source(
    alphabet: str, drawings: Sequence[_Drawing], split: Split, characters: int, options: OmniglotOptions, layout: str
) -> Source:
    """The drawings of an alphabet that belong to a split, by id. characters: the published number."""
    labels = {name: rank for rank, name in enumerate(sorted({drawing.character for drawing in drawings}))}
    whole = options.split == "drawer"
    sides = {name: side_of(split, alphabet if whole else f"{alphabet}/{name}") for name in labels}
    ordered = sorted(drawings, key=lambda drawing: drawing.id)
    chosen = [drawing for drawing in ordered if drawing.drawer in sides[drawing.character]]
    faults = list(_faults(alphabet, drawings, len(labels), characters, options))
    where = [drawing.path() for drawing in chosen].__getitem__
    ranks = np.array([labels[drawing.character] for drawing in chosen], dtype=np.int64)
    return Source(
        ids=[drawing.id for drawing in chosen],
        # What one hand drew stays on one side of every further cut.
        units=[f"{alphabet}/{'' if whole else drawing.character + '/'}{drawing.drawer:02d}" for drawing in chosen],
        image=Field(_Pictures(chosen, options.size), scale_uint8, where),
        targets={task_name(alphabet): Field(ranks.__getitem__, number_label, where)},
        faults=faults,
        in_memory=True,
        meta={"domain": task_name(alphabet)},
        content=sorted({drawing.path() for drawing in chosen}) if layout == "small_zips" else (),
    )


def _faults(
    alphabet: str, drawings: Sequence[_Drawing], found: int, characters: int, options: OmniglotOptions
) -> Iterator[Fault]:
    """Characters that are missing or too many, and characters that not everybody drew."""
    if found > characters or (options.profile == "real" and found != characters):
        yield Fault(alphabet, "", "number of characters", str(characters), str(found))
    drawers: dict[str, set[int]] = {}
    for drawing in drawings:
        drawers.setdefault(drawing.character, set()).add(drawing.drawer)
    everybody = set(range(1, DRAWERS + 1))
    for character, known in sorted(drawers.items()):
        if known != everybody:
            odd = ", ".join(f"{drawer:02d}" for drawer in sorted(known ^ everybody))
            yield Fault(f"{alphabet}/{character}", "", "drawers", "01 to 20, once each", f"missing or unknown: {odd}")


@register_dataset("omniglot")
class Omniglot(FileLoader):
    """Alphabets as tasks: eight in the two small zips, fifty in torchvision's folders."""

    Options = OmniglotOptions
    layouts: ClassVar[Mapping[str, ExpectedFiles]] = {
        "small_zips": ExpectedFiles(
            "{images_background_small1,images_background_small2}.zip", "2.9 MB", tuple(ZIPS), checksums=ZIPS
        ),
        "torchvision": ExpectedFiles(
            "omniglot-py/{images_background,images_evaluation}/ALPHABET/characterNN/DDDD_KK.png",
            "16 MB zipped",
            tuple(f"omniglot-py/{name}" for name in FOLDERS),
        ),
    }

    def spec(self, protocol: str, options: DatasetOptions, layout: str | None = None) -> DatasetSpec:
        """One task an alphabet, in alphabetical order."""
        assert isinstance(options, OmniglotOptions)
        if protocol != "standard":
            raise ProtocolError(f"omniglot has no labels for protocol {protocol!r}; it offers 'standard'.")
        layout = layout or "small_zips"
        alphabets = alphabets_of(layout)
        counts = {
            split: {task_name(name): (last - first) * n for name, n in alphabets.items()}
            for split, (first, last) in SIDES.items()
        }
        return DatasetSpec(
            name="omniglot",
            layout=layout,
            version=f"{VERSION}+{options.split}" + ("" if options.size == SIZE else f"+{options.size}"),
            protocol=protocol,
            domains="multi",
            tasks=tuple(TaskSpec(task_name(name), "class", n, ("accuracy",)) for name, n in alphabets.items()),
            splits={split: sum(by_task.values()) for split, by_task in counts.items()},
            native_size=(options.size, options.size),
            mean=(_MEAN, _MEAN, _MEAN),
            std=(_STD, _STD, _STD),
            licence="MIT",
            home="https://github.com/brendenlake/omniglot",
            tier=_TIERS[layout],
            counts=counts,
        )

    def sources(self, folder: Path, split: Split, spec: DatasetSpec, options: FileOptions) -> Mapping[str, Source]:
        """One source an alphabet. Raises FileError for an alphabet or a file that does not belong there."""
        assert isinstance(options, OmniglotOptions)
        alphabets = alphabets_of(spec.layout)
        drawings: dict[str, list[_Drawing]] = {name: [] for name in alphabets}
        for drawing in _drawings(folder, spec.layout):
            if drawing.alphabet not in drawings:
                raise unknown(f"alphabet in {folder}", drawing.alphabet, alphabets)
            drawings[drawing.alphabet].append(drawing)
        return {
            task_name(name): _source(name, found, split, alphabets[name], options, spec.layout)
            for name, found in drawings.items()
        }
