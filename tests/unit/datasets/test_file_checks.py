"""What is told of files without decoding them: whole or torn, size of the picture, a fingerprint of the content."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets import registry
from datasets.on_disk.checks import WHOLE, files_hash, fingerprint, header_of, picture_shape
from datasets.on_disk.files import FileError
from tests.twins import write_twin
from tests.unit.files import NOISE, save_jpg, save_npy, save_png


def test_shapes_are_read_from_headers(tmp_path: Path) -> None:
    assert picture_shape(save_png(tmp_path / "a.png")) == (300, 400)
    assert picture_shape(save_jpg(tmp_path / "a.jpg")) == (300, 400)
    Image.fromarray(NOISE[..., 0]).save(tmp_path / "gray.jpg", progressive=True, comment=b"\xff\xd9" * 9)
    assert picture_shape(tmp_path / "gray.jpg") == (300, 400)
    assert picture_shape(save_npy(tmp_path / "a.npy")) == (300, 400, 3)
    assert picture_shape(save_npy(tmp_path / "scalar.npy", np.array(3.0))) == ()
    with (tmp_path / "new.npy").open("wb") as file:
        np.lib.format.write_array(file, NOISE, version=(2, 0))
    assert picture_shape(tmp_path / "new.npy") == (300, 400, 3)
    (tmp_path / "a.txt").write_text("no picture")
    assert picture_shape(tmp_path / "a.txt") is None
    for name in ("a.png", "a.jpg"):
        with (tmp_path / name).open("ab") as file:
            file.write(b"a camera's remark after the end mark" * (1 if name == "a.png" else 200))
        assert picture_shape(tmp_path / name) == (300, 400)


@pytest.mark.parametrize("cut", [1, 5, 20, 5000])
@pytest.mark.parametrize("save", [save_png, save_npy, save_jpg], ids=["png", "npy", "jpg"])
def test_every_truncation_is_found(tmp_path: Path, save: object, cut: int) -> None:
    path = save(tmp_path / f"a.{save.__name__[-3:]}")  # type: ignore[operator,attr-defined]
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(FileError, match=r"a\.(png|npy|jpg): is truncated"):
        picture_shape(path)


@pytest.mark.parametrize("cut", [1, 5, 20, 5000])
def test_every_truncated_photograph_is_found_and_odd_ones_pass(tmp_path: Path, cut: int) -> None:
    path = save_png(tmp_path / "a.jpg")
    whole = path.read_bytes()
    assert picture_shape(path) == (300, 400)
    path.write_bytes(whole + bytes(5000))  # remarks after the end mark
    assert picture_shape(path) == (300, 400)
    save_png(tmp_path / "b.png").replace(path)  # another format, as the web has them
    assert picture_shape(path) == (300, 400)
    path.write_bytes(whole[:-cut])
    with pytest.raises(FileError, match=r"a\.jpg: is truncated, or not an image"):
        header_of(path)
    with pytest.raises(FileError, match=r"gone\.jpg: No such file"):
        header_of(tmp_path / "gone.jpg")


@pytest.mark.parametrize("name", ["a.png", "a.npy", "a.jpg"])
def test_foreign_and_empty_files_are_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for content in (
        b"",
        b"\xff\xd8\xff a photograph in another format, long enough for a header",
        b"\x93NUMPY\x07\x00",
    ):
        path.write_bytes(content)
        with pytest.raises(FileError, match=f"{name}: "):
            picture_shape(path)
    path.unlink()
    with pytest.raises(FileError, match=f"{name}: No such file"):
        picture_shape(path)


def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_png(tmp_path / "a.png")

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(FileError, match=r"a\.png: Permission denied\."):
        picture_shape(path)
    with pytest.raises(FileError, match=r"a\.png: cannot be read \(Permission denied\)"):
        files_hash([path], [], tmp_path)


def test_small_files_are_hashed_whole_and_large_ones_in_blocks(tmp_path: Path) -> None:
    small = tmp_path / "small.bin"
    small.write_bytes(b"x" * WHOLE)
    assert fingerprint(small) == b"x" * WHOLE
    large = tmp_path / "large.bin"
    content = np.random.RandomState(1).bytes(15 * 10_000 + 4096)
    large.write_bytes(content)
    assert fingerprint(large) == b"".join(content[start : start + 4096] for start in range(0, 150_001, 10_000))
    image = large.rename(tmp_path / "large.png")
    assert fingerprint(image) == content[:4096] + content[-4096:]


def test_one_pixel_of_a_png_changes_its_fingerprint(tmp_path: Path) -> None:
    """Its last bytes hold a checksum of all pixels, so blocks are as good as the whole."""
    path = save_png(tmp_path / "a.png")
    before, size = fingerprint(path), path.stat().st_size
    assert size > WHOLE
    changed = NOISE.copy()
    changed[40, 70, 1] ^= 1
    save_png(path, changed)
    assert fingerprint(path)[-4096:] != before[-4096:]


def test_names_sizes_and_contents_are_in_the_hash(tmp_path: Path) -> None:
    paths = [save_npy(tmp_path / f"{number}.npy") for number in range(3)]
    before = files_hash(paths, [], tmp_path)
    assert files_hash(paths, [], tmp_path) == before
    assert files_hash(paths, [paths[0]], tmp_path) != before
    paths[1].rename(tmp_path / "7.npy")
    assert files_hash([paths[0], tmp_path / "7.npy", paths[2]], [], tmp_path) != before
    (tmp_path / "7.npy").rename(paths[1])
    assert files_hash(paths, [], tmp_path) == before
    save_npy(paths[1], NOISE[::-1])  # the same size
    assert files_hash(paths, [], tmp_path) != before


def test_another_class_map_in_one_file_is_another_data_set(tmp_path: Path) -> None:
    """The second of five samples: three samples and the sizes of all files would not show it."""
    root = write_twin(tmp_path, "cityscapes", "mtan_npy")
    data = registry.load("cityscapes", root, "train", options={"profile": "twin"}).inputs["image"]
    before = data.content_hash()
    path = root / "cityscapes" / "train" / "label_7" / "21.npy"
    label = np.load(path)
    size = path.stat().st_size
    assert (label == 0).any()
    np.save(path, np.where(label == 0, 1, label))
    assert path.stat().st_size == size
    again = registry.load("cityscapes", root, "train", options={"profile": "twin"}).inputs["image"]
    assert again.content_hash() != before
