"""Cityscapes: twins of the official files and of both releases; mmsegmentation as an oracle of the official ones."""

from __future__ import annotations

import functools
import json
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmark.plan.cells import plan
from benchmark.plan.suite_file import read_suite
from datasets import registry
from datasets.cityscapes import class_table, decode_disparity
from datasets.contracts import InputData, Sample
from datasets.errors import DatasetMissingError, ProtocolError, UsageError
from datasets.images.transforms import InverseDepth
from datasets.kinds import get_kind
from datasets.on_disk.files import FileError
from datasets.registry import dataset_spec
from datasets.roles import HOLD_OUT_PREFIX, hold_out, role_indices
from tests.twins import ONE, STREET_NUMBERS, UNKNOWN, ZERO, street, street_names, street_room, write_twin

TWIN = {"profile": "twin"}
# labels.py of cityscapesscripts 2.3.0: (training id, category) of the ids 0, 1, 2, ...; category 0 is void
OFFICIAL = [(255, 0)] * 7 + [
    *((0, 1), (1, 1), (255, 1), (255, 1), (2, 2), (3, 2), (4, 2), (255, 2), (255, 2), (255, 2)),
    *((5, 3), (255, 3), (6, 3), (7, 3), (8, 4), (9, 4), (10, 5), (11, 6), (12, 6)),
    *((13, 7), (14, 7), (15, 7), (255, 7), (255, 7), (16, 7), (17, 7), (18, 7)),
]
# Recalled; the sum is the official number of training images.
CITIES = {
    **{"aachen": 174, "bochum": 96, "bremen": 316, "cologne": 154, "darmstadt": 85, "dusseldorf": 221, "erfurt": 109},
    **{"hamburg": 248, "hanover": 196, "jena": 119, "krefeld": 99, "monchengladbach": 94, "strasbourg": 365},
    **{"stuttgart": 196, "tubingen": 144, "ulm": 95, "weimar": 142, "zurich": 122},
}


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("cityscapes")
    return {layout: write_twin(folder, "cityscapes", layout) for layout in ("official", "mtan_npy", "adashare")}


@pytest.fixture
def copied(roots: dict[str, Path], tmp_path: Path) -> functools.partial[Path]:
    """copied(layout): the data set's folder of a twin that may be damaged; its data root is the folder above."""

    def copy(layout: str) -> Path:
        shutil.copytree(roots[layout], tmp_path / "copy")
        return tmp_path / "copy" / "cityscapes"

    return functools.partial(copy)


def read(root: Path, split: str = "test", protocol: str = "standard", **options: object) -> InputData:
    return registry.load("cityscapes", root, split, protocol=protocol, options={**TWIN, **options}).inputs["image"]


def plain(sample: Sample, task: str) -> Tensor:
    return sample["targets"][task].as_subclass(Tensor)


def enlarged(array: np.ndarray, by: int) -> Tensor:
    return torch.from_numpy(array.repeat(by, axis=0).repeat(by, axis=1))


# Labels


def test_class_tables_are_the_official_ones() -> None:
    assert class_table(19).tolist() == [training for training, _ in OFFICIAL] + [255] * (256 - len(OFFICIAL))
    sevens = [255 if category == 0 else category - 1 for _, category in OFFICIAL]
    assert class_table(7)[:34].tolist() == sevens
    assert class_table(2)[:34].tolist() == [255 if seven == 255 else int(seven >= 5) for seven in sevens]
    assert (class_table(7)[34:] == 255).all()
    assert (class_table(2)[34:] == 255).all()


