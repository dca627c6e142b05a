"""Folders of pictures: structure, formats, colours, orientation, and broken files."""

from __future__ import annotations

import inspect
import logging
import os
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mnist_mamba.data.folders import find_pictures, load_folder, picture_size
from mnist_mamba.data.splits import DataError, with_channels


def colours(seed: int = 0, size: tuple[int, int] = (6, 8)) -> Any:
    """Return an RGB image, (height, width, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def write(path: Path, image: Any = None, **options: Any) -> Path:
    """Write an array as a picture, whose kind the name's ending says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(colours() if image is None else image).save(path, **options)
    return path


def write_classes(folder: Path, names: Sequence[str] = ("cat", "dog"), n: int = 4) -> Path:
    """Write n different pictures for each class."""
    for label, name in enumerate(names):
        for i in range(n):
            write(folder / name / f"{i}.png", colours(100 * label + i))
    return folder


def load(folder: Path, size: tuple[int, int] | None = None) -> Any:
    return load_folder(folder, size, test_fraction=0.25)


def only(folder: Path, size: tuple[int, int] | None = None) -> Any:
    """Return the image of the single file of the class `a`."""
    files = find_pictures(folder)
    train, test, _ = load(folder, size or picture_size(files))
    images = np.concatenate([train.images, test.images])
    labels = np.concatenate([train.labels, test.labels])
    return images[labels == 0][0]


def one_picture(folder: Path, name: str, image: Any = None, **options: Any) -> Any:
    """Write copies of a picture as the class `a`, next to a class `b`, and return it as read."""
    for i in range(3):
        path = write(folder / "a" / f"{i}{name}", image, **options)
    with Image.open(path) as picture:
        size = picture.size
    write_classes(folder, ["b"], 3)
    return only(folder, size[::-1])


def test_class_folders_are_split_by_class(tmp_path: Path) -> None:
    train, test, names = load(write_classes(tmp_path, ("dog", "cat")))
    assert names == ("cat", "dog")
    assert (train.images.shape, test.images.shape) == ((6, 6, 8, 3), (2, 6, 8, 3))
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert test.labels.tolist() == [0, 1]
    found = np.concatenate([train.images[:3], test.images[:1]])
    cats = [colours(100 + i) for i in range(4)]
    assert sorted(map(bytes, found)) == sorted(map(bytes, cats))
    again = load(tmp_path)
    np.testing.assert_array_equal(again.test.images, test.images)


def test_train_and_test_folders_are_taken_as_they_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_classes(tmp_path / "train", ("dog", "cat"), 3)
    write_classes(tmp_path / "test", ("cat", "dog"), 1)
    (tmp_path / "README.txt").write_text("text", encoding="utf-8")
    write_classes(tmp_path / "val", ["cat"], 1)
    with caplog.at_level(logging.WARNING):
        train, test, names = load(tmp_path)
    assert (names, train.labels.tolist(), test.labels.tolist()) == (
        ("cat", "dog"),
        [0, 0, 0, 1, 1, 1],
        [0, 1],
    )
    np.testing.assert_array_equal(test.images[0], colours(0))
    (record,) = caplog.records
    assert f"not used: {tmp_path / 'README.txt'}, {tmp_path / 'val'}" in record.message


def test_a_class_may_be_named_train(tmp_path: Path) -> None:
    assert find_pictures(write_classes(tmp_path, ("train", "car"))).class_names == ("car", "train")


def test_files_of_the_system_are_ignored_and_subfolders_are_not(tmp_path: Path) -> None:
    write_classes(tmp_path)
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._0.png"):
        (tmp_path / "cat" / name).write_bytes(b"no picture")
        (tmp_path / name).write_bytes(b"no picture")
    for name in (".git", "__MACOSX"):
        write(tmp_path / name / "x.png")
    write(tmp_path / "cat" / "more" / "deep" / "x.png", colours(7))
    files = find_pictures(tmp_path)
    assert files.class_names == ("cat", "dog")
    assert [path.name for path, label in files.train if label == 0].count("x.png") == 1
    assert len(files.train) == 9


def test_links_to_files_are_followed_and_others_are_named(tmp_path: Path) -> None:
    write_classes(tmp_path / "data")
    outside = write(tmp_path / "outside" / "x.png", colours(9))
    (tmp_path / "data" / "cat" / "link.png").symlink_to(outside)
    (tmp_path / "data" / "owl").symlink_to(write_classes(tmp_path / "other", ["owl"]) / "owl")
    train, test, names = load(tmp_path / "data")
    assert (names, len(train.labels) + len(test.labels)) == (("cat", "dog", "owl"), 13)
    (tmp_path / "data" / "cat" / "loop").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "cat" / "gone.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"2 of 15 files .*cat/gone\.png .*cat/loop"):
        load(tmp_path / "data")


