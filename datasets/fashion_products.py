"""`fashion_products`: photographs of a shop's products; for whom, what, which colour, season, usage. Spec: datasets 13.1.

Source: Kaggle `paramaggarwal/fashion-product-images-small`, about 44,400 JPEG of 60 x 80 pixels and a table of labels.
An empty cell, and a value outside the lists below, is no label: it is ignored for that task and is no class.

Ours, since no official split exists: 70 / 10 / 20 % by sha256 of the decoded RGB pixels, so that pictures that are equal
pixel for pixel stay on one side, the same in both layouts. The classes of a task are the values that 40 or more of the
8,039 products `v1` have, the products that the subset of our tables holds.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import lzma
import re
import tarfile
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from datasets.on_disk.files import Array, image_array, read_bytes
from datasets.on_disk.prepared import copy_of
from datasets.on_disk.sources import number_label, scale_uint8

VERSION = "v1"
HOME = "https://www.kaggle.com/datasets/paramaggarwal/fashion-product-images-small"
LICENCE = "not verified (Kaggle's page: MIT, recalled; mirrors: none): research use, no redistribution"
TABLE, ARCHIVE, IMAGES = "styles.csv", "images.tar.xz", "images"
COLUMNS = (
    "id",
    "gender",
    "masterCategory",
    "subCategory",
    "articleType",
    "baseColour",
    "season",
    "year",
    "usage",
    "productDisplayName",
)
HEIGHT, WIDTH = 80, 60
SIZES = ((80, 60), (40, 30), (20, 15), (16, 12))  # (height, width): as in the files, and means of squares of pixels
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

CLASSES: Mapping[str, tuple[str, tuple[str, ...]]] = {  # {task: (column, names)}; the first five are the default tasks
    "gender": ("gender", ("Boys", "Girls", "Men", "Unisex", "Women")),
    "article": (
        "articleType",
        tuple(
            "Backpacks,Belts,Bra,Briefs,Capris,Caps,Casual Shoes,Deodorant,Dresses,Earrings,Flats,Flip Flops,"
            "Formal Shoes,Free Gifts,Handbags,Heels,Innerwear Vests,Jackets,Jeans,Kurtas,Leggings,Lipstick,"
            "Nail Polish,Nightdress,Perfume and Body Mist,Sandals,Sarees,Scarves,Shirts,Shorts,Skirts,Socks,"
            "Sports Shoes,Sunglasses,Sweaters,Sweatshirts,Ties,Tops,Track Pants,Trousers,Tshirts,Tunics,Wallets,"
            "Watches".split(",")
        ),
    ),
    "colour": (
        "baseColour",
        tuple(
            "Beige,Black,Blue,Brown,Cream,Gold,Green,Grey,Maroon,Multi,Navy Blue,Olive,Orange,Pink,Purple,Red,Silver,"
            "Steel,White,Yellow".split(",")
        ),
    ),
    "season": ("season", ("Fall", "Spring", "Summer", "Winter")),
    "usage": ("usage", ("Casual", "Ethnic", "Formal", "Sports")),
    "category": ("masterCategory", ("Accessories", "Apparel", "Footwear", "Free Items", "Personal Care")),
    "subcategory": (
        "subCategory",
        tuple(
            "Accessories,Bags,Belts,Bottomwear,Dress,Eyewear,Flip Flops,Fragrance,Free Gifts,Headwear,Innerwear,"
            "Jewellery,Lips,Loungewear and Nightwear,Makeup,Nails,Sandal,Saree,Scarves,Shoes,Socks,Ties,Topwear,"
            "Wallets,Watches".split(",")
        ),
    ),
}
DEFAULT_TASKS = ("gender", "article", "colour", "season", "usage")  # category and subcategory nearly follow from article
UNLABELLED = -1
IN_MEMORY = 2**27  # bytes of decoded images that are kept in memory
LARGEST_FILE = 2**24  # bytes of one member of the archive; genuine ones have 30 kB
MAX_NAMES = 5  # that a remark lists
# Measured on the train split of the products v1, 80 x 60.
_MEAN, _STD = (0.866, 0.849, 0.844), (0.260, 0.273, 0.276)
_CAVEAT = (
    "no official split exists, ours is by hash of the pixels; the products v1 are no uniform sample of the whole set"
)
_TIERS: Mapping[str, Tier] = {"kaggle": "verified on twins", "subset": "verified on genuine files"}
_NAME = re.compile(r"([1-9]\d{0,8})\.jpg")


class FashionOptions(FileOptions):
    """Which products, and how large the images are."""

    products: Literal["v1", "all"] = pydantic.Field(
        default="v1",
        description="`v1` takes the 8,039 products of the subset out of either layout; `all` every one with a picture "
        "and a row",
    )
    size: tuple[int, int] = pydantic.Field(
        default=(HEIGHT, WIDTH),
        description="height and width in pixels: 80, 60 as in the files, or 40, 30, or 20, 15, or 16, 12 by averaging "
        "squares",
    )

    @pydantic.field_validator("size")
    @classmethod
    def _reducible(cls, size: tuple[int, int]) -> tuple[int, int]:
        if size not in SIZES:
            raise ValueError(f"one of {', '.join(map(str, map(list, SIZES)))} (height, width)")
        return size


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
    head = lines[0].split(",")
    if tuple(head) != COLUMNS:
        raise FileError(f"{path}: expected the columns {','.join(COLUMNS)}, found {','.join(head)!r:.120}.")
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


# The pictures


@dataclasses.dataclass(frozen=True)
class Listing:
    """What is known of the pictures once all of them have been decoded.

    files: sha256 over the files that were read. pictures: {id: (sha256 of the RGB pixels, form such as `80x60`)}.
    other: names that are no product's.
    """

    files: str
    pictures: Mapping[int, tuple[str, str]]
    other: Sequence[str] = ()
    faults: Sequence[Fault] = ()

    def kept(self) -> dict[str, object]:
        """As the manifest of a prepared copy keeps it; a set with faults is not prepared."""
        pictures = {str(product): list(found) for product, found in self.pictures.items()}
        return {"files": self.files, "pictures": pictures, "other": list(self.other)}


def decoded(data: bytes, path: object) -> tuple[Array, str]:
    """(uint8 [H, W, 3], form such as `80x60 gray`) of a JPEG. Raises FileError for one that is no gray or RGB image."""
    array = image_array(data, path)
    form = f"{array.shape[0]}x{array.shape[1]}"
    if array.dtype != np.uint8 or array.shape[2:] not in ((), (3,)):
        raise FileError(f"{path}: expected a gray or an RGB image of 8 bits, found {array.dtype} {array.shape}.")
    if array.ndim == 2:
        return np.repeat(array[..., None], 3, axis=2), f"{form} gray"
    return array, form


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


def _sha256(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


class Pictures:
    """The pictures of a layout. Subclasses read them; all of them survive pickling."""

    def listing(self, kept: Mapping[str, object] | None) -> Listing:
        """All pictures, from the manifest of a prepared copy where that was made from the same files."""
        raise NotImplementedError

    def where(self, product: int) -> Path:
        """The file that holds a picture."""
        raise NotImplementedError

    def read(self, product: int) -> Array:
        """uint8 [80, 60, 3]. Raises FileError."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Folder(Pictures):
    """`images/ID.jpg`. asked: the products that are looked at, None for all."""

    path: Path
    asked: tuple[int, ...] | None

    def listing(self, kept: Mapping[str, object] | None) -> Listing:
        """Reads every file that is asked for; decodes them all if nothing is kept. Raises FileError."""
        folder = self.path / IMAGES
        try:
            names = sorted(path.name for path in folder.iterdir())
            products = sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))
            if self.asked is not None:
                products = sorted({*products}.intersection(self.asked))
            stats = [(product, self.where(product).stat()) for product in products]
        except OSError as error:
            raise FileError(f"{error.filename or folder}: cannot be read ({error.strerror or error}).") from error
        seen = tuple((product, stat.st_size, stat.st_mtime_ns) for product, stat in stats)
        digest, other = _digest_of_files(self.path, seen), [name for name in names if not _NAME.fullmatch(name)]
        again = _again(kept, digest) or _look_at_files(self.path, seen)
        return dataclasses.replace(again, files=digest, other=other)

    def where(self, product: int) -> Path:
        """The picture itself."""
        return self.path / IMAGES / f"{product}.jpg"

    def read(self, product: int) -> Array:
        """uint8 [80, 60, 3]. Raises FileError."""
        path = self.where(product)
        return on_canvas(decoded(read_bytes(path), path)[0])


