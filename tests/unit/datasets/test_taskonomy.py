"""Taskonomy: twins of both layouts against the room they show; the genuine lists of buildings."""

from __future__ import annotations

import json
import math
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from benchmark.data import app
from datasets import registry
from datasets.contracts import InputData, MultiTaskDataset, Sample
from datasets.errors import DatasetMissingError, ProtocolError, UnknownNameError, UsageError
from datasets.images.augmentation import HorizontalFlip
from datasets.kinds import get_kind
from datasets.on_disk.files import FileError
from datasets.on_disk.verify import verify
from datasets.protocols import get_protocol
from datasets.registry import dataset_spec
from datasets.roles import role_indices
from datasets.taskonomy import (
    CLASSES,
    LISTS,
    PRIORS,
    TINY,
    building_of,
    decode_depth,
    decode_normals,
    decode_share,
    read_list,
    read_lists,
)
from tests.genuine import genuine
from tests.twins import TASKONOMY_VIEWS, room, taskonomy_numbers, taskonomy_room, taskonomy_stored, write_twin

TWIN = {"profile": "twin"}
LISTS_SHA256 = "58e353198de5b85feb4f51b81762bd43bb9aaacc17879d4ce58270900770c0c5"


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("taskonomy")
    return {layout: write_twin(folder, "taskonomy", layout) for layout in ("official", "adashare")}


@pytest.fixture
def official(roots: dict[str, Path], tmp_path: Path) -> Path:
    """The data set's folder of a twin that may be damaged."""
    return Path(shutil.copytree(roots["official"], tmp_path / "copy")) / "taskonomy"


@pytest.fixture
def released(roots: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(roots["adashare"], tmp_path / "release")) / "taskonomy"


def whole(root: Path, split: str = "test", protocol: str = "standard", **options: object) -> MultiTaskDataset:
    return registry.load("taskonomy", root, split, protocol=protocol, options={**TWIN, **options})


def read(root: Path, split: str = "test", protocol: str = "standard", **options: object) -> InputData:
    return whole(root, split, protocol, **options).inputs["image"]


def plain(sample: Sample, task: str) -> Tensor:
    return sample["targets"][task].as_subclass(Tensor)


# Lists


def test_genuine_lists_have_lines_that_end_with_cr() -> None:
    found = read_lists(genuine("taskonomy/splits_taskonomy.zip", LISTS_SHA256))
    counts = {
        subset: [len(buildings[split]) for split in ("train", "val", "test")] for subset, buildings in found.items()
    }
    assert counts == {
        "tiny": [25, 5, 5],
        "medium": [99, 20, 19],
        "full": [346, 67, 69],
        "fullplus": [383, 75, 79],
    }
    assert found["tiny"] == {split: list(buildings) for split, buildings in TINY.items()}
    for buildings in found.values():
        names = [name for split in buildings.values() for name in split]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("end", ["\r", "\r\n", "\n"])
def test_lists_of_any_line_end(end: str) -> None:
    text = end.join(["id,train,val,test", "hanson,1,0,0", "darden,0,1,0", "ihlen,0,0,1"])
    expected = {"train": ["hanson"], "val": ["darden"], "test": ["ihlen"]}
    assert read_list(text.encode(), "list") == expected
    assert read_list((text + end).encode(), "list") == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "list: cannot be read as a list of buildings"),
        (b"\xff\xfeid", "list: cannot be read as a list of buildings .*decode"),
        (b"id,train,test\nhanson,1,0", "list: expected the columns id, train, val, test, found id, train, test"),
        (b"id,train,val,test\nhanson,1,1,0", "list: expected a building in one of three splits, found 'hanson,1,1,0'"),
    ],
)
def test_lists_that_cannot_be_read(data: bytes, message: str) -> None:
    with pytest.raises(FileError, match=message):
        read_list(data, "list")


def test_lists_in_the_folder_must_name_the_same_buildings(official: Path) -> None:
    shutil.copy(genuine("taskonomy/splits_taskonomy.zip", LISTS_SHA256), official / LISTS)
    assert len(read(official.parent, "train")) == 5
    with zipfile.ZipFile(official / LISTS, "w") as archive:
        archive.writestr("splits_taskonomy/train_val_test_tiny.csv", "id,train,val,test\rhanson,0,0,1\rmerom,1,0,0")
    with pytest.raises(FileError, match=r"splits_taskonomy\.zip: buildings of train: expected hanson, .*, found merom"):
        read(official.parent, "train")