def test_names_are_unicode_in_one_form(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "é")
    write_classes(tmp_path, (decomposed, "猫", "z", "A b"))
    assert find_pictures(tmp_path).class_names == ("A b", "z", "\u00e9", "猫")
    write_classes(tmp_path, ["\u00e9"])
    with pytest.raises(DataError, match="two folders are named \u00e9"):
        find_pictures(tmp_path)


@pytest.mark.parametrize("name", [b"a\nb", b"\xff\xfe", b"a\x7f", b"\xc2\x9b", "é".encode() * 127])
def test_names_that_no_model_file_takes_are_refused(tmp_path: Path, name: bytes) -> None:
    write_classes(tmp_path)
    (tmp_path / "cat").rename(tmp_path / name.decode(errors="surrogateescape"))
    if len(name) == 254:
        assert len(find_pictures(tmp_path).class_names) == 2
        return
    with pytest.raises(
        DataError, match="not a class name, expected UTF-8 without control characters"
    ):
        find_pictures(tmp_path)


def test_unsuitable_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{tmp_path / 'x'}: not a folder"):
        find_pictures(tmp_path / "x")
    write(tmp_path / "flat" / "1.png")
    with pytest.raises(DataError, match=r"got 0 class folders, expected .* 2\.\.256"):
        find_pictures(tmp_path / "flat")
    with pytest.raises(DataError, match="got 1 class folders"):
        find_pictures(write_classes(tmp_path / "one", ["cat"]))
    empty = write_classes(tmp_path / "empty")
    (empty / "owl").mkdir()
    write_classes(empty, ["yak"], 2)
    with pytest.raises(DataError, match=r"too few pictures: owl \(0\), yak \(2\); .* least 3 in"):
        find_pictures(empty)
    write_classes(tmp_path / "no_classes", ("train", "test"))
    with pytest.raises(DataError, match="no_classes: got the folders test, train, expected"):
        find_pictures(tmp_path / "no_classes")
    write_classes(tmp_path / "half" / "train")
    with pytest.raises(DataError, match="train has class folders, but test has none"):
        find_pictures(tmp_path / "half")
    write_classes(tmp_path / "half" / "test", ("cat", "dog", "owl", "yak"))
    with pytest.raises(DataError, match=r"half/test: classes \['owl', 'yak'\] are missing in"):
        find_pictures(tmp_path / "half")


@pytest.mark.parametrize(
    "names", [("Train", "Test"), ("TRAIN", "test"), ("train", "val"), ("test", "Validation")]
)
def test_parts_of_a_data_set_are_not_taken_for_classes(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    for name in names:
        write_classes(tmp_path / name)
    with pytest.raises(DataError, match=r"expected .* \(rename .*val to test\)"):
        find_pictures(tmp_path)


def test_a_folder_around_the_real_one_is_named(tmp_path: Path) -> None:
    write_classes(tmp_path / "photos")
    with pytest.raises(DataError, match=f"set data.folder to {tmp_path / 'photos'}$"):
        find_pictures(tmp_path)


def test_a_pipe_is_refused_and_its_name_does_not_act_on_the_terminal(tmp_path: Path) -> None:
    os.mkfifo(write_classes(tmp_path) / "cat" / "x\x1b[31m.png")
    refused = r"1 of 9 files .*cat/x\\x1b\[31m\.png \(not a regular file\)"
    with pytest.raises(DataError, match=refused):
        find_pictures(tmp_path)


def test_pictures_may_be_in_deep_folders(tmp_path: Path) -> None:
    place = write_classes(tmp_path, n=3) / "cat"
    for _ in range(200):
        place /= "d"
    write(place / "x.png")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 100)
    try:
        assert len(find_pictures(tmp_path).train) == 7
    finally:
        sys.setrecursionlimit(limit)


@pytest.mark.parametrize("n", [256, 257])
def test_a_model_has_up_to_256_classes(tmp_path: Path, n: int) -> None:
    for label in range(n):
        for i in range(3):
            path = tmp_path / str(label) / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            path.touch()
    if n == 256:
        assert len(find_pictures(tmp_path).class_names) == 256
        return
    with pytest.raises(DataError, match=r"got 257 class folders, expected .* 2\.\.256"):
        find_pictures(tmp_path)


@pytest.mark.parametrize("name", [".png", ".webp", ".bmp", ".tif", ".jpg", ".jpeg", ""])
def test_formats_are_known_by_their_content(tmp_path: Path, name: str) -> None:
    options = {".webp": {"lossless": True}, "": {"format": "PNG"}}.get(name, {})
    smooth = np.broadcast_to(np.linspace(0, 255, 8).astype(np.uint8)[:, None], (6, 8, 3))
    found = one_picture(tmp_path, name, np.ascontiguousarray(smooth), **options)
    assert abs(found.astype(int) - smooth).max() <= (6 if name.startswith(".j") else 0)