Seen = tuple[tuple[int, int, int], ...]  # (product, bytes, time of change) of files, for which a listing holds


@functools.lru_cache(maxsize=2)
def _digest_of_files(folder: Path, seen: Seen) -> str:
    def digest(product: int) -> str:
        return f"{product} {hashlib.sha256(read_bytes(folder / IMAGES / f'{product}.jpg')).hexdigest()}"

    with ThreadPoolExecutor() as pool:
        return _sha256(pool.map(digest, [product for product, *_ in seen]))


@functools.lru_cache(maxsize=2)
def _look_at_files(folder: Path, seen: Seen) -> Listing:
    def look(product: int) -> tuple[str, str] | Fault:
        path = folder / IMAGES / f"{product}.jpg"
        return _looked_at(product, read_bytes(path), path, f"{IMAGES}/{product}.jpg")[0]

    products = [product for product, *_ in seen]
    with ThreadPoolExecutor() as pool:
        found = dict(zip(products, pool.map(look, products), strict=True))
    return _listing_of(found)


def _looked_at(product: int, data: bytes, path: object, name: str) -> tuple[tuple[str, str] | Fault, Array | None]:
    """((sha256 of the pixels, form), picture), or what is wrong with it."""
    try:
        picture, form = decoded(data, path)
    except FileError as error:
        reason = str(error).removeprefix(f"{path}: ").rstrip(".")
        return Fault(name, str(product), "content", "a JPEG that can be read", reason), None
    return (hashlib.sha256(np.ascontiguousarray(picture)).hexdigest(), form), picture