def test_the_spec_by_layout_and_protocol() -> None:
    spec = dataset_spec("cityscapes")
    assert (spec.layout, spec.native_size, spec.splits) == ("official", (512, 1024), {"train": 2975, "test": 500})
    assert (spec.task("semseg").channels, spec.task("depth").unit) == (19, "disparity_px")
    assert [task.weight for task in spec.tasks] == [1, 1]
    spec = dataset_spec("cityscapes", layout="mtan_npy", protocol="mtan")
    assert (spec.native_size, spec.task("semseg").channels, spec.task("depth").unit) == ((128, 256), 7, "inverse_depth")
    spec = dataset_spec("cityscapes", layout="adashare", protocol="adashare", options={"classes": 7, "height": 128})
    assert (spec.native_size, spec.task("semseg").channels) == ((128, 256), 7)
    assert [task.weight for task in spec.tasks] == [1, 20]
    for layout, protocol in (("official", "mtan"), ("mtan_npy", "adashare"), ("adashare", "mtan")):
        with pytest.raises(
            ProtocolError, match=f"{layout}.* has no labels for protocol '{protocol}'; it has: standard"
        ):
            dataset_spec("cityscapes", layout=layout, protocol=protocol)
    with pytest.raises(UsageError, match=r"in layout 'official' has the heights 512 and 1024, not 128\."):
        dataset_spec("cityscapes", layout="official", options={"height": 128})


def test_disparity_is_divided_in_the_loss_only() -> None:
    task = dataset_spec("cityscapes", tasks=["depth"]).task("depth")
    kind = get_kind("depth")
    label = torch.tensor([[[10.0, float("nan")], [0.0, 20.0]]])
    prediction = torch.full((1, 1, 2, 2), 4.0)
    assert float(kind.loss(prediction, label, task)) == pytest.approx((6 + 4 + 16) / 3 / 128)
    evaluator = kind.evaluator(task)
    evaluator.update(prediction, label)
    assert evaluator.result()["abs_err"].value == pytest.approx((6 + 4 + 16) / 3)
    inverse = dataset_spec("cityscapes", layout="mtan_npy", tasks=["depth"]).task("depth")
    assert float(kind.loss(prediction, label, inverse)) == pytest.approx((6 + 4 + 16) / 3)


# The official files


@pytest.mark.parametrize("classes", [19, 7, 2])
def test_an_official_twin_is_the_street_it_shows(roots: dict[str, Path], classes: int) -> None:
    data = read(roots["official"], classes=classes, height=1024)
    assert data.ids == [stem for _, stem in street_names()["val"]]
    for number in range(len(data)):
        sample, drawn = data[number], street(number)
        assert torch.equal(sample["image"].mul(255).round().byte(), enlarged(drawn.image, 8).permute(2, 0, 1))
        labels = [OFFICIAL[index] for index in range(34)]
        table = {
            19: [training for training, _ in labels],
            7: [255 if category == 0 else category - 1 for _, category in labels],
            2: [255 if category == 0 else int(category > 5) for _, category in labels],
        }[classes]
        assert torch.equal(plain(sample, "semseg"), torch.tensor(table)[enlarged(drawn.ids, 8).long()])
        disparity = plain(sample, "depth")
        stored = enlarged(drawn.disparity.astype(np.float64), 8)
        assert torch.equal(disparity.isnan(), stored == 0)
        assert torch.allclose(disparity[stored > 0].double(), (stored[stored > 0] - 1) / 256)
        assert sample["meta"]["label_files"] == "labelIds"


def test_disparity_of_special_values(roots: dict[str, Path]) -> None:
    full, half = (plain(read(roots["official"], height=height)[0], "depth") for height in (1024, 512))
    for (row, column), pixels in ((ZERO, 0.0), (ONE, 1.0)):
        assert full[8 * row + 3, 8 * column + 3] == pixels
        assert half[4 * row + 1, 4 * column + 1] == pixels / 2  # half as wide, so half as many pixels
    assert full[8 * UNKNOWN[0], 8 * UNKNOWN[1]].isnan()
    assert half[4 * UNKNOWN[0], 4 * UNKNOWN[1]].isnan()
    decoded = decode_disparity(np.array([[0, 1, 257, 65535]], dtype=np.uint16), scale=1.0)
    assert decoded[0, 1:].tolist() == [0.0, 1.0, 65534 / 256]
    assert decoded[0, 0].isnan()
    sample = read(roots["official"])[0]
    assert type(sample["targets"]["depth"]) is InverseDepth  # a zoom multiplies it


