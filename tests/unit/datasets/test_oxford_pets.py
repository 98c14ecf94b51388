"""Oxford-IIIT Pet: the genuine sample where it is, images of any size, and what a wrong copy is told."""

from __future__ import annotations

import functools
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
from torch import Tensor

from benchmark.plan.cells import plan
from benchmark.plan.suite_file import find_suite, read_suite
from datasets import registry
from datasets.contracts import MultiTaskDataset
from datasets.errors import DatasetMissingError, ProtocolError, UsageError
from datasets.on_disk.files import FileError, TarArchive
from datasets.on_disk.prepare import prepare
from datasets.on_disk.sample_checks import label_faults
from datasets.on_disk.verify import verify
from datasets.oxford_pets import BREEDS, HOME, SPECIES, place_of, read_pets
from datasets.registry import dataset_spec, get_dataset
from datasets.roles import role_indices
from tests.genuine import genuine
from tests.twins import PET_BREEDS, pet_image, pet_size, pet_trimap, write_twin

TWIN = {"profile": "twin"}
TARS = {
    "trainval.tar": "81c158200bf444e65886365d527aa36ffc578799ab69cb0a6973d9e93e040a8b",
    "test.tar": "3079b555ae16eebffd826c44e374498dcb594b805aa003ccb05dc78535e00c02",
}


def load(root: Path, split: str, **arguments: object) -> MultiTaskDataset:
    options = {**TWIN, **arguments.pop("options", {})}  # type: ignore[dict-item]
    return registry.load("oxford_pets", root, split, options=options, **arguments)  # type: ignore[arg-type]


# Genuine files


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The genuine tars under the data root."""
    root = tmp_path_factory.mktemp("genuine")
    (root / "oxford_pets").mkdir()
    for name, sha256 in TARS.items():
        (root / "oxford_pets" / name).symlink_to(genuine(f"oxford_pets_sample/{name}", sha256).resolve())
    return root


def test_the_genuine_sample_is_right(sample: Path) -> None:
    """Every file is decoded: each trimap has the size of its image, and one image is a PNG with transparency."""
    report = verify("oxford_pets", sample, level="full", profile="twin")
    assert report.ok
    assert report.decoded == 598
    assert not report.warnings
    assert report.fields["breed"].classes == {0: 198, 1: 200, 5: 200}
    assert report.fields["species"].classes == {0: 398, 1: 200}


def test_the_genuine_sample_is_not_taken_for_the_whole(sample: Path) -> None:
    with pytest.raises(FileError, match="number of samples: expected 3680, found 300; the option profile: twin"):
        registry.load("oxford_pets", sample, "train")


def test_unpacked_and_packed_genuine_files_are_the_same_samples(sample: Path, tmp_path: Path) -> None:
    for place, layout in (("oxford_pets", "official"), ("oxford_pets/oxford-iiit-pet", "torchvision")):
        root = tmp_path / layout
        for name in TARS:
            with tarfile.open(sample / "oxford_pets" / name) as archive:
                archive.extractall(root / place, filter="data")
        for split in ("train", "test"):
            packed, unpacked = (load(where, split).inputs["image"] for where in (sample, root))
            unpacked.check()
            assert unpacked.ids == packed.ids
            for index in range(0, len(packed), 60):
                assert_equal(packed[index], unpacked[index])
        assert load(root, "test").spec.layout == layout


def test_genuine_shares_of_regions_stay_when_scaled(sample: Path) -> None:
    """Border 12.6 % of the files' pixels; scaling and padding move it little, and pets do not become background."""
    data = load(sample, "train", protocol="trimap").inputs["image"]
    maps = torch.stack([data.labels(index)["segmentation"] for index in range(0, len(data), 10)])
    shares = [float((maps == region).sum() / (maps != 255).sum()) for region in range(3)]
    assert shares == pytest.approx([0.280, 0.594, 0.126], abs=0.05)
    centre = maps[:, 54:74, 54:74]
    assert (centre == 0).float().mean() > 2 * (centre == 1).float().mean()