def _listing_of(found: Mapping[int, tuple[str, str] | Fault]) -> Listing:
    faults = [one for one in found.values() if isinstance(one, Fault)]
    return Listing("", {product: one for product, one in found.items() if not isinstance(one, Fault)}, (), faults)


def _again(kept: Mapping[str, object] | None, digest: str) -> Listing | None:
    """The listing that a prepared copy keeps, None where it was made from other files."""
    if kept is None or kept.get("files") != digest:
        return None
    pictures, other = kept["pictures"], kept["other"]
    assert isinstance(pictures, dict)
    assert isinstance(other, list)
    return Listing(digest, {int(product): (one[0], one[1]) for product, one in pictures.items()}, other)


@dataclasses.dataclass(frozen=True)
class Packed(Pictures):
    """`images.tar.xz` with members `images/ID.jpg`: cannot be read in any order, and is unpacked into memory once."""

    path: Path

    def listing(self, kept: Mapping[str, object] | None) -> Listing:
        """Hashes the archive; unpacks it if nothing is kept. Raises FileError for one that is damaged or unsafe."""
        return _again(kept, _digest_of_archive(self.path, self._seen)) or _unpacked_once(self.path, self._seen)[0]

    @property
    def _seen(self) -> tuple[int, int]:
        try:
            stat = self.path.stat()
        except OSError as error:
            raise FileError(f"{self.path}: cannot be read ({error.strerror or error}).") from error
        return stat.st_size, stat.st_mtime_ns

    def where(self, product: int) -> Path:
        """The archive."""
        return self.path

    def read(self, product: int) -> Array:
        """uint8 [80, 60, 3]. Raises FileError."""
        return _unpacked_once(self.path, self._seen)[1][product]


@functools.lru_cache(maxsize=2)
def _digest_of_archive(path: Path, seen: tuple[int, int]) -> str:
    return hashlib.sha256(read_bytes(path)).hexdigest()


_UNPACKING = threading.Lock()  # threads that decode side by side wait for the first one, and do not all unpack


def _unpacked_once(path: Path, seen: tuple[int, int]) -> tuple[Listing, Mapping[int, Array]]:
    with _UNPACKING:
        return _unpacked(path, seen)


