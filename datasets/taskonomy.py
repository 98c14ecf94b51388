"""`taskonomy`: rooms of scanned buildings with five dense labels, the tiny subset. Spec: datasets 8.

Source: Zamir et al. 2018, https://taskonomy.vision. Two layouts are read: the folders that omnidata-tools leaves, and
AdaShare's release, which adds a list of splits. Tiny is 25 / 5 / 5 buildings, by the official lists (`TINY`; genuine
lists were read). Images were read on twins only, and the numbers of images are recalled: 381,840 in all.

Encodings are those of the official data card. Depth: uint16, 1/512 m; 64500 and more is unknown, and so is 0. Labels:
0 uncertain, which is ignored, 1 background, 2 to 17 classes of COCO; they are the predictions of a network, not drawn
by people. Normals: 8 bits, x right, y down, z to the viewer, by the word of the maintainers; known where depth is.
Keypoints and edges: uint16, of which only the lowest 0.5 and 8 % of the range hold anything: clipped there and given in
[0, 1].

Protocol `adashare`, as its released loader does: 256 x 256 by the upper left neighbour; uncertain pixels count as
background; depth is log(1 + raw) / log(2^16); keypoints and edges are in [-1, 1]; normals of all pixels count, since
the mask is stored under one name and read under another; cross-entropy with a weight for each class (`PRIORS`), of
which the metric is the mean over images. Of these weights three decimals are known here; a file of the release that
says otherwise is a fault. Known difference: depth 0 counts there, and is unknown here.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from PIL import Image
from pydantic import Field as Option

from datasets.contracts import SINGLE_INPUT, DatasetSpec, Split, TaskSpec
from datasets.errors import ProtocolError, UsageError, unknown
from datasets.on_disk.dense import IGNORE, decode_labels
from datasets.on_disk.files import Archive, Array, FileError, expect, read_array, read_image
from datasets.on_disk.loader import FileLoader, FileOptions
from datasets.on_disk.photographs import is_hidden
from datasets.on_disk.releases import FieldForm, listed_rows, source_of_files
from datasets.on_disk.sources import Fault, Field, Source, scale_uint8
from datasets.registry import DatasetOptions, ExpectedFiles, register_dataset

if TYPE_CHECKING:
    from torch import Tensor

TINY: Mapping[str, tuple[str, ...]] = {  # of train_val_test_tiny.csv
    "train": (
        *("hanson", "merom", "klickitat", "onaga", "leonardo", "marstons", "newfields", "pinesdale", "lakeville"),
        *("cosmos", "benevolence", "pomaria", "tolstoy", "shelbyville", "allensville", "wainscott", "beechwood"),
        *("coffeen", "stockman", "hiteman", "woodbine", "lindenwood", "forkland", "mifflinburg", "ranchester"),
    ),
    "val": ("wiconisco", "corozal", "collierville", "markleeville", "darden"),
    "test": ("ihlen", "muleshoe", "uvalda", "noxapater", "mcdade"),
}
CLASSES = (
    *("background", "bottle", "chair", "couch", "potted plant", "bed", "dining table", "toilet", "tv", "microwave"),
    *("oven", "toaster", "sink", "refrigerator", "book", "clock", "vase"),
)
PRIORS = (  # of semseg_prior_factor.npy, rounded
    *(0.542, 9.167, 7.331, 7.162, 8.723, 7.613, 8.237, 9.149, 8.822, 9.086, 8.914, 9.177, 9.035, 8.604, 9.170, 9.147),
    9.137,
)
PLACES: Mapping[str, tuple[str, str]] = {  # field -> its folder, and what its files are called at the end
    "image": ("rgb", "rgb"),
    "semseg": ("segment_semantic", "segmentsemantic"),
    "normals": ("normal", "normal"),
    "depth": ("depth_zbuffer", "depth_zbuffer"),
    "keypoint": ("keypoints2d", "keypoints2d"),
    "edge": ("edge_texture", "edge_texture"),
}
COMPONENT = "taskonomy"  # omnidata-tools puts a folder of this name between those of labels and of buildings
LIST, PRIORS_FILE, LISTS = "taskonomy.json", "semseg_prior_factor.npy", "splits_taskonomy.zip"
SIDES = (512, 256)
SPLITS: Mapping[str, int] = {"train": 275224, "val": 52413, "test": 54203}  # recalled, as is their sum
LARGEST_KEYPOINT, LARGEST_EDGE = 0.005, 0.08  # of the range of uint16
UNKNOWN_DEPTH, UNITS_PER_METRE = 64500, 512.0
GREY, SHORTEST, SHARE_WRONG = 127, 0.02, 0.05  # of normals: code and length of the zero vector, pixels of odd length
_PROTOCOLS = {"official": ("standard",), "adashare": ("standard", "adashare")}
_WEIGHTS = {"standard": (1.0, 1.0, 1.0, 1.0, 1.0), "adashare": (1.0, 3.0, 2.0, 7.0, 7.0)}  # datasets 14
_NORMAL_METRICS = ("mean_angle", "median_angle", "within_11_25", "within_22_5", "within_30")
_DEPTH_METRICS = ("abs_err", "rel_err", "rmse", "delta_1_25", "delta_1_25_2", "delta_1_25_3")
_METRICS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "standard": (("miou", "pixel_acc"), _NORMAL_METRICS, _DEPTH_METRICS, ("abs_err", "mse"), ("abs_err", "mse")),
    "adashare": (("weighted_ce_err",), ("cosine_similarity",), ("abs_err",), ("abs_err",), ("abs_err",)),
}
_NAME = re.compile(r"point_(?P<point>\d+)_view_(?P<view>\d+)_domain_(?P<domain>\w+)\.png")


class TaskonomyOptions(FileOptions):
    """How large the images are."""

    size: Literal[256, 512] | None = Option(
        default=None,
        description="side of the images in pixels; null takes the layout's usual one, 512, of AdaShare's release 256",
    )


@register_dataset("taskonomy")
class Taskonomy(FileLoader):
    """Segmentation, normals, depth, keypoints and edges of 35 buildings."""

    Options = TaskonomyOptions
    protocols = ("standard", "adashare")
    layouts: ClassVar[Mapping[str, ExpectedFiles]] = {
        "official": ExpectedFiles(
            "{"
            + ",".join(place for place, _ in PLACES.values())
            + "}/taskonomy/BUILDING/point_P_view_V_domain_NAME.png "
            "of the 35 buildings of the tiny subset",
            "size not published",
            tuple(place for place, _ in PLACES.values()),
            unless=(LIST,),
            checksums={LISTS: "58e353198de5b85feb4f51b81762bd43bb9aaacc17879d4ce58270900770c0c5"},
            source="https://docs.omnidata.vision (omnidata-tools; needs aria2)",
            commands=(
                "pip install omnidata-tools",
                f"omnitools.download {' '.join(place for place, _ in PLACES.values())} --components taskonomy "
                "--subset tiny --dest {folder} --connections_total 40 --name YOUR_NAME --email YOUR_EMAIL --agree_all",
            ),
        ),
        "adashare": ExpectedFiles(
            f"{LIST} and the images it lists",
            "size not published",
            (LIST,),
            source="https://github.com/sunxm2357/AdaShare (the authors' link for Taskonomy)",
        ),
    }

    def spec(self, protocol: str, options: DatasetOptions, layout: str | None = None) -> DatasetSpec:
        """Five tasks; the protocol decides weights, metrics and encodings. Raises UsageError for a size that the layout
        does not have.
        """
        assert isinstance(options, TaskonomyOptions)
        layout = layout or "official"
        if protocol not in _PROTOCOLS[layout]:
            offered = ", ".join(_PROTOCOLS[layout])
            raise ProtocolError(
                f"taskonomy in layout {layout!r} has no labels for protocol {protocol!r}; it has: {offered}."
            )
        side = side_of(layout, options)
        priors, unit = (PRIORS, "log_scaled_depth") if protocol == "adashare" else ((), "metre")
        weights, metrics = _WEIGHTS[protocol], _METRICS[protocol]
        return DatasetSpec(
            name="taskonomy",
            layout=layout,
            version=f"v1+{side}",
            protocol=protocol,
            domains="single",
            tasks=(
                TaskSpec("semseg", "semantic", len(CLASSES), metrics[0], CLASSES, weights[0], class_weights=priors),
                TaskSpec("normals", "normals", 3, metrics[1], weight=weights[1], frame="declared"),
                TaskSpec("depth", "depth", 1, metrics[2], weight=weights[2], unit=unit),
                TaskSpec("keypoint", "dense", 1, metrics[3], weight=weights[3]),
                TaskSpec("edge", "dense", 1, metrics[4], weight=weights[4]),
            ),
            splits=SPLITS if layout == "official" else {name: SPLITS[name] for name in ("train", "test")},
            counts_recalled=True,
            native_size=(side, side),
            # Of ImageNet: statistics of the whole set have not been measured here.
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            licence="Taskonomy end user licence: research only, not redistributed",
            home="https://taskonomy.vision",
            tier="verified on twins",
            caveats=("labels of semseg are predictions of a network trained on COCO",),
        )

    def sources(self, folder: Path, split: Split, spec: DatasetSpec, options: FileOptions) -> Mapping[str, Source]:
        """The images of a split's buildings, or of the release's list. Raises FileError where a list cannot be read."""
        if split not in spec.splits:
            raise unknown(f"split of taskonomy in layout {spec.layout!r}", split, spec.splits)
        if spec.layout == "adashare":
            ids, units, files, faults, notes = _listed(folder, split)
        else:
            ids, units, files, faults, notes = _in_folders(folder, split, options)
        source = source_of_files(
            folder, ids, units, files, _fields(spec), {"domain": None, "normals_frame": "declared"}
        )
        targets = dict(source.targets)
        if spec.protocol == "standard":
            masked = _MaskedNormals(files["normals"], files["depth"], spec.native_size[0])
            targets["normals"] = Field(masked, decode_normals, files["normals"].__getitem__)
        faults += source.faults
        return {SINGLE_INPUT: dataclasses.replace(source, targets=targets, faults=faults, notes=notes)}


# What is found on disk: ids, units, files by field, faults, notes.
_Found = tuple[list[str], list[str], dict[str, list[Path]], list[Fault], list[str]]


def side_of(layout: str, options: TaskonomyOptions) -> int:
    """Side of the images. Raises UsageError for one that the layout does not have."""
    if layout == "adashare":
        if options.size == 512:
            raise UsageError("taskonomy in layout 'adashare' is read at 256 pixels, not 512.")
        return 256
    return options.size or 512


def _in_folders(folder: Path, split: Split, options: FileOptions) -> _Found:
    """Views of the split's buildings by building, point and view, and what does not belong there."""
    ids: list[str] = []
    units: list[str] = []
    files: dict[str, list[Path]] = {name: [] for name in PLACES}
    n_hidden = 0
    faults = list(_list_faults(folder)) if split == "train" else []  # of all splits, and named once
    notes = list(_other_buildings(folder)) if split == "train" else []
    for building in sorted(TINY[split]):
        homes = {name: _home(folder / place, building) for name, (place, _) in PLACES.items()}
        if options.profile != "real" and not any(home.is_dir() for home in homes.values()):
            continue  # of a part of the data
        views: set[tuple[int, int]] = set()
        for name, home in homes.items():
            if not home.is_dir():
                faults.append(Fault(_below(home, folder), "", "existence", f"a folder of images ({name})", "none"))
                continue
            for file in home.iterdir():
                match = _NAME.fullmatch(file.name)
                if match is not None and match["domain"] == PLACES[name][1]:
                    views.add((int(match["point"]), int(match["view"])))
                elif is_hidden(file.name):
                    n_hidden += 1
                else:
                    expected = f"point_P_view_V_domain_{PLACES[name][1]}.png"
                    faults.append(Fault(_below(file, folder), "", "name", expected, file.name))
        for point, view in sorted(views):
            ids.append(f"{building}/point_{point}_view_{view}")
            units.append(building)
            for name, home in homes.items():
                files[name].append(home / f"point_{point}_view_{view}_domain_{PLACES[name][1]}.png")
    if n_hidden:
        notes.append(f"{split}: {n_hidden} hidden files are left out")
    return ids, units, files, faults, notes