# Spec


def test_the_spec_by_layout_and_protocol() -> None:
    spec = dataset_spec("taskonomy")
    assert (spec.layout, spec.native_size, sum(spec.splits.values())) == ("official", (512, 512), 381840)
    assert (spec.task("depth").unit, spec.task("normals").frame) == ("metre", "declared")
    assert spec.task("semseg").class_weights == ()
    assert spec.caveats
    spec = dataset_spec("taskonomy", layout="adashare", protocol="adashare")
    assert (spec.native_size, list(spec.splits)) == ((256, 256), ["train", "test"])
    assert [task.weight for task in spec.tasks] == [1, 3, 2, 7, 7]
    metrics = [("weighted_ce_err",), ("cosine_similarity",), ("abs_err",), ("abs_err",), ("abs_err",)]
    assert [task.metrics for task in spec.tasks] == metrics
    assert spec.task("semseg").class_weights == PRIORS
    assert len(PRIORS) == len(CLASSES) == 17
    assert (spec.task("depth").unit, spec.task("normals").frame) == ("log_scaled_depth", "declared")
    with pytest.raises(ProtocolError, match="in layout 'official' has no labels for protocol 'adashare'"):
        dataset_spec("taskonomy", layout="official", protocol="adashare")
    with pytest.raises(UsageError, match="in layout 'adashare' is read at 256 pixels, not 512"):
        dataset_spec("taskonomy", layout="adashare", options={"size": 512})


# Samples


def test_an_official_twin_is_the_room_it_shows(roots: dict[str, Path]) -> None:
    data = read(roots["official"])
    numbers = taskonomy_numbers("test")
    assert data.ids == list(numbers)
    for index, number in enumerate(numbers.values()):
        sample, seen = data[index], taskonomy_room(512, number)
        stored = taskonomy_stored(512, number)
        assert torch.equal(sample["image"].mul(255).round().byte(), torch.from_numpy(seen.image).permute(2, 0, 1))
        labels = torch.from_numpy(stored["segment_semantic"]).long()
        assert torch.equal(plain(sample, "semseg"), torch.where(labels == 0, 255, labels - 1))
        depth, known = plain(sample, "depth"), torch.from_numpy(stored["depth_zbuffer"][8:] > 0)
        assert torch.allclose(depth[8:].double()[known], torch.from_numpy(seen.depth)[8:][known], atol=1 / 512)
        normals = plain(sample, "normals")
        assert torch.allclose(normals[:, 8:].double(), torch.from_numpy(seen.normals)[:, 8:], atol=0.01)
        edges = torch.from_numpy(stored["edge_texture"][8:].astype(np.float64))
        assert torch.allclose(plain(sample, "edge")[0, 8:].double(), (edges / 65536 / 0.08).clamp(max=1), atol=1e-6)


def test_special_values_of_labels(roots: dict[str, Path]) -> None:
    """0, 1 and 2 of labels; depth 0, 512, 64500 and 65535; normals grey, and where the depth is unknown."""
    sample = read(roots["official"])[0]
    assert plain(sample, "semseg")[2, :72:4].tolist() == [255, *range(17)]
    depth = plain(sample, "depth")[0, :8]
    assert depth.isnan().tolist() == [True, True, False, False, True, True, True, True]
    assert depth[2:4].tolist() == [1.0, 1.0]  # 512
    normals = plain(sample, "normals")
    assert (normals[:, 4:6, :16] == 0).all()  # 127 and 128 are both grey
    assert torch.equal((normals[:, 0, :8] == 0).all(dim=0), depth.isnan())
    for task, quarter, half in (("keypoint", 164 / 65536 / 0.005, 1.0), ("edge", 164 / 65536 / 0.08, 2621 / 5242.88)):
        values = plain(sample, task)[0, 6, :8:2].tolist()
        assert values == pytest.approx([0.0, quarter, half, 1.0])


