"""`fashion_products`: the genuine subset where it is, and what a wrong copy is told."""

from __future__ import annotations

import csv
import io
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmark.plan.cells import plan
from benchmark.plan.remarks import notes_of
from benchmark.plan.suite_file import read_suite
from datasets import registry
from datasets.contracts import MultiTaskDataset
from datasets.errors import DatasetMissingError, UsageError
from datasets.fashion_products import (
    CHECKSUMS,
    CLASSES,
    DEFAULT_TASKS,
    FashionOptions,
    Table,
    joined,
    on_canvas,
    products_v1,
    reduced,
    side_of,
)
from datasets.images.transforms import collate
from datasets.kinds import get_kind
from datasets.on_disk.files import FileError
from datasets.on_disk.pictures import Listing
from datasets.on_disk.prepare import prepare
from datasets.on_disk.verify import verify
from datasets.registry import dataset_spec
from datasets.roles import role_indices
from tests.genuine import genuine
from tests.twins import (
    FASHION_GRAY,
    FASHION_NARROW,
    FASHION_OUTSIDE,
    FASHION_SQUARE,
    fashion_archive,
    fashion_picture,
    fashion_products_of_twin,
    fashion_row,
    write_twin,
)

NAME = "fashion_products"
SPLITS = ("train", "val", "test")
TWIN = {"profile": "twin"}
FILES = {name: f"fashion_small/{name}" for name in CHECKSUMS}


def contents(root: Path, **options: object) -> list[str]:
    loaded = [registry.load(NAME, root, split, options=options) for split in SPLITS]
    return [data.inputs["image"].content_hash() for data in loaded]


# Genuine files


