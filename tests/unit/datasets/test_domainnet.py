"""DomainNet: official labels in three layouts, photographs of any size and mode, lists that may not lie."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from datasets import registry
from datasets.contracts import MultiTaskDataset
from datasets.domainnet import CLASSES, COUNTS, DOMAINS, UNCLEANED, listed
from datasets.errors import DatasetMissingError
from datasets.on_disk.files import FileError
from datasets.on_disk.prepare import prepare
from datasets.on_disk.verify import verify
from datasets.registry import dataset_spec, get_dataset
from datasets.roles import role_indices
from tests.twins import DOMAINNET_CLASSES, DOMAINNET_PER_CLASS, domainnet_files, domainnet_image, write_twin

TWIN = {"profile": "twin", "size": 64}
LAYOUTS = tuple(get_dataset("domainnet").layouts)


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {layout: write_twin(tmp_path_factory.mktemp("domains"), "domainnet", layout) for layout in LAYOUTS}


def load(root: Path, split: str = "train", **chosen: object) -> MultiTaskDataset:
    return registry.load("domainnet", root, split, options=TWIN, **chosen)  # type: ignore[arg-type]


def changed(tmp_path: Path, layout: str = "official") -> Path:
    """The folder of a twin that a test may spoil."""
    return write_twin(tmp_path, "domainnet", layout) / "domainnet"


def labels(data: MultiTaskDataset) -> dict[str, int]:
    """{name of the image: label}."""
    return {
        Path(name).name: int(part[row]["targets"][domain])
        for domain, part in data.inputs.items()
        for row, name in enumerate(part.ids)
    }


def test_classes_and_counts_are_the_published_ones() -> None:
    spec = dataset_spec("domainnet")
    assert spec.task_names == DOMAINS == ("real", "painting", "quickdraw", "clipart", "infograph", "sketch")
    assert (COUNTS["train"]["quickdraw"], COUNTS["test"]["clipart"]) == (120_750, 14_604)
    assert {task.channels for task in spec.tasks} == {345} == {len(set(CLASSES))}
    assert list(CLASSES) == sorted(CLASSES, key=lambda name: name.lower().replace("_", "").replace("-", ""))
    assert {name: CLASSES.index(name) for name in DOMAINNET_CLASSES} == DOMAINNET_CLASSES
    assert spec.splits == {"train": 409_832, "test": 176_743}
    totals = {domain: sum(UNCLEANED[split][domain] for split in UNCLEANED) for domain in DOMAINS}
    assert sum(totals.values()) == 596_010
    assert all(COUNTS[split][domain] <= UNCLEANED[split][domain] for split in COUNTS for domain in DOMAINS)


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_layouts_give_equal_samples(split: str, roots: dict[str, Path]) -> None:
    """Official labels also where only folders say the class, whose order by name is another one."""
    expected = {Path(name).name: label for name, (label, _) in domainnet_files()[split].items()}
    images: dict[str, dict[str, Tensor]] = {}
    for layout, root in roots.items():
        data = load(root, split)
        assert labels(data) == expected
        assert all(name.startswith(f"{domain}/") for domain, part in data.inputs.items() for name in part.ids)
        parts = data.inputs.values()
        images[layout] = {Path(part.ids[row]).name: part[row]["image"] for part in parts for row in range(len(part))}
    assert sorted(DOMAINNET_CLASSES) != sorted(DOMAINNET_CLASSES, key=DOMAINNET_CLASSES.__getitem__)
    for layout in LAYOUTS[1:]:
        assert images[layout].keys() == images[LAYOUTS[0]].keys()
        assert all(torch.equal(images[layout][name], image) for name, image in images[LAYOUTS[0]].items())


def test_names_with_blanks_and_letters_beyond_ascii_survive(roots: dict[str, Path]) -> None:
    data = load(roots["official"])
    assert "real/t-shirt/real_328_000003 café.jpg" in data.inputs["real"].ids
    assert listed(roots["adashare"] / "domainnet" / "train.txt")["real/t-shirt/real_328_000003 café.jpg"] == 327


def test_images_are_stretched_and_keep_their_colours(roots: dict[str, Path]) -> None:
    """Gray, CMYK, palette and transparency become RGB as Pillow has it; any size becomes one square."""
    data = load(roots["official"])
    for domain in ("real", "quickdraw"):
        part, number = data.inputs[domain], DOMAINS.index(domain)
        for row in range(DOMAINNET_PER_CLASS["train"]):
            path = roots["official"] / "domainnet" / part.ids[row]
            with Image.open(path) as image:
                assert image.size[::-1] == domainnet_image(number, 6, row).shape[:2]
                expected = np.asarray(image.convert("RGB").resize((64, 64), resample=2), dtype=np.int16)
            found = part[row]["image"].mul(255).round().permute(1, 2, 0).numpy().astype(np.int16)
            assert abs(found - expected).max() <= 2  # Pillow rounds between its two passes


def test_only_the_domains_that_are_asked_for_are_opened(tmp_path: Path) -> None:
    folder = changed(tmp_path)
    for domain in DOMAINS[:5]:
        shutil.rmtree(folder / domain)
        (folder / f"{domain}_train.txt").unlink()
    assert load(folder.parent, tasks=["sketch"]).inputs.keys() == {"sketch"}
    with pytest.raises(FileError, match=r"real_train\.txt: cannot be read"):
        load(folder.parent)


def test_a_class_called_train_is_no_split(tmp_path: Path) -> None:
    """The layout `folders` is told by `test`, since DomainNet has a class `train`."""
    folder = changed(tmp_path)
    for path in folder.glob("*.txt"):
        path.unlink()
    with pytest.raises(DatasetMissingError, match=r"no real/test or .* for layout 'folders'"):
        load(folder.parent)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("real/ant/a.jpg", "line 21: expected a path and a label below 345"),
        ("real/ant/a.jpg 345", "line 21: expected a path and a label below 345"),
        ("real/ant/a.jpg -1", "line 21: expected a path and a label below 345"),
        ("real/ant/a.jpg \u00b2", "line 21: expected a path and a label below 345"),
        ("/real/ant/a.jpg 6", "line 21: expected DOMAIN/CLASS/IMAGE"),
        ("/ant/a.jpg 6", "line 21: expected DOMAIN/CLASS/IMAGE"),
        ("real/ant/..\\a.jpg 6", "line 21: expected DOMAIN/CLASS/IMAGE"),
        ("real/../a.jpg 6", "line 21: expected DOMAIN/CLASS/IMAGE"),
        ("reel/ant/a.jpg 6", "line 21: Unknown domain 'reel'. Nearest: 'real'"),
        ("real/a.jpg 6", "line 21: expected DOMAIN/CLASS/IMAGE"),
        ("sketch/ant/a.jpg 6", "names images of other domains than real"),
        ("real/ants/a.jpg 6", "Unknown class of domainnet 'ants'. Nearest: 'pants', 'ant'"),
        ("real/ant/gone.jpg 6", "gone.jpg .*: existence: expected an image that the list names, found none"),
        ("real/ant/real_007_000001.jpg 7", "line 21: .* is listed twice"),
    ],
)
def test_a_wrong_line_of_a_list_is_one_line(line: str, message: str, tmp_path: Path) -> None:
    path = changed(tmp_path) / "real_train.txt"
    path.write_text(path.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    with pytest.raises(FileError, match=message) as caught:
        load(path.parents[1])
    assert "\n" not in str(caught.value)


def test_a_list_for_all_domains_names_no_other_one(tmp_path: Path) -> None:
    """AdaShare's lists are read for each domain: a line of none of them would be left out without a word."""
    path = changed(tmp_path, "adashare") / "train.txt"
    path.write_text(path.read_text(encoding="utf-8") + "reel/ant/a.jpg 6\n", encoding="utf-8")
    with pytest.raises(FileError, match=r"train\.txt: line 121: Unknown domain 'reel'"):
        load(path.parents[1])


