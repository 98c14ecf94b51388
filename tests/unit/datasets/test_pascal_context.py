"""PASCAL-Context on its twin: five labels in the forms of both public loaders, partial labels, and damaged files."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from benchmark.plan.cells import plan
from benchmark.plan.suite_file import read_suite
from datasets import registry
from datasets.contracts import InputData, Sample
from datasets.errors import DatasetMissingError, ProtocolError
from datasets.images.augmentation import augmentation
from datasets.images.transforms import Normals
from datasets.kinds import get_kind
from datasets.on_disk.files import FileError
from datasets.on_disk.sample_checks import label_faults
from datasets.on_disk.verify import verify
from datasets.pascal_context import (
    CLASS_OF_PART,
    CLASSES_WITH_NORMALS,
    LARGEST,
    Canvas,
    borders,
    decode_normals,
    thinned,
)
from datasets.protocols import get_protocol
from datasets.registry import dataset_spec
from tests.twins import PASCAL_IDS, PASCAL_NUMBERS, STREET, pascal, pascal_parts, write_twin
from tests.unit.samples import apply

TWIN = {"profile": "twin"}
PLAIN = ("semseg", "human_parts", "saliency", "edge")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_twin(tmp_path_factory.mktemp("pascal"), "pascal_context", "pascal_mt")


@pytest.fixture
def folder(root: Path, tmp_path: Path) -> Path:
    """The data set's folder of a twin that may be damaged; its data root is the folder above."""
    shutil.copytree(root / "pascal_context", tmp_path / "copy" / "pascal_context")
    return tmp_path / "copy" / "pascal_context"


def read(root: Path, split: str = "train", protocol: str = "standard", **options: object) -> InputData:
    return registry.load("pascal_context", root, split, protocol=protocol, options={**TWIN, **options}).inputs["image"]


def plain(sample: Sample, task: str) -> Tensor:
    return sample["targets"][task].as_subclass(Tensor)


def middle(values: Tensor, size: tuple[int, int]) -> Tensor:
    """The part of a padded map that shows the photograph."""
    top, left = (LARGEST - size[0]) // 2, (LARGEST - size[1]) // 2
    return values[..., top : top + size[0], left : left + size[1]]


# The spec


def test_the_spec_by_protocol() -> None:
    for protocol, weights in (("standard", [1, 1, 1, 1, 1]), ("vandenhende", [1, 2, 5, 50, 10])):
        spec = dataset_spec("pascal_context", protocol=protocol)
        assert spec.task_names == ("semseg", "human_parts", "saliency", "edge", "normals")
        assert [task.weight for task in spec.tasks] == weights
        assert (spec.native_size, spec.splits) == ((512, 512), {"train": 4998, "test": 5105})
    assert sum(spec.splits.values()) == 10_103  # photographs in the release
    assert [spec.task(name).channels for name in ("semseg", "human_parts")] == [21, 7]
    assert (spec.task("saliency").positive_weight, spec.task("edge").positive_weight) == ("balanced", 0.95)
    assert [task.name for task in spec.tasks if task.partial] == ["human_parts", "normals"]
    assert dataset_spec("pascal_context", options={"size": 448}).native_size == (448, 448)
    assert "distilled" in spec.caveats[0]
    with pytest.raises(ProtocolError, match=r"protocol 'adashare'; it has: standard, vandenhende, bmtas\."):
        dataset_spec("pascal_context", protocol="adashare")


def test_four_tasks_have_the_images_of_five(root: Path) -> None:
    four = registry.load(
        "pascal_context", root, "test", tasks=["semseg", "human_parts", "saliency", "normals"], options=TWIN
    ).inputs["image"]
    assert four.ids == read(root, "test").ids == list(PASCAL_IDS["val"])
    assert list(four[0]["targets"]) == ["semseg", "human_parts", "saliency", "normals"]