def test_decoders_by_hand() -> None:
    stored = np.array([[0, 1, 512, 64499, 64500, 65535]], dtype=np.uint16)
    metres = decode_depth(stored)[0].tolist()
    assert metres[1:4] == [1 / 512, 1.0, 64499 / 512]
    logs = decode_depth(stored, log=True)[0].tolist()
    assert logs[1:4] == pytest.approx([1 / 16, math.log(513) / math.log(65536), math.log(64500) / math.log(65536)])
    for values in (metres, logs):
        assert all(math.isnan(values[index]) for index in (0, 4, 5))
    shares = np.array([[0, 16384, 32768, 65535]], dtype=np.uint16)
    assert decode_share(shares, 0.5)[0, 0].tolist() == [0, 0.5, 1, 1]
    assert decode_share(shares, 0.5, symmetric=True)[0, 0].tolist() == [-1, 0, 1, 1]
    up = np.array([[[128, 0, 128], [127, 127, 127], [255, 128, 128]]], dtype=np.uint8)  # file: y down
    vectors = decode_normals(up)[:, 0].T
    assert torch.allclose(vectors, torch.tensor([[0.0, 1, 0], [0, 0, 0], [1, 0, 0]]), atol=0.005)
    every = decode_normals(up, masked=False)[:, 0].T
    assert torch.allclose(every.norm(dim=1), torch.ones(3))
    assert torch.allclose(every[1], torch.tensor([-1.0, 1, -1]) / math.sqrt(3))


def test_a_picture_in_place_of_normals_is_refused() -> None:
    with pytest.raises(UsageError, match=r"expected normals of length 1, or grey where unknown; \d+ have another"):
        decode_normals(room((64, 64), 0).image)
    few = np.full((64, 64, 3), (128, 128, 255), dtype=np.uint8)
    few[0, :10] = 200, 128, 128  # of odd length, as at the edges of objects: unknown
    assert (decode_normals(few)[:, 0, :10] == 0).all()
    assert (decode_normals(few)[2, 0, 10:] > 0.99).all()


def test_a_smaller_size_keeps_labels_and_image_together(roots: dict[str, Path]) -> None:
    sample, number = read(roots["official"], size=256)[0], next(iter(taskonomy_numbers("test").values()))
    stored = taskonomy_stored(512, number)
    assert sample["image"].shape == (3, 256, 256)
    centre = torch.from_numpy(stored["segment_semantic"][1::2, 1::2]).long()
    assert torch.equal(plain(sample, "semseg"), torch.where(centre == 0, 255, centre - 1))
    small = torch.from_numpy(stored["rgb"]).permute(2, 0, 1).float().reshape(3, 256, 2, 256, 2).mean(dim=(2, 4))
    assert (sample["image"] * 255 - small)[:, 100:120].abs().mean() < 2


def test_the_published_protocol(roots: dict[str, Path]) -> None:
    data, numbers = read(roots["adashare"], protocol="adashare"), taskonomy_numbers("test")
    assert data.ids == [f"rgb/{view}_domain_rgb" for view in numbers]
    stored = taskonomy_stored(256, next(iter(numbers.values())))
    sample = data[0]
    labels = torch.from_numpy(stored["segment_semantic"]).long()
    assert torch.equal(plain(sample, "semseg"), (labels - 1).clamp(min=0))  # uncertain is background
    depth = torch.from_numpy(stored["depth_zbuffer"].astype(np.float64))
    known = ~plain(sample, "depth").isnan()
    assert torch.equal(known, (depth > 0) & (depth < 64500))
    assert torch.allclose(plain(sample, "depth").double()[known], (depth[known] + 1).log() / math.log(65536))
    normals = plain(sample, "normals")
    assert torch.allclose(normals.norm(dim=0), torch.ones(256, 256))  # of every pixel
    for task in ("keypoint", "edge"):
        assert (float(plain(sample, task).min()), float(plain(sample, task).max())) == (-1, 1)