def test_a_byte_order_mark_and_line_ends_of_windows_change_nothing(tmp_path: Path) -> None:
    path = changed(tmp_path) / "real_train.txt"
    before = load(path.parents[1], tasks=["real"]).inputs["real"].ids
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert load(path.parents[1], tasks=["real"]).inputs["real"].ids == before


def test_lists_that_disagree_with_folders_or_one_another_are_refused(tmp_path: Path) -> None:
    folder = changed(tmp_path)
    path, text = folder / "real_train.txt", (folder / "real_train.txt").read_text(encoding="utf-8")
    path.write_text(text.replace(".jpg 327", ".jpg 326", 1), encoding="utf-8")
    with pytest.raises(FileError, match="label: expected 327, that of its folder, found 326"):
        load(folder.parent)
    path.write_text(text + (folder / "real_test.txt").read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(
        FileError, match=r"split: expected one of train and test, found in real_test\.txt too \(and 7 more"
    ):
        load(folder.parent)
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(FileError, match="expected UTF-8, found byte 0xe9"):
        load(folder.parent)


def test_folders_may_hold_what_systems_leave_and_nothing_else(roots: dict[str, Path], tmp_path: Path) -> None:
    report = verify("domainnet", roots["folders"], profile="twin")
    assert report.ok
    assert "real/train: 2 hidden files are left out" in report.warnings
    folder = changed(tmp_path, "folders")
    (folder / "real" / "train" / "ant" / "notes.txt").write_text("x")
    with pytest.raises(FileError, match=r"notes\.txt: expected an image"):
        load(folder.parent)
    (folder / "real" / "train" / "ant" / "notes.txt").rename(folder / "real" / "train" / "notes.txt")
    with pytest.raises(FileError, match=r"notes\.txt: expected the folder of a class, found a file"):
        load(folder.parent)
    (folder / "real" / "train" / "notes.txt").unlink()
    (folder / "real" / "train" / "ant").rename(folder / "real" / "train" / "aunt")
    with pytest.raises(FileError, match="Unknown class of domainnet 'aunt'"):
        load(folder.parent)


def test_images_that_no_list_names_are_counted(tmp_path: Path) -> None:
    """As those that were cleaned away; an image of the other split is no such one."""
    folder = changed(tmp_path)
    assert not verify("domainnet", folder.parent, profile="twin").warnings
    for name in ("extra 1.jpg", "extra 2.jpg", "._extra 2.jpg", "Thumbs.db"):
        (folder / "sketch" / "ant" / name).touch()
    assert "sketch: 2 files are in no list and left out" in verify("domainnet", folder.parent, profile="twin").warnings


def test_every_bad_image_is_named_before_the_first_step(tmp_path: Path) -> None:
    """Also those in the middle, which a check of the first and last does not decode; sizes may differ."""
    folder = changed(tmp_path)
    load(folder.parent).inputs["real"].check()
    cut, text = folder / "real" / "t-shirt" / "real_328_000002.jpg", folder / "real" / "t-shirt" / "real_328_000001.jpg"
    cut.write_bytes(cut.read_bytes()[:-30])
    text.write_text("an error page of a server")
    with pytest.raises(
        FileError, match=r"real_328_000001\.jpg.*one that is truncated, or not an image.*and 1 more fault"
    ):
        load(folder.parent).inputs["real"].check()
    report = verify("domainnet", folder.parent, level="full", profile="twin")
    assert {fault.path for fault in report.bad} == {path.relative_to(folder).as_posix() for path in (cut, text)}


def test_verify_says_which_release_it_sees(monkeypatch: pytest.MonkeyPatch, roots: dict[str, Path]) -> None:
    monkeypatch.setitem(UNCLEANED["train"], "clipart", 20)  # type: ignore[arg-type]
    bad = [str(fault) for fault in verify("domainnet", roots["official"], tasks=["clipart"]).bad]
    assert "clipart train: release: expected the cleaned images, found the images before they were cleaned" in bad


def test_the_prepared_copy_gives_equal_samples(tmp_path: Path) -> None:
    root = changed(tmp_path).parent
    before = load(root).inputs["real"]
    expected = [before[row]["image"] for row in range(len(before))]
    prepare("domainnet", root, options=TWIN)
    after = load(root).inputs["real"]
    after.check()
    assert after.source.image.read is not before.source.image.read  # type: ignore[attr-defined]
    assert all(torch.equal(after[row]["image"], image) for row, image in enumerate(expected))


def test_the_hold_out_takes_its_share_of_every_class(roots: dict[str, Path]) -> None:
    data = load(roots["official"])
    roles = role_indices(data, None, load(roots["official"], "test"))
    for domain, part in data.inputs.items():
        of_role = {
            role: [part.strata[row] for row in roles[domain][role].indices] for role in ("select", "arch", "fit")
        }  # type: ignore[index]
        assert {role: {group.count(name) for name in set(group)} for role, group in of_role.items()} == {
            "select": {1},
            "arch": {1},
            "fit": {3},
        }
