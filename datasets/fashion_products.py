"""`fashion_products`: photographs of a shop's products; for whom, what, which colour, season, usage. Datasets 13.1.

Source: Kaggle `paramaggarwal/fashion-product-images-small`, about 44,400 JPEG of 60 x 80 pixels and a table of labels.
An empty cell, and a value outside the lists below, is no label: it is ignored for that task and is no class.

Ours, since no official split exists: 70 / 10 / 20 % by sha256 of the decoded RGB pixels, so that pictures of equal
pixels stay on one side, the same in both layouts. The classes of a task are the values that 40 or more of the
8,039 products `v1` have, the products that the subset of our tables holds.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import pydantic
from PIL import Image

from datasets import (
    SINGLE_INPUT,
    DatasetOptions,
    DatasetSpec,
    ExpectedFiles,
    Fault,
    Field,
    FileError,
    FileLoader,
    FileOptions,
    ProtocolError,
    Source,
    Split,
    TaskSpec,
    Tier,
    register_dataset,
)
from datasets.on_disk.files import Array, read_bytes
from datasets.on_disk.pictures import IMAGES, Folder, Listing, Packed, Pictures, sha256_of
from datasets.on_disk.prepared import copy_of
from datasets.on_disk.sources import number_label, scale_uint8

VERSION = "v1"
HOME = "https://www.kaggle.com/datasets/paramaggarwal/fashion-product-images-small"
LICENCE = "not verified (Kaggle's page: MIT, recalled; mirrors: none): research use, no redistribution"
TABLE, ARCHIVE = "styles.csv", "images.tar.xz"
HEAD = "id,gender,masterCategory,subCategory,articleType,baseColour,season,year,usage,productDisplayName"
COLUMNS = tuple(HEAD.split(","))
HEIGHT, WIDTH = 80, 60
# {option: (height, width)}: as in the files, and means of squares of pixels
SIZES: Mapping[str, tuple[int, int]] = {"80x60": (80, 60), "40x30": (40, 30), "20x15": (20, 15), "16x12": (16, 12)}
SHARES: tuple[tuple[Split, int], ...] = (("train", 7), ("val", 8), ("test", 10))  # ends, in tenths of the hashes
SPLITS: Mapping[str, int] = {"train": 5560, "val": 815, "test": 1664}  # of the products v1
SPLITS_OF_ALL: Mapping[str, int] = {"train": 31_100, "val": 4_450, "test": 8_890}  # of all 44,441 (recalled), about
CHECKSUMS: Mapping[str, str] = {
    ARCHIVE: "6a3bb0ab6e42fee724533c5d85b75e303b86154203b793b88c521d629239d9d8",
    TABLE: "53b791669e1c798d790864cf90d62944a0cf410318332925f59c66231be9d475",
}
# Of the products v1 as the subset has them: sha256 of lines `id sha256-of-pixels`, and of lines of labels.
PIXELS_SHA256 = "3231709b93ae3d8baaa3a7f6eaf634577f02a4ee43c44488e595dc3f3a74fc39"
LABELS_SHA256 = "8ed438919b8ce9ceb86f47d381d044b9e63d73947f2057144d5b540d324363e7"


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


CLASSES: Mapping[str, tuple[str, tuple[str, ...]]] = {  # {task: (column, names)}; the first five are the default tasks
    "gender": ("gender", ("Boys", "Girls", "Men", "Unisex", "Women")),
    "article": (
        "articleType",
        _names(
            "Backpacks,Belts,Bra,Briefs,Capris,Caps,Casual Shoes,Deodorant,Dresses,Earrings,Flats,Flip Flops,"
            "Formal Shoes,Free Gifts,Handbags,Heels,Innerwear Vests,Jackets,Jeans,Kurtas,Leggings,Lipstick,"
            "Nail Polish,Nightdress,Perfume and Body Mist,Sandals,Sarees,Scarves,Shirts,Shorts,Skirts,Socks,"
            "Sports Shoes,Sunglasses,Sweaters,Sweatshirts,Ties,Tops,Track Pants,Trousers,Tshirts,Tunics,Wallets,"
            "Watches"
        ),
    ),
    "colour": (
        "baseColour",
        _names(
            "Beige,Black,Blue,Brown,Cream,Gold,Green,Grey,Maroon,Multi,Navy Blue,Olive,Orange,Pink,Purple,Red,Silver,"
            "Steel,White,Yellow"
        ),
    ),
    "season": ("season", ("Fall", "Spring", "Summer", "Winter")),
    "usage": ("usage", ("Casual", "Ethnic", "Formal", "Sports")),
    "category": ("masterCategory", ("Accessories", "Apparel", "Footwear", "Free Items", "Personal Care")),
    "subcategory": (
        "subCategory",
        _names(
            "Accessories,Bags,Belts,Bottomwear,Dress,Eyewear,Flip Flops,Fragrance,Free Gifts,Headwear,Innerwear,"
            "Jewellery,Lips,Loungewear and Nightwear,Makeup,Nails,Sandal,Saree,Scarves,Shoes,Socks,Ties,Topwear,"
            "Wallets,Watches"
        ),
    ),
}
DEFAULT_TASKS = tuple(CLASSES)[:5]  # category and subcategory nearly follow from article
UNLABELLED = -1
IN_MEMORY = 2**27  # bytes of decoded images that are kept in memory
MAX_NAMES = 5  # that a remark lists
# Measured on the train split of the products v1, 80 x 60.
_MEAN, _STD = (0.866, 0.849, 0.844), (0.260, 0.273, 0.276)
_CAVEAT = (
    "no official split exists, ours is by hash of the pixels; the products v1 are no uniform sample of the whole set"
)
_TIERS: Mapping[str, Tier] = {"kaggle": "verified on twins", "subset": "verified on genuine files"}


class FashionOptions(FileOptions):
    """Which products, and how large the images are."""

    products: Literal["v1", "all"] = pydantic.Field(
        default="v1",
        description="`v1` takes the 8,039 products of the subset out of either layout; `all` every one with a picture "
        "and a row",
    )
    size: Literal["80x60", "40x30", "20x15", "16x12"] = pydantic.Field(
        default="80x60",
        description="height and width in pixels: as in the files (80x60), or reduced by averaging squares",
    )


@functools.cache
def products_v1() -> tuple[int, ...]:
    """The ids of the 8,039 products of the subset, ascending. The file beside this one holds the gaps between them."""
    text = Path(__file__).with_name("fashion_products_v1.txt").read_text(encoding="ascii")
    return tuple(np.cumsum([int(gap) for gap in text.split()]).tolist())


# The table


class Table(NamedTuple):
    """Rows of `styles.csv`. rows: {id: {column: value}}, titles left out; faults: lines that are no rows."""

    rows: Mapping[int, Mapping[str, str]]
    faults: Sequence[Fault]


def read_table(path: Path) -> Table:
    """The rows of the table. No column but the last, the title, holds commas; in the full table titles are not quoted.

    Raises FileError where it is no table of these columns in UTF-8.
    """
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileError(
            f"{path}: expected text in UTF-8, found the byte 0x{error.object[error.start]:02x} at {error.start}; "
            "get it again, or save it in UTF-8."
        ) from error
    lines = [line.removesuffix("\r") for line in text.split("\n")]  # titles may hold other breaks
    if lines[0] != HEAD:
        raise FileError(f"{path}: expected the columns {HEAD}, found {lines[0]!r:.120}.")
    rows: dict[int, Mapping[str, str]] = {}
    faults = []
    for number, line in enumerate(lines[1:], start=2):
        cells = line.split(",", len(COLUMNS) - 1)
        if not line.strip():
            continue
        if len(cells) != len(COLUMNS) or not re.fullmatch(r"[1-9]\d{0,8}", cells[0]):
            faults.append(Fault(TABLE, "", f"line {number}", "a number and nine more cells", f"{line!r:.80}"))
        elif int(cells[0]) in rows:
            faults.append(Fault(TABLE, cells[0], f"line {number}", "a product of its own", "one that is listed before"))
        else:
            rows[int(cells[0])] = dict(zip(COLUMNS[1:-1], cells[1:], strict=False))
    return Table(rows, faults)


# Pictures


def on_canvas(picture: Array) -> Array:
    """uint8 [80, 60, 3]: the picture as it is, or centred on white, the shop's background, without distortion; reduced
    first where it is larger.
    """
    height, width = picture.shape[:2]
    if (height, width) == (HEIGHT, WIDTH):
        return picture
    scale = min(1.0, HEIGHT / height, WIDTH / width)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        picture = np.array(Image.fromarray(picture).resize(size, Image.Resampling.BOX))
        height, width = picture.shape[:2]
    canvas = np.full((HEIGHT, WIDTH, 3), 255, dtype=np.uint8)
    top, left = (HEIGHT - height) // 2, (WIDTH - width) // 2
    canvas[top : top + height, left : left + width] = picture
    return canvas


def reduced(image: Array, size: tuple[int, int]) -> Array:
    """uint8 [*size, 3] of uint8 [80, 60, 3]: means of squares, halves up."""
    by = HEIGHT // size[0]
    if by == 1:
        return image
    sums = image.reshape(size[0], by, size[1], by, 3).sum(axis=(1, 3), dtype=np.uint32)
    means: Array = ((2 * sums + by * by) // (2 * by * by)).astype(np.uint8)
    return means


# Both together


def side_of(pixels: str) -> Split:
    """The split of a picture. pixels: sha256 of its decoded RGB pixels."""
    tenth = int(pixels[:8], 16) * 10 >> 32
    return next(split for split, end in SHARES if tenth < end)


@dataclasses.dataclass(frozen=True)
class Products:
    """Products with picture and row, ascending. labels: {task: int64 [N]}. faults, notes: as of a `Source`."""

    ids: Sequence[int]
    pixels: Sequence[str]
    labels: Mapping[str, Array]
    faults: Sequence[Fault]
    notes: Sequence[str]


def joined(table: Table, listing: Listing, options: FashionOptions, tasks: Sequence[str]) -> Products:
    """Pictures and rows joined by id. tasks: whose missing labels are remarked on."""
    rows, pictures = table.rows, listing.pictures
    known = {*rows, *pictures}
    faults = [*table.faults, *listing.faults]
    notes = [*_notes_on_pictures(listing)]
    if options.products == "v1":
        asked = [product for product in products_v1() if options.profile == "real" or product in known]
        broken = {fault.sample for fault in faults}
        for product in asked:
            if product not in pictures and str(product) not in broken:
                faults.append(Fault(f"{IMAGES}/{product}.jpg", str(product), "existence", "a file (image)", "none"))
            if product not in rows and str(product) not in broken:
                faults.append(Fault(TABLE, str(product), "row", f"one of product {product}", "none"))
        if n_more := len(set(rows) - set(asked)):
            notes.append(f"rows that are not of the products v1, left out: {n_more:,} (products: all takes them)")
    else:
        asked = sorted(known)
        notes += _named("rows without a picture, left out", sorted(set(rows) - set(pictures)))
        notes += _named("pictures without a row, left out", sorted(set(pictures) - set(rows)))
    ids = [product for product in asked if product in rows and product in pictures]
    pixels = [pictures[product][0] for product in ids]
    labels = {
        task: _ranks([rows[product][column] for product in ids], names) for task, (column, names) in CLASSES.items()
    }
    for task in tasks:
        notes += _unlabelled(task, [rows[product][CLASSES[task][0]] for product in ids])
    if options.products == "v1" and options.profile == "real" and not faults:
        found = sha256_of(f"{product} {one}" for product, one in zip(ids, pixels, strict=True))
        if found != PIXELS_SHA256:
            what = f"{found[:16]}: other pictures, or a JPEG decoder that rounds in another way"
            faults.append(Fault(IMAGES, "", "sha256 of all pixels", PIXELS_SHA256[:16], what))
        if sha256_of(_label_lines(ids, labels)) != LABELS_SHA256:
            notes.append("the labels of some products v1 are not those of the subset; the data hash is another one")
    return Products(ids, pixels, labels, faults, notes)


def _ranks(values: Sequence[str], names: Sequence[str]) -> Array:
    ranks = {name: rank for rank, name in enumerate(names)}
    return np.array([ranks.get(value, UNLABELLED) for value in values], dtype=np.int64)


def _label_lines(ids: Sequence[int], labels: Mapping[str, Array]) -> Iterator[str]:
    columns = [labels[task].tolist() for task in CLASSES]
    return (" ".join(map(str, row)) for row in zip(ids, *columns, strict=True))


def _notes_on_pictures(listing: Listing) -> Iterator[str]:
    mac = [name for name in listing.other if PurePosixPath(name).name.startswith("._")]
    yield from _named("files of macOS (._NAME), no pictures", mac)
    yield from _named("files that are not named ID.jpg, left out", [name for name in listing.other if name not in mac])
    forms = {product: form.removesuffix(" gray") for product, (_, form) in sorted(listing.pictures.items())}
    odd = [f"{product} ({form})" for product, form in forms.items() if form != f"{HEIGHT}x{WIDTH}"]
    yield from _named(f"pictures that are not {HEIGHT}x{WIDTH}, centred on white", odd)


def _named(what: str, names: Sequence[object]) -> Iterator[str]:
    """A line with the number of names and the first of them; none where there are none."""
    if names:
        more = f" and {len(names) - MAX_NAMES:,} more" if len(names) > MAX_NAMES else ""
        yield f"{what}: {len(names):,} ({', '.join(map(str, names[:MAX_NAMES]))}{more})"


def _unlabelled(task: str, values: Sequence[str]) -> Iterator[str]:
    """How many products have no label of a task, and what their cells hold instead."""
    other = Counter(value or "(empty)" for value in values if value not in CLASSES[task][1])
    if n := sum(other.values()):
        named = [f"{value} {count}" for value, count in sorted(other.items(), key=lambda item: (-item[1], item[0]))]
        more = f" and {len(named) - MAX_NAMES} more values" if len(named) > MAX_NAMES else ""
        share = 100 * (1 - n / len(values))
        yield f"{task}: {share:.4g} % labelled; {n:,} products are not: {', '.join(named[:MAX_NAMES])}{more}"


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads the picture at a position, reduced."""

    pictures: Pictures
    ids: Sequence[int]
    size: tuple[int, int]

    def __call__(self, index: int) -> Array:
        return reduced(on_canvas(self.pictures.read(self.ids[index])), self.size)


