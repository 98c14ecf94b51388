"""`pascal_context`: photographs of the PASCAL challenge with five dense labels, as multi-task papers use them. Spec:
datasets 7.

Source: the PASCAL-MT release of Maninis et al. 2019, https://github.com/facebookresearch/astmt, made from PASCAL VOC,
PASCAL-Context and PASCAL-Part. 4,998 / 5,105 images of at most 500 x 500 pixels; what the release calls val is the test
set of all papers, so ten percent of train are held out for choices. Saliency and normals were distilled: they are
outputs of other networks. Normals are known where the class is one of NYU-v2's; an image without a person has no label
of parts.

Read on twins only; the tree and its encodings are those that public loaders read (Vandenhende et al.; Bruggemann et
al., BMTAS). Their quirks are flags of `vandenhende` and `bmtas`. Differences from both: images are brought to one size
before augmentation, not after; labels are taken from the nearest pixel centre, normals included; and whether parts are
labelled is a matter of the image, not of the crop.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image
from pydantic import Field as Setting

from datasets.contracts import SINGLE_INPUT, DatasetSpec, Split, TaskSpec
from datasets.errors import ProtocolError
from datasets.on_disk.checks import picture_shape
from datasets.on_disk.dense import IGNORE, decode_labels, read_labels
from datasets.on_disk.files import Array, FileError, expect, read_bytes, read_image
from datasets.on_disk.loader import FileLoader, FileOptions
from datasets.on_disk.photographs import is_hidden
from datasets.on_disk.sources import IMAGE, Fault, Field, Source, scale_uint8
from datasets.protocols import ProtocolFlags, get_protocol
from datasets.registry import DatasetOptions, ExpectedFiles, register_dataset

if TYPE_CHECKING:
    from torch import Tensor

URL = "https://data.vision.ee.ethz.ch/kmaninis/share/MTL/PASCAL_MT.tgz"
SPLITS: Mapping[str, int] = {"train": 4998, "test": 5105}
LISTS: Mapping[str, str] = {"train": "ImageSets/Context/train.txt", "test": "ImageSets/Context/val.txt"}
IMAGES, PARTS, SALIENCY, NORMALS = "JPEGImages", "human_parts", "sal_distill", "normals_distill"
SEMSEG = ("semseg/VOC12", "semseg/pascal-context")  # the first that has the image
LABEL_MAPS = "pascal-context/trainval"
LARGEST = 512  # no image is larger, and the size at which papers train
CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
PART_CLASSES = ("background", "head", "torso", "upper arm", "lower arm", "upper leg", "lower leg")
_PARTS_OF_CLASS = (  # in the order of PART_CLASSES; a leading l or r is a side
    ("hair", "head", "lear", "lebrow", "leye", "mouth", "nose", "rear", "rebrow", "reye"),
    ("neck", "torso"),
    ("luarm", "ruarm"),
    ("lhand", "llarm", "rhand", "rlarm"),
    ("luleg", "ruleg"),
    ("lfoot", "llleg", "rfoot", "rlleg"),
)
CLASS_OF_PART = {part: number for number, parts in enumerate(_PARTS_OF_CLASS, 1) for part in parts}
PERSON = 15  # class of an object
# Of PASCAL-Context's 459 classes, those that NYU-v2 has by the same name, but `unknown`; and 427, tvmonitor. Elsewhere
# the network that drew the normals had learnt nothing.
CLASSES_WITH_NORMALS = (
    *(3, 4, 6, 9, 10, 11, 13, 15, 17, 18, 22, 23, 29, 30, 33, 34, 36, 37, 38, 39, 41, 43, 46, 49, 50, 51, 53, 55, 56),
    *(59, 61, 62, 65, 66, 68, 69, 72, 73, 78, 83, 84, 85, 87, 88, 95, 96, 101, 104, 105, 107, 111, 113, 115, 122, 124),
    *(135, 141, 142, 143, 146, 150, 154, 157, 158, 159, 165, 172, 174, 181, 183, 184, 191, 193, 195, 197, 199, 202),
    *(213, 215, 216, 219, 220, 223, 225, 228, 230, 232, 233, 238, 239, 242, 243, 246, 250, 251, 252, 255, 260, 261),
    *(263, 269, 272, 273, 275, 281, 283, 284, 285, 286, 287, 288, 290, 291, 292, 293, 295, 304, 307, 309, 310, 314),
    *(315, 319, 323, 329, 330, 331, 336, 342, 345, 349, 350, 351, 352, 355, 357, 368, 370, 371, 374, 379, 380, 383),
    *(384, 397, 401, 403, 405, 407, 408, 411, 412, 413, 414, 417, 419, 421, 423, 427, 429, 430, 432, 440, 441, 442),
    *(443, 444, 446, 454, 457),
)
N_CONTEXT_CLASSES = 459  # and 0
_NORMAL_METRICS = ("mean_angle", "median_angle", "within_11_25", "within_22_5", "within_30")
_PAPERS = (1.0, 2.0, 5.0, 50.0, 10.0)  # semseg, human_parts, saliency, edge, normals (datasets 14)
_WEIGHTS = {"standard": (1.0, 1.0, 1.0, 1.0, 1.0), "vandenhende": _PAPERS, "bmtas": _PAPERS}
_NO_NORMAL = 0  # all three channels of a stored normal that is unknown: no unit vector has this code
_SHORTEST = 0.5  # of the vector in a colour that still points somewhere
_ID = re.compile(r"\w+")


class PascalOptions(FileOptions):
    """Which size."""

    size: int = Setting(
        default=LARGEST,
        ge=64,
        le=LARGEST,
        description="side of the square images in pixels. Where the protocol pads, 512 keeps the photographs' pixels "
        "and 256 halves them; where it stretches, photographs of any shape take this size",
    )


@register_dataset("pascal_context")
class PascalContext(FileLoader):
    """Segmentation, human parts, saliency, edges and normals on 10,103 photographs."""

    Options = PascalOptions
    protocols = ("standard", "vandenhende", "bmtas")
    layouts: ClassVar[Mapping[str, ExpectedFiles]] = {
        "pascal_mt": ExpectedFiles(
            f"{IMAGES}/ID.jpg, {{{' or '.join(SEMSEG)}, {SALIENCY}, {NORMALS}}}/ID.png, "
            f"{{{PARTS}, {LABEL_MAPS}}}/ID.mat and {' and '.join(LISTS.values())}",
            "10,103 .jpg, 33,224 .png and 20,206 .mat; size not published",
            (*LISTS.values(), IMAGES, "|".join(SEMSEG), PARTS, SALIENCY, NORMALS, LABEL_MAPS),
            source=URL,
            commands=("mkdir -p {folder}", f"wget -O - {URL} | tar -xz -C {{folder}} --strip-components=1"),
        )
    }

    def spec(self, protocol: str, options: DatasetOptions, layout: str | None = None) -> DatasetSpec:
        """Five tasks; the protocol decides their weights. Raises ProtocolError for one it has no labels for."""
        assert isinstance(options, PascalOptions)
        if protocol not in self.protocols:
            offered = ", ".join(self.protocols)
            raise ProtocolError(f"pascal_context has no labels for protocol {protocol!r}; it has: {offered}.")
        semseg, parts, saliency, edge, normals = _WEIGHTS[protocol]
        return DatasetSpec(
            name="pascal_context",
            layout="pascal_mt",
            version=f"v1+{options.size}",
            protocol=protocol,
            domains="single",
            tasks=(
                TaskSpec("semseg", "semantic", len(CLASSES), ("miou", "pixel_acc"), CLASSES, semseg),
                TaskSpec("human_parts", "semantic", len(PART_CLASSES), ("miou",), PART_CLASSES, parts, partial=True),
                TaskSpec(
                    "saliency", "binary_map", 1, ("max_iou", "iou_at_50"), weight=saliency, positive_weight="balanced"
                ),
                TaskSpec("edge", "binary_map", 1, ("f_dilated",), weight=edge, positive_weight=0.95),
                TaskSpec("normals", "normals", 3, _NORMAL_METRICS, weight=normals, frame="declared", partial=True),
            ),
            splits=SPLITS,
            native_size=(options.size, options.size),
            # Of ImageNet: statistics of the whole set have not been measured here.
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            licence="of the photographs Flickr's terms of use, of the labels none published; not redistributed",
            home="https://github.com/facebookresearch/astmt",
            tier="verified on twins",
            caveats=(
                "labels of saliency and normals are distilled: outputs of other networks, not annotations",
                "only images with a person have labels of human_parts, only classes of NYU-v2 have normals",
            ),
        )

    def sources(self, folder: Path, split: Split, spec: DatasetSpec, options: FileOptions) -> Mapping[str, Source]:
        """The images of the list. Raises FileError for a list that cannot be read or names an image twice."""
        ids = listed(folder)
        flags = get_protocol(spec.protocol, spec.name)
        canvas = Canvas(spec.native_size[0], flags.canvas == "stretch")
        source = _source(folder, ids[split], canvas, flags)
        if split == "train":  # once, not in every split
            faults, notes = _unlisted(folder, ids)
            source = dataclasses.replace(source, faults=[*source.faults, *faults], notes=notes)
        return {SINGLE_INPUT: source}


def listed(folder: Path) -> dict[str, list[str]]:
    """{split: ids in the order of its list}. Raises FileError for ids that are no file names, or are listed twice."""
    found: dict[str, list[str]] = {}
    seen: dict[str, str] = {}
    for split, name in LISTS.items():
        try:
            found[split] = read_bytes(folder / name).decode("utf-8-sig").split()
        except UnicodeDecodeError as error:
            raise FileError(f"{folder / name}: expected a list of ids in UTF-8 ({error.reason}).") from error
        for identifier in found[split]:
            if not _ID.fullmatch(identifier):
                raise FileError(f"{folder / name}: expected ids such as 2008_000002, found {identifier!r:.80}.")
            if identifier in seen:
                raise FileError(f"{folder / name}: {identifier} is listed twice, before in {seen[identifier]}.")
            seen[identifier] = name
    return found


def _unlisted(folder: Path, ids: Mapping[str, Sequence[str]]) -> tuple[list[Fault], list[str]]:
    """(images that are in no list, a remark on what macOS and others add to their folder)."""
    known = set().union(*ids.values())
    n_hidden = sum(is_hidden(path.name) for path in (folder / IMAGES).glob("*"))
    paths = sorted((folder / IMAGES).glob("*.jpg"))
    lists = " or ".join(LISTS.values())
    notes = [f"{IMAGES}: {n_hidden} hidden files are left out"] if n_hidden else []
    return [
        Fault(f"{IMAGES}/{path.name}", path.stem, "list", f"a line in {lists}", "none")
        for path in paths
        if path.stem not in known and not is_hidden(path.name)
    ], notes


@dataclasses.dataclass(frozen=True)
class Canvas:
    """The square that images and labels are brought to. side: in pixels. stretch: to the whole square; else by side /
    512, the shape as it is, with padding about the centre.
    """

    side: int
    stretch: bool

    def scaled(self, size: tuple[int, int]) -> tuple[int, int]:
        """Size of an image on the canvas."""
        if self.stretch:
            return self.side, self.side
        height, width = (max(1, round(length * self.side / LARGEST)) for length in size)
        return height, width

    def image(self, image: Array, fill: int) -> Array:
        """uint8 [h, w, 3] -> uint8 [side, side, 3]; bicubic where the size changes."""
        height, width = self.scaled((image.shape[0], image.shape[1]))
        if (height, width) != image.shape[:2]:
            image = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
        return self._padded(image, fill)

    def labels(self, labels: Array, fill: int) -> Array:
        """uint8 [h, w] or [h, w, 3] -> [side, side] or [side, side, 3]: the label at each pixel's centre."""
        import torch

        from datasets.images.transforms import nearest_centre

        size = self.scaled((labels.shape[0], labels.shape[1]))
        if size != labels.shape[:2]:
            planes = torch.from_numpy(np.moveaxis(labels[..., None] if labels.ndim == 2 else labels, -1, 0).copy())
            moved = np.moveaxis(nearest_centre(planes, size).numpy(), 0, -1)
            labels = moved[..., 0] if labels.ndim == 2 else moved
        return self._padded(labels, fill)

    def _padded(self, values: Array, fill: int) -> Array:
        height, width = values.shape[:2]
        if (height, width) == (self.side, self.side):
            return np.ascontiguousarray(values)
        whole = np.full((self.side, self.side, *values.shape[2:]), fill, dtype=values.dtype)
        top, left = (self.side - height) // 2, (self.side - width) // 2
        whole[top : top + height, left : left + width] = values
        return whole