def _home(place: Path, building: str) -> Path:
    """The folder of a building, below the one of omnidata-tools where there is one."""
    between = place / COMPONENT
    return (between if between.is_dir() else place) / building


def _other_buildings(folder: Path) -> Iterator[str]:
    """A remark on buildings that are not of the tiny subset, as a larger one brings them."""
    known = {building for buildings in TINY.values() for building in buildings}
    homes = [home for place, _ in PLACES.values() for home in _home(folder / place, "").iterdir() if home.is_dir()]
    if others := sorted({home.name for home in homes} - known):
        yield f"buildings that are not of the tiny subset, left out: {len(others)}, the first is {others[0]}"


def _listed(folder: Path, split: Split) -> _Found:
    rows = sorted(listed_rows(folder / LIST, split, tuple(PLACES)), key=_order)
    files = {name: [folder / row[column] for row in rows] for column, name in enumerate(PLACES)}
    ids = [str(PurePosixPath(row[0]).with_suffix("")) for row in rows]
    faults = list(_prior_faults(folder)) if split == "train" else []
    return ids, [building_of(row[0]) for row in rows], files, faults, []


def building_of(path: str) -> str:
    """The building of a listed image: the last folder in its path that is not named by a kind of image.

    Raises FileError where there is none.
    """
    others = {COMPONENT, "rgb"}
    for name in reversed(PurePosixPath(path).parent.parts):
        if name not in others:
            return name.removesuffix("_rgb")  # as in the official archives
    raise FileError(f"{path}: expected an image in the folder of its building.")