def assert_equal(first: dict, second: dict) -> None:  # type: ignore[type-arg]
    assert torch.equal(first["image"], second["image"])
    for task, label in first["targets"].items():
        assert torch.equal(label, second["targets"][task]), task


# Labels and geometry


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pets")
    for layout in get_dataset("oxford_pets").layouts:
        write_twin(root, "oxford_pets", layout)
    return root


@pytest.fixture(scope="module")
def root(twins: Path) -> Path:
    return twins / "oxford_pets-official"


def test_breeds() -> None:
    assert len(set(BREEDS)) == 37
    assert sorted(BREEDS, key=str.lower) == list(BREEDS)
    assert sum(name[0].isupper() for name in BREEDS) == 12  # breeds of cats
    content = b"# a remark\nAbyssinian_100 1 1 1\nyorkshire_terrier_9 37 2 25\nSphynx_1 34 1 12\n"
    pets = read_pets(content, "list")
    assert [(pet.breed, SPECIES[pet.species]) for pet in pets] == [(0, "cat"), (36, "dog"), (33, "cat")]


@pytest.mark.parametrize("layout", ["official", "torchvision", "tars"])
@pytest.mark.parametrize("protocol", ["standard", "trimap"])
def test_a_twin_is_what_was_drawn(twins: Path, layout: str, protocol: str) -> None:
    meaning = {"standard": (255, 0, 1, 255), "trimap": (255, 0, 1, 2)}[protocol]
    for split in ("train", "test"):
        data = load(twins / f"oxford_pets-{layout}", split, protocol=protocol, options={"size": 160}).inputs["image"]
        data.check()
        for index, name in enumerate(data.ids):
            breed, number = name.rsplit("_", 1)
            drawn, targets = square(int(number)), data[index]["targets"]
            assert torch.equal(targets["segmentation"].as_subclass(Tensor), torch.tensor(meaning)[drawn])
            assert torch.equal(targets["edge"].as_subclass(Tensor), torch.tensor((255, 0, 0, 1))[drawn])
            assert int(targets["breed"]) == PET_BREEDS[breed][0] - 1
            assert int(targets["species"]) == PET_BREEDS[breed][1] - 1


@functools.cache
def square(number: int) -> Tensor:
    """int64 [160, 160]: a twin's trimap drawn anew by a slow copy of the rule, 0 where padded."""
    (height, width), trimap = pet_size(number), pet_trimap(number)
    scale = 160 / max(height, width)
    new = [int(side * scale + 0.5) for side in (height, width)]
    drawn = torch.zeros(160, 160, dtype=torch.int64)
    for row in range(new[0]):
        for column in range(new[1]):
            place = ((160 - new[0]) // 2 + row, (160 - new[1]) // 2 + column)
            drawn[place] = int(trimap[int((row + 0.5) * height / new[0]), int((column + 0.5) * width / new[1])])
    return drawn


def test_images_keep_their_ratio_and_are_padded_with_black(root: Path) -> None:
    data = load(root, "train").inputs["image"]
    for index, name in enumerate(data.ids):
        image = data[index]["image"].as_subclass(Tensor)
        ignored = data[index]["targets"]["edge"].as_subclass(Tensor) == 255
        assert image.shape == (3, 128, 128)
        assert (image[:, ignored] == 0).all()
        assert (image[:, ~ignored].amax(dim=0) > 0.02).all()  # no shade of a twin is black
        height, width = pet_size(int(name.rsplit("_", 1)[1]))
        rows, columns = (int((~ignored).any(dim=axis).sum()) for axis in (1, 0))
        assert max(rows, columns) == 128
        assert min(rows, columns) == pytest.approx(128 * min(height, width) / max(height, width), abs=0.5)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(374, 500, (16, 0, 96, 128)), (500, 333, (0, 21, 128, 85)), (64, 64, (0, 0, 128, 128)), (1, 900, (63, 0, 1, 128))],
)
def test_the_longer_side_fills_the_square(height: int, width: int, expected: tuple[int, ...]) -> None:
    assert place_of(height, width, 128) == expected