@dataclasses.dataclass(frozen=True)
class _Where:
    """The file of the picture at a position."""

    pictures: Pictures
    ids: Sequence[int]

    def __call__(self, index: int) -> Path:
        return self.pictures.where(self.ids[index])


@dataclasses.dataclass(frozen=True)
class _InTable:
    """The file of every label."""

    path: Path

    def __call__(self, index: int) -> Path:
        return self.path


@register_dataset("fashion_products")
class FashionProducts(FileLoader):
    """Photographs of a shop's products with five to seven labels each, some of them unknown."""

    Options = FashionOptions
    layouts: ClassVar[Mapping[str, ExpectedFiles]] = {
        "kaggle": ExpectedFiles(
            "{styles.csv,images/ID.jpg}",
            "0.6 GB",
            (TABLE, IMAGES),
            source=HOME,
            commands=(
                "mkdir -p {folder}",
                "kaggle datasets download -d paramaggarwal/fashion-product-images-small -p {folder} --unzip",
            ),
        ),
        "subset": ExpectedFiles(
            "{images.tar.xz,styles.csv}",
            "29 MB",
            (TABLE, ARCHIVE),
            checksums=CHECKSUMS,
            source="https://github.com/aditya-patil-00/Fashion-Recommender at 6e6ee42 (images; 8,039 products)",
        ),
    }

    def spec(self, protocol: str, options: DatasetOptions, layout: str | None = None) -> DatasetSpec:
        """Seven tasks of classes; the lists are the same for both layouts."""
        assert isinstance(options, FashionOptions)
        if protocol != "standard":
            raise ProtocolError(f"fashion_products has no labels for protocol {protocol!r}; it offers 'standard'.")
        layout = layout or "kaggle"
        return DatasetSpec(
            name="fashion_products",
            layout=layout,
            version=f"{VERSION}+{options.products}" + ("" if options.size == "80x60" else f"+{options.size}"),
            protocol=protocol,
            domains="single",
            tasks=tuple(
                TaskSpec(task, "class", len(names), ("accuracy", "balanced_accuracy"), names)
                for task, (_, names) in CLASSES.items()
            ),
            splits=SPLITS if options.products == "v1" or layout == "subset" else SPLITS_OF_ALL,
            native_size=SIZES[options.size],
            mean=_MEAN,
            std=_STD,
            licence=LICENCE,
            home=HOME,
            tier=_TIERS[layout],
            caveats=(_CAVEAT,),
        )

    def default_tasks(self, spec: DatasetSpec) -> tuple[str, ...]:
        """Five that differ; category and subcategory nearly follow from article."""
        return DEFAULT_TASKS

    def sources(self, folder: Path, split: Split, spec: DatasetSpec, options: FileOptions) -> Mapping[str, Source]:
        """The products of a split by number. Decodes every picture, unless a prepared copy remembers their pixels.

        Raises FileError where table or archive cannot be read at all.
        """
        assert isinstance(options, FashionOptions)
        asked = products_v1() if options.products == "v1" else None
        pictures = Packed(folder / ARCHIVE) if spec.layout == "subset" else Folder(folder, asked)
        manifest = copy_of(folder, spec, options.model_dump(mode="json")).manifest()
        listing = pictures.listing(None if manifest is None else manifest.get("listing"))
        whole = joined(read_table(folder / TABLE), listing, options, spec.task_names)
        rows = [row for row, pixels in enumerate(whole.pixels) if side_of(pixels) == split]
        ids = [whole.ids[row] for row in rows]
        pixels = [whole.pixels[row] for row in rows]
        labels = {task: values[rows] for task, values in whole.labels.items()}
        return {
            SINGLE_INPUT: Source(
                ids=[str(product) for product in ids],
                units=[one[:16] for one in pixels],  # equal pictures stay together
                image=Field(_Reader(pictures, ids, SIZES[options.size]), scale_uint8, _Where(pictures, ids)),
                targets={
                    task: Field(values.__getitem__, number_label, _InTable(folder / TABLE))
                    for task, values in labels.items()
                },
                faults=whole.faults,
                counted=options.products == "v1",
                one_size=False,
                in_memory=3 * len(whole.ids) * math.prod(SIZES[options.size]) <= IN_MEMORY,
                meta={"domain": None},
                identity=sha256_of([*pixels, *_label_lines(ids, labels)]),
                listing=listing.kept(),
                notes=whole.notes,
            )
        }