def _order(row: Sequence[str]) -> tuple[str, list[int]]:
    """By folder, then the numbers in the name: point 10 after point 9."""
    path = PurePosixPath(row[0])
    return str(path.parent), [int(number) for number in re.findall(r"\d+", path.stem)]


def _prior_faults(folder: Path) -> Iterator[Fault]:
    """A fault if the release's weights of classes are not those that are used here."""
    path = folder / PRIORS_FILE
    if path.is_file():
        found = read_array(path)
        if found.shape != (len(PRIORS),) or not np.allclose(found, PRIORS, rtol=0, atol=0.0006):
            yield Fault(PRIORS_FILE, "", "weights of classes", f"{len(PRIORS)}: {PRIORS[0]}, ...", f"{found.tolist()}")


def _list_faults(folder: Path) -> Iterator[Fault]:
    """A fault if the official lists lie there and name other buildings than those that are used here."""
    if (folder / LISTS).is_file():
        found = read_lists(folder / LISTS)["tiny"]
        for split, buildings in TINY.items():
            if sorted(found[split]) != sorted(buildings):
                yield Fault(LISTS, "", f"buildings of {split}", ", ".join(buildings), ", ".join(found[split]))


def read_lists(path: Path) -> dict[str, dict[str, list[str]]]:
    """{subset: {split: buildings}} of the official zip of lists. Raises FileError."""
    archive, found = Archive(path), {}
    for member in archive.members():
        match = re.fullmatch(r"splits_taskonomy/train_val_test_(\w+)\.csv", member)
        if match is not None:
            found[match[1]] = read_list(archive.read(member), f"{path}/{member}")
    if "tiny" not in found:
        raise FileError(f"{path}: expected splits_taskonomy/train_val_test_tiny.csv in it.")
    return found