def test_image_and_labels_are_scaled_alike(root: Path) -> None:
    """The shade at the middle of each region is that of its label: pet, background, border."""
    data = load(root, "train", protocol="trimap", options={"size": 512}).inputs["image"]
    index = data.ids.index("Bengal_1")
    image, label = (
        data[index]["image"].mul(255).as_subclass(Tensor),
        data[index]["targets"]["segmentation"].as_subclass(Tensor),
    )
    for region, shade in enumerate(((30, 30, 90), (110, 130, 110), (60, 60, 60))):
        found = image[:, label == region].median(dim=1).values
        assert torch.allclose(found, torch.tensor(shade, dtype=torch.float32), atol=6), region


def test_transparent_and_grey_images_become_colours(root: Path) -> None:
    train, test = (load(root, split).inputs["image"] for split in ("train", "test"))
    png = train[train.ids.index("Abyssinian_5")]["image"]
    grey = test[test.ids.index("Bengal_6")]["image"]
    assert not torch.equal(png[0], png[2])
    assert torch.equal(grey[0], grey[2])
    assert float(grey.max()) * 255 == pytest.approx(
        np.asarray(Image.fromarray(pet_image("Bengal", 6)).convert("L")).max(), abs=12
    )


def test_a_tenth_of_each_breed_is_held_out_of_train_alone(root: Path) -> None:
    train, test = load(root, "train"), load(root, "test")
    assert set(train.spec.splits) == {"train", "test"}
    roles = role_indices(train, None, test)["image"]
    held = [train.inputs["image"].ids[index] for index in roles["select"].indices]
    assert Counter(name.rsplit("_", 1)[0] for name in held) == dict.fromkeys(PET_BREEDS, 1)
    assert not set(held) & set(test.inputs["image"].ids)


def test_a_prepared_copy_has_equal_samples(twins: Path, tmp_path: Path) -> None:
    for layout in ("official", "tars"):
        root = tmp_path / layout
        shutil.copytree(twins / f"oxford_pets-{layout}", root)
        files = [load(root, "train").inputs["image"][index] for index in range(15)]
        prepare("oxford_pets", root, layout, options=TWIN)
        copied = load(root, "train").inputs["image"]
        assert "Rows" in type(copied.source.image.read).__name__  # type: ignore[attr-defined]
        for index, held in enumerate(files):
            assert_equal(held, copied[index])


def test_the_suite_fits_the_data(root: Path) -> None:
    suite = read_suite(find_suite("pets"))
    (data,) = suite.data
    spec = dataset_spec(data.dataset, protocol=data.protocol, options=data.options)
    assert 96 <= spec.native_size[0] <= 128
    assert all(backbone.weights == "pretrained" for backbone in suite.backbones)


# Wrong copies


@pytest.fixture
def copy(twins: Path, tmp_path: Path) -> Callable[[str], Path]:
    def copied(layout: str) -> Path:
        shutil.copytree(twins / f"oxford_pets-{layout}", tmp_path / layout)
        return tmp_path / layout

    return copied


@pytest.fixture
def folder(copy: Callable[[str], Path]) -> Path:
    """The official tree, to be spoilt; its data root is the parent."""
    return copy("official") / "oxford_pets"


def test_what_is_ignored_is_counted(twins: Path) -> None:
    for layout in ("official", "torchvision", "tars"):
        report = verify("oxford_pets", twins / f"oxford_pets-{layout}", level="full", profile="twin")
        assert report.ok
        assert report.counts == {"train": {"image": 15}, "test": {"image": 9}}
        assert report.warnings == [
            "files of macOS (._*): 24 ignored, the first is annotations/trimaps/._Abyssinian_1.png",
            "images in no list: 1 ignored, the first is images/Bengal_100.jpg",
            "other files beside them: 1 ignored, the first is images/Bengal_101.mat",
        ]