def test_the_published_size_takes_upper_left_pixels(released: Path) -> None:
    """Of files of 512 pixels, as OpenCV's nearest neighbour does."""
    number = next(iter(taskonomy_numbers("test").values()))
    stored = taskonomy_stored(512, number)
    (row,) = [row for row in json.loads((released / "taskonomy.json").read_text())["test"] if "ihlen" in row[0]]
    for path, (place, array) in zip(row, stored.items(), strict=True):
        assert path.startswith(place)
        Image.fromarray(array).save(released / path)
    sample = read(released.parent, protocol="adashare")[0]
    assert torch.equal(
        sample["image"].mul(255).round().byte(), torch.from_numpy(stored["rgb"][::2, ::2].copy()).permute(2, 0, 1)
    )
    labels = torch.from_numpy(stored["segment_semantic"][::2, ::2].copy()).long()
    assert torch.equal(plain(sample, "semseg"), (labels - 1).clamp(min=0))


def test_flips_mirror_normals_under_both_protocols(roots: dict[str, Path]) -> None:
    """The released code negates x here, unlike for NYU-v2, since it decodes first."""
    for protocol in ("standard", "adashare"):
        flags = get_protocol(protocol, "taskonomy")
        sample = read(roots["adashare"], protocol=protocol)[0]
        before, after = (
            plain(part, "normals")
            for part in (sample, HorizontalFlip(flags, p=1.0)(read(roots["adashare"], protocol=protocol)[0]))
        )
        mirrored = before.flip(-1) * torch.tensor([-1.0, 1, 1]).view(3, 1, 1)
        assert torch.equal(after, mirrored)


def test_losses_and_metrics_of_the_published_protocol(roots: dict[str, Path]) -> None:
    data = whole(roots["adashare"], protocol="adashare")
    sample, flags = data.inputs["image"][0], get_protocol("adashare", "taskonomy")
    for task in data.spec.tasks:
        kind, target = get_kind(task.kind), plain(sample, task.name).unsqueeze(0)
        prediction = torch.zeros(1, kind.head_channels(task), 32, 32)
        evaluator = kind.evaluator(task, flags)
        evaluator.update(prediction + (task.kind == "normals"), target)
        (result,) = evaluator.result().values()
        assert result.value is not None
        if task.kind == "semantic":  # all logits equal: the cross-entropy is log 17 whatever the weights
            assert result.value == pytest.approx(math.log(17))
            assert float(kind.loss(prediction, target, task, flags)) == pytest.approx(math.log(17))
        if task.kind in ("depth", "dense"):
            known = target[~target.isnan()]
            assert result.value == pytest.approx(float(known.abs().mean()), rel=1e-5)


# Splits and units


def test_buildings_are_units(roots: dict[str, Path]) -> None:
    splits = {split: whole(roots["official"], split) for split in ("train", "val", "test")}
    for split, data in splits.items():
        units = data.inputs["image"].units
        assert units == [name for name, views in TASKONOMY_VIEWS[split].items() for _ in views]
        assert set(units) <= set(TINY[split])
    train = splits["train"].inputs["image"]
    assert train.ids[:2] == ["hanson/point_9_view_0", "hanson/point_10_view_0"]
    roles = role_indices(splits["train"], splits["val"], splits["test"])["image"]
    assert (roles["select"].split, len(roles["select"].indices)) == ("val", 2)


def test_without_a_validation_part_whole_buildings_are_held_out(roots: dict[str, Path]) -> None:
    train, test = (whole(roots["adashare"], split) for split in ("train", "test"))
    units = train.inputs["image"].units
    assert units == ["hanson", "hanson", "merom", "onaga", "tolstoy"]
    points = [name.split("/")[-1].split("_")[1] for name in train.inputs["image"].ids]
    assert points == ["9", "10", "0", "2", "3"]  # point 10 after point 9
    roles = role_indices(train, None, test)["image"]
    parts = [{units[index] for index in roles[role].indices} for role in ("fit", "arch", "select")]
    assert all(parts)
    assert sum(map(len, parts)) == 4
    with pytest.raises(UnknownNameError, match="split of taskonomy in layout 'adashare' 'val'"):
        whole(roots["adashare"], "val")


@pytest.mark.parametrize(
    ("path", "building"),
    [
        ("rgb/hanson/point_0_view_1_domain_rgb.png", "hanson"),
        ("rgb/taskonomy/hanson/point_0_view_1_domain_rgb.png", "hanson"),
        ("hanson/rgb/point_0_view_1_domain_rgb.png", "hanson"),
        ("hanson/taskonomy/rgb/point_0_view_1_domain_rgb.png", "hanson"),
        ("hanson_rgb/rgb/point_0_view_1_domain_rgb.png", "hanson"),
    ],
)
def test_the_building_of_a_path(path: str, building: str) -> None:
    assert building_of(path) == building
    with pytest.raises(FileError, match="expected an image in the folder of its building"):
        building_of("rgb/point_0_view_1_domain_rgb.png")