@dataclasses.dataclass(frozen=True)
class _OnCanvas:
    """Reads a field of a sample and brings it to the canvas.

    read: (paths of the sample's files, size of its image) -> uint8 [h, w] or [h, w, 3].
    """

    images: Sequence[Path]
    files: Sequence[Sequence[Path]]
    read: Callable[[Sequence[Path], tuple[int, int]], Array]
    canvas: Canvas
    fill: int
    is_image: bool = False

    def __call__(self, index: int) -> Array:
        """The stored form of a sample. Raises FileError, also for images that are too large."""
        size = picture_shape(self.images[index])
        assert size is not None
        if max(size) > LARGEST:
            raise FileError(f"{self.images[index]}: expected at most {LARGEST} x {LARGEST} pixels, found {size}.")
        height, width = size
        values = self.read(self.files[index], (height, width))
        place = self.canvas.image if self.is_image else self.canvas.labels
        return place(values, self.fill)


def _source(folder: Path, ids: Sequence[str], canvas: Canvas, flags: ProtocolFlags) -> Source:
    def paths(place: str, suffix: str) -> list[Path]:
        return [folder / place / f"{identifier}{suffix}" for identifier in ids]

    images, maps, normals = paths(IMAGES, ".jpg"), paths(LABEL_MAPS, ".mat"), paths(NORMALS, ".png")
    grey = round(255 * flags.padded_image)
    parts: dict[str, tuple[list[tuple[Path, ...]], Any, Any, int]] = {  # files, how they are read, decoded, padded
        IMAGE: ([(path,) for path in images], _read_photograph, scale_uint8, grey),
        "semseg": ([(_segmentation(folder, name),) for name in ids], _read_segmentation, decode_labels, IGNORE),
        "human_parts": ([(path,) for path in paths(PARTS, ".mat")], read_parts, decode_labels, IGNORE),
        "saliency": ([(path,) for path in paths(SALIENCY, ".png")], _read_saliency, decode_labels, IGNORE),
        "edge": ([(path,) for path in maps], _read_edge, decode_labels, IGNORE),
        "normals": (list(zip(normals, maps, strict=True)), _read_normals, decode_normals, _NO_NORMAL),
    }
    fields = {
        name: Field(
            _OnCanvas(images, files, read, canvas, fill, name == IMAGE), decode, [f[0] for f in files].__getitem__
        )
        for name, (files, read, decode, fill) in parts.items()
    }
    faults = [
        Fault(path.relative_to(folder).as_posix(), ids[row], "existence", f"a file ({name})", "none")
        for name, (files, *_) in parts.items()
        for row, (path, *_) in enumerate(files)
        if not path.is_file()
    ]
    return Source(
        ids=ids,
        units=ids,
        image=fields.pop(IMAGE),
        targets=fields,
        faults=faults,
        meta={"domain": None, "normals_frame": "declared"},
        content=[folder / name for name in LISTS.values()],
        one_size=False,
    )


