"""CelebA: twins of both layouts; rows of the lists belong together by name; what is odd is one line."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from benchmark.data import app
from datasets import registry
from datasets.celeba import ATTRIBUTES, MD5, NINE, Attributes, read_attributes, read_partition, task_name
from datasets.contracts import InputData
from datasets.errors import DatasetMissingError, ProtocolError
from datasets.kinds import get_kind
from datasets.on_disk.checks import fingerprint
from datasets.on_disk.files import FileError
from datasets.on_disk.verify import verify
from datasets.registry import dataset_spec
from datasets.roles import role_indices
from tests.twins import FACES, face_labels, face_names, write_twin

TWIN = {"profile": "twin"}


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("celeba")
    return {layout: write_twin(folder, "celeba", layout) for layout in ("torchvision", "archive")}


@pytest.fixture
def faces(roots: dict[str, Path], tmp_path: Path) -> Path:
    """The data set's folder of a twin that may be damaged."""
    return Path(shutil.copytree(roots["torchvision"], tmp_path / "copy")) / "celeba"


def read(root: Path, split: str = "test", **options: object) -> InputData:
    return registry.load("celeba", root, split, options={**TWIN, **options}).inputs["image"]


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


# Spec


def test_the_spec_has_a_bit_a_task() -> None:
    spec = dataset_spec("celeba")
    assert spec.task_names == tuple(map(task_name, ATTRIBUTES))
    assert len(set(ATTRIBUTES)) == 40
    assert list(ATTRIBUTES) == sorted(ATTRIBUTES)  # as the published list has them
    assert sum(spec.splits.values()) == 202599
    assert spec.native_size == (218, 178)
    assert {(task.kind, task.weight) for task in spec.tasks} == {("attribute", 1.0)}
    assert get_kind("attribute").head_channels(spec.tasks[0]) == 1
    nine = dataset_spec("celeba", tasks=NINE, options={"size": 64})
    assert nine.task_names == NINE
    assert nine.native_size == (64, 64)
    assert nine.version != spec.version
    with pytest.raises(ProtocolError, match="no labels for protocol 'mtan'"):
        dataset_spec("celeba", protocol="mtan")


# Samples


def test_both_layouts_give_the_same_samples(roots: dict[str, Path]) -> None:
    """The rows of the archive's list are in another order: they are matched by name."""
    for split, names in face_names().items():
        first, second = (read(roots[layout], split) for layout in ("torchvision", "archive"))
        assert first.ids == second.ids == [name[:6] for name in names]
        assert first.place("smiling", 0) == "list_attr_celeba.txt"  # where to look for a wrong label
        for row, name in enumerate(names):
            one, other = first[row], second[row]
            assert torch.equal(one["image"], other["image"])
            for number, attribute in enumerate(ATTRIBUTES):
                target = one["targets"][task_name(attribute)]
                assert target.dtype == torch.float32
                assert float(target) == float(other["targets"][task_name(attribute)]) == face_labels(name)[number]


def test_images_are_what_is_in_the_files(roots: dict[str, Path]) -> None:
    name = face_names()["test"][0]
    with Image.open(roots["torchvision"] / "celeba/img_align_celeba" / name) as image:
        pixels = np.array(image)
        small = np.array(image.resize((64, 64), Image.Resampling.BILINEAR))
    for size, expected in ((None, pixels), (64, small)):
        found = read(roots["torchvision"], size=size)[0]["image"]
        assert torch.equal(found.mul(255).round().byte(), torch.from_numpy(expected).permute(2, 0, 1))


def test_the_partition_is_the_official_one(roots: dict[str, Path]) -> None:
    splits = {split: registry.load("celeba", roots["archive"], split, options=TWIN) for split in FACES}
    assert {split: len(data.inputs["image"]) for split, data in splits.items()} == FACES
    roles = role_indices(splits["train"], splits["val"], splits["test"])["image"]
    assert (roles["select"].split, len(roles["select"].indices)) == ("val", 2)
    assert len(roles["fit"].indices) + len(roles["arch"].indices) == 10