def test_folders_without_the_component_are_the_same(roots: dict[str, Path], official: Path) -> None:
    for place in official.iterdir():
        for building in (place / "taskonomy").iterdir():
            building.rename(place / building.name)
        (place / "taskonomy").rmdir()
    moved, whole_ = read(official.parent, "train"), read(roots["official"], "train")
    assert moved.ids == whole_.ids
    assert torch.equal(moved[0]["image"], whole_[0]["image"])


# Faults


def test_what_is_missing_or_odd_is_named(official: Path) -> None:
    (official / "normal/taskonomy/ihlen/point_4_view_0_domain_normal.png").unlink()
    with pytest.raises(FileError, match=r"normal/taskonomy/ihlen/point_4_view_0_domain_normal\.png \(sample ihlen/"):
        read(official.parent)
    (official / "rgb/taskonomy/darden/point_0_domain_rgb.png").touch()
    with pytest.raises(
        FileError, match=r"name: expected point_P_view_V_domain_rgb\.png, found point_0_domain_rgb\.png"
    ):
        read(official.parent, "val")
    (official / "rgb/taskonomy/darden/point_0_domain_rgb.png").rename(
        official / "rgb/taskonomy/darden/point_0_view_0_domain_normal.png"
    )
    with pytest.raises(FileError, match=r"name: expected .*_domain_rgb\.png, found point_0_view_0_domain_normal\.png"):
        read(official.parent, "val")
    shutil.rmtree(official / "edge_texture/taskonomy/merom")
    with pytest.raises(
        FileError, match=r"edge_texture/taskonomy/merom: existence: expected a folder of images \(edge\)"
    ):
        read(official.parent, "train")


def test_what_is_left_out_is_counted(official: Path) -> None:
    """Files of macOS, and buildings that a larger subset brings."""
    (official / "normal/taskonomy/hanson/.DS_Store").write_bytes(b"x")
    for place in ("rgb", "normal"):
        for building in ("adairsville", "airport"):
            (official / place / "taskonomy" / building).mkdir()
    report = verify("taskonomy", official.parent, profile="twin")
    assert report.ok
    assert report.warnings == [
        "buildings that are not of the tiny subset, left out: 2, the first is adairsville",
        "train: 2 hidden files are left out",
    ]


def test_images_that_are_smaller_than_asked_for_are_no_larger_ones(official: Path) -> None:
    path = official / "segment_semantic/taskonomy/ihlen/point_4_view_0_domain_segmentsemantic.png"
    Image.open(path).resize((256, 256), Image.Resampling.NEAREST).save(path)
    with pytest.raises(FileError, match=r"expected an image of 512 pixels, found 256; ask for size: 256\."):
        read(official.parent)[0]


def test_a_part_of_the_buildings_is_no_whole(roots: dict[str, Path]) -> None:
    with pytest.raises(FileError, match=r"rgb/taskonomy/allensville: existence: expected a folder .* \(and \d+ more"):
        registry.load("taskonomy", roots["official"], "train")


def test_recalled_counts_are_warnings(roots: dict[str, Path]) -> None:
    """Nobody has counted the release; a run on it must not fail for that."""
    assert len(registry.load("taskonomy", roots["adashare"], "train").inputs["image"]) == 5
    report = verify("taskonomy", roots["adashare"])
    assert report.ok
    assert "split 'train' has 5 samples; 275224 is what we recall, unchecked" in report.warnings
    assert not any("recall" in warning for warning in verify("taskonomy", roots["adashare"], profile="twin").warnings)


def test_other_weights_of_classes_are_a_fault(released: Path) -> None:
    np.save(released / "semseg_prior_factor.npy", np.ones(17))
    with pytest.raises(FileError, match=r"semseg_prior_factor\.npy: weights of classes: expected 17: 0\.542"):
        read(released.parent, "train")
    (released / "semseg_prior_factor.npy").unlink()
    assert len(read(released.parent, "train")) == 5