def test_tables_of_classes() -> None:
    assert len(CLASS_OF_PART) == 24  # of a person in PASCAL-Part
    assert {part for part, number in CLASS_OF_PART.items() if number == 4} == {"lhand", "llarm", "rhand", "rlarm"}
    assert len(set(CLASSES_WITH_NORMALS)) == len(CLASSES_WITH_NORMALS) == 170
    # wall, person, sofa and tvmonitor; not sky, grass, aeroplane, or 431, which is `unknown`
    assert {440, 284, 368, 427} <= set(CLASSES_WITH_NORMALS)
    assert not {0, 360, 187, 2, 431} & set(CLASSES_WITH_NORMALS)


# Labels


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_padded_twin_is_what_was_drawn(root: Path, split: str) -> None:
    data = read(root, split)
    for row, name in enumerate(data.ids):
        sample, number = data[row], PASCAL_NUMBERS[name]
        drawn = pascal(number)
        size = drawn.semseg.shape
        image = middle(sample["image"].as_subclass(Tensor), size)
        assert (image * 255 - torch.from_numpy(drawn.image).permute(2, 0, 1)).abs().mean() < 3  # JPEG
        parts = np.zeros(size, dtype=np.int64)
        for part, mask in drawn.parts.items():
            parts[mask] = CLASS_OF_PART[part]
        expected = {
            "semseg": drawn.semseg,
            "human_parts": parts if drawn.parts else np.full(size, 255),
            "saliency": drawn.saliency / 255 > 0.5,
            "edge": borders(drawn.context),
        }
        for task, label in expected.items():
            found = plain(sample, task)
            assert torch.equal(middle(found, size), torch.from_numpy(label).long()), task
            outside = torch.ones(LARGEST, LARGEST, dtype=torch.bool)
            middle(outside, size).fill_(False)
            assert (found[outside] == 255).all()
        assert not plain(sample, "normals")[:, outside].any()
        assert 0 < int((plain(sample, "edge") == 1).sum()) < 10 * LARGEST


def test_normals_are_known_where_the_class_is_and_point_up(root: Path) -> None:
    data = read(root)
    for row, name in enumerate(data.ids):
        drawn = pascal(PASCAL_NUMBERS[name])
        normals = middle(plain(data[row], "normals"), drawn.semseg.shape)
        known = torch.from_numpy(np.isin(drawn.context, CLASSES_WITH_NORMALS))
        grey = torch.from_numpy((drawn.normals == 127).all(axis=-1))  # no direction
        assert (known & grey).any() == known.any()
        known &= ~grey
        assert torch.equal((normals != 0).any(dim=0), known)
        truth = torch.from_numpy(drawn.room.normals).float()
        assert ((normals * truth).sum(dim=0)[known] > 0.999).all()
        assert known.any() == (PASCAL_NUMBERS[name] != STREET)
    top = torch.from_numpy(pascal(0).room.surface == 5)
    assert (middle(plain(data[0], "normals"), (375, 500))[1, top] > 0.99).all()  # y up, in the files down


def test_the_frame_turns_as_the_release_turns_it() -> None:
    """Its formula, in the axes of the files: n0, n1 = r sin(a + turn), r cos(a + turn) with a = atan2(n0, n1)."""
    colours = np.array([[[200, 230, 160]]], dtype=np.uint8)
    turn = math.radians(90)
    files = colours[0, 0].astype(np.float64) * 2 / 255 - 1
    files /= np.linalg.norm(files)
    angle, radius = math.atan2(files[0], files[1]), math.hypot(files[0], files[1])
    turned = [radius * math.sin(angle + turn), -radius * math.cos(angle + turn), float(files[2])]  # y up
    ours = functional.rotate(Normals(decode_normals(colours)), 90.0)
    assert ours.as_subclass(Tensor).flatten().tolist() == pytest.approx(turned, abs=1e-6)


def test_edges_are_lines_between_classes() -> None:
    classes = np.zeros((9, 12), dtype=np.uint16)
    classes[:, 6:] = 440
    found = borders(classes)
    assert found[1:-1].sum(axis=1).tolist() == [1] * 7
    assert np.flatnonzero(found.any(axis=0)).tolist() in ([5], [6])
    assert np.array_equal(borders(np.asfortranarray(classes)), found)  # as MATLAB's files come
    assert not borders(np.full((5, 5), 12)).any()
    thick = np.zeros((40, 40), dtype=bool)
    thick[10:30, 17:22] = True
    line = thinned(thick)
    assert (line <= thick).all()
    assert line[14:26].sum(axis=1).tolist() == [1] * 12