@pytest.fixture(scope="module")
def subset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with the genuine files."""
    root = tmp_path_factory.mktemp("genuine")
    (root / NAME).mkdir()
    for name, path in FILES.items():
        (root / NAME / name).symlink_to(genuine(path, CHECKSUMS[name]).resolve())
    return root


@pytest.fixture(scope="module")
def splits(subset: Path) -> dict[str, MultiTaskDataset]:
    tasks = list(CLASSES)
    return {split: registry.load(NAME, subset, split, tasks=tasks, options={"size": "40x30"}) for split in SPLITS}


def test_the_genuine_subset(splits: dict[str, MultiTaskDataset]) -> None:
    parts = {split: data.inputs["image"] for split, data in splits.items()}
    assert {split: len(part) for split, part in parts.items()} == {"train": 5560, "val": 815, "test": 1664}
    ids = [int(one) for part in parts.values() for one in part.ids]
    assert sorted(ids) == list(products_v1())
    assert len(ids) == 8039
    units = {split: set(part.units) for split, part in parts.items()}
    assert not units["train"] & units["test"]
    assert not units["val"] & (units["train"] | units["test"])
    sizes = Counter(unit for part in parts.values() for unit in part.units)
    twins = [count for count in sizes.values() if count > 1]
    assert (len(twins), sum(twins)) == (179, 407)


def test_classes_are_the_values_that_forty_products_have(subset: Path, splits: dict[str, MultiTaskDataset]) -> None:
    with (subset / NAME / "styles.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    for task, (column, names) in CLASSES.items():
        counts = Counter(row[column] for row in rows.values())
        usual = {name for name, count in counts.items() if count >= 40} - {""}
        assert names == tuple(sorted(usual))
        for data in splits.values():
            part = data.inputs["image"]
            cached = part.cached()
            assert cached is not None
            known = [names.index(value) if value in names else -1 for value in (rows[one][column] for one in part.ids)]
            assert cached.targets[task].tolist() == known
    spec = dataset_spec(NAME)
    assert {task.name: task.channels for task in spec.tasks} == {
        "gender": 5,
        "article": 44,
        "colour": 20,
        "season": 4,
        "usage": 4,
    }
    assert spec.task_names == DEFAULT_TASKS


@pytest.mark.slow  # unpacks and decodes 8,039 pictures three times; the twins' layouts are compared by default
def test_both_layouts_of_the_genuine_files_have_one_content(subset: Path, tmp_path: Path) -> None:
    folder = tmp_path / NAME
    folder.mkdir()
    with tarfile.open(subset / NAME / "images.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    shutil.copy(subset / NAME / "styles.csv", folder)
    assert registry.find_layout(NAME, tmp_path)[1] == "kaggle"
    assert contents(tmp_path) == contents(subset)


def test_genuine_statistics_and_verification(subset: Path, splits: dict[str, MultiTaskDataset]) -> None:
    cached = registry.load(NAME, subset, "train").inputs["image"].cached()
    assert cached is not None
    spec = splits["train"].spec
    values = cached.images.double() / 255
    assert list(spec.mean) == pytest.approx(values.mean(dim=(0, 2, 3)).tolist(), abs=6e-4)
    assert list(spec.std) == pytest.approx(values.std(dim=(0, 2, 3), correction=0).tolist(), abs=6e-4)
    report = verify(NAME, subset)
    assert report.ok
    for line in (
        "pictures that are not 80x60, centred on white: 2 (1801 (60x60), 59606 (80x54))",
        "season: 99.96 % labelled; 3 products are not: (empty) 3",
        "usage: 98.84 % labelled; 93 products are not: (empty) 79, Smart Casual 6, Party 4, Travel 3, Home 1",
    ):
        assert line in report.warnings


def test_other_pixels_and_other_labels_are_told() -> None:
    """As of files that were compressed anew, or a decoder that rounds in another way."""
    rows = {product: {column: "" for column, _ in CLASSES.values()} for product in products_v1()}
    listing = Listing("", dict.fromkeys(products_v1(), ("0" * 64, "80x60")))
    found = joined(Table(rows, []), listing, FashionOptions(), [])
    (fault,) = found.faults
    assert str(fault).startswith("images: sha256 of all pixels: expected 3231709b93ae3d8b, found ")
    assert "other pictures, or a JPEG decoder" in str(fault)
    assert any("labels of some products v1 are not those of the subset" in note for note in found.notes)


# Twins


@pytest.fixture
def kaggle(tmp_path: Path) -> Path:
    return write_twin(tmp_path, NAME, "kaggle")


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    return write_twin(tmp_path, NAME, "subset")


def rows_of(root: Path, product: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    for split in SPLITS:
        part = registry.load(NAME, root, split, tasks=list(CLASSES), options=TWIN).inputs["image"]
        if str(product) in part.ids:
            sample = part[list(part.ids).index(str(product))]
            return sample["image"], sample["targets"]
    raise LookupError(product)


def test_both_layouts_have_one_content(kaggle: Path, packed: Path) -> None:
    assert contents(kaggle, **TWIN) == contents(packed, **TWIN)
    other = contents(kaggle, **TWIN)
    table = kaggle / NAME / "styles.csv"
    table.write_bytes(table.read_bytes().replace(b"Men", b"Boys", 1))
    assert contents(kaggle, **TWIN) != other  # a label is content too


def test_equal_pictures_are_one_unit(packed: Path) -> None:
    first, second = (str(fashion_products_of_twin()[position]) for position in (1, 2))
    places = {
        one: (split, unit)
        for split in SPLITS
        for part in registry.load(NAME, packed, split, options=TWIN).inputs.values()
        for one, unit in zip(part.ids, part.units, strict=True)
    }
    assert fashion_picture(1) != fashion_picture(2)  # files differ, pixels do not
    assert places[first] == places[second]
    data = {split: registry.load(NAME, packed, split, options=TWIN) for split in SPLITS}
    roles = role_indices(data["train"], data["val"], data["test"])["image"]
    units = data["train"].inputs["image"].units
    fit, arch = ({units[row] for row in roles[role].indices} for role in ("fit", "arch"))
    assert not fit & arch


def test_sides_follow_from_the_pixels() -> None:
    assert [side_of(f"{int(tenth * 2**32):08x}".ljust(64, "5")) for tenth in (0.0, 0.69, 0.71, 0.79, 0.81, 0.99)] == [
        "train",
        "train",
        "val",
        "val",
        "test",
        "test",
    ]


def test_gray_and_odd_pictures_are_centred_on_white(packed: Path) -> None:
    products = fashion_products_of_twin()
    gray, _ = rows_of(packed, products[FASHION_GRAY])
    assert torch.equal(gray[0], gray[1])
    square, _ = rows_of(packed, products[FASHION_SQUARE])
    assert bool((square[:, :10] == 1).all())
    assert bool((square[:, 70:] == 1).all())
    assert bool((square[:, 10:70] < 0.9).any())
    narrow, _ = rows_of(packed, products[FASHION_NARROW])
    assert bool((narrow[..., :3] == 1).all())
    large = np.zeros((160, 240, 3), dtype=np.uint8)
    shrunk = on_canvas(large)
    assert shrunk.shape == (80, 60, 3)
    assert (shrunk[20:60] == 0).all()
    assert (shrunk[:20] == 255).all()


def test_smaller_pictures_are_means_of_squares(packed: Path) -> None:
    full, small = (
        registry.load(NAME, packed, "train", options={**TWIN, "size": size}).inputs["image"].cached()
        for size in ("80x60", "20x15")
    )
    assert full is not None
    assert small is not None
    means = full.images.double().reshape(len(full.images), 3, 20, 4, 15, 4).mean(dim=(3, 5))
    assert torch.equal(small.images.double(), (means + 0.5).floor())
    assert reduced(np.full((80, 60, 3), 7, dtype=np.uint8), (16, 12)).tolist() == np.full((16, 12, 3), 7).tolist()


def test_class_lists_are_in_the_order_of_names() -> None:
    assert all(list(names) == sorted(set(names)) for _, names in CLASSES.values())


def test_what_nearly_follows_from_the_article_is_no_default_task() -> None:
    assert dataset_spec(NAME).task_names == ("gender", "article", "colour", "season", "usage")
    assert dataset_spec(NAME, tasks=["category", "subcategory"]).task_names == ("category", "subcategory")


def test_what_a_product_lacks_is_ignored_and_counted(packed: Path) -> None:
    products = fashion_products_of_twin()
    _, labels = rows_of(packed, products[19])  # season is empty
    assert labels["season"] == -1
    assert labels["gender"] >= 0
    _, labels = rows_of(packed, products[15])  # usage is Party
    assert labels["usage"] == -1
    _, labels = rows_of(packed, products[3])  # Clutches in Peach
    assert (int(labels["article"]), int(labels["colour"])) == (-1, -1)
    assert int(labels["category"]) == CLASSES["category"][1].index("Accessories")
    part = registry.load(NAME, packed, "train", options=TWIN).inputs["image"]
    assert any(note.startswith("season: 95 % labelled; 4 products are not: (empty) 4") for note in part.notes)
    assert any("usage: 93.75 % labelled; 5 products are not: Party 5" in note for note in part.notes)
    rows = [row for row in range(len(part)) if part.labels(row)["article"] < 0][:3]
    _, targets = collate([part[row] for row in rows])
    task = part.spec.task("article")
    logits = torch.randn(len(rows), task.channels, requires_grad=True)
    loss = get_kind("class").loss(logits, targets["article"], task)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_all_takes_every_product_with_picture_and_row_and_names_the_others(kaggle: Path) -> None:
    without_picture, without_row = FASHION_OUTSIDE
    every = {**TWIN, "products": "all"}
    part = registry.load(NAME, kaggle, "train", options=every).inputs["image"]
    assert f"rows without a picture, left out: 1 ({without_picture})" in part.notes
    assert len(registry.load(NAME, kaggle, "train", options={"products": "all"}).inputs["image"])  # of no fixed number
    of_v1 = registry.load(NAME, kaggle, "train", options=TWIN).inputs["image"]
    assert "rows that are not of the products v1, left out: 1 (products: all takes them)" in of_v1.notes
    assert f"pictures without a row, left out: 1 ({without_row})" in part.notes
    assert f"files of macOS (._NAME), no pictures: 1 (._{fashion_products_of_twin()[0]}.jpg)" in part.notes
    (kaggle / NAME / "images" / f"{without_picture}.jpg").write_bytes(
        (kaggle / NAME / "images" / f"{without_row}.jpg").read_bytes()
    )
    total = [len(registry.load(NAME, kaggle, split, options=every).inputs["image"]) for split in SPLITS]
    assert sum(total) == len(fashion_products_of_twin()) + 1


def test_remarks_are_printed_with_the_plan(packed: Path, tmp_path: Path) -> None:
    suite = tmp_path / "small.yaml"
    suite.write_text(
        "name: small\ndata: [{dataset: fashion_products, options: {profile: twin, size: 40x30}}]\n"
        "backbones: [test_resnet]\nmethods: [hard_sharing]\nseeds: [0]\nbudget: {steps: 2}\nrecipe: {batch_size: 4}\n"
    )
    lines = notes_of(plan(read_suite(suite), packed))
    assert [line for line in lines if "centred on white: 2 (" in line]
    assert [line for line in lines if line.startswith("fashion_products: usage: 93.75 % labelled")]
    assert len(lines) == len(set(lines))


# Prepared copies


@pytest.mark.parametrize("layout", ["kaggle", "subset"])
def test_a_prepared_copy_equals_the_files_and_remembers_their_pixels(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_twin(tmp_path, NAME, layout)
    options = {**TWIN, "size": "40x30"}
    before = [registry.load(NAME, root, split, options=options) for split in SPLITS]
    caches = [data.inputs["image"].cached() for data in before]
    prepare(NAME, root, options=options)
    for name in ("_unpacked", "_look_at_files", "decoded"):
        monkeypatch.setattr(f"datasets.on_disk.pictures.{name}", refuse)
    for split, files, cached in zip(SPLITS, before, caches, strict=True):
        copy = registry.load(NAME, root, split, options=options).inputs["image"]
        assert copy.ids == files.inputs["image"].ids
        assert copy.notes == files.inputs["image"].notes
        assert copy.content_hash() == files.inputs["image"].content_hash()
        again = copy.cached()
        assert cached is not None
        assert again is not None
        assert torch.equal(again.images, cached.images)
        assert all(torch.equal(again.targets[task], cached.targets[task]) for task in DEFAULT_TASKS)


def refuse(*_: object) -> None:
    raise AssertionError("a picture was decoded, although its copy is there")


def test_a_copy_of_other_pictures_is_an_error(kaggle: Path) -> None:
    prepare(NAME, kaggle, options=TWIN)
    first, second = (kaggle / NAME / "images" / f"{product}.jpg" for product in fashion_products_of_twin()[20:22])
    first.write_bytes(second.read_bytes())
    with pytest.raises(FileError, match="was prepared from other files"):
        contents(kaggle, **TWIN)


# Wrong copies


def jpeg(size: tuple[int, int] = (80, 60), mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (size[1], size[0])).save(buffer, format="JPEG")
    return buffer.getvalue()


def told(root: Path, split: str = "train", **options: object) -> str:
    with pytest.raises(UsageError) as caught:
        registry.load(NAME, root, split, options={**TWIN, **options})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_twin_does_not_pass_for_the_real_set(packed: Path) -> None:
    with pytest.raises(FileError, match=r"styles\.csv|images/.*existence.*and \d+ more faults"):
        registry.load(NAME, packed, "train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.decode().encode("latin-1"), "expected text in UTF-8, found the byte 0xc9"),
        (lambda text: text.decode().encode("utf-16"), "expected text in UTF-8, found the byte 0xff at 0"),
        (lambda text: text.replace(b"baseColour", b"color", 1), "expected the columns id,gender,"),
        (lambda text: b"", "expected the columns id,gender,"),
        (lambda text: text + b"15,Men\n", r"line 82: expected a number and nine more cells, found '15,Men'"),
        (lambda text: text + b"x7,Men,,,,,,,,\n", r"line 82: expected a number and nine more cells"),
        (lambda text: text + text.splitlines()[1] + b"\n", r"line 82: expected a product of its own"),
    ],
)
def test_a_wrong_table_is_one_line(change: Callable[[bytes], bytes], message: str, packed: Path) -> None:
    table = packed / NAME / "styles.csv"
    table.write_bytes(change(table.read_bytes()))
    found = told(packed)
    assert "styles.csv" in found
    assert message in found


def test_windows_line_ends_and_a_byte_order_mark_change_nothing(packed: Path) -> None:
    before = contents(packed, **TWIN)
    table = packed / NAME / "styles.csv"
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes().replace(b"\n", b"\r\n"))
    assert contents(packed, **TWIN) == before


def test_titles_may_hold_commas_quotes_and_other_breaks(packed: Path) -> None:
    before = contents(packed, **TWIN)
    table = packed / NAME / "styles.csv"
    text = table.read_text(encoding="utf-8")
    assert ",Kit, red, with laces\n" in text
    for title in ('8" Kit, "red", one', "Kit\u2028two\x0blines\x85", ""):
        table.write_text(text.replace("Kit, red, with laces", title), encoding="utf-8")
        assert contents(packed, **TWIN) == before


def test_a_picture_or_a_row_that_is_missing_is_named_with_every_split(kaggle: Path) -> None:
    first, second = fashion_products_of_twin()[:2]
    (kaggle / NAME / "images" / f"{first}.jpg").unlink()
    table = kaggle / NAME / "styles.csv"
    table.write_bytes(table.read_bytes().replace(f"{fashion_row(second, 1)}\n".encode(), b""))
    for split in SPLITS:
        assert (
            f"images/{first}.jpg (sample {first}): existence: expected a file (image), found none (and 1 more"
            in told(kaggle, split)
        )
    report = verify(NAME, kaggle, profile="twin")
    assert [(fault.path, fault.sample, fault.check) for fault in report.bad] == [
        (f"images/{first}.jpg", str(first), "existence"),
        ("styles.csv", str(second), "row"),
    ]


def test_a_truncated_jpeg_a_page_and_a_cmyk_image_are_named_at_once(kaggle: Path) -> None:
    products = fashion_products_of_twin()[:3]
    paths = [kaggle / NAME / "images" / f"{product}.jpg" for product in products]
    paths[0].write_bytes(paths[0].read_bytes()[:-60])
    paths[1].write_bytes(b"<html>404</html>")
    paths[2].write_bytes(jpeg(mode="CMYK"))
    assert f"images/{products[0]}.jpg (sample {products[0]}): content: expected a JPEG that can be read" in told(kaggle)
    bad = verify(NAME, kaggle, profile="twin").bad
    assert [fault.sample for fault in bad] == list(map(str, products))
    assert "truncated" in bad[0].found
    assert "expected a gray or an RGB image of 8 bits" in bad[2].found


def test_a_picture_of_another_product_is_not_looked_at(kaggle: Path) -> None:
    (kaggle / NAME / "images" / f"{FASHION_OUTSIDE[1]}.jpg").write_bytes(b"torn")
    assert len(registry.load(NAME, kaggle, "train", options=TWIN).inputs["image"])
    assert f"images/{FASHION_OUTSIDE[1]}.jpg" in told(kaggle, products="all")


def repacked(root: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    path = root / NAME / "images.tar.xz"
    with tarfile.open(path) as archive:
        members = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    change(members)
    fashion_archive(path, members)


@pytest.mark.parametrize(
    "name", ["../evil.jpg", "/etc/evil.jpg", "images/../../evil.jpg", "C:/evil.jpg", "..\\evil.jpg"]
)
def test_a_member_that_leaves_the_archive_is_refused(packed: Path, name: str) -> None:
    repacked(packed, lambda members: members.update({name: jpeg()}))
    assert "leaves the archive; get it again" in told(packed)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE])
def test_links_devices_and_sparse_files_are_refused(packed: Path, kind: bytes) -> None:
    member = tarfile.TarInfo("images/99.jpg")
    member.type, member.linkname = kind, "/etc/passwd"
    with tarfile.open(packed / NAME / "images.tar.xz", "w:xz") as archive:
        archive.addfile(member)
    assert "member 'images/99.jpg' is neither a file nor a folder" in told(packed)


def test_a_damaged_archive_is_one_line(packed: Path) -> None:
    path = packed / NAME / "images.tar.xz"
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"PK\x03\x04", b"", content[:800] + bytes(50) + content[850:]):
        path.write_bytes(damaged)
        assert "images.tar.xz: cannot be read as a tar.xz archive" in told(packed)


def test_a_member_of_an_absurd_size_is_refused(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.on_disk.files.LARGEST_MEMBER", 100)
    assert "bytes, more than 100" in told(packed)


def test_a_product_that_is_packed_twice_is_named(packed: Path) -> None:
    product = fashion_products_of_twin()[0]
    with tarfile.open(packed / NAME / "images.tar.xz") as archive:
        members = [(member, archive.extractfile(member).read()) for member in archive]  # type: ignore[union-attr]
    with tarfile.open(packed / NAME / "images.tar.xz", "w:xz") as archive:
        for member, content in [*members, members[0]]:
            archive.addfile(member, io.BytesIO(content))
    found = told(packed)
    assert f"images/{product}.jpg (sample {product}): member: expected one of that number, found a second one" in found


def test_foreign_members_and_a_truncated_one_are_named(packed: Path) -> None:
    product = fashion_products_of_twin()[0]

    def change(members: dict[str, bytes]) -> None:
        members[f"images/{product}.jpg"] = members[f"images/{product}.jpg"][:300]
        members |= {f"images/._{product}.jpg": b"\0", "images/readme.txt": b"hello"}
        members |= {"other/7.jpg": jpeg(), "8.jpg": jpeg()}

    repacked(packed, change)
    assert f"images.tar.xz/images/{product}.jpg (sample {product}): content" in told(packed)
    report = verify(NAME, packed, profile="twin")
    assert [fault.sample for fault in report.bad] == [str(product)]
    assert f"files of macOS (._NAME), no pictures: 1 (images/._{product}.jpg)" in report.warnings
    assert "files that are not named ID.jpg, left out: 3 (8.jpg, images/readme.txt, other/7.jpg)" in report.warnings


def test_two_layouts_in_one_folder_ask_for_one(packed: Path, kaggle: Path) -> None:
    shutil.copy(packed / NAME / "images.tar.xz", kaggle / NAME)
    assert "looks like each of the layouts kaggle, subset; name one (layout: ...)" in told(kaggle)
    assert len(registry.load(NAME, kaggle, "train", layout="kaggle", options=TWIN).inputs["image"])


def test_who_lacks_the_files_gets_a_line_to_paste(tmp_path: Path) -> None:
    with pytest.raises(DatasetMissingError) as caught:
        registry.load(NAME, tmp_path, "train")
    for part in (
        f'then paste: export SHAREBENCH_DATA={tmp_path} && mkdir -p "$SHAREBENCH_DATA/{NAME}" && kaggle datasets '
        f'download -d paramaggarwal/fashion-product-images-small -p "$SHAREBENCH_DATA/{NAME}" --unzip',
        "0.6 GB",
        "29 MB",
        "Licence: not verified",
    ):
        assert part in str(caught.value)
    with pytest.raises(DatasetMissingError, match=r"export SHAREBENCH_DATA=FOLDER && mkdir"):
        registry.load(NAME, None, "train")


def test_the_shipped_ids_are_ascending_and_as_many_as_the_subset_has() -> None:
    ids = products_v1()
    assert len(ids) == len(set(ids)) == 8039
    assert list(ids) == sorted(ids)
    assert (ids[0], ids[-1]) == (1526, 59994)