def test_every_planted_fault_is_named(folder: Path) -> None:
    trimaps, images = folder / "annotations" / "trimaps", folder / "images"
    (trimaps / "Abyssinian_2.png").unlink()
    (images / "Bengal_2.jpg").write_bytes((images / "Bengal_2.jpg").read_bytes()[:-300])
    Image.fromarray(np.full((50, 150), 4, dtype=np.uint8)).save(trimaps / "Bengal_3.png")
    Image.fromarray(np.ones((150, 50), dtype=np.uint8)).save(trimaps / "Abyssinian_3.png")
    report = verify("oxford_pets", folder.parent, level="full", profile="twin")
    named = {(Path(fault.path).name, fault.check): fault.found for fault in report.bad}
    assert named["Abyssinian_2.png", "existence"] == "none"
    assert "cannot be read as an image" in named["Bengal_2.jpg", "content"]
    assert "expected 1 (pet), 2 (background) and 3 (border), found 4" in named["Bengal_3.png", "content"]
    assert "expected uint8 (50, 150) as its image has, found uint8 (150, 50)" in named["Abyssinian_3.png", "content"]
    assert len(named) == 4


def test_a_missing_trimap_ends_the_loading(folder: Path) -> None:
    (folder / "annotations" / "trimaps" / "Bengal_1.png").unlink()
    with pytest.raises(
        FileError, match=r"trimaps/Bengal_1\.png \(sample Bengal_1\): existence: expected a file \(trim"
    ):
        load(folder.parent, "train")


SUITE = """
name: short
data: [{dataset: oxford_pets, options: {profile: twin}}]
backbones: [test_resnet]
methods: [hard_sharing]
seeds: [0]
budget: {steps: 20}
recipe: {batch_size: 4}
"""


def test_a_truncated_image_ends_the_plan(folder: Path, tmp_path: Path) -> None:
    image = folder / "images" / "american_bulldog_3.jpg"
    image.write_bytes(image.read_bytes()[:-200])
    (tmp_path / "short.yaml").write_text(SUITE)
    with pytest.raises(FileError, match=r"american_bulldog_3\.jpg.*: image file: expected a whole one.*is truncated"):
        plan(read_suite(tmp_path / "short.yaml"), data_root=folder.parent)


@pytest.mark.parametrize(
    ("shape", "value", "dtype", "message"),
    [
        ((64, 64), 1, "uint8", "as its image has"),
        ((160, 100), 0, "uint8", "found 0"),
        ((160, 100), 1, "uint16", "found uint16"),
    ],
)
def test_a_wrong_trimap_is_found_before_the_first_step(
    folder: Path, shape: tuple[int, int], value: int, dtype: str, message: str
) -> None:
    wrong = folder / "annotations" / "trimaps" / "american_bulldog_5.png"
    Image.fromarray(np.full(shape, value, dtype=dtype)).save(wrong)
    with pytest.raises(FileError, match=rf"american_bulldog_5\.png: expected .*{message}"):
        list(label_faults(load(folder.parent, "train")))


def test_lists_in_other_encodings() -> None:
    line = "Bengal_1 6 1 2\n"
    assert read_pets(b"\xef\xbb\xbf" + line.encode(), "list") == read_pets(line.encode(), "list")
    for content in (line.encode("utf-16"), line.replace("l", "l\xe9").encode("latin-1")):
        with pytest.raises(FileError, match=r"list: line 1 is .*; expected BREED_NUMBER and three numbers"):
            read_pets(content, "list")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Bengal_1 6 1", "line 1 is 'Bengal_1 6 1'; expected BREED_NUMBER and three numbers"),
        ("../Bengal_1 6 1 2", "expected BREED_NUMBER and three numbers"),
        ("Bengal_1.jpg 6 1 2", "expected BREED_NUMBER and three numbers"),
        ("Bengali_1 6 1 2", "line 1 has the breed 'Bengali', which is none of the 37"),
        ("Bengal_1 38 1 2", "expected 6 1 2 after that name"),
        ("Bengal_1 6 2 2", "expected 6 1 2 after that name"),
        ("Bengal_1 six 1 2", "expected 6 1 2 after that name"),
        ("Bengal_1 6 1 2\nBengal_1 6 1 2", "'Bengal_1' is listed twice"),
    ],
)
def test_a_wrong_line_is_named(line: str, message: str) -> None:
    with pytest.raises(FileError, match=f"trainval.txt: .*{message}"):
        read_pets(line.encode(), "trainval.txt")