def test_thinning_is_that_of_scikit_image() -> None:
    """Golden, by `skimage.morphology.thin` of scikit-image 0.26 on the same mask."""
    mask = np.random.RandomState(3).rand(12, 16) < 0.75
    assert ["".join(".#"[int(pixel)] for pixel in row) for row in thinned(mask)] == [
        ".........#..###.",
        "##......#.##...#",
        "..#....####...#.",
        "...####....###..",
        "...#.#....#..#..",
        "..#.#.....#...#.",
        "..###.....#...#.",
        ".#...#...#####.#",
        ".#..#.###.#...#.",
        "#.######.#....#.",
        "..#....##....#..",
        ".#....#.#.###...",
    ]


def test_both_folders_of_segmentation_are_tried_in_order(folder: Path) -> None:
    even, odd = (folder / f"semseg/{place}" for place in ("VOC12", "pascal-context"))
    assert read(folder.parent).place("semseg", 0) == "semseg/VOC12/2008_000002.png"
    assert read(folder.parent).place("semseg", 1) == "semseg/pascal-context/2008_000003.png"
    Image.fromarray(np.full((500, 334), 7, dtype=np.uint8)).save(even / "2008_000003.png")
    data = read(folder.parent)
    assert data.place("semseg", 1) == "semseg/VOC12/2008_000003.png"
    assert (middle(plain(data[1], "semseg"), (500, 334)) == 7).all()
    (even / "2008_000003.png").unlink()
    (odd / "2008_000003.png").unlink()
    with pytest.raises(FileError, match=r"semseg/VOC12/2008_000003\.png \(sample 2008_000003\): existence"):
        read(folder.parent)


# Forms