def test_tasks_do_not_change_the_images(roots: dict[str, Path]) -> None:
    nine = registry.load("celeba", roots["archive"], "test", tasks=NINE, options=TWIN).inputs["image"]
    every = read(roots["archive"])
    assert nine.ids == every.ids
    assert nine.content_hash() == every.content_hash()
    assert tuple(nine[0]["targets"]) == NINE


def test_all_attributes_are_one_task_too(roots: dict[str, Path]) -> None:
    (task,) = dataset_spec("celeba", tasks=["attributes"]).tasks
    assert (task.kind, task.channels, task.class_names) == ("multilabel", 40, ATTRIBUTES)
    data = registry.load("celeba", roots["archive"], "test", tasks=["attributes"], options=TWIN).inputs["image"]
    for row, name in enumerate(face_names()["test"]):
        target = data[row]["targets"]["attributes"]
        assert target.dtype == torch.float32
        assert target.tolist() == list(face_labels(name))


# Lists


def rows(n: int = 3, **changes: str) -> str:
    lines = [f"{k:06d}.jpg " + " ".join("1" if (k + j) % 2 else "-1" for j in range(40)) for k in range(n)]
    return "\n".join([changes.get("count", str(n)), changes.get("names", " ".join(ATTRIBUTES)), *lines, ""])


def parse(text: str) -> Attributes:
    return read_attributes(text, Path("list"))


def test_labels_by_hand() -> None:
    table = parse(rows())
    assert list(table.names) == ["000000.jpg", "000001.jpg", "000002.jpg"]
    assert table.values[0].tolist() == [j % 2 for j in range(40)]
    assert table.values[1].tolist() == [(j + 1) % 2 for j in range(40)]
    for text in (rows().replace("\n", "\r\n"), re.sub(" (?=[1])", "  ", rows())):  # as the published file is spaced
        assert np.array_equal(parse(text).values, table.values)
    turned = parse(rows(names=" ".join(ATTRIBUTES[::-1])))  # columns belong to their names too
    assert np.array_equal(turned.values, table.values[:, ::-1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"list, line 2: expected the 40 names of attributes, found 0"),
        (rows(count="4"), r"list, line 1: expected the number of rows, 3, found '4'"),
        (rows(names="Smilin " + " ".join(ATTRIBUTES[1:])), r"line 2: Unknown attribute 'Smilin'\. Nearest: 'Smiling'"),
        (
            rows(names=" ".join([ATTRIBUTES[1], *ATTRIBUTES[1:]])),
            r"line 2: the attribute 'Arched_Eyebrows' is named more than once",
        ),
        (rows(names=" ".join(ATTRIBUTES[1:])), r"line 2: expected the 40 names of attributes, found 39"),
        (rows().replace("-1", "0", 1), r"line 3: expected a file name and 40 x -1 or 1: '000000\.jpg 0"),
        (rows().replace(" -1", "", 1), r"line 3: expected a file name and 40 x -1 or 1"),
        (rows().replace("-1", "--1", 1), r"line 3: expected a file name and 40 x -1 or 1"),
        (rows().replace("-1", "x", 1), r"line 3: expected a file name and 40 x -1 or 1"),
        (rows().replace("000001.jpg", "000000.jpg"), r"list: '000000\.jpg' has more than one row"),
        (rows().replace("000001.jpg", "/etc/1.jpg"), r"line 4: expected a file name"),
        (rows().replace("000001.jpg", "..\\1.jpg"), r"line 4: expected a file name"),
    ],
)
def test_a_bad_list_is_one_line(text: str, message: str) -> None:
    with pytest.raises(FileError, match=message) as caught:
        parse(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 160  # a row of forty values is cut


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg 0\nb.jpg 3\n", r"list, line 2: expected a file name and 0, 1 or 2: 'b\.jpg 3'"),
        ("a.jpg 0 1\n", r"list, line 1: expected a file name and 0, 1 or 2: 'a\.jpg 0 1'"),
        ("a.jpg 0\n\nb.jpg\n", r"list, line 3: expected a file name and 0, 1 or 2: 'b\.jpg'"),
        ("a.jpg 0\na.jpg 1\n", r"list: 'a\.jpg' has more than one row"),
    ],
)
def test_a_bad_partition_is_one_line(text: str, message: str) -> None:
    assert read_partition("a.jpg 0\r\nb.jpg 2", Path("list")) == {"a.jpg": "train", "b.jpg": "test"}
    with pytest.raises(FileError, match=message):
        read_partition(text, Path("list"))