@functools.lru_cache(maxsize=1)
def _unpacked(path: Path, seen: tuple[int, int]) -> tuple[Listing, Mapping[int, Array]]:
    found: dict[int, tuple[str, str] | Fault] = {}
    pictures: dict[int, Array] = {}
    other, faults = [], []
    for name, data in _members(path):
        match = _NAME.fullmatch(name.removeprefix(f"{IMAGES}/"))
        if match is None or not name.startswith(f"{IMAGES}/"):
            other.append(name)
            continue
        product = int(match[1])
        if product in found:
            faults.append(Fault(f"{ARCHIVE}/{name}", match[1], "member", "one picture a product", "a second one"))
            continue
        found[product], picture = _looked_at(product, data, f"{path}/{name}", f"{ARCHIVE}/{name}")
        if picture is not None:
            pictures[product] = on_canvas(picture)
    listing = _listing_of(found)
    ordered = dict(sorted(listing.pictures.items()))
    digest = _digest_of_archive(path, seen)
    return Listing(digest, ordered, sorted(other), [*listing.faults, *faults]), pictures


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the files in the archive, in its order. Raises FileError for a member that leads out of it, is
    neither file nor folder or too large, and for a damaged archive.
    """
    try:
        with tarfile.open(path, "r|xz") as archive:
            for member in archive:
                name = PurePosixPath(member.name.replace("\\", "/"))
                if name.is_absolute() or ".." in name.parts or ":" in "".join(name.parts[:1]):
                    raise FileError(f"{path}: member {member.name!r} leaves the archive; get it again.")
                if member.isdir():
                    continue
                if not member.isreg():
                    raise FileError(f"{path}: member {member.name!r} is a link or a device, not a file; get it again.")
                if member.size > LARGEST_FILE:
                    raise FileError(f"{path}: member {member.name!r} has {member.size:,} bytes; expected a thumbnail.")
                content = archive.extractfile(member)
                assert content is not None
                yield str(name), content.read()
    except (tarfile.TarError, lzma.LZMAError, EOFError, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise FileError(f"{path}: cannot be read as a tar.xz archive ({reason}).") from error


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
            notes.append(f"{n_more:,} rows are not of the products v1 and left out (products: all takes them)")
    else:
        asked = sorted(known)
        notes += _left_out("rows have no picture", sorted(set(rows) - set(pictures)))
        notes += _left_out("pictures have no row", sorted(set(pictures) - set(rows)))
    ids = [product for product in asked if product in rows and product in pictures]
    pixels = [pictures[product][0] for product in ids]
    labels = {
        task: _ranks([rows[product][column] for product in ids], names) for task, (column, names) in CLASSES.items()
    }
    for task in tasks:
        notes += _unlabelled(task, [rows[product][CLASSES[task][0]] for product in ids])
    if options.products == "v1" and options.profile == "real" and not faults:
        found = _sha256(f"{product} {one}" for product, one in zip(ids, pixels, strict=True))
        if found != PIXELS_SHA256:
            what = f"{found[:16]}: other pictures, or a JPEG decoder that rounds in another way"
            faults.append(Fault(IMAGES, "", "sha256 of all pixels", PIXELS_SHA256[:16], what))
        if _sha256(_label_lines(ids, labels)) != LABELS_SHA256:
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
    yield from _left_out("files of macOS (._NAME) are no pictures", mac)
    yield from _left_out("files are named otherwise than ID.jpg", [name for name in listing.other if name not in mac])
    forms = {product: form.removesuffix(" gray") for product, (_, form) in sorted(listing.pictures.items())}
    odd = [f"{product} ({form})" for product, form in forms.items() if form != f"{HEIGHT}x{WIDTH}"]
    yield from _left_out(f"pictures are not {HEIGHT}x{WIDTH} and centred on white", odd, verb="")


def _left_out(what: str, names: Sequence[object], verb: str = " and left out") -> Iterator[str]:
    if names:
        more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
        yield f"{len(names):,} {what}{verb}: {', '.join(map(str, names[:MAX_NAMES]))}{more}"


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
        return reduced(self.pictures.read(self.ids[index]), self.size)


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
            commands=("kaggle datasets download -d paramaggarwal/fashion-product-images-small -p {folder} --unzip",),
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
        height, width = options.size
        return DatasetSpec(
            name="fashion_products",
            layout=layout,
            version=f"{VERSION}+{options.products}" + ("" if options.size == SIZES[0] else f"+{height}x{width}"),
            protocol=protocol,
            domains="single",
            tasks=tuple(
                TaskSpec(task, "class", len(names), ("accuracy", "balanced_accuracy"), names)
                for task, (_, names) in CLASSES.items()
            ),
            splits=SPLITS if options.products == "v1" or layout == "subset" else SPLITS_OF_ALL,
            native_size=options.size,
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
                image=Field(_Reader(pictures, ids, options.size), scale_uint8, _Where(pictures, ids)),
                targets={
                    task: Field(values.__getitem__, number_label, _InTable(folder / TABLE))
                    for task, values in labels.items()
                },
                faults=whole.faults,
                counted=options.products == "v1",
                in_memory=3 * len(whole.ids) * options.size[0] * options.size[1] <= IN_MEMORY,
                meta={"domain": None},
                identity=_sha256([*pixels, *_label_lines(ids, labels)]),
                listing=listing.kept(),
                notes=whole.notes,
            )
        }