def _segmentation(folder: Path, identifier: str) -> Path:
    places = [folder / place / f"{identifier}.png" for place in SEMSEG]
    return next((path for path in places if path.is_file()), places[0])


def _read_photograph(files: Sequence[Path], size: tuple[int, int]) -> Array:
    """uint8 [h, w, 3]; gray ones repeated. Raises FileError."""
    image = read_image(files[0])
    return expect(np.stack([image] * 3, axis=-1) if image.ndim == 2 else image, (*size, 3), ["uint8"], files[0])


def _read_segmentation(files: Sequence[Path], size: tuple[int, int]) -> Array:
    """uint8 [h, w]: one of 21 classes, and 255. Raises FileError."""
    return read_labels(files[0], size, len(CLASSES))


def _read_saliency(files: Sequence[Path], size: tuple[int, int]) -> Array:
    """uint8 [h, w]: 1 above one half. Raises FileError."""
    return (expect(read_image(files[0]), size, ["uint8"], files[0]) > 127).astype(np.uint8)


def _read_edge(files: Sequence[Path], size: tuple[int, int]) -> Array:
    """uint8 [h, w]: 1 on the borders of the 459 classes. Raises FileError."""
    return borders(read_label_map(files[0], size))


def _read_normals(files: Sequence[Path], size: tuple[int, int]) -> Array:
    """uint8 [h, w, 3]: colours, 0 where they are unknown. Raises FileError."""
    colours = expect(read_image(files[0]), (*size, 3), ["uint8"], files[0])
    known = _has_normals()[read_label_map(files[1], size)]
    length = np.linalg.norm(colours[known] * np.float32(2 / 255) - 1, axis=-1)
    if length.size and not 0.9 <= np.median(length) <= 1.1:
        raise FileError(
            f"{files[0]}: expected colours of unit vectors, found a median length of {np.median(length):.2f}."
        )
    known[known] = length >= _SHORTEST
    return np.where(known[..., None], colours, _NO_NORMAL).astype(np.uint8)