def test_only_the_published_lists_are_real(roots: dict[str, Path], faces: Path) -> None:
    with pytest.raises(FileError, match=r"list_attr_celeba\.txt: expected the published file \(md5 75e246fa"):
        registry.load("celeba", roots["torchvision"], "train")
    assert all(len(value) == len(hashlib.md5(b"").hexdigest()) for value in MD5.values())
    path = faces / "list_attr_celeba.txt"
    path.write_bytes(path.read_bytes().decode().encode("utf-16"))
    with pytest.raises(FileError, match=r"list_attr_celeba\.txt: expected text in UTF-8"):
        read(faces.parent)


def test_a_byte_order_mark_changes_nothing(faces: Path) -> None:
    """As editors of Windows write one."""
    before = read(faces.parent)
    for name in MD5:
        (faces / name).write_bytes(b"\xef\xbb\xbf" + (faces / name).read_bytes())
    after = read(faces.parent)
    assert after.ids == before.ids
    assert all(after.labels(row) == before.labels(row) for row in range(len(before)))


def test_one_label_of_a_long_list_is_content(faces: Path) -> None:
    """The published list has 27 MB, of which a fingerprint covers sixteen blocks: another label may lie between."""
    path, found = faces / "list_attr_celeba.txt", []
    count, names, *lines = path.read_text().splitlines()
    for last in ("1 -1", "-1 1"):
        lines[-1] = " ".join([*lines[-1].split()[:-2], last])
        path.write_text("\n".join([count, names, "\n" * 22_500, *lines, "\n" * 175_000]))
        found.append((fingerprint(path), read(faces.parent).content_hash()))
    assert found[0][0] == found[1][0]
    assert found[0][1] != found[1][1]


# Faults


def test_rows_and_images_without_a_partner_are_named(faces: Path) -> None:
    shutil.copy(faces / "img_align_celeba/000001.jpg", faces / "img_align_celeba/000099.jpg")
    assert len(read(faces.parent)) == 4  # train names what is wrong with all splits
    (faces / "img_align_celeba/000013.jpg").unlink()
    with pytest.raises(FileError, match=r"img_align_celeba/000013\.jpg .*existence: expected an image, found none"):
        read(faces.parent)
    with pytest.raises(FileError, match=r"img_align_celeba/000099\.jpg: row: expected one in the attributes and the"):
        read(faces.parent, "train")
    rewrite(faces / "list_eval_partition.txt", "000002.jpg 0\n", "")
    with pytest.raises(FileError, match=r"list_eval_partition\.txt \(sample 000002\): row: .* \(and 1 more fault"):
        read(faces.parent, "train")
    rewrite(faces / "list_eval_partition.txt", "000003.jpg 0\n", "000003.jpg 0\n000098.jpg 1\n")
    report = verify("celeba", faces.parent, profile="twin")
    assert [fault.path for fault in report.bad] == [
        *("list_eval_partition.txt", "list_attr_celeba.txt", "img_align_celeba/000099.jpg"),
        "img_align_celeba/000013.jpg",
    ]


def test_files_of_macos_are_no_images_and_counted(faces: Path) -> None:
    assert (faces / "img_align_celeba/._000001.jpg").is_file()
    (faces / "img_align_celeba/.DS_Store").write_bytes(b"x")
    assert len(read(faces.parent, "train")) == 10
    report = verify("celeba", faces.parent, profile="twin")
    assert report.ok
    assert report.warnings == ["img_align_celeba: 2 hidden files are left out"]