def read_list(data: bytes, path: object) -> dict[str, list[str]]:
    """{split: buildings} of a list `id,train,val,test`, whose lines end with CR, LF or both. Raises FileError."""
    try:
        header, *rows = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=None))
    except (UnicodeDecodeError, ValueError, csv.Error) as error:
        raise FileError(f"{path}: cannot be read as a list of buildings ({error}).") from error
    if header != ["id", "train", "val", "test"]:
        raise FileError(f"{path}: expected the columns id, train, val, test, found {', '.join(header)}.")
    found: dict[str, list[str]] = {split: [] for split in header[1:]}
    for row in rows:
        if len(row) != 4 or sorted(row[1:]) != ["0", "0", "1"]:
            raise FileError(f"{path}: expected a building in one of three splits, found {','.join(row)!r}.")
        found[header[row.index("1", 1)]].append(row[0])
    return found


def _fields(spec: DatasetSpec) -> dict[str, FieldForm]:
    published = spec.protocol == "adashare"

    def reader(dtype: str, *channels: int) -> functools.partial[Array]:
        return functools.partial(read_map, dtype=dtype, channels=channels, side=spec.native_size[0], corner=published)

    colours = functools.partial(read_photograph, side=spec.native_size[0])
    share = functools.partial(decode_share, symmetric=published)
    return {
        "image": (reader("uint8", 3) if published else colours, scale_uint8),
        "semseg": (
            functools.partial(read_classes, side=spec.native_size[0], published=published),
            decode_labels,
        ),
        "normals": (reader("uint8", 3), functools.partial(decode_normals, masked=False)),
        "depth": (reader("uint16"), functools.partial(decode_depth, log=published)),
        "keypoint": (reader("uint16"), functools.partial(share, largest=LARGEST_KEYPOINT)),
        "edge": (reader("uint16"), functools.partial(share, largest=LARGEST_EDGE)),
    }


