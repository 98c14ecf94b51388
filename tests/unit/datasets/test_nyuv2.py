"""NYU-v2: the four genuine images of AdaShare's release, the official lists, and twins of both releases."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from scipy import ndimage
from torch import Tensor

from datasets import registry
from datasets.contracts import InputData, Sample
from datasets.errors import ProtocolError, UsageError
from datasets.images.augmentation import HorizontalFlip
from datasets.kinds import get_kind
from datasets.nyuv2 import TO_13, merge_table
from datasets.on_disk.files import FileError
from datasets.on_disk.releases import number_of
from datasets.protocols import get_protocol
from datasets.registry import dataset_spec
from tests.genuine import genuine
from tests.twins import MAT_CLASSES, TEST_IDS, TRAIN_IDS, room, write_twin

TWIN = {"profile": "twin"}
IDS = ("0061", "0295", "0774", "1314")
SHA256 = {
    "depth/0061.npy": "3d45f4b3b6f4d0cf3ac5c1706658ee6a12af6ebb99cbd502ee7bc489c1cd8b16",
    "depth/0295.npy": "5c0b64e572046643deda69d4544f25f7512cc08fe57340f92ab02ff50ce7abd7",
    "depth/0774.npy": "b7e4dd70b5ea19ea3450818d49502b762e8581778cedbf188afcb4ff04313432",
    "depth/1314.npy": "5d61c502e55a92f362eba6ce29e2efd4e4c603de31d9a3fab078a42bac803155",
    "img/0061.png": "4e1e362001314d510fea12b78e909f958b80a3d95e400fc213b032ab30786e58",
    "img/0295.png": "7809bec0ba832b9e53f0aac0b3409383bec77a4f17e95e104f9b97104ae76e3a",
    "img/0774.png": "e2fe65d16584a9a2074fcdf018b14be97761e77f5228cd8fe8aa92fc5bcee1f5",
    "img/1314.png": "6356bcdba32105f0f1a8135b5cce6b52d1ac6d83af74a823d84bb1a613d58f7e",
    "normal_mask/0061.png": "6731d82d7945e1c7daeafb3231e7cf745ac5ba281ee0b8d077ab313eb36a9940",
    "normal_mask/0295.png": "b95827a76f62768caa6f5cf8b78a7c9729ee18b5ec27bf724463c2a8d259011e",
    "normal_mask/0774.png": "20c2744269d27ed954fe14862df04a7e35dc4f5be4cd69b6274361cb13f3cd10",
    "normal_mask/1314.png": "91246da844d7015ad2a768cb418ed7de2ec97407756e8c7106105b26739c82c8",
    "seg/0061.png": "e66d9321fc3d1b61f567e051f448740d49d0c8e1227c279d47bf9bd511e3a21e",
    "seg/0295.png": "384313405aa214d37022561d1ced80ba68c156692d4eefbe05756b499c711f48",
    "seg/0774.png": "9573267c96e8966939c9875ef7a75a02a9d4942c4c6fdf235539bb140258c033",
    "seg/1314.png": "16450fa3d98a67ba20aabb69ef14ee66772bad6b2169acdadf321dd4a98cc345",
}
META = {
    "classMapping40.mat": "ff177194cce9a2163517f1e1e6f1c64c50987162f542dedddc04bbf6ebe6d851",
    "splits.mat": "6e081404491a8bfba2f066beaa9713ef6046f9007aa5f799f2a350506a580cee",
    "class13Mapping.mat": "4e79ab24c345896c19abc62476b2c3520f3e2db00f71f868c5027208af48a3de",
}


@pytest.fixture(scope="module")
def genuine_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("genuine")
    for name, sha256 in SHA256.items():
        file = genuine(f"nyu_v2_samples/{name}", sha256)
        (root / "nyuv2" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "nyuv2" / name).symlink_to(file.resolve())
    return root


def samples(root: Path, protocol: str = "standard", **options: object) -> InputData:
    data = registry.load("nyuv2", root, "test", protocol=protocol, options={**TWIN, **options})
    assert data.spec.layout == "adashare"
    return data.inputs["image"]


def plain(sample: Sample, task: str) -> Tensor:
    return sample["targets"][task].as_subclass(Tensor)


# The genuine images


def test_ids_count_from_zero() -> None:
    lists = scipy.io.loadmat(genuine("nyu_v2_meta/splits.mat", META["splits.mat"]))
    train, test = ({int(number) for number in lists[name].flatten()} for name in ("trainNdxs", "testNdxs"))
    assert (len(train), len(test)) == (795, 654)
    assert not train & test
    assert train | test == set(range(1, 1450))
    assert {int(identifier) + 1 for identifier in IDS} <= test
    assert int("0295") not in test  # what counting from one would make of it


def test_the_map_to_13_classes_is_the_official_one() -> None:
    official = scipy.io.loadmat(genuine("nyu_v2_meta/class13Mapping.mat", META["class13Mapping.mat"]))
    assert tuple(official["classMapping13"][0, 0][0].flatten().tolist()) == TO_13
    assert merge_table()[[0, 1, 21, 39, 40, 255]].tolist() == [11, 4, 2, 6, 255, 255]


def test_genuine_labels(genuine_root: Path) -> None:
    data = samples(genuine_root)
    assert data.ids == list(IDS)
    heights: dict[int, list[float]] = {1: [], 21: []}
    for index in range(4):
        sample = data[index]
        semseg, depth, normals = (plain(sample, task) for task in ("semseg", "depth", "normals"))
        assert sample["image"].shape == (3, 480, 640)
        assert set(semseg.unique().tolist()) <= {*range(40), 255}
        assert 0.10 <= float((semseg == 255).double().mean()) <= 0.22
        assert depth.isfinite().all()
        assert 0.71 <= float(depth.min()) < float(depth.max()) <= 6.85
        for task in ("semseg", "depth", "normals"):
            spec = dataset_spec("nyuv2").task(task)
            get_kind(spec.kind).check(plain(sample, task), spec)
        known = get_kind("normals").valid(normals)
        for label, means in heights.items():
            if int((semseg == label).sum()) > 1000:
                means.append(float(normals[1][(semseg == label) & known].mean()))
        assert float((normals[2][known] > 0).double().mean()) > 0.98
    assert len(heights[1]) == 3
    assert min(heights[1]) > 0.85  # floors look up
    assert max(heights[21]) < -0.85  # ceilings look down


def test_genuine_colours_decode_to_unit_vectors(genuine_root: Path) -> None:
    for index, identifier in enumerate(IDS):
        stored = samples(genuine_root).source.fields["normals"].read(index)  # type: ignore[attr-defined]
        white, grey = ((stored == value).all(axis=-1) for value in (255, 127))
        assert 0.009 <= grey.mean() <= 0.012, identifier
        length = np.linalg.norm(stored / 127.5 - 1, axis=-1)[~white & ~grey]
        assert length.min() >= 0.9
        assert length.max() <= 1.1
        assert 1.000 <= np.median(np.linalg.norm(stored / 127.5 - 1, axis=-1)[~white]) <= 1.005
        valid = get_kind("normals").valid(plain(samples(genuine_root)[index], "normals"))
        assert np.array_equal(valid.numpy(), ~white & ~grey)


def normals_from_depth(depth: np.ndarray, step: int = 8) -> np.ndarray:
    """Unit normals [3, H, W] of the points that a depth map shows, x right, y up, z towards the camera."""
    row, column = np.meshgrid(np.arange(depth.shape[0]), np.arange(depth.shape[1]), indexing="ij")
    points = np.stack([(column - 325.58) / 518.86 * depth, -(row - 253.74) / 519.47 * depth, -depth])
    points = ndimage.uniform_filter(points, (0, 9, 9))
    along = np.roll(points, -step, 2) - np.roll(points, step, 2)
    up = np.roll(points, step, 1) - np.roll(points, -step, 1)
    normals = np.cross(along, up, axis=0)
    return normals / np.maximum(np.linalg.norm(normals, axis=0), 1e-12)


def test_genuine_normals_are_those_of_the_depth_in_no_other_frame(genuine_root: Path) -> None:
    import itertools

    for index in range(4):
        sample = samples(genuine_root)[index]
        normals = plain(sample, "normals").double().numpy()
        expected = normals_from_depth(plain(sample, "depth").double().numpy())
        inner = (slice(None), slice(10, -10, 2), slice(10, -10, 2))
        normals, expected = normals[inner], expected[inner]
        valid = (normals != 0).any(axis=0)

        def median(candidate: np.ndarray, expected: np.ndarray = expected, valid: np.ndarray = valid) -> float:
            return float(np.degrees(np.arccos(np.median((candidate * expected).sum(axis=0)[valid]).clip(-1, 1))))

        assert median(normals) < 12
        for axes in itertools.permutations(range(3)):
            for signs in itertools.product((1, -1), repeat=3):
                if (axes, signs) != ((0, 1, 2), (1, 1, 1)):
                    assert median(normals[list(axes)] * np.array(signs)[:, None, None]) > 20, (axes, signs)


@pytest.mark.parametrize(
    ("protocol", "angles"), [("adashare", (23.3, 14.0, 14.8, 19.6)), ("standard", (44.4, 46.8, 37.3, 49.1))]
)
def test_a_constant_prediction_scores_much_better_on_undecoded_colours(
    genuine_root: Path, protocol: str, angles: tuple[float, ...]
) -> None:
    """The per-image mean direction; why rows under the two protocols can never stand in one column."""
    data, flags = samples(genuine_root, protocol), get_protocol(protocol, "nyuv2")
    task = dataset_spec("nyuv2", protocol=protocol).task("normals")
    for index, angle in enumerate(angles):
        label = plain(data[index], "normals").double()
        valid = get_kind("normals").valid(label)
        unit = torch.nn.functional.normalize(label, dim=0)
        mean = unit[:, valid].mean(dim=1)
        evaluator = get_kind("normals").evaluator(task, flags)
        evaluator.update(mean.view(1, 3, 1, 1).expand(1, 3, 480, 640), label[None])
        assert evaluator.result()["mean_angle"].value == pytest.approx(angle, abs=0.3), IDS[index]


# Twins


@pytest.fixture(scope="module")
def adashare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_twin(tmp_path_factory.mktemp("adashare"), "nyuv2", "adashare")


@pytest.fixture(scope="module")
def mtan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_twin(tmp_path_factory.mktemp("mtan"), "nyuv2", "mtan_npy")


def copy(root: Path, folder: Path) -> Path:
    shutil.copytree(root, folder / "copy")
    return folder / "copy"


def test_an_adashare_twin_is_the_room_it_shows(adashare: Path) -> None:
    data = samples(adashare)
    assert data.ids == [f"{number:04d}" for number in TEST_IDS]
    for index, number in enumerate(TEST_IDS):
        sample, seen = data[index], room((480, 640), number)
        normals, truth = plain(sample, "normals"), torch.from_numpy(seen.normals)
        valid = get_kind("normals").valid(normals)
        assert not valid[0].any()
        assert not valid[200:204, 300:310].any()
        assert 0.85 < float(valid.double().mean()) < 0.95
        assert (normals[:, valid] - truth[:, valid]).abs().max() < 0.01
        assert torch.equal(plain(sample, "depth"), torch.from_numpy(seen.depth.astype(np.float32)))
        assert torch.equal(sample["image"].mul(255).round().byte(), torch.from_numpy(seen.image).permute(2, 0, 1))
        assert set(plain(sample, "semseg").unique().tolist()) == {0, 1, 21, 28, 39, 255}
    train = registry.load("nyuv2", adashare, "train", options=TWIN).inputs["image"]
    assert train.ids == [f"{number:04d}" for number in TRAIN_IDS]
    assert train.units == ["block000", "block001", "block002", "block003", "block004"]
    assert set(plain(samples(adashare, classes=13)[0], "semseg").unique().tolist()) == {11, 4, 2, 6, 255}


def test_halves_make_a_train_split_where_the_whole_is_not_listed(adashare: Path, tmp_path: Path) -> None:
    root = copy(adashare, tmp_path)
    path = root / "nyuv2" / "nyu_v2_3task.json"
    document = json.loads(path.read_text())
    del document["train"]
    path.write_text(json.dumps(document))
    halves = registry.load("nyuv2", root, "train", options=TWIN).inputs["image"]
    assert halves.ids == [f"{number:04d}" for number in TRAIN_IDS]


def test_a_flipped_twin_agrees_with_its_flipped_depth(adashare: Path) -> None:
    """Normals that are flipped without their x negated no longer fit the flipped depth."""
    sample = samples(adashare)[0]
    flipped = HorizontalFlip(get_protocol("standard"), p=1.0)(sample)
    naive = plain(sample, "normals").flip(-1)
    wall = torch.from_numpy(room((480, 640), TEST_IDS[0]).surface == 3).flip(-1)
    inner = wall & (naive != 0).any(dim=0)
    depth = plain(flipped, "depth").double().numpy()
    # The side wall is the only surface whose depth changes along a row; after the flip it must look to the left.
    slope = torch.from_numpy(np.gradient(depth, axis=1))
    assert int(inner.sum()) > 1000
    assert (slope[inner] < 0).double().mean() > 0.99
    assert (plain(flipped, "normals")[0][inner] < -0.9).all()
    assert (naive[0][inner] > 0.9).all()
    kept = HorizontalFlip(get_protocol("adashare", "nyuv2"), p=1.0)(samples(adashare, "adashare")[0])
    assert torch.equal(plain(kept, "normals"), plain(samples(adashare, "adashare")[0], "normals").flip(-1))


def test_an_mtan_twin_is_the_room_it_shows(mtan: Path) -> None:
    test = registry.load("nyuv2", mtan, "test", options=TWIN).inputs["image"]
    assert test.ids == ["test/9", "test/10"]  # as numbers; and the folder is called val
    for index, number in enumerate((9, 10)):
        sample, seen = test[index], room((288, 384), number)
        depth, normals, semseg = (plain(sample, task) for task in ("depth", "normals", "semseg"))
        known = ~depth.isnan()
        assert torch.equal(depth[known], torch.from_numpy(seen.depth.astype(np.float32))[known])
        assert torch.equal(get_kind("normals").valid(normals), known)
        assert torch.equal(semseg != 255, known)
        assert not known[0].any()
        assert torch.allclose(normals[:, known].double(), torch.from_numpy(seen.normals)[:, known])
        assert sample["meta"]["normals_frame"] == "unknown"
    with pytest.raises(UsageError, match="holds 13 classes; 40 need the layout 'adashare'"):
        dataset_spec("nyuv2", layout="mtan_npy", options={"classes": 40})


@pytest.fixture(scope="module")
def mat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("h5py", reason="the official .mat is HDF5; install the extra hdf5")
    return write_twin(tmp_path_factory.mktemp("mat"), "nyuv2", "mat")


def test_a_mat_twin_comes_out_upright(mat: Path) -> None:
    """Axes are reversed in the file: one bright pixel at the top left must stay there."""
    test = registry.load("nyuv2", mat, "test", options=TWIN).inputs["image"]
    assert test.ids == ["0001", "0061"]
    sample, seen = test[0], room((480, 640), 1)
    assert sample["image"].shape == (3, 480, 640)
    assert sample["image"][:, 0, 0].tolist() == [1.0, 1.0, 1.0]
    assert (sample["image"][:, 0, 1:] < 1).all()
    assert torch.equal(
        sample["image"][:, 1:].mul(255).round().byte(), torch.from_numpy(seen.image).permute(2, 0, 1)[:, 1:]
    )
    depth = torch.from_numpy(seen.depth.astype(np.float32))
    assert torch.equal(plain(sample, "depth")[1:], depth[1:])
    assert plain(sample, "depth")[0, 0].isnan()
    assert list(sample["targets"]) == ["semseg", "depth"]
    with pytest.raises(UsageError, match=r"'normals' of nyuv2 is not available: .* adashare and mtan_npy do"):
        registry.load("nyuv2", mat, "test", tasks=["normals"], layout="mat", options=TWIN)


@pytest.mark.parametrize("classes", [40, 13])
def test_the_chain_of_classes_equals_the_tables(mat: Path, classes: int) -> None:
    to_40 = scipy.io.loadmat(mat / "nyuv2" / "classMapping40.mat")["mapClass"].flatten()
    data = registry.load("nyuv2", mat, "test", options={**TWIN, "classes": classes}).inputs["image"]
    raw = MAT_CLASSES[room((480, 640), 1).surface]
    expected = [255 if number == 0 else int(to_40[number - 1]) for number in range(895)]
    if classes == 13:
        expected = [255 if label == 255 else TO_13[label - 1] for label in expected]
    table = torch.tensor([label if label == 255 else label - 1 for label in expected])
    assert torch.equal(plain(data[0], "semseg"), table[torch.from_numpy(raw.astype(np.int64))])


def test_the_official_map_gives_forty_classes(mat: Path, tmp_path: Path) -> None:
    root = copy(mat, tmp_path)
    official = genuine("nyu_v2_meta/classMapping40.mat", META["classMapping40.mat"])
    (root / "nyuv2" / "classMapping40.mat").write_bytes(official.read_bytes())
    semseg = plain(registry.load("nyuv2", root, "test", options=TWIN).inputs["image"][0], "semseg")
    # Raw classes of the official list: 21 wall, 11 floor, 4 ceiling, 26 box.
    assert set(semseg.unique().tolist()) == {0, 1, 21, 28, 255}


def test_without_h5py_the_extra_is_named(mat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    data = registry.load("nyuv2", mat, "test", options=TWIN).inputs["image"]
    with pytest.raises(UsageError, match=r"needs the package h5py: pip install 'sharebench\[hdf5\]'"):
        data[0]


def test_protocols_by_layout() -> None:
    for layout, protocol in (("adashare", "mtan"), ("mtan_npy", "adashare"), ("adashare", "bmtas")):
        with pytest.raises(ProtocolError, match="it has: standard"):
            dataset_spec("nyuv2", layout=layout, protocol=protocol)
    spec = dataset_spec("nyuv2", protocol="adashare")
    assert [task.weight for task in spec.tasks] == [1, 20, 3]
    assert spec.task("normals").frame == "encoded"
    assert dataset_spec("nyuv2").task("normals").frame == "verified"


# Wrong copies


def test_a_part_of_the_data_does_not_pass_for_the_whole(adashare: Path, genuine_root: Path) -> None:
    with pytest.raises(FileError, match=r"split 'train': number of samples: expected 795, found 5; .*profile: twin"):
        registry.load("nyuv2", adashare, "train")
    with pytest.raises(FileError, match=r"nyu_v2_3task\.json: is absent; it says which image belongs to train"):
        registry.load("nyuv2", genuine_root, "test")
    with pytest.raises(FileError, match="split 'train': number of samples: expected 795, found none"):
        registry.load("nyuv2", genuine_root, "train", options=TWIN)


def test_absent_files_are_named_before_anything_is_read(adashare: Path, tmp_path: Path) -> None:
    root = copy(adashare, tmp_path)
    (root / "nyuv2" / "depth" / "0061.npy").unlink()
    (root / "nyuv2" / "seg" / "0061.png").unlink()
    with pytest.raises(FileError, match=r"seg/0061\.png \(sample 0061\): existence: .* none \(and 1 more fault\)"):
        registry.load("nyuv2", root, "test", options=TWIN)


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"train": 3}', '{"train": [], "test": [["a.png"]]}', '{"train": [], "test": [[1, 2, 3, 4]]}'],
)
def test_a_wrong_list_is_named(adashare: Path, tmp_path: Path, content: str) -> None:
    root = copy(adashare, tmp_path)
    (root / "nyuv2" / "nyu_v2_3task.json").write_text(content)
    with pytest.raises(FileError, match=r"nyu_v2_3task\.json: expected"):
        registry.load("nyuv2", root, "test", options=TWIN)


@pytest.mark.parametrize("outside", ["/etc/1.png", "../1.png", "img/../../1.png"])
def test_a_list_cannot_lead_out_of_the_folder(adashare: Path, tmp_path: Path, outside: str) -> None:
    root = copy(adashare, tmp_path)
    rows = json.dumps({"train": [], "test": [[outside, "seg/0001.png", "normal_mask/0001.png", "depth/0001.npy"]]})
    (root / "nyuv2" / "nyu_v2_3task.json").write_text(rows)
    with pytest.raises(FileError, match="leaves the folder of the data set"):
        registry.load("nyuv2", root, "test", options=TWIN)


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_image_in_train_and_test_is_refused(adashare: Path, tmp_path: Path, split: str) -> None:
    root = copy(adashare, tmp_path)
    path = root / "nyuv2" / "nyu_v2_3task.json"
    document = json.loads(path.read_text())
    document["train"].append(document["test"][0])
    path.write_text(json.dumps(document))
    with pytest.raises(FileError, match=r"'img/0001\.png' is listed more than once"):
        registry.load("nyuv2", root, split, options=TWIN)


def broken(path: Path, how: str) -> None:
    array = None if path.suffix == ".png" else np.load(path)
    match how:
        case "truncated":
            path.write_bytes(path.read_bytes()[:-2000])
        case "another size":
            np.save(path, array[:-1])
        case "another type":
            np.save(path, array.astype(np.int64))
        case "pickled":
            np.save(path, np.array([{}], dtype=object), allow_pickle=True)
        case "id 13":
            array[5, 5] = 13
            np.save(path, array)
        case "half an id":
            array[5, 5] = 0.5
            np.save(path, array)
        case "in 0 .. 255":
            np.save(path, array * 255)
        case "short vectors":
            np.save(path, array * 0.5)


@pytest.mark.parametrize(
    ("layout", "file", "how", "message"),
    [
        ("adashare", "img/0001.png", "truncated", "cannot be read as an image"),
        ("adashare", "depth/0001.npy", "truncated", "cannot be read as an array"),
        ("adashare", "depth/0001.npy", "another size", r"\(480, 640\), found float32 \(479, 640\)"),
        ("adashare", "depth/0001.npy", "pickled", "cannot be read as an array"),
        ("mtan_npy", "val/label/9.npy", "id 13", "expected ids 0 to 12 and 255, found 13"),
        ("mtan_npy", "val/label/9.npy", "half an id", r"expected whole numbers as class ids, found 0\.5"),
        ("mtan_npy", "val/image/9.npy", "in 0 .. 255", r"expected an image in \[0, 1\], found"),
        ("mtan_npy", "val/normal/9.npy", "short vectors", "expected normals of length 1"),
        ("mtan_npy", "val/depth/9.npy", "another type", "found int64"),
    ],
)
def test_a_bad_file_is_named_with_its_path(
    adashare: Path, mtan: Path, tmp_path: Path, layout: str, file: str, how: str, message: str
) -> None:
    root = copy(adashare if layout == "adashare" else mtan, tmp_path)
    broken(root / "nyuv2" / file, how)
    data = registry.load("nyuv2", root, "test", options=TWIN).inputs["image"]
    with pytest.raises(FileError, match=f"{file.replace('.', '[.]')}: {message}|{file}.*{message}"):
        data[0]
    assert data[1]["image"].shape[0] == 3  # the others are left alone


def test_numbers_in_names() -> None:
    assert number_of("val/img/0061.png") == 61
    assert math.isclose(number_of("10.npy"), 10)
    with pytest.raises(FileError, match="expected a file named by its image number"):
        number_of("img/room.png")
