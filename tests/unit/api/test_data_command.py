"""`python -m benchmark.data`: faults are named file by file, copies equal their files, sheets are drawn."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner, Result

from benchmark.data import app
from benchmark.show.contact_sheet import picture
from datasets.contracts import TaskSpec
from datasets.errors import UsageError
from datasets.on_disk.files import FileError
from datasets.on_disk.prepare import prepare
from datasets.on_disk.prepared import FOLDER, MANIFEST, PARTIAL, PROGRESS
from datasets.on_disk.verify import verify
from datasets.registry import load
from tests.genuine import SHARED, genuine
from tests.twins import write_twin

TWIN: dict[str, object] = {"profile": "twin"}


@pytest.fixture
def mtan(tmp_path: Path) -> Path:
    """The data root of a small copy of MTAN's layout: 5 images to train, 2 to test."""
    return write_twin(tmp_path, "nyuv2", "mtan_npy")


@pytest.fixture
def adashare(tmp_path: Path) -> Path:
    return write_twin(tmp_path, "nyuv2", "adashare")


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def samples(root: Path, split: str = "train", **options: Any) -> list[dict[str, Tensor]]:
    (part,) = load("nyuv2", root, split, options=TWIN, **options).inputs.values()
    return [{"image": part[row]["image"], **part[row]["targets"]} for row in range(len(part))]


def equal(first: list[dict[str, Tensor]], second: list[dict[str, Tensor]]) -> bool:
    """Bit for bit, NaN included."""
    return len(first) == len(second) and all(
        np.array_equal(a[name].numpy(), b[name].numpy(), equal_nan=a[name].is_floating_point())
        for a, b in zip(first, second, strict=True)
        for name in a
    )


# verify


def test_a_good_twin_is_fine_and_says_what_it_holds(adashare: Path) -> None:
    found = command("verify", "nyuv2", "--data-root", adashare, "--twin", "--full")
    assert found.exit_code == 0, found.output
    assert "train: 5 samples" in found.output
    assert "semseg: semantic, values 0 to 39" in found.output
    assert found.output.rstrip().endswith("ok")


def test_a_part_of_the_data_is_no_whole(adashare: Path) -> None:
    found = command("verify", "nyuv2", "--data-root", adashare)
    assert found.exit_code == 1
    assert "split 'train': number of samples: expected 795, found 5" in found.output


def plant(root: Path) -> dict[str, str]:
    """Faults in MTAN's layout: {file: check that must find it}."""
    folder = root / "nyuv2"
    truncated = folder / "train/image/21.npy"
    truncated.write_bytes(truncated.read_bytes()[:1000])
    label = folder / "train/label/0.npy"
    ids = np.load(label)
    ids[5, 5] = 13
    np.save(label, ids)
    unknown = folder / "train/depth/42.npy"
    np.save(unknown, np.zeros_like(np.load(unknown)))
    small = folder / "val/normal/10.npy"
    np.save(small, np.load(small)[::2])
    (folder / "val/depth/9.npy").unlink()
    return {
        "train/image/21.npy": "cannot be read as an array",
        "train/label/0.npy": "expected ids 0 to 12 and 255, found 13",
        "train/depth/42.npy": "every pixel is ignored",
        "val/normal/10.npy": "expected float32 or float64 or float16 (288, 384, 3)",
        "val/depth/9.npy": "expected a file (depth), found none",
    }


def test_every_planted_fault_is_found_and_named(mtan: Path, tmp_path: Path) -> None:
    planted = plant(mtan)
    out = tmp_path / "report.json"
    found = command("verify", "nyuv2", "--data-root", mtan, "--twin", "--full", "--json", out)
    assert found.exit_code == 1
    bad = json.loads(out.read_text(encoding="utf-8"))["bad"]
    assert sorted(fault["path"] for fault in bad) == sorted(planted)
    for path, check in planted.items():
        line = next(line for line in found.output.splitlines() if line.startswith(f"bad: {path}"))
        assert check in line
    assert "5 bad" in found.output


def test_a_quick_look_decodes_two_samples_a_split(mtan: Path) -> None:
    plant(mtan)
    report = verify("nyuv2", mtan, profile="twin")
    assert report.decoded == 3  # the first and the last of train, one of test: the other one's depth is absent
    assert {fault.path for fault in report.bad} == {"train/label/0.npy", "val/normal/10.npy", "val/depth/9.npy"}


def test_an_image_in_two_splits_is_pointed_out(mtan: Path) -> None:
    shutil.copy(mtan / "nyuv2/train/image/21.npy", mtan / "nyuv2/val/image/9.npy")
    report = verify("nyuv2", mtan, level="full", profile="twin")
    assert any("test/9 = train train/21" in warning for warning in report.warnings)
    assert report.ok