def _whole(path: Path, dtype: str, channels: Sequence[int]) -> Array:
    values = read_image(path)
    side = next((side for side in SIDES if values.shape[:2] == (side, side)), SIDES[0])
    return expect(values, (side, side, *channels), [dtype], path)


def read_map(path: Path, dtype: str, channels: Sequence[int], side: int, corner: bool = False) -> Array:
    """[side, side, *channels] as stored: of the pixels that become one, the central or the upper left one.

    Raises FileError.
    """
    values = _whole(path, dtype, channels)
    step = len(values) // side
    if step == 0:
        raise FileError(
            f"{path}: expected an image of {side} pixels, found {len(values)}; ask for size: {len(values)}."
        )
    first = 0 if corner else step // 2
    return np.ascontiguousarray(values[first::step, first::step])


def read_photograph(path: Path, side: int) -> Array:
    """uint8 [side, side, 3], reduced bilinearly with antialiasing. Raises FileError."""
    image = _whole(path, "uint8", (3,))
    if len(image) == side:
        return image
    return np.array(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))


def read_classes(path: Path, side: int, published: bool) -> Array:
    """uint8 [side, side]: 17 classes counted from 0; uncertain pixels 255, or 0 if `published`. Raises FileError."""
    stored = read_map(path, "uint8", (), side, corner=published)
    if stored.max() > len(CLASSES):
        raise FileError(f"{path}: expected labels 0 to {len(CLASSES)}, found {stored.max()}.")
    return np.where(stored == 0, 0 if published else IGNORE, stored - (stored > 0)).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class _MaskedNormals:
    """Colours of normals, uint8 [side, side, 3]; grey, which is the zero vector, where the depth is unknown."""

    normals: Sequence[Path]
    depths: Sequence[Path]
    side: int

    def __call__(self, index: int) -> Array:
        colours = read_map(self.normals[index], "uint8", (3,), self.side)
        colours[is_unknown(read_map(self.depths[index], "uint16", (), self.side))] = GREY
        return colours


def is_unknown(depth: Array) -> Array:
    """bool [H, W] of depth as it is stored."""
    return np.asarray((depth >= UNKNOWN_DEPTH) | (depth == 0))


def decode_depth(stored: Array, log: bool = False) -> Tensor:
    """uint16 [H, W] -> float32 [H, W], metres or log(1 + stored) / log(2^16); NaN where unknown."""
    import torch

    values = stored.astype(np.float32)
    values = np.log1p(values) / np.float32(math.log(2**16)) if log else values / np.float32(UNITS_PER_METRE)
    values[is_unknown(stored)] = math.nan
    return torch.from_numpy(values)


def decode_share(stored: Array, largest: float, symmetric: bool = False) -> Tensor:
    """uint16 [H, W] -> float32 [1, H, W]: 0 to `largest` of the range of uint16 becomes [0, 1], or [-1, 1]; clipped."""
    import torch

    shares = (torch.from_numpy(stored.astype(np.float32)) / (2**16 * largest)).clamp_(max=1).unsqueeze(0)
    return shares * 2 - 1 if symmetric else shares


def decode_normals(stored: Array, masked: bool = True) -> Tensor:
    """uint8 [H, W, 3], x right, y down, z to the viewer -> unit vectors float32 [3, H, W], y up.

    masked: grey is unknown, and so are the few vectors of odd length at the edges of objects; else all pixels count.
    Raises UsageError where many vectors are of another length than 1.
    """
    import torch

    vectors = torch.from_numpy(stored).permute(2, 0, 1).to(torch.float32) / 127.5 - 1
    vectors[1].neg_()
    length = vectors.norm(dim=0)
    if not masked:
        return vectors / length  # no code in 8 bits is the zero vector
    known = length > SHORTEST
    odd = known & ((length - 1).abs() > 0.1)
    if odd.sum() > SHARE_WRONG * known.sum():
        raise UsageError(f"expected normals of length 1, or grey where unknown; {int(odd.sum())} have another length.")
    return torch.where(known & ~odd, vectors / length.clamp(min=SHORTEST), 0.0)


def _below(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