@pytest.mark.parametrize("size", [512, 448])
def test_vandenhende_stretches(root: Path, size: int) -> None:
    sample, drawn = read(root, protocol="vandenhende", size=size)[0], pascal(0)
    rows, columns = ((2 * np.arange(size) + 1) * length // (2 * size) for length in drawn.semseg.shape)
    assert torch.equal(plain(sample, "semseg"), torch.from_numpy(drawn.semseg[rows][:, columns]).long())
    assert sample["image"].shape == (3, size, size)
    assert (sample["image"][:, :5] > 0.2).all()  # nothing is padded
    assert (plain(sample, "normals").norm(dim=0)[plain(sample, "normals")[2] > 0.5] > 0.999).all()


def test_bmtas_pads_with_grey_and_halves_for_its_search(root: Path) -> None:
    whole, half, drawn = read(root, protocol="bmtas")[0], read(root, protocol="bmtas", size=256)[0], pascal(0)
    assert (whole["image"][:, 0] - 0.5).abs().max() < 0.5 / 255 + 1e-6
    assert (read(root)[0]["image"][:, 0] == 0).all()
    assert half["image"].shape == (3, 256, 256)
    shown = (plain(half, "saliency") != 255).nonzero()
    assert (shown.max(dim=0).values - shown.min(dim=0).values + 1).tolist() == [188, 250]  # of 375 x 500
    for task in PLAIN:
        assert plain(whole, task).shape == (512, 512)
        assert set(plain(half, task).unique().tolist()) <= set(plain(whole, task).unique().tolist())
    assert drawn.semseg.shape == (375, 500)


def test_a_canvas_places_images_and_labels_alike() -> None:
    marked = np.zeros((100, 60), dtype=np.uint8)
    marked[40:60, 20:40] = 200
    for canvas in (Canvas(512, False), Canvas(256, False), Canvas(128, True)):
        labels, image = canvas.labels(marked, 9), canvas.image(np.stack([marked] * 3, axis=-1), 9)
        assert labels.shape == (canvas.side, canvas.side)
        assert image.shape == (canvas.side, canvas.side, 3)
        assert ((labels == 200) != (image[..., 1] > 100)).mean() < 0.001
        assert (labels == 9).any() != canvas.stretch


def test_padding_of_the_augmentation_is_background_under_one_tag_only(root: Path) -> None:
    """Trap 20: at scale < 1 the release pads labels with 0."""
    for protocol, padded in (("vandenhende", 0), ("bmtas", 255), ("standard", 255)):
        sample = read(root, protocol=protocol)[0]
        smaller = augmentation(
            [{"name": "scale_crop", "scale": [0.5, 0.5]}], (512, 512), get_protocol(protocol, "pascal_context")
        )
        moved = apply(smaller, sample, 0)
        for task in PLAIN:
            corner = plain(moved, task)[:100, :100]
            assert (corner == padded).all(), (protocol, task)
        assert not plain(moved, "normals")[:, :100, :100].any()
        grey = 0.5 if protocol == "bmtas" else 0.0
        assert (moved["image"][:, :100, :100] == grey).all()
        assert type(moved["targets"]["human_parts"]) is tv_tensors.Mask


def test_losses_of_both_papers_on_the_twin(root: Path) -> None:
    """Trap 20: divided by pixels the loss of normals is three times that divided by components."""
    losses = {}
    for protocol in ("vandenhende", "bmtas"):
        spec = dataset_spec("pascal_context", protocol=protocol)
        target = plain(read(root)[0], "normals")[None]
        flags = get_protocol(protocol, "pascal_context")
        losses[protocol] = get_kind("normals").loss(torch.ones(1, 3, 16, 16), target, spec.task("normals"), flags)
    assert float(losses["bmtas"]) == pytest.approx(3 * float(losses["vandenhende"]))


def test_images_without_parts_cost_nothing(root: Path) -> None:
    data, task = read(root), dataset_spec("pascal_context").task("human_parts")
    for row, name in enumerate(data.ids):
        label = plain(data[row], "human_parts")[None]
        prediction = torch.ones(1, 7, 8, 8, requires_grad=True)
        get_kind("semantic").loss(prediction, label, task).backward()
        assert prediction.grad is not None
        assert bool(prediction.grad.any()) == (PASCAL_NUMBERS[name] in (0, 2))
        assert bool((label == 255).all()) == (PASCAL_NUMBERS[name] not in (0, 2))


def test_verify_counts_images_without_a_label(root: Path) -> None:
    report = verify("pascal_context", root, level="full", profile="twin")
    assert report.ok
    assert report.counts == {"train": {"image": 5}, "test": {"image": 2}}
    assert (report.fields["human_parts"].n_void, report.fields["normals"].n_void) == (4, 1)
    assert report.fields["semseg"].n_samples == 7


def test_a_split_may_begin_and_end_without_normals(folder: Path) -> None:
    (folder / "ImageSets/Context/train.txt").write_text("2009_000010\n2008_000002\n")
    for name in ("2008_000003", "2008_000007", "2010_000015"):
        (folder / f"JPEGImages/{name}.jpg").unlink()
    (folder / "ImageSets/Context/val.txt").write_text("2008_000008\n2010_000020\n")
    data = read(folder.parent)
    data.check()
    (folder / "ImageSets/Context/train.txt").write_text("2009_000010\n")
    (folder / "JPEGImages/2008_000002.jpg").unlink()
    read(folder.parent).check()


# Bad input


def damage(path: Path, how: str) -> None:
    match how:
        case "truncated":
            path.write_bytes(path.read_bytes()[:-200])
        case "another size":
            Image.open(path).crop((0, 0, 100, 50)).save(path)
        case "class 21":
            Image.fromarray(np.full((281, 500), 21, dtype=np.uint8)).save(path)
        case "colours":
            Image.fromarray(np.full((281, 500, 3), 20, dtype=np.uint8)).save(path)
        case "too large":
            Image.fromarray(np.full((600, 500, 3), 60, dtype=np.uint8)).save(path)
        case "grey":
            Image.fromarray(np.full((281, 500), 60, dtype=np.uint8)).save(path)
        case "class 500":
            savemat(path, {"LabelMap": np.full((281, 500), 500, dtype=np.uint16)})
        case "turned":
            savemat(path, {"LabelMap": np.full((500, 281), 5, dtype=np.uint16)})
        case "other names":
            savemat(path, {"map": np.zeros((281, 500))})
        case "class -1":
            savemat(path, {"LabelMap": np.full((281, 500), -1, dtype=np.int16)})
        case "parts of another size":
            drawn = dataclasses.replace(pascal(2), parts={"head": np.ones((9, 9), dtype=bool)})
            savemat(path, {"anno": pascal_parts(drawn, 2)})
        case "no structs":
            savemat(path, {"anno": np.zeros((1, 2))})


@pytest.mark.parametrize(
    ("path", "how", "message"),
    [
        ("JPEGImages/ID.jpg", "truncated", "image file: expected a whole one, found one that is truncated"),
        ("sal_distill/ID.png", "truncated", "saliency file: expected a whole one, found one that is truncated"),
        ("semseg/VOC12/ID.png", "another size", r"size of semseg: expected \(281, 500\) as its image, found \(50, 100"),
        ("normals_distill/ID.png", "another size", r"size of normals: expected \(281, 500\) as its image"),
    ],
)
def test_a_bad_picture_among_many_is_named_before_training(folder: Path, path: str, how: str, message: str) -> None:
    bad = folder / path.replace("ID", "2008_000007")
    damage(bad, how)
    with pytest.raises(FileError, match=rf"{path.replace('ID', '2008_000007')} \(sample 2008_000007\): {message}"):
        read(folder.parent).check()
    read(folder.parent, "test").check()  # the other split is left alone


@pytest.mark.parametrize(
    ("path", "how", "message"),
    [
        ("JPEGImages/ID.jpg", "too large", r"expected at most 512 x 512 pixels, found \(600, 500\)"),
        ("sal_distill/ID.png", "colours", r"expected uint8 \(281, 500\), found uint8 \(281, 500, 3\)"),
        ("semseg/VOC12/ID.png", "class 21", "expected ids 0 to 20 and 255, found 21"),
        ("normals_distill/ID.png", "colours", r"expected colours of unit vectors, found a median length of 1\.46"),
        ("normals_distill/ID.png", "grey", r"expected uint8 \(281, 500, 3\), found uint8 \(281, 500\)"),
        ("pascal-context/trainval/ID.mat", "truncated", "cannot be read as a MATLAB file with LabelMap"),
        ("pascal-context/trainval/ID.mat", "class 500", "expected classes 0 to 459, found 500 to 500"),
        ("pascal-context/trainval/ID.mat", "class -1", "expected classes 0 to 459, found -1 to -1"),
        (
            "pascal-context/trainval/ID.mat",
            "turned",
            r"expected numbers \(281, 500\), as its image, found uint16 \(500",
        ),
        ("pascal-context/trainval/ID.mat", "other names", "cannot be read as a MATLAB file with LabelMap"),
        ("human_parts/ID.mat", "truncated", "cannot be read as a MATLAB file with anno"),
        (
            "human_parts/ID.mat",
            "parts of another size",
            r"expected masks \(281, 500\), as its image, found \(9, 9\) of 'head'",
        ),
        ("human_parts/ID.mat", "no structs", "expected objects with a class, a mask and parts under anno"),
    ],
)
def test_a_bad_file_is_one_line(folder: Path, path: str, how: str, message: str) -> None:
    path = path.replace("ID", "2008_000007")
    damage(folder / path, how)
    with pytest.raises(FileError, match=rf"{path}: ({message})") as caught:
        read(folder.parent)[2]
    assert "\n" not in str(caught.value)
    report = verify("pascal_context", folder.parent, level="full", profile="twin")
    assert any(path in str(fault) for fault in report.bad)


def test_an_unknown_part_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(CLASS_OF_PART, "llarm")
    with pytest.raises(FileError, match=r"2008_000002\.mat: 'llarm' is no part of a person; known: hair, head"):
        read(folder.parent)[0]


def test_parts_without_a_pixel_are_no_label(folder: Path) -> None:
    """Trap 20: a person of whom no part is seen is ignored, and is not background."""
    drawn = dataclasses.replace(pascal(2), parts={"head": np.zeros((281, 500), dtype=bool)})
    savemat(folder / "human_parts/2008_000007.mat", {"anno": pascal_parts(drawn, 2)})
    assert (plain(read(folder.parent)[2], "human_parts") == 255).all()


def test_gray_photographs_get_three_channels(folder: Path) -> None:
    damage(folder / "JPEGImages/2008_000007.jpg", "grey")
    image = read(folder.parent)[2]["image"]
    assert image.shape == (3, 512, 512)
    assert torch.equal(image[0], image[2])


def test_lists_and_photographs_name_each_other(folder: Path) -> None:
    train = folder / "ImageSets/Context/train.txt"
    shutil.copy(folder / "JPEGImages/2008_000007.jpg", folder / "JPEGImages/2008_000099.jpg")
    (folder / "JPEGImages/._2008_000007.jpg").write_bytes(b"of macOS")
    with pytest.raises(FileError, match=r"JPEGImages/2008_000099\.jpg .*: list: expected a line in .*, found none\.$"):
        read(folder.parent)
    (folder / "JPEGImages/2008_000099.jpg").unlink()
    assert verify("pascal_context", folder.parent, profile="twin").warnings == [
        "JPEGImages: 1 hidden files are left out"
    ]
    train.write_bytes(b"\xef\xbb\xbf" + train.read_bytes().replace(b"\n", b"\r\n"))  # as Windows writes it
    assert read(folder.parent).ids == list(PASCAL_IDS["train"])
    train.write_text("2008_000002\n2008_000098\n2008_000003\n2008_000007\n2009_000010\n2010_000015\n")
    with pytest.raises(FileError, match=r"JPEGImages/2008_000098\.jpg \(sample 2008_000098\).* \(and 5 more faults\)"):
        read(folder.parent)
    for text, message in (
        ("2008_000002\n2008_000008\n", "val.txt: 2008_000008 is listed twice, before in ImageSets/Context/train.txt"),
        ("../../secret\n", r"train.txt: expected ids such as 2008_000002, found '\.\./\.\./secret'"),
    ):
        train.write_text(text)
        with pytest.raises(FileError, match=message):
            read(folder.parent)
    train.write_bytes(b"2008_000002\n\xe9\n")
    with pytest.raises(FileError, match=r"train\.txt: expected a list of ids in UTF-8"):
        read(folder.parent)


def test_a_part_of_the_data_is_no_whole(root: Path) -> None:
    with pytest.raises(
        FileError, match=r"split 'train': number of samples: expected 4998, found 5; the option profile"
    ):
        registry.load("pascal_context", root, "train")


def test_who_lacks_the_files_can_paste_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(DatasetMissingError) as caught:
        registry.load("pascal_context", tmp_path, "train")
    message = str(caught.value)
    block = (
        'mkdir -p "$SHAREBENCH_DATA/pascal_context" && wget -O - '
        "https://data.vision.ee.ethz.ch/kmaninis/share/MTL/PASCAL_MT.tgz | "
        'tar -xz -C "$SHAREBENCH_DATA/pascal_context" --strip-components=1'
    )
    for part in (block, "33,224 .png", "size not published", "Flickr", "ImageSets/Context/train.txt"):
        assert part in message


def test_a_truncated_map_is_found_before_the_first_step(folder: Path) -> None:
    """A .mat shows no fault until it is read: the check of all labels, which every training begins with, reads it."""
    damage(folder / "pascal-context/trainval/2008_000007.mat", "truncated")
    data = registry.load("pascal_context", folder.parent, "train", options=TWIN)
    with pytest.raises(FileError, match=r"2008_000007\.mat: cannot be read"):
        list(label_faults(data))


@pytest.mark.parametrize("protocol", ["standard", "vandenhende", "bmtas"])
def test_a_suite_plans(root: Path, tmp_path: Path, protocol: str) -> None:
    suite = tmp_path / "rooms.yaml"
    suite.write_text(
        f"name: rooms\ndata: [{{dataset: pascal_context, protocol: {protocol}, options: {{profile: twin}}}}]\n"
        "backbones: [test_resnet]\nmethods: [hard_sharing]\nrecipe: {batch_size: 2}\n"
    )
    (cell,) = {planned.document["data"]["protocol"] for planned in plan(read_suite(suite), root)}
    assert cell == protocol