@functools.cache
def _has_normals() -> Array:
    """bool [460], by class of PASCAL-Context."""
    return np.isin(np.arange(N_CONTEXT_CLASSES + 1), CLASSES_WITH_NORMALS)


def decode_normals(stored: Array) -> Tensor:
    """uint8 [H, W, 3], 0 where unknown -> unit vectors float32 [3, H, W], zero there: 2 v / 255 - 1, y turned up."""
    import torch

    colours = torch.from_numpy(stored).permute(2, 0, 1).contiguous()
    x, y, z = vectors = colours.to(torch.float32).mul_(2 / 255).sub_(1)
    length = (x * x).addcmul_(y, y).addcmul_(z, z).sqrt_()
    y.neg_()  # files have y down; of z we take the sign as it is, which no transform here asks
    length[(colours == _NO_NORMAL).all(dim=0)] = math.inf
    return vectors.div_(length)


def _matlab(path: Path, name: str) -> Any:
    from scipy.io import loadmat  # half a second

    try:
        return loadmat(path, variable_names=(name,))[name]
    # A damaged file can make scipy's reader raise nearly anything.
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise FileError(f"{path}: cannot be read as a MATLAB file with {name} ({reason}).") from error


def read_label_map(path: Path, size: tuple[int, int]) -> Array:
    """int32 [h, w]: one of PASCAL-Context's 459 classes, or 0. Raises FileError."""
    stored = np.asarray(_matlab(path, "LabelMap"))
    if stored.shape != size or stored.dtype.kind not in "iuf":
        raise FileError(f"{path}: expected numbers {size}, as its image, found {stored.dtype} {stored.shape}.")
    if stored.min() < 0 or stored.max() > N_CONTEXT_CLASSES:
        raise FileError(f"{path}: expected classes 0 to {N_CONTEXT_CLASSES}, found {stored.min()} to {stored.max()}.")
    return stored.astype(np.int32)