def test_the_axis_of_view_is_reported_where_the_frame_is_unknown(mtan: Path) -> None:
    for path in (mtan / "nyuv2").glob("*/normal/*.npy"):
        np.save(path, np.broadcast_to(np.float32([0.0, 0.6, 0.8]), (288, 384, 3)))
    report = verify("nyuv2", mtan, level="full", profile="twin")
    assert any("channel 2 is positive in 100%" in warning for warning in report.warnings)


def test_a_wrong_list_and_an_absent_set_are_one_line(adashare: Path, tmp_path: Path) -> None:
    (adashare / "nyuv2" / "nyu_v2_3task.json").write_text("{}", encoding="utf-8")
    found = command("verify", "nyuv2", "--data-root", adashare, "--twin")
    assert found.exit_code == 1
    assert "split 'train': list: expected a list that can be read" in found.output
    missing = command("verify", "nyuv2", "--data-root", tmp_path / "nowhere")
    assert missing.exit_code == 2


def test_a_changed_archive_fails_its_checksum(tmp_path: Path) -> None:
    root = write_twin(tmp_path, "omniglot", "small_zips")
    report = verify("omniglot", root)
    assert {fault.check for fault in report.bad} >= {"sha256"}
    assert verify("omniglot", root, profile="twin").ok


def test_embedded_data_are_verified_too() -> None:
    assert command("verify", "multi_mnist").exit_code == 0


@pytest.mark.slow
def test_the_genuine_drawings_are_what_they_should_be(tmp_path: Path) -> None:
    for name, digest in {
        "images_background_small1.zip": "f38eb80f801274ac2b4dff5b24289016bfaba4a7d5bb50deebf27104ad6cb8a4",
        "images_background_small2.zip": "3ccaa407515a8778e5d0861875af38b17e418f301ad5bb3b5a6b65d901a41c7f",
    }.items():
        genuine(f"omniglot/{name}", digest)
    (tmp_path / "omniglot").symlink_to(SHARED / "omniglot")
    report = verify("omniglot", tmp_path, level="full")
    assert report.ok
    assert not report.warnings
    assert report.decoded == 4840


# prepare


@pytest.mark.parametrize("layout", ["adashare", "mtan_npy"])
def test_samples_of_a_copy_equal_those_of_the_files(layout: str, tmp_path: Path) -> None:
    root = write_twin(tmp_path, "nyuv2", layout)
    before = {split: samples(root, split) for split in ("train", "test")}
    (part,) = load("nyuv2", root, "train", options=TWIN).inputs.values()
    content = part.content_hash()
    folder = prepare("nyuv2", root, options=TWIN)
    assert folder.parent == root / FOLDER
    for split, expected in before.items():
        assert equal(samples(root, split), expected)
    (again,) = load("nyuv2", root, "train", options=TWIN).inputs.values()
    assert type(again.source.image.read).__name__ == "Rows"  # type: ignore[attr-defined]
    assert again.content_hash() == content  # a copy is no other data
    stored = np.load(folder / "train/image/image.npy", mmap_mode="r")
    assert stored.dtype == ("uint8" if layout == "adashare" else "float32")
    # Samples are changed in place by whoever likes; the map is shared by all of them.
    for sample in samples(root):
        for tensor in sample.values():
            tensor.as_subclass(Tensor).zero_()
    assert equal(samples(root), before["train"])


def test_a_copy_of_other_files_is_an_error(mtan: Path) -> None:
    folder = prepare("nyuv2", mtan, options=TWIN)
    np.save(mtan / "nyuv2/train/image/0.npy", np.zeros((288, 384, 3), np.float32))
    with pytest.raises(FileError, match=r"prepared from other files.*prepare the data set again"):
        samples(mtan)
    assert prepare("nyuv2", mtan, options=TWIN) == folder
    assert not samples(mtan)[0]["image"].any()


def test_a_copy_that_lost_bytes_is_an_error(mtan: Path) -> None:
    folder = prepare("nyuv2", mtan, options=TWIN)
    file = folder / "train/image/depth.npy"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(FileError, match="cut short"):
        samples(mtan)


def test_another_protocol_has_a_copy_of_its_own(adashare: Path) -> None:
    expected = samples(adashare, protocol="adashare")
    first = prepare("nyuv2", adashare, options=TWIN)
    assert equal(samples(adashare, protocol="adashare"), expected)
    assert prepare("nyuv2", adashare, protocol="adashare", options=TWIN) != first
    assert equal(samples(adashare, protocol="adashare"), expected)