def test_an_image_in_both_lists_is_refused(folder: Path) -> None:
    with (folder / "annotations" / "test.txt").open("a") as file:
        file.write("Bengal_1 6 1 2\n")
    with pytest.raises(FileError, match="'Bengal_1' is listed for training and for testing"):
        load(folder.parent, "train")


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ("/etc/passwd", "member '/etc/passwd' leaves the archive"),
        ("images/../../x.jpg", r"member 'images/\.\./\.\./x\.jpg' leaves the archive"),
        ("link", "member 'link' is neither a file nor a folder"),
    ],
)
def test_an_archive_that_leads_out_is_refused(copy: Callable[[str], Path], member: str, message: str) -> None:
    root = copy("tars")
    with tarfile.open(root / "oxford_pets" / "trainval.tar", "a") as archive:
        entry = tarfile.TarInfo(member)
        if member == "link":
            entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(entry, io.BytesIO(b""))
    with pytest.raises(FileError, match=rf"trainval\.tar: {message}"):
        load(root, "train")


def test_a_torn_archive_and_torn_members_are_named(copy: Callable[[str], Path], tmp_path: Path) -> None:
    root = copy("tars")
    path = root / "oxford_pets" / "test.tar"
    whole = path.read_bytes()
    for cut in (len(whole) // 2, 20 * 512, 3 * 512 + 100):  # in the middle of a member, of a header, between members
        path.write_bytes(whole[:cut])
        with pytest.raises(FileError, match=r"test\.tar: (is cut short|cannot be read as a tar archive \(unexpected)"):
            load(root, "test")
    path.write_bytes(b"no archive")
    with pytest.raises(FileError, match=r"test\.tar: cannot be read as a tar archive"):
        load(root, "test")
    with tarfile.open(path, "w") as archive, tarfile.open(fileobj=io.BytesIO(whole)) as old:
        for entry in old.getmembers():
            content = old.extractfile(entry).read()  # type: ignore[union-attr]
            entry.size = len(content) - 200 * entry.name.endswith("Bengal_7.jpg")
            archive.addfile(entry, io.BytesIO(content))
    with pytest.raises(FileError, match=r"test\.tar/images/Bengal_7\.jpg \(sample Bengal_7\): image file: .*truncated"):
        load(root, "test")
    with pytest.raises(FileError, match=r"has no member 'images/x\.jpg'"):
        TarArchive(path).read("images/x.jpg")


def test_two_layouts_in_one_folder_are_refused(folder: Path, twins: Path) -> None:
    for name in TARS:
        shutil.copy(twins / "oxford_pets-tars" / "oxford_pets" / name, folder)
    with pytest.raises(UsageError, match="looks like each of the layouts official, tars; name one"):
        load(folder.parent, "train")
    assert len(load(folder.parent, "train", layout="tars").inputs["image"]) == 15


def test_missing_data_are_told_how_to_get_them(tmp_path: Path) -> None:
    for layout in get_dataset("oxford_pets").layouts:
        with pytest.raises(DatasetMissingError) as caught:
            registry.load("oxford_pets", tmp_path, "train", layout=layout)
        message = str(caught.value)
        assert "\n" not in message
        for part in (str(tmp_path), "0.8 GB", "research purposes", HOME):
            assert part in message, (layout, part)
    with pytest.raises(
        DatasetMissingError,
        match=r'cd "\$SHAREBENCH_DATA/oxford_pets" && wget .*images\.tar\.gz && echo .5c4f3ee8.*md5sum',
    ):
        registry.load("oxford_pets", tmp_path, "train", layout="official")
    with pytest.raises(ProtocolError, match="it has: standard, trimap"):
        dataset_spec("oxford_pets", protocol="mtan")
