"""`digit_domains`: three domains without files, and others where they are there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from datasets import registry
from datasets.digit_domains import OPTICAL_RANKS, optical_rows
from datasets.errors import DatasetMissingError
from datasets.omniglot import ZIPS
from datasets.on_disk.files import FileError
from datasets.registry import dataset_spec
from tests.genuine import genuine
from tests.twins import twin_package


def test_three_tasks_need_no_files() -> None:
    spec = dataset_spec("digit_domains")
    assert spec.task_names == ("plain", "inverted", "optical")
    for split in ("train", "val", "test"):
        data = registry.load("digit_domains", None, split)
        assert {name: len(part) for name, part in data.inputs.items()} == {
            task: spec.count(split, task) for task in spec.task_names
        }


def test_mnist_s_halves_are_those_of_the_two_domains() -> None:
    ours, theirs = registry.load("digit_domains", None, "val"), registry.load("mnist_two_domains", None, "val")
    for task in ("plain", "inverted"):
        assert ours.inputs[task].content_hash() == theirs.inputs[task].content_hash()


def test_optical_digits_are_those_of_scikit_learn_cut_by_class() -> None:
    """Every split has equally many of each digit, no digit is in two splits, and the cells are where they were."""
    found = load_digits()
    rows = {split: optical_rows(split) for split in OPTICAL_RANKS}
    assert len(np.unique(np.concatenate(list(rows.values())))) == sum(len(part) for part in rows.values()) == 1740
    for split, chosen in rows.items():
        first, last = OPTICAL_RANKS[split]
        assert np.bincount(found.target[chosen]).tolist() == [last - first] * 10
    part = registry.load("digit_domains", None, "test").inputs["optical"]
    row = int(rows["test"][7])
    assert int(part[7]["targets"]["optical"]) == found.target[row]
    cells = (found.images[row] * 255 / 16).round().astype(np.uint8)
    expected = np.zeros((36, 36), dtype=np.int16)
    expected[4:32, 4:32] = np.asarray(Image.fromarray(cells).resize((28, 28), resample=2))
    assert abs(part[7]["image"][0].mul(255).round().numpy() - expected).max() <= 1
    assert torch.equal(part[7]["image"][0], part[7]["image"][2])


def test_alphabets_join_where_their_zips_are(tmp_path: Path) -> None:
    """Genuine drawings, reduced from 105 to 36 pixels; the drawers of a split are Omniglot's."""
    (tmp_path / "omniglot").symlink_to(genuine(f"omniglot/{next(iter(ZIPS))}", next(iter(ZIPS.values()))).parent)
    ours = registry.load("digit_domains", tmp_path, "test", tasks=["optical", "greek"]).inputs["greek"]
    (theirs,) = registry.load("omniglot", tmp_path, "test", tasks=["greek"]).inputs.values()
    assert ours.ids == theirs.ids
    assert ours.units == theirs.units
    assert ours[5]["image"].shape == (3, 36, 36)
    assert torch.equal(ours[5]["targets"]["greek"], theirs[5]["targets"]["greek"])
    # Reducing keeps the share of ink.
    assert float(ours[5]["image"].mean()) == pytest.approx(float(theirs[5]["image"].mean()), abs=0.005)


def test_solar_cells_join_where_their_package_is(tmp_path: Path) -> None:
    with twin_package(tmp_path, "elpv") as is_twin:
        if not is_twin:
            pytest.skip("the genuine package is installed; the twin would not be read")
        with pytest.raises(FileError, match=r"labels\.csv"):  # the twin is found, and refused as not the genuine list
            registry.load("digit_domains", None, "test", tasks=["defect"])


def test_what_is_missing_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHAREBENCH_DATA", raising=False)
    with pytest.raises(DatasetMissingError, match=r"omniglot.*neither --data-root nor SHAREBENCH_DATA"):
        registry.load("digit_domains", None, "train", tasks=["plain", "greek"])