def test_an_interrupted_preparation_goes_on(mtan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.on_disk.prepared.ROWS_AT_ONCE", 2)
    expected = samples(mtan)

    class Interrupted(BaseException):
        pass

    def stop(done: int, n: int) -> None:
        if done >= 4:
            raise Interrupted

    with pytest.raises(Interrupted):
        prepare("nyuv2", mtan, options=TWIN, report_progress=stop)
    (work,) = (mtan / FOLDER).glob(f"*{PARTIAL}")
    assert json.loads((work / PROGRESS).read_text(encoding="utf-8"))["done"] == {"train/image": 4}
    assert equal(samples(mtan), expected)  # half a copy is not used
    seen: list[tuple[int, int]] = []
    folder = prepare("nyuv2", mtan, options=TWIN, report_progress=lambda done, n: seen.append((done, n)))
    assert seen[0] == (4, 7)
    assert equal(samples(mtan), expected)
    assert (folder / MANIFEST).is_file()
    assert not work.exists()


def test_other_files_start_an_interrupted_preparation_anew(mtan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.on_disk.prepared.ROWS_AT_ONCE", 2)

    def stop(done: int, n: int) -> None:
        if done >= 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare("nyuv2", mtan, options=TWIN, report_progress=stop)
    np.save(mtan / "nyuv2/train/image/0.npy", np.ones((288, 384, 3), np.float32))
    prepare("nyuv2", mtan, options=TWIN)
    assert samples(mtan)[0]["image"].min() == 1


def test_mixed_sizes_cannot_be_prepared(adashare: Path) -> None:
    path = adashare / "nyuv2/img/0001.png"
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(path)
    with pytest.raises(FileError, match=r"0001\.png: expected uint8 \(480, 640, 3\), found uint8 \(32, 32, 3\)"):
        prepare("nyuv2", adashare, options=TWIN)


def test_sets_in_memory_have_nothing_to_prepare(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs no data root"):
        prepare("multi_mnist", None)
    with pytest.raises(UsageError, match="kept in memory"):
        prepare("omniglot", write_twin(tmp_path, "omniglot", "small_zips"), options=TWIN)


def test_prepare_says_where_the_copy_is(mtan: Path) -> None:
    found = command("prepare", "nyuv2", "--data-root", mtan, "--twin")
    assert found.exit_code == 0
    assert str(mtan / FOLDER) in found.output


# show


def test_an_option_of_the_data_set_has_a_copy_of_its_own(tmp_path: Path) -> None:
    root = write_twin(tmp_path, "fashion_products", "subset")
    asked = ("prepare", "fashion_products", "--data-root", root, "--twin", "--set")
    assert command(*asked, "size=20x15").exit_code == 0
    for value in ("size=20x15", "size=16x12"):
        command(*asked, value)
    assert len(list((root / FOLDER).iterdir())) == 2
    for value, message in (
        ("size", "--set 'size': expected an option of the data set and its value"),
        ("size=9", "Option 'size' of fashion_products is 9"),
        ("sise=9", "Unknown option of fashion_products 'sise'. Nearest: 'size'"),
    ):
        result = command(*asked, value)
        assert result.exit_code == 2
        assert message in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("name", "layout", "asked", "pictures"),
    [("nyuv2", "adashare", 2, 2 * 4), ("nyuv2", "mtan_npy", 6, 5 * 4), ("omniglot", "small_zips", 2, 8 * 2)],
)
def test_a_sheet_has_every_label(name: str, layout: str, asked: int, pictures: int, tmp_path: Path) -> None:
    """An image with its three labels a sample, of no more samples than there are; or an image for each alphabet."""
    root = write_twin(tmp_path, name, layout)
    found = command("show", name, "--data-root", root, "--twin", "--out", tmp_path / "sheets", "--samples", asked)
    assert found.exit_code == 0, found.output
    files = [Path(line) for line in found.output.split()]
    assert [file.suffix for file in files] == [".png", ".svg"]
    text = files[1].read_text(encoding="utf-8")
    assert text.count("<image") == pictures


def test_ignored_pixels_look_like_no_class() -> None:
    semseg = TaskSpec("semseg", "semantic", 40, ("miou",))
    shown = picture(torch.tensor([[0, 1], [39, 255]]), semseg)
    assert shown[1, 1].tolist() == [0, 0, 0]
    known = shown.reshape(-1, 3)[:3]
    assert min((a - b).abs().max() for i, a in enumerate(known) for b in known[:i]) > 0.1
    depth = picture(torch.tensor([[1.0, 2.0], [float("nan"), 3.0]]), TaskSpec("depth", "depth", 1, ("rmse",)))
    assert depth[1, 0].unique().numel() == 1
    assert depth[0, 0].unique().numel() > 1