def read_parts(files: Sequence[Path], size: tuple[int, int]) -> Array:
    """uint8 [h, w]: 0 background, 1 to 6 as PART_CLASSES; all 255 without a part of a person. Raises FileError.

    Later objects and parts are drawn over earlier ones, as public loaders do.
    """
    path = files[0]
    labels = np.zeros(size, dtype=np.uint8)
    anno = _matlab(path, "anno")
    try:  # by position, as in [name, objects], [name, class, mask, parts], [name, mask]
        people = [thing for thing in anno.flat[0][1].flat if thing[1].flat[0] == PERSON]
        parts = [(str(part[0].flat[0]), np.asarray(part[1])) for person in people for part in person[3].flat]
    except (IndexError, TypeError, AttributeError, ValueError) as error:
        raise FileError(f"{path}: expected objects with a class, a mask and parts under anno ({error}).") from error
    for name, mask in parts:
        if name not in CLASS_OF_PART:
            raise FileError(f"{path}: {name!r} is no part of a person; known: {', '.join(sorted(CLASS_OF_PART))}.")
        if mask.shape != size:
            raise FileError(f"{path}: expected masks {size}, as its image, found {mask.shape} of {name!r}.")
        labels[mask != 0] = CLASS_OF_PART[name]
    return labels if labels.any() else np.full(size, IGNORE, dtype=np.uint8)