def test_planted_faults_are_found(official: Path) -> None:
    base = official
    label = base / "segment_semantic/taskonomy/hanson/point_9_view_0_domain_segmentsemantic.png"
    stored = np.array(Image.open(label))
    stored[5, 5] = 18
    Image.fromarray(stored).save(label)
    torn = base / "rgb/taskonomy/merom/point_0_view_0_domain_rgb.png"
    torn.write_bytes(torn.read_bytes()[:-40])
    Image.fromarray(np.zeros((512, 512), dtype=np.uint8)).save(
        base / "depth_zbuffer/taskonomy/onaga/point_2_view_1_domain_depth_zbuffer.png"
    )
    Image.fromarray(np.zeros((300, 512, 3), dtype=np.uint8)).save(
        base / "rgb/taskonomy/tolstoy/point_3_view_0_domain_rgb.png"
    )
    report = verify("taskonomy", official.parent, profile="twin", level="full")
    named = {Path(fault.path).parts[2] + "/" + Path(fault.path).parts[0]: fault for fault in report.bad}
    expected = {
        "hanson/segment_semantic": "expected labels 0 to 17, found 18",
        "merom/rgb": "cannot be read as an image",
        "onaga/depth_zbuffer": r"expected uint16 (512, 512), found uint8",
        "tolstoy/rgb": "expected uint8 (512, 512, 3), found uint8 (300, 512, 3)",
    }
    for name, text in expected.items():
        assert text in named[name].found
    assert set(named) - set(expected) == {"onaga/normal"}  # which needs the depth
    with pytest.raises(FileError, match="expected"):  # before the first step
        read(official.parent, "train").check()


def test_an_image_in_two_splits_is_refused(released: Path) -> None:
    document = json.loads((released / "taskonomy.json").read_text())
    document["test"].append(document["train"][0])
    (released / "taskonomy.json").write_text(json.dumps(document))
    with pytest.raises(FileError, match="is listed more than once in train and test together"):
        read(released.parent)


@pytest.mark.parametrize("path", ["/etc/passwd", "rgb/../../secret.png"])
def test_a_list_that_leaves_its_folder_is_refused(released: Path, path: str) -> None:
    document = json.loads((released / "taskonomy.json").read_text())
    document["test"][0][0] = path
    (released / "taskonomy.json").write_text(json.dumps(document))
    with pytest.raises(FileError, match="leaves the folder of the data set"):
        read(released.parent)


def test_who_has_no_files_gets_a_line_to_paste(tmp_path: Path) -> None:
    with pytest.raises(DatasetMissingError) as caught:
        registry.load("taskonomy", tmp_path / "a folder", "train")
    text = str(caught.value)
    assert "Licence: Taskonomy end user licence" in text
    paste = text.split("then paste: ")[1]
    assert paste.startswith(f"export SHAREBENCH_DATA='{tmp_path}/a folder' && pip install omnidata-tools && omnitools.")
    assert "--components taskonomy --subset tiny" in paste
    assert "\n" not in text


def test_two_layouts_in_one_folder_are_told_apart(official: Path, roots: dict[str, Path]) -> None:
    shutil.copy(roots["adashare"] / "taskonomy/taskonomy.json", official / "taskonomy.json")
    assert registry.find_layout("taskonomy", official.parent) == (official, "adashare")


# Commands


@pytest.mark.parametrize(("layout", "protocol"), [("official", "standard"), ("adashare", "adashare")])
def test_a_prepared_copy_is_the_same(released: Path, official: Path, layout: str, protocol: str) -> None:
    root = (official if layout == "official" else released).parent
    arguments = ["--data-root", str(root), "--twin", "--layout", layout, "--protocol", protocol]
    before = [
        registry.load("taskonomy", root, "test", protocol=protocol, layout=layout, options=TWIN).inputs["image"][0]
    ]
    done = CliRunner().invoke(app, ["prepare", "taskonomy", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    after = registry.load("taskonomy", root, "test", protocol=protocol, layout=layout, options=TWIN).inputs["image"][0]
    assert torch.equal(before[0]["image"], after["image"])
    for task, target in before[0]["targets"].items():
        assert torch.equal(target.nan_to_num(-7), after["targets"][task].nan_to_num(-7))