def test_the_half_size_is_nearest_for_labels_and_a_mean_for_images(roots: dict[str, Path]) -> None:
    sample, drawn = read(roots["official"])[0], street(0)
    assert sample["image"].shape == (3, 512, 1024)
    ids = torch.from_numpy(class_table(19)[drawn.ids]).long()
    assert torch.equal(plain(sample, "semseg"), ids.repeat_interleave(4, 0).repeat_interleave(4, 1))
    inner = sample["image"][:, 1::4, 1::4]  # pixels whose whole neighbourhood is one pixel of the drawing
    assert torch.equal(inner.mul(255).round().byte(), torch.from_numpy(drawn.image).permute(2, 0, 1))
    car = torch.from_numpy(drawn.ids == 26)
    red, green, blue = inner[:, car].mean(dim=1)
    assert red > 2 * green  # read as BGR, the car would be blue
    assert red > 2 * blue


def write_training_ids(folder: Path, part: str) -> None:
    for path in (folder / "gtFine" / part).glob("*/*_labelIds.png"):
        training = np.array([label for label, _ in OFFICIAL], dtype=np.uint8)[np.array(Image.open(path))]
        Image.fromarray(training).save(path.with_name(path.name.replace("labelIds", "labelTrainIds")), compress_level=1)


def test_ids_and_training_ids_give_the_same_labels(roots: dict[str, Path], copied: functools.partial[Path]) -> None:
    folder = copied("official")
    write_training_ids(folder, "val")
    made, ids = read(folder.parent), read(roots["official"])
    assert made.ids == ids.ids
    for index in range(len(ids)):
        assert torch.equal(plain(made[index], "semseg"), plain(ids[index], "semseg"))
        assert made[index]["meta"]["label_files"] == "labelTrainIds"
    sevens = read(folder.parent, classes=7)[0]  # training ids know no caravan, which is a vehicle
    assert sevens["meta"]["label_files"] == "labelIds"
    assert plain(sevens, "semseg")[4, 4 * 29] == 6
    next((folder / "gtFine" / "val").glob("*/*_labelTrainIds.png")).unlink()
    with pytest.raises(FileError, match=r"gtFine_labelTrainIds\.png \(sample .*\): existence"):
        read(folder.parent)