def test_the_first_frame_of_a_gif_counts(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    found = one_picture(tmp_path, ".gif", save_all=True, append_images=frames)
    with Image.open(tmp_path / "a" / "0.gif") as picture:
        assert picture.n_frames == 3
        np.testing.assert_array_equal(found, np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("ending", ["eps", "pcx"])
@pytest.mark.parametrize("size", [None, (6, 8)])
def test_a_picture_of_another_format_is_refused(
    tmp_path: Path, ending: str, size: tuple[int, int] | None
) -> None:
    write_classes(tmp_path)
    write(tmp_path / "cat" / f"x.{ending}")  # Pillow would run Ghostscript for EPS
    with pytest.raises(DataError, match=rf"1 of 9 files .*cat/x\.{ending} \(unknown format"):
        load(tmp_path, size)


@pytest.mark.parametrize("name", ["x.heic", "x.HEIF"])
def test_heic_is_to_be_converted(tmp_path: Path, name: str) -> None:
    (write_classes(tmp_path) / "cat" / name).write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(DataError, match="convert HEIC to JPEG"):
        load(tmp_path)


def test_all_kinds_of_pixels_become_rgb(tmp_path: Path) -> None:
    image = colours()
    grey = image[..., 0]
    grey_rgb = np.repeat(grey[..., None], 3, axis=2)
    ink = (grey > 127).astype(np.uint8) * 255
    cases = {
        "L": (grey, grey_rgb),
        "1": (ink, np.repeat(ink[..., None], 3, axis=2)),
        "P": (grey, np.repeat((grey // 51 * 51)[..., None], 3, axis=2)),
        "I;16": (grey.astype(np.uint16) * 257, grey_rgb),
        "RGB": (image, image),
    }
    for mode, (pixels, expected) in cases.items():
        picture = Image.fromarray(pixels)
        if mode == "1":
            picture = picture.convert("1")
        if mode == "P":
            picture = Image.fromarray(pixels // 51)
            picture.putpalette([v for i in range(256) for v in [min(51 * i, 255)] * 3])
        assert picture.mode == mode
        for i in range(3):
            path = tmp_path / mode.replace(";", "") / "a" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
        write_classes(path.parents[1], ["b"], 3)
        np.testing.assert_array_equal(only(path.parents[1]), expected, err_msg=mode)


def test_photos_of_digits_are_prepared_as_mnist(tmp_path: Path) -> None:
    for label, side in (("one", 40), ("seven", 90)):
        for i in range(3):
            photo = np.full((side, side + i, 3), 220, np.uint8)
            photo[5:-9, 20 : 20 + 4 + i] = 40  # a dark stroke
            write(tmp_path / label / f"{i}.png", photo)
    train, test, _ = load_folder(tmp_path, (28, 28), 0.25, "mnist")
    images = np.concatenate([train.images, test.images])
    assert images.shape == (6, 28, 28)
    assert (images[:, 0, 0] == 0).all()
    assert (images[:, 14, 12:16].max(axis=1) == 255).all()
    write(tmp_path / "one" / "empty.png", np.full((40, 40), 200, np.uint8))
    with pytest.raises(DataError, match=r"1 of 7 files .*empty\.png \(.*nothing"):
        load_folder(tmp_path, (28, 28), 0.25, "mnist")


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pictures_are_put_on_white_paper(tmp_path: Path, mode: str) -> None:
    image = colours() if mode == "RGBA" else colours()[..., :1]
    alpha = np.full(image.shape[:2], 255, np.uint8)
    alpha[0], alpha[1] = 0, 128
    found = one_picture(tmp_path, ".png", np.dstack([image, alpha]))
    assert (found[0] == 255).all()
    np.testing.assert_array_equal(found[2:], np.broadcast_to(image[2:], (4, 8, 3)))
    mixed = (image[1].astype(float) * 128 + 255 * 127) / 255
    assert abs(found[1] - np.broadcast_to(mixed, (8, 3))).max() <= 1


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_more_bits_than_16_are_refused(tmp_path: Path, dtype: type) -> None:
    write_classes(tmp_path)
    write(tmp_path / "cat" / "x.tif", np.ones((6, 8), dtype))
    with pytest.raises(DataError, match=r"x\.tif \(32 bits per pixel, expected 8 or 16\)"):
        load(tmp_path)


@pytest.mark.parametrize("name", [".jpg", ".png", ".tif"])
def test_pictures_are_turned_upright(tmp_path: Path, name: str) -> None:
    upright = np.zeros((48, 64, 3), np.uint8)
    upright[:24, :32] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    for i in range(3):
        write(tmp_path / "a" / f"{i}{name}", np.rot90(upright).copy(), exif=exif)
        write(tmp_path / "b" / f"{i}.png", upright)
    assert picture_size(find_pictures(tmp_path)) == (48, 64)
    assert abs(only(tmp_path).astype(int) - upright).mean() < 3


def test_pictures_of_different_sizes_need_a_size(tmp_path: Path) -> None:
    write_classes(tmp_path)
    write(tmp_path / "dog" / "large.png", colours(1, (30, 20)))
    with pytest.raises(DataError) as error:
        load(tmp_path)
    message = str(error.value)
    for words in ("6 x 8 (", "30 x 20 (", "dog/large.png)", "set data.resize"):
        assert words in message
    train, *_ = load(tmp_path, (5, 7))
    assert train.images.shape[1:] == (5, 7, 3)


def test_squashed_pictures_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_classes(tmp_path)
    write(tmp_path / "dog" / "tall.png", colours(1, (30, 20)))
    load(tmp_path, (6, 8))
    assert "1 of 9 pictures have sides of another ratio than 6 x 8" in caplog.text
    caplog.clear()
    (tmp_path / "dog" / "tall.png").unlink()
    load(tmp_path, (12, 16))
    assert not caplog.records


def shrunk(image: Any, size: tuple[int, int]) -> Any:
    """Return means of the areas that new pixels cover, by enlarging to a common multiple first."""
    (height, width), (new_height, new_width) = image.shape[:2], size
    fine = image.repeat(new_height, axis=0).repeat(new_width, axis=1).astype(np.float64)
    return fine.reshape(new_height, height, new_width, width, 3).mean(axis=(1, 3))


@pytest.mark.parametrize("size", [(2, 4), (4, 5), (1, 1), (6, 3), (5, 8)])
def test_smaller_images_are_means_of_areas(tmp_path: Path, size: tuple[int, int]) -> None:
    write_classes(tmp_path, ("a", "b"), 3)
    for i in range(3):
        write(tmp_path / "a" / f"{i}.png", colours(0, (6, 8)))
    assert abs(only(tmp_path, size) - shrunk(colours(0, (6, 8)), size)).max() <= 0.5


def test_larger_images_are_interpolated(tmp_path: Path) -> None:
    image = colours(0, (6, 8))
    write_classes(tmp_path, ("a", "b"), 3)
    for i in range(3):
        write(tmp_path / "a" / f"{i}.png", image)
    large, old = only(tmp_path, (6, 16)).astype(float), image.astype(float)
    between = 0.75 * old[:, :-1] + 0.25 * old[:, 1:]
    np.testing.assert_allclose(large[:, 1:-1:2], between, atol=0.5)
    np.testing.assert_allclose(large[:, 0], old[:, 0], atol=0.5)
    flat = np.full((7, 5, 3), 201, np.uint8)
    for i in range(3):
        write(tmp_path / "a" / f"{i}.png", flat)
    for size in ((40, 3), (7, 5), (3, 40)):
        assert (only(tmp_path, size) == 201).all()


def test_a_folder_s_grey_pictures_become_one_channel(tmp_path: Path) -> None:
    for label in "ab":
        for i in range(3):
            grey = np.repeat(colours(i)[..., :1], 3, axis=2)
            write(tmp_path / label / f"{i}.png", grey if i else np.ascontiguousarray(grey[..., 0]))
    train, *_ = load(tmp_path)
    assert with_channels(train.images, "auto").shape == (4, 6, 8)


def test_broken_files_are_counted_and_named(tmp_path: Path) -> None:
    write_classes(tmp_path)
    whole = write(tmp_path / "cat" / "big.png", colours(1, (60, 80))).read_bytes()
    jpeg = write(tmp_path / "cat" / "big.jpg", colours(1, (60, 80))).read_bytes()
    for name in ("big.png", "big.jpg"):
        (tmp_path / "cat" / name).unlink()
    (tmp_path / "cat" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "dog" / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (tmp_path / "dog" / "flipped.png").write_bytes(whole[:40] + b"\0\0\0\0" + whole[44:])
    (tmp_path / "dog" / "empty.png").touch()
    (tmp_path / "dog" / "text.png").write_text("no picture", encoding="utf-8")
    (tmp_path / "dog" / "notes.txt").write_text("no picture", encoding="utf-8")
    with pytest.raises(DataError) as error:
        load(tmp_path, (6, 8))
    message = str(error.value)
    assert "6 of 14 files are not whole pictures" in message
    assert "cat/cut.png (" in message
    assert "and 1 more" in message
    assert "\n" not in message
    with pytest.raises(DataError, match="5 of 14 files are not whole pictures"):
        picture_size(find_pictures(tmp_path))  # a JPEG file's header is enough


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_classes(tmp_path)
    write(tmp_path / "cat" / "bomb.png", np.zeros((100, 101), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    with pytest.raises(DataError, match=r"cat/bomb\.png \(Image size .* exceeds limit"):
        load(tmp_path, (6, 8))
