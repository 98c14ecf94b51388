"""`oxford_pets`: photographs of cats and dogs with segmentation, edge, breed and species. Spec: datasets 13.2.

Source: Parkhi, Vedaldi, Zisserman, Jawahar 2012, Cats and Dogs, https://www.robots.ox.ac.uk/~vgg/data/pets. Of 37
breeds, 3,680 images are for training and 3,669 for testing (counts: catalogue of tensorflow-datasets). There is no
official validation part, so a tenth of each breed is held out of train. A tree of files is read as the official
archives unpack it, below `oxford-iiit-pet` as torchvision leaves it, or from two tar files, one a part.

`annotations/{trainval,test}.txt` lists name, breed from 1, species (1 cat, 2 dog) and breed within the species.
`annotations/trimaps/NAME.png` holds 1 pet, 2 background, 3 border or not classified. Checked on 598 genuine images of
three breeds: trimaps have the size of their image, and one `.jpg` is a PNG with transparency; all are converted to RGB
as torchvision does. The other breeds have the order of tensorflow-datasets' list.

Images have any size. Ours: the longer side is scaled to the option `size` and the rest of the square is padded, black
in images and ignored in labels, so that the ratio of sides stays, within half a pixel. Protocol `trimap` takes the
border as a third class, `standard` ignores it. Head boxes (`xmls`) are not read.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
import pydantic
from PIL import Image

from datasets.contracts import SINGLE_INPUT, DatasetSpec, Split, TaskSpec
from datasets.errors import ProtocolError
from datasets.on_disk.checks import photograph_header
from datasets.on_disk.dense import IGNORE
from datasets.on_disk.files import Array, FileError, TarArchive, image_array, read_bytes
from datasets.on_disk.loader import FileLoader, FileOptions
from datasets.on_disk.sources import Fault, Field, Source, number_label, scale_uint8
from datasets.registry import DatasetOptions, ExpectedFiles, register_dataset

if TYPE_CHECKING:
    from torch import Tensor

BREEDS = (
    *("Abyssinian", "american_bulldog", "american_pit_bull_terrier", "basset_hound", "beagle", "Bengal", "Birman"),
    *("Bombay", "boxer", "British_Shorthair", "chihuahua", "Egyptian_Mau", "english_cocker_spaniel", "english_setter"),
    *("german_shorthaired", "great_pyrenees", "havanese", "japanese_chin", "keeshond", "leonberger", "Maine_Coon"),
    *("miniature_pinscher", "newfoundland", "Persian", "pomeranian", "pug", "Ragdoll", "Russian_Blue", "saint_bernard"),
    *("samoyed", "scottish_terrier", "shiba_inu", "Siamese", "Sphynx", "staffordshire_bull_terrier", "wheaten_terrier"),
    "yorkshire_terrier",
)
SPECIES = ("cat", "dog")  # names of cats' breeds begin with a capital
REGIONS = ("pet", "background", "border")  # 1, 2, 3 in a trimap
SPLITS: Mapping[str, int] = {"train": 3680, "test": 3669}
LISTS = {"train": "trainval", "test": "test"}
HOME = "https://www.robots.ox.ac.uk/~vgg/data/pets/"
TORCHVISION = "oxford-iiit-pet"
_MD5 = {"images": "5c4f3ee8e5d25df40f4fd59a7f44e54c", "annotations": "95a8c909bbe2e81eed6a22bccdf3f68f"}  # torchvision
_DOWNLOAD = tuple(
    f"wget {HOME}data/{name}.tar.gz && echo '{md5}  {name}.tar.gz' | md5sum -c && tar xzf {name}.tar.gz"
    for name, md5 in _MD5.items()
)
_MARKS = ("images", "annotations/trimaps", *(f"annotations/{name}.txt" for name in LISTS.values()))
_NAME = re.compile(r"(?P<breed>[A-Za-z_]+)_\d+")
_PADDING = 0  # no value of a trimap
_BORDER_SHARE = 0.126  # of the pixels of the 598 genuine images
_LABELS: Mapping[str, tuple[int, int, int, int]] = {  # of padding, pet, background, border
    "standard": (IGNORE, 0, 1, IGNORE),
    "trimap": (IGNORE, 0, 1, 2),
    "edge": (IGNORE, 0, 0, 1),
}


class PetsOptions(FileOptions):
    """How large the images are."""

    size: int = pydantic.Field(
        default=128,
        ge=32,
        le=512,
        description="side of the square in pixels: the longer side of an image is scaled to it, the rest is padded",
    )


class Pet(NamedTuple):
    """A line of a list. breed, species: counted from 0."""

    name: str
    breed: int
    species: int


@dataclasses.dataclass(frozen=True)
class Tree:
    """The files of the set or of a part of it: in a folder, or in a tar file."""

    folder: Path
    archive: TarArchive | None = None

    def names(self) -> set[str]:
        """Files of images and trimaps, below the tree. Raises FileError."""
        if self.archive is not None:
            return {name for name in self.archive.members() if name.startswith(("images/", "annotations/trimaps/"))}
        places = [self.folder / "images", self.folder / "annotations" / "trimaps"]
        return {path.relative_to(self.folder).as_posix() for place in places for path in place.glob("*")}

    def where(self, name: str) -> Path:
        """The file on disk: the archive, or the file itself."""
        return self.archive.path if self.archive is not None else self.folder / name

    def shown(self, name: str) -> str:
        """The file for messages, also inside of an archive."""
        return f"{self.archive.path}/{name}" if self.archive is not None else str(self.folder / name)

    def read(self, name: str) -> bytes:
        """The content of a file. Raises FileError."""
        return self.archive.read(name) if self.archive is not None else read_bytes(self.folder / name)


def image_file(name: str) -> str:
    """Where the photograph lies in the tree."""
    return f"images/{name}.jpg"


def trimap_file(name: str) -> str:
    """Where the trimap lies in the tree."""
    return f"annotations/trimaps/{name}.png"


def read_pets(content: bytes, path: str) -> list[Pet]:
    """The lines `NAME BREED SPECIES BREED_WITHIN_SPECIES` of a list; lines with # are remarks.

    Raises FileError naming a line that is anything else, whose numbers do not fit the name, or that is repeated.
    """
    pets: dict[str, Pet] = {}
    for number, line in enumerate(content.decode("utf-8-sig", errors="replace").splitlines(), start=1):
        if line.startswith("#") or not line.strip():
            continue
        words = line.split()
        match = _NAME.fullmatch(words[0])
        if match is None or len(words) != 4:
            raise FileError(f"{path}: line {number} is {line!r:.80}; expected BREED_NUMBER and three numbers.")
        if match["breed"] not in BREEDS:
            raise FileError(f"{path}: line {number} has the breed {match['breed']!r}, which is none of the 37.")
        pet = Pet(words[0], BREEDS.index(match["breed"]), _species_of(match["breed"]))
        expected = [pet.breed + 1, pet.species + 1, _rank(pet.breed)]
        if words[1:] != [str(value) for value in expected]:
            wanted = " ".join(map(str, expected))
            raise FileError(f"{path}: line {number} is {line!r:.80}; expected {wanted} after that name.")
        if pet.name in pets:
            raise FileError(f"{path}: {pet.name!r} is listed twice.")
        pets[pet.name] = pet
    return list(pets.values())


def _species_of(breed: str) -> int:
    return 0 if breed[0].isupper() else 1


def _rank(breed: int) -> int:
    """Of a breed among those of its species, from 1."""
    return sum(_species_of(name) == _species_of(BREEDS[breed]) for name in BREEDS[: breed + 1])


@register_dataset("oxford_pets")
class OxfordPets(FileLoader):
    """Segmentation, edge, breed and species on 7,349 photographs."""

    Options = PetsOptions
    protocols = ("standard", "trimap")
    layouts: ClassVar[Mapping[str, ExpectedFiles]] = {
        "official": ExpectedFiles(
            "{images/NAME.jpg, annotations/trimaps/NAME.png, annotations/trainval.txt, annotations/test.txt}",
            "0.8 GB",
            _MARKS,
            commands=("mkdir -p {folder}", "cd {folder}", *_DOWNLOAD),
        ),
        "torchvision": ExpectedFiles(
            f"{TORCHVISION}/{{images, annotations}} as in the layout 'official'",
            "0.8 GB",
            tuple(f"{TORCHVISION}/{mark}" for mark in _MARKS),
            commands=(
                'python -c "import sys; from torchvision.datasets import OxfordIIITPet; '
                'OxfordIIITPet(sys.argv[1], download=True)" {folder}',
            ),
        ),
        "tars": ExpectedFiles(
            "{trainval,test}.tar, each with its part of {images, annotations}, not compressed",
            "0.8 GB, a part of the data less",
            tuple(f"{name}.tar" for name in LISTS.values()),
        ),
    }

    def spec(self, protocol: str, options: DatasetOptions, layout: str | None = None) -> DatasetSpec:
        """Four tasks; the protocol decides whether the border is a class."""
        assert isinstance(options, PetsOptions)
        if protocol not in self.protocols:
            offered = ", ".join(self.protocols)
            raise ProtocolError(f"oxford_pets has no labels for protocol {protocol!r}; it has: {offered}.")
        regions = REGIONS if protocol == "trimap" else REGIONS[:2]
        return DatasetSpec(
            name="oxford_pets",
            layout=layout or "official",
            version=f"v1+{options.size}",
            protocol=protocol,
            domains="single",
            tasks=(
                TaskSpec("segmentation", "semantic", len(regions), ("miou", "pixel_acc"), regions),
                TaskSpec("breed", "class", len(BREEDS), ("accuracy",), BREEDS),
                TaskSpec("species", "class", len(SPECIES), ("accuracy",), SPECIES),
                TaskSpec(
                    "edge", "binary_map", 1, ("best_f1", "f_dilated"), positive_weight=round(1 - _BORDER_SHARE, 2)
                ),
            ),
            splits=SPLITS,
            native_size=(options.size, options.size),
            # Of ImageNet: statistics of the whole set have not been measured here.
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            licence="CC BY-SA 4.0 as far as is known; its README says: for research purposes only, images under the "
            "terms of the sites that they come from",
            home=HOME,
            tier="verified on genuine files",
        )

    def sources(self, folder: Path, split: Split, spec: DatasetSpec, options: FileOptions) -> Mapping[str, Source]:
        """The images of the split's list. Raises FileError for a list that cannot be read or shares an image with the
        other one, and for an archive that cannot be.
        """
        assert isinstance(options, PetsOptions)
        trees = _trees(folder, spec.layout)
        places = {part: f"annotations/{name}.txt" for part, name in LISTS.items()}
        pets = {part: read_pets(tree.read(places[part]), tree.shown(places[part])) for part, tree in trees.items()}
        both = {pet.name for pet in pets["train"]} & {pet.name for pet in pets["test"]}
        if both:
            raise FileError(f"{folder}: {min(both)!r} is listed for training and for testing.")
        listed = [pet.name for part in pets.values() for pet in part]
        files = set().union(*(tree.names() for tree in trees.values()))
        chosen, tree = pets[split], trees[split]
        source = _source(folder, tree, chosen, spec, options.size)
        notes = tuple(_ignored(files, listed))
        return {SINGLE_INPUT: dataclasses.replace(source, notes=notes, content=[tree.where(places[split])])}


def _trees(folder: Path, layout: str) -> dict[Split, Tree]:
    """{split: the tree that its files are in}."""
    if layout == "tars":
        return {
            "train": Tree(folder, TarArchive(folder / "trainval.tar")),
            "test": Tree(folder, TarArchive(folder / "test.tar")),
        }
    tree = Tree(folder / TORCHVISION if layout == "torchvision" else folder)
    return {"train": tree, "test": tree}


def _ignored(files: set[str], listed: Sequence[str]) -> Iterator[str]:
    """What lies beside the listed files, counted."""
    known = {file(name) for name in listed for file in (image_file, trimap_file)}
    hidden = {name for name in files if name.rpartition("/")[2].startswith("._")}
    images = {name for name in files - hidden - known if name.startswith("images/") and name.endswith(".jpg")}
    others = files - hidden - known - images
    for found, what in (
        (hidden, "files of macOS (._*)"),
        (images, "images in no list"),
        (others, "other files beside them"),
    ):
        if found:
            yield f"{what}: {len(found)} ignored, the first is {min(found)}"


def _source(folder: Path, tree: Tree, pets: Sequence[Pet], spec: DatasetSpec, size: int) -> Source:
    names = [pet.name for pet in pets]
    images = [tree.where(image_file(name)) for name in names].__getitem__
    trimaps = [tree.where(trimap_file(name)) for name in names].__getitem__
    regions = _Trimaps(tree, names, size)
    breeds, species = (np.array([pet[column] for pet in pets], dtype=np.int64) for column in (1, 2))
    return Source(
        ids=names,
        units=names,
        strata=[BREEDS[pet.breed] for pet in pets],
        image=Field(_Photographs(tree, names, size), scale_uint8, images),
        targets={
            "segmentation": Field(regions, functools.partial(decode_regions, labels=_LABELS[spec.protocol]), trimaps),
            "breed": Field(breeds.__getitem__, number_label, images),
            "species": Field(species.__getitem__, number_label, images),
            "edge": Field(regions, functools.partial(decode_regions, labels=_LABELS["edge"]), trimaps),
        },
        faults=list(_faults(folder, tree, names)),
        meta={"domain": None},
        one_size=False,
    )


def _faults(folder: Path, tree: Tree, names: Sequence[str]) -> Iterator[Fault]:
    """Files that are absent; in an archive also images that end too early, which else the check of files finds."""
    files = tree.names()
    for name in names:
        for file, what in ((image_file(name), "image"), (trimap_file(name), "trimap")):
            shown = Path(tree.shown(file)).relative_to(folder).as_posix()
            if file not in files:
                yield Fault(shown, name, "existence", f"a file ({what})", "none")
            elif tree.archive is not None and what == "image":
                try:
                    content = tree.read(file)
                    photograph_header(io.BytesIO(content), len(content))
                except ValueError as error:
                    yield Fault(shown, name, "image file", "a whole one", f"one that {error}")


@dataclasses.dataclass(frozen=True)
class _Photographs:
    """Reads the photograph at a position."""

    tree: Tree
    names: Sequence[str]
    size: int

    def __call__(self, index: int) -> Array:
        """uint8 [size, size, 3]. Raises FileError."""
        file = image_file(self.names[index])
        image = image_array(self.tree.read(file), self.tree.shown(file), mode="RGB")
        top, left, height, width = place_of(image.shape[0], image.shape[1], self.size)
        square = np.zeros((self.size, self.size, 3), dtype=np.uint8)
        scaled = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        square[top : top + height, left : left + width] = np.asarray(scaled)
        return square


@dataclasses.dataclass(frozen=True)
class _Trimaps:
    """Reads the trimap at a position."""

    tree: Tree
    names: Sequence[str]
    size: int

    def __call__(self, index: int) -> Array:
        """uint8 [size, size]: 1 to 3, 0 is padding. Raises FileError for other values, and for another size than that
        of the photograph.
        """
        import torch

        from datasets.images.transforms import nearest_centre

        file = trimap_file(self.names[index])
        regions = image_array(self.tree.read(file), self.tree.shown(file))
        expected = self._photograph_size(index)
        if regions.dtype != np.uint8 or regions.shape != expected:
            raise FileError(
                f"{self.tree.shown(file)}: expected uint8 {expected} as its image has, found {regions.dtype} "
                f"{regions.shape}."
            )
        wrong = regions[(regions < 1) | (regions > len(REGIONS))]
        if wrong.size:
            raise FileError(
                f"{self.tree.shown(file)}: expected 1 (pet), 2 (background) and 3 (border), found {wrong[0]}."
            )
        top, left, height, width = place_of(*expected, self.size)
        square = np.full((self.size, self.size), _PADDING, dtype=np.uint8)
        square[top : top + height, left : left + width] = nearest_centre(torch.from_numpy(regions), (height, width))
        return square

    def _photograph_size(self, index: int) -> tuple[int, int]:
        """(height, width) by the header of the image. Raises FileError."""
        file = image_file(self.names[index])
        try:
            with Image.open(io.BytesIO(self.tree.read(file))) as image:
                return image.height, image.width
        except (OSError, SyntaxError, ValueError) as error:
            raise FileError(f"{self.tree.shown(file)}: cannot be read as an image ({error}).") from error


def place_of(height: int, width: int, size: int) -> tuple[int, int, int, int]:
    """(top, left, height, width) of an image in a square of that size: its longer side fills it, and it is centred."""
    longer = max(height, width)
    scaled = [max(1, (2 * side * size + longer) // (2 * longer)) for side in (height, width)]  # halves up
    return (size - scaled[0]) // 2, (size - scaled[1]) // 2, scaled[0], scaled[1]


def decode_regions(stored: Array, labels: Sequence[int]) -> Tensor:
    """uint8 [H, W] of a trimap, 0 where padded -> int64 [H, W]. labels: of padding, pet, background and border."""
    import torch

    return torch.from_numpy(np.array(labels, dtype=np.int64)[stored])