@pytest.mark.parametrize("fault", ["torn", "odd", "gray", "text"])
def test_bad_images_are_found_before_the_first_step(faces: Path, fault: str) -> None:
    path = faces / "img_align_celeba/000005.jpg"  # neither the first nor the last
    match fault:
        case "torn":
            path.write_bytes(path.read_bytes()[:1500])
        case "odd":
            Image.new("RGB", (178, 217)).save(path)
        case "gray":
            Image.new("L", (178, 218)).save(path)
        case "text":
            path.write_text("<html>")
    with pytest.raises(FileError, match=r"img_align_celeba/000005\.jpg \(sample 000005\)") as caught:
        read(faces.parent, "train").check()
    assert "\n" not in str(caught.value)
    report = verify("celeba", faces.parent, profile="twin", level="full")
    assert [fault.path for fault in report.bad] == ["img_align_celeba/000005.jpg"]


def test_a_folder_of_a_release_may_be_unreadable(faces: Path) -> None:
    shutil.rmtree(faces / "img_align_celeba")
    (faces / "img_align_celeba").write_text("")
    with pytest.raises(FileError, match=r"img_align_celeba: cannot be read"):
        read(faces.parent)


def test_who_has_no_files_gets_a_line_to_paste(tmp_path: Path) -> None:
    with pytest.raises(DatasetMissingError) as caught:
        registry.load("celeba", tmp_path, "train", layout="torchvision")
    text = str(caught.value)
    for part in ("1.4 GB", "00d2c5bc6d35e252742224ab0c1e8fcb", "Licence: non-commercial research"):
        assert part in text
    code = text.split("then paste: ")[1]
    assert code.startswith(f"export SHAREBENCH_DATA={tmp_path} && pip install gdown && python -c ")
    compile(code.split('python -c "')[1].removesuffix('"'), "pasted", "exec")
    with pytest.raises(DatasetMissingError, match="export SHAREBENCH_DATA=FOLDER && pip"):
        registry.find_layout("celeba", None)


def test_two_layouts_in_one_folder_must_be_named(faces: Path, roots: dict[str, Path]) -> None:
    shutil.copytree(roots["archive"] / "celeba", faces, dirs_exist_ok=True)
    with pytest.raises(ValueError, match="looks like each of the layouts torchvision, archive; name one"):
        read(faces.parent)


# Commands


@pytest.mark.parametrize("layout", ["torchvision", "archive"])
def test_a_prepared_copy_is_the_same(roots: dict[str, Path], tmp_path: Path, layout: str) -> None:
    root = Path(shutil.copytree(roots[layout], tmp_path / "copy"))
    before = [read(root)[row] for row in range(4)]
    done = CliRunner().invoke(app, ["prepare", "celeba", "--data-root", str(root), "--twin"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    after = read(root)
    for row, sample in enumerate(before):
        assert torch.equal(sample["image"], after[row]["image"])
        assert all(torch.equal(target, after[row]["targets"][task]) for task, target in sample["targets"].items())
    shutil.rmtree(next((root / "celeba").rglob("img_align_celeba")))
    with pytest.raises((FileError, DatasetMissingError)):  # a copy of files that are gone is no data set
        read(root)


def test_the_sheet_has_room_for_forty_attributes(roots: dict[str, Path], tmp_path: Path) -> None:
    """Names of the attributes that are true stand above each face, and the pictures do not collapse."""
    arguments = ["show", "celeba", "--data-root", str(roots["archive"]), "--twin", "--split", "train"]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    svg = next(tmp_path.glob("*.svg")).read_text(encoding="utf-8")
    name = next(iter(face_names()["train"]))
    true = [task_name(ATTRIBUTES[number]) for number in np.flatnonzero(face_labels(name))]
    assert f"true: {true[0]}" in svg