def test_images_and_labels_equal_those_of_mmsegmentation(
    copied: functools.partial[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mmseg", reason="the oracle is mmsegmentation")
    if "mmcv._ext" not in sys.modules:  # compiled operators, which reading files does not need
        placeholder = types.ModuleType("mmcv._ext")
        placeholder.__getattr__ = lambda name: None  # type: ignore[method-assign]
        monkeypatch.setitem(sys.modules, "mmcv._ext", placeholder)
    from mmseg.datasets import CityscapesDataset
    from mmseg.utils import register_all_modules

    register_all_modules()
    folder = copied("official")
    write_training_ids(folder, "train")
    oracle = CityscapesDataset(
        data_root=str(folder),
        data_prefix={"img_path": "leftImg8bit/train", "seg_map_path": "gtFine/train"},
        pipeline=[{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}],
    )
    ours = read(folder.parent, "train", height=1024)
    theirs = {Path(sample["img_path"]).name: sample for sample in oracle}
    assert len(theirs) == len(ours) == 5
    for index, identifier in enumerate(ours.ids):
        sample = theirs[f"{identifier}_leftImg8bit.png"]
        image = torch.from_numpy(sample["img"][:, :, ::-1].copy()).permute(2, 0, 1)  # from BGR
        assert torch.equal(ours[index]["image"].mul(255).round().byte(), image)
        assert torch.equal(plain(ours[index], "semseg"), torch.from_numpy(sample["gt_seg_map"]).long())


def test_whole_cities_are_held_out(roots: dict[str, Path]) -> None:
    train, test = (registry.load("cityscapes", roots["official"], split, options=TWIN) for split in ("train", "test"))
    roles = role_indices(train, None, test)["image"]
    units = train.inputs["image"].units
    assert units == ["aachen", "aachen", "bremen", "ulm", "weimar"]
    cities = {role: {units[index] for index in roles[role].indices} for role in ("fit", "arch", "select")}
    assert cities["select"] == {"ulm"}
    assert sum(len(part) for part in cities.values()) == 4
    assert {split.inputs["image"].ids[0].split("_")[0] for split in (train, test)} == {"aachen", "frankfurt"}


def test_the_official_hold_out_is_three_cities() -> None:
    """A change of these would select on other images: it needs a new version."""
    units = [city for city, count in CITIES.items() for _ in range(count)]
    assert len(units) == dataset_spec("cityscapes").splits["train"]
    held = hold_out("cityscapes", units, 0.1, HOLD_OUT_PREFIX)
    assert {units[index] for index in held} == {"tubingen", "ulm", "weimar"}
    assert len(held) == 381


# The releases


@pytest.mark.parametrize(("layout", "height"), [("mtan_npy", 128), ("adashare", 256)])
@pytest.mark.parametrize("classes", [None, 19, 7, 2])
def test_a_release_is_the_street_it_shows(
    roots: dict[str, Path], layout: str, height: int, classes: int | None
) -> None:
    data = read(roots[layout], classes=classes)
    used = classes or {"mtan_npy": 7, "adashare": 19}[layout]
    for index, number in enumerate(STREET_NUMBERS["val"]):
        sample, seen = data[index], street_room((height, 2 * height), number)
        depth, semseg = plain(sample, "depth"), plain(sample, "semseg")
        known = ~depth.isnan()
        assert not known[0].any()
        assert torch.equal(semseg != 255, known)
        inverse = torch.from_numpy(1 / seen.depth)
        assert torch.allclose(depth[known].double(), (inverse / inverse[known].max())[known])
        expected = {19: [2, 0, 10, 3, 13, 13], 7: [1, 0, 4, 1, 6, 6], 2: [0, 0, 0, 0, 1, 1]}[used]
        assert len(semseg[known].unique()) == len(set(expected))
        assert torch.equal(semseg[known], torch.tensor(expected)[torch.from_numpy(seen.surface)][known])
        assert torch.equal(sample["image"].mul(255).round().byte(), torch.from_numpy(seen.image).permute(2, 0, 1))


def test_releases_are_in_the_order_of_numbers(roots: dict[str, Path]) -> None:
    assert read(roots["mtan_npy"]).ids == ["test/9", "test/10"]  # and the folder is called val
    assert read(roots["adashare"]).ids == ["val/image/9", "val/image/10"]
    assert read(roots["adashare"], "train").units == ["block000", "block001", "block002", "block003", "block004"]


def test_a_list_may_name_images_by_their_city(copied: functools.partial[Path]) -> None:
    folder = copied("adashare")
    document = json.loads((folder / "cityscape.json").read_text())
    row = document["test"][0]
    renamed = "val/image/lindau_000003_000019.npy"
    (folder / row[0]).rename(folder / renamed)
    row[0] = renamed
    (folder / "cityscape.json").write_text(json.dumps(document))
    data = read(folder.parent)
    assert (data.ids[0], data.units[0]) == ("val/image/10", "block000")
    assert (data.ids[1], data.units[1]) == ("val/image/lindau_000003_000019", "lindau")
    row[0] = "val/image/street.npy"
    (folder / "cityscape.json").write_text(json.dumps(document))
    with pytest.raises(FileError, match="expected a file named by its image number"):
        read(folder.parent)


def test_a_copy_with_plain_labels_has_seven_classes(copied: functools.partial[Path]) -> None:
    folder = copied("mtan_npy")
    for part in ("train", "val"):
        (folder / part / "label_7").rename(folder / part / "label")
        shutil.rmtree(folder / part / "label_19")
    sample = read(folder.parent)[0]
    assert sample["meta"]["label_files"] == "label"
    with pytest.raises(FileError, match=r"val: 19 classes need label_19, found label, label_2\."):
        read(folder.parent, classes=19)
    label = np.load(folder / "val" / "label" / "9.npy")
    label[50, 50] = 13
    np.save(folder / "val" / "label" / "9.npy", label)
    with pytest.raises(FileError, match=r"label/9\.npy: expected ids 0 to 6 and 255, found 13"):
        read(folder.parent).check()


# Wrong copies


def test_layouts_are_told_apart_and_missing_ones_described(tmp_path: Path, roots: dict[str, Path]) -> None:
    for layout, root in roots.items():
        assert registry.find_layout("cityscapes", root)[1] == layout
    assert registry.find_layout("cityscapes", roots["adashare"], "mtan_npy")[1] == "mtan_npy"  # asked for by name
    for layout in ("mtan", "adashare"):  # protocols that the usual layout lacks
        root = roots[{"mtan": "mtan_npy"}.get(layout, layout)]
        assert read(root, protocol=layout).ids
    folder = tmp_path / "cityscapes"
    for name in ("leftImg8bit/train", "gtCoarse/train", "train/image"):
        (folder / name).mkdir(parents=True)
    with pytest.raises(DatasetMissingError) as caught:
        registry.load("cityscapes", tmp_path, "train")
    message = str(caught.value)
    for part in (
        "no gtFine/train for layout 'official'",
        "no train/depth for layout 'mtan_npy'",
        "no cityscape.json for layout 'adashare'",
        "https://www.cityscapes-dataset.com",
        "Licence: non-commercial",
        "about 15 GB",
    ):
        assert part in message
    assert "\n" not in message


def test_a_part_of_the_data_does_not_pass_for_the_whole(roots: dict[str, Path]) -> None:
    for layout in roots:
        with pytest.raises(FileError, match="split 'train': number of samples: expected 2975, found 5; "):
            registry.load("cityscapes", roots[layout], "train")


def image_of(folder: Path, kind: str, position: int, part: str = "train") -> Path:
    return sorted((folder / kind / part).glob("*/*.png"))[position]


def test_an_image_without_its_disparity_is_named(copied: functools.partial[Path]) -> None:
    folder = copied("official")
    image_of(folder, "disparity", 2).unlink()
    with pytest.raises(FileError, match=r"disparity/train/bremen/bremen_000000_000019_disparity\.png .*: existence"):
        read(folder.parent, "train")
    assert len(read(folder.parent)) == 2
    image_of(folder, "leftImg8bit", 1).unlink()
    with pytest.raises(FileError, match=r"leftImg8bit/train/aachen/.*: existence: .* \(and 1 more fault\)"):
        read(folder.parent, "train")


def test_a_file_in_the_wrong_city_and_an_empty_split_are_named(copied: functools.partial[Path]) -> None:
    folder = copied("official")
    path = image_of(folder, "leftImg8bit", 0)
    path.rename(path.with_name("._" + path.name))
    with pytest.raises(FileError, match=r"\._aachen.*unexpected file; expected CITY/CITY_000000_000000_TYPE\.png"):
        read(folder.parent, "train")
    for kind in ("leftImg8bit", "gtFine", "disparity"):
        for path in (folder / kind / "val").glob("*/*.png"):
            path.unlink()
    with pytest.raises(FileError, match="split 'test': number of samples: expected 500, found none"):
        read(folder.parent)


def damaged(path: Path, how: str) -> None:
    match how:
        case "truncated":
            path.write_bytes(path.read_bytes()[:-2000])
        case "another size":
            Image.open(path).crop((0, 0, 100, 50)).save(path)
        case "8 bits":
            Image.fromarray(np.full((1024, 2048), 7, dtype=np.uint8)).save(path)
        case "id 34":
            Image.fromarray(np.full((1024, 2048), 34, dtype=np.uint8)).save(path)
        case "all unknown":
            Image.fromarray(np.zeros((1024, 2048), dtype=np.uint16)).save(path)
        case "gray":
            Image.fromarray(np.full((1024, 2048), 7, dtype=np.uint8)).save(path)


@pytest.mark.parametrize(
    ("kind", "position", "how", "message"),
    [
        ("leftImg8bit", 2, "truncated", "image file: expected a whole one, found one that is truncated"),
        ("disparity", 2, "truncated", "depth file: expected a whole one, found one that is truncated"),
        ("gtFine", 2, "another size", r"size of semseg: expected \(1024, 2048\) as in the first, found \(50, 100\)"),
        ("leftImg8bit", 0, "another size", r"expected uint8 \(1024, 2048, 3\), found uint8 \(50, 100, 3\)"),
        ("leftImg8bit", 0, "gray", r"expected uint8 \(1024, 2048, 3\), found uint8 \(1024, 2048\)"),
        ("disparity", 0, "8 bits", r"expected uint16 \(1024, 2048\), found uint8"),
        ("gtFine", -1, "id 34", "expected ids 0 to 33 and 255, found 34"),
    ],
)
def test_a_bad_file_among_many_is_named_before_training(
    copied: functools.partial[Path], kind: str, position: int, how: str, message: str
) -> None:
    folder = copied("official")
    path = image_of(folder, kind, position)
    damaged(path, how)
    with pytest.raises(FileError, match=f"{path.name}.*: {message}"):
        read(folder.parent, "train").check()
    read(folder.parent).check()  # the other split is left alone


def test_a_truncated_array_ends_the_plan(copied: functools.partial[Path], tmp_path: Path) -> None:
    """Before the first step, and not after hours at the sample that is broken."""
    folder = copied("mtan_npy")
    path = folder / "train" / "depth" / "42.npy"
    path.write_bytes(path.read_bytes()[:-100])
    suite = tmp_path / "streets.yaml"
    suite.write_text(
        "name: streets\ndata: [{dataset: cityscapes, protocol: mtan, options: {profile: twin}}]\n"
        "backbones: [test_resnet]\nmethods: [hard_sharing]\nrecipe: {batch_size: 2}\n"
    )
    with pytest.raises(FileError, match=r"train/depth/42\.npy \(sample train/42\): depth file: .*truncated: \d+ bytes"):
        plan(read_suite(suite), folder.parent)


def test_a_split_without_any_disparity_is_refused(copied: functools.partial[Path]) -> None:
    folder = copied("official")
    damaged(image_of(folder, "disparity", 0), "all unknown")
    read(folder.parent, "train").check()  # one image may be unknown as a whole
    damaged(image_of(folder, "disparity", -1), "all unknown")
    with pytest.raises(FileError, match=r"disparity\.png: no label of 'depth' is known, nor in the last sample"):
        read(folder.parent, "train").check()


def test_a_list_of_absent_files_and_the_wrong_download_are_named(copied: functools.partial[Path]) -> None:
    folder = copied("adashare")
    document = json.loads((folder / "cityscape.json").read_text())
    with pytest.raises(FileError, match=r"image/9\.npy: expected .* \(128, 256, 3\), found float32 \(256, 512, 3\)"):
        read(folder.parent, height=128).check()
    document["test"].append([f"val/{name}/99.npy" for name in ("image", "depth", "label_2", "label_7", "label_19")])
    (folder / "cityscape.json").write_text(json.dumps(document))
    with pytest.raises(
        FileError, match=r"val/image/99\.npy \(sample val/image/99\): existence: .* \(and 2 more faults"
    ):
        read(folder.parent)
    document["test"][-1].pop()
    (folder / "cityscape.json").write_text(json.dumps(document))
    with pytest.raises(FileError, match=r"cityscape\.json: expected \[image, depth, label_2, label_7, label_19\] for"):
        read(folder.parent)