def borders(classes: Array) -> Array:
    """int [h, w] -> uint8 [h, w]: 1 where the Laplacian of the class numbers is not 0, thinned to lines."""
    padded = np.pad(classes.astype(np.int64), 1, mode="reflect")
    around = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    return thinned(around != 4 * classes).astype(np.uint8)


def thinned(mask: Array) -> Array:
    """bool [h, w] with its regions thinned to lines that hang together as before, by Guo and Hall 1989.

    Bit for bit what `skimage.morphology.thin` gives, which public loaders call.
    """
    padded = np.zeros((mask.shape[0] + 2, mask.shape[1] + 2), dtype=bool)  # row by row: MATLAB's arrays are not
    padded[1:-1, 1:-1] = mask
    width = padded.shape[1]
    flat = padded.reshape(-1)
    ring = (1, 1 - width, -width, -width - 1, -1, width - 1, width, width + 1)  # from the east, counter-clockwise
    while True:
        n_before = np.count_nonzero(flat)
        for removable in _removable():
            on = np.flatnonzero(flat)
            code = sum(flat[on + offset].astype(np.uint8) << bit for bit, offset in enumerate(ring))
            flat[on[removable[code]]] = False
        if np.count_nonzero(flat) == n_before:
            return padded[1:-1, 1:-1]


@functools.cache
def _removable() -> tuple[Array, Array]:
    """bool [256] each, of the two half steps: whether a pixel goes whose neighbours are the bits of the index."""
    x = (np.arange(256)[:, None] >> np.arange(8) & 1).astype(bool)
    straight, corner, following = x[:, 0::2], x[:, 1::2], np.roll(x[:, 0::2], -1, axis=1)
    crossings = (~straight & (corner | following)).sum(axis=1)
    neighbours = np.minimum((straight | corner).sum(axis=1), (corner | following).sum(axis=1))
    simple = (crossings == 1) & (neighbours >= 2) & (neighbours <= 3)
    first = simple & ~((x[:, 1] | x[:, 2] | ~x[:, 7]) & x[:, 0])
    second = simple & ~((x[:, 5] | x[:, 6] | ~x[:, 3]) & x[:, 4])
    return first, second
