"""IDX files, sources, splits and augmentation."""

from __future__ import annotations

import dataclasses
import gzip
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from mnist_mamba.config import AugmentConfig
from mnist_mamba.data import idx
from mnist_mamba.data.augment import augment, smooth
from mnist_mamba.data.idx import IdxError, read_images, read_labels, write_idx
from mnist_mamba.data.sources import IDX_NAMES, load_digits, load_idx
from mnist_mamba.data.splits import (
    DataError,
    LabelledImages,
    Splits,
    describe,
    resize,
    split,
    with_channels,
)
from mnist_mamba.engine.format import read_model
from mnist_mamba.training.checkpoint import load_checkpoint


def make_data(n: int = 60, n_classes: int = 3, size: tuple[int, int] = (5, 7)) -> LabelledImages:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (n, *size), dtype=np.uint8)
    return LabelledImages(images, (np.arange(n) % n_classes).astype(np.uint8))


def write_folder(folder: Path, train: LabelledImages, test: LabelledImages) -> None:
    """Write the four IDX files of a data set."""
    folder.mkdir(exist_ok=True)
    write_idx(folder / IDX_NAMES["train_images"], train.images)
    write_idx(folder / IDX_NAMES["train_labels"], train.labels)
    write_idx(folder / IDX_NAMES["test_images"], test.images)
    write_idx(folder / IDX_NAMES["test_labels"], test.labels)


SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9))


@given(
    images=hnp.arrays(
        np.uint8, SHAPES | st.builds(lambda shape, c: (*shape, c), SHAPES, st.integers(2, 4))
    ),
    packed=st.booleans(),
)
def test_idx_round_trip(
    tmp_path_factory: pytest.TempPathFactory, images: np.ndarray, packed: bool
) -> None:
    path = tmp_path_factory.mktemp("idx") / "images"
    write_idx(path, images)
    if packed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    np.testing.assert_array_equal(read_images(path), images)


GOOD = bytes((0, 0, 8, 3)) + struct.pack(">3I", 1, 2, 2) + b"abcd"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "got 0 bytes, expected an IDX header of 16"),
        (GOOD[:15], "got 15 bytes"),
        (GOOD[:-1], "got 19 bytes, expected 20 for 1 x 2 x 2"),
        (GOOD + b"e", "got more than 20 bytes, expected 20"),
        (gzip.compress(GOOD + b"ef", mtime=0), "got more than 20 bytes, expected 20"),
        (gzip.compress(GOOD[:-2], mtime=0), "got 18 bytes, expected 20"),
        (bytes((0, 0, 8, 1)) + GOOD[4:], "magic: got 00 00 08 01, expected 00 00 08 03"),
        (bytes((0, 0, 13, 3)) + GOOD[4:], "magic: got 00 00 0d 03"),
        (bytes((0, 0, 8, 5)) + GOOD[4:], "unsigned bytes, 3 or 4 dims"),
        (bytes((0, 0, 8, 4)) + GOOD[4:16], "got 16 bytes, expected an IDX header of 20"),
        (
            bytes((0, 0, 8, 4)) + struct.pack(">4I", 1, 3, 2, 5) + bytes(30),
            "dims: got 1 x 3 x 2 x 5, expected 1 to 4 channels as the last",
        ),
        *(
            (bytes((0, 0, 8, 3)) + struct.pack(">3I", *dims), "expected none to be 0")
            for dims in ((0, 2, 2), (2, 0, 2), (2, 2, 0))
        ),
        (bytes((0, 0, 8, 3)) + b"\xff" * 12, "expected 79228162458924105385300197391"),
        (gzip.compress(GOOD, mtime=0)[:-4], "damaged gzip"),
    ],
)
def test_damaged_idx_is_refused_by_name(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "images"
    path.write_bytes(data)
    with pytest.raises(IdxError) as error:
        read_images(path)
    assert str(path) in str(error.value)
    assert message in str(error.value)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no FIFOs")
def test_an_idx_file_that_is_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(path := tmp_path / "images")
    with pytest.raises(IdxError, match="images: not a regular file"):
        read_images(path)


def test_an_idx_file_with_one_channel_is_grey(tmp_path: Path) -> None:
    images = make_data(3).images
    write_idx(tmp_path / "images", images[..., None])
    np.testing.assert_array_equal(read_images(tmp_path / "images"), images)


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ([[1, 2]], TypeError, "got list, expected a numpy array of dtype uint8"),
        (None, TypeError, "got NoneType"),
        (np.zeros(3), TypeError, "got float64, expected a numpy array of dtype uint8"),
        (np.zeros((2, 3), np.uint8), ValueError, r"got 2, expected 1 \(labels\), 3"),
        (np.array(7, np.uint8), ValueError, "got 0, expected 1"),
        (np.zeros((2, 3, 4, 5), np.uint8), ValueError, "2 x 3 x 4 x 5, expected 1 to 4 channels"),
        (np.zeros((0, 3, 4), np.uint8), ValueError, "0 x 3 x 4, expected none to be 0"),
    ],
)
def test_write_idx_refuses_what_no_reader_takes(
    tmp_path: Path, values: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        write_idx(tmp_path / "file", values)
    assert not list(tmp_path.iterdir())


def packed_zeros(path: Path, dims: tuple[int, int, int], size: int) -> None:
    """Write a gzip file of an IDX header and zeros, `size` bytes in all."""
    with gzip.open(path, "wb") as file:
        file.write(bytes((0, 0, 8, 3)) + struct.pack(">3I", *dims))
        for _ in range(size // 2**20):
            file.write(bytes(2**20))


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ((1, 2, 2), "got more than 20 bytes, expected 20 for 1 x 2 x 2"),
        ((2**20, 2**5, 2**5), f"is {2**30 + 16} bytes, expected up to {2**30} of a gzip file"),
        ((2**32 - 1, 4096, 4096), f"expected up to {2**30} of a gzip file: unpack it with gunzip"),
    ],
)
def test_a_small_gzip_file_takes_little_memory(
    tmp_path: Path, dims: tuple[int, int, int], message: str
) -> None:
    path = tmp_path / "images"
    packed_zeros(path, dims, 2**26)
    assert path.stat().st_size < 2**17
    tracemalloc.start()
    try:
        with pytest.raises(IdxError, match=message):
            read_images(path)
        assert tracemalloc.get_traced_memory()[1] < 2**21
    finally:
        tracemalloc.stop()


def test_the_largest_gzip_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, size = tmp_path / "images", 16 + 2**20
    packed_zeros(path, (2**10, 2**5, 2**5), size)
    monkeypatch.setattr(idx, "MAX_UNPACKED", size)
    images = read_images(path)
    assert (images.shape, images.any()) == ((2**10, 2**5, 2**5), False)
    images += 1  # callers may change them
    monkeypatch.setattr(idx, "MAX_UNPACKED", size - 1)
    with pytest.raises(IdxError, match=f"expected up to {size - 1}"):
        read_images(path)


@pytest.mark.parametrize("read", [read_images, read_labels, load_checkpoint, read_model])
def test_a_path_with_a_nul_character_opens_no_other_file(
    tmp_path: Path, read: Callable[[Path], object]
) -> None:
    (tmp_path / "file").write_bytes(GOOD)
    with pytest.raises(ValueError, match=r"null (byte|character)|not found"):
        read(tmp_path / "file\0.idx")


def test_load_idx_reads_a_folder_with_and_without_gzip(tmp_path: Path) -> None:
    train, test = make_data(30), make_data(9)
    write_folder(tmp_path, train, test)
    labels = tmp_path / IDX_NAMES["test_labels"]
    (tmp_path / f"{labels.name}.gz").write_bytes(gzip.compress(labels.read_bytes()))
    labels.unlink()
    loaded = load_idx(tmp_path)
    np.testing.assert_array_equal(loaded[0].images, train.images)
    np.testing.assert_array_equal(loaded[1].labels, test.labels)


@pytest.mark.parametrize(("part", "n"), [("train", 30), ("test", 9)])
@pytest.mark.parametrize("more", [-1, 1])
def test_load_idx_names_differing_counts(tmp_path: Path, part: str, n: int, more: int) -> None:
    write_folder(tmp_path, make_data(30), make_data(9))
    write_idx(tmp_path / IDX_NAMES[f"{part}_labels"], np.zeros(n + more, np.uint8))
    with pytest.raises(DataError, match=f"{n} {part} images but {n + more} labels"):
        load_idx(tmp_path)


def test_load_idx_names_a_missing_file(tmp_path: Path) -> None:
    write_folder(tmp_path, make_data(30), make_data(9))
    (tmp_path / IDX_NAMES["train_labels"]).unlink()
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte .* not found"):
        load_idx(tmp_path)


def test_load_digits_gives_all_digits_in_a_fixed_split() -> None:
    train, test = load_digits()
    assert (len(train.images), len(test.images)) == (1438, 359)
    assert train.images.shape[1:] == (8, 8)
    assert train.images.max() == 255
    again = load_digits()
    np.testing.assert_array_equal(test.images, again[1].images)
    assert set(test.labels.tolist()) == set(range(10))


def test_resize_keeps_the_same_size_and_flat_images() -> None:
    images = make_data(4).images
    assert resize(images, (5, 7)) is images
    flat = np.full((2, 8, 8), 200, np.uint8)
    np.testing.assert_array_equal(resize(flat, (28, 20)), np.full((2, 28, 20), 200))


@pytest.mark.parametrize("size", [(28, 20), (5, 9), (14, 11)])
def test_resize_is_pillow_s_bicubic_with_antialiasing(size: tuple[int, int]) -> None:
    images = make_data(3, size=(12, 15)).images
    images[0] = 255 * (np.add.outer(np.arange(12), np.arange(15)) // 4 % 2)  # overshoots
    for resized, image in zip(resize(images, size), images, strict=True):
        floats = Image.fromarray(image.astype(np.float32))
        pillow = np.asarray(floats.resize(size[::-1], Image.Resampling.BICUBIC))
        assert np.abs(resized - pillow.clip(0, 255)).max() <= 0.51


def test_resize_resamples_each_channel() -> None:
    images = make_data(4, size=(12, 15)).images
    planes = [images, images[::-1].copy(), images[:, ::-1].copy()]
    colour = resize(np.stack(planes, axis=3), (5, 9))
    for channel, plane in enumerate(planes):
        np.testing.assert_array_equal(colour[..., channel], resize(plane, (5, 9)))


def test_colours_become_grey_and_grey_becomes_colours() -> None:
    grey = make_data(4).images
    colour = np.random.default_rng(0).integers(0, 256, (4, 5, 7, 3), dtype=np.uint8)
    same = np.repeat(grey[..., None], 3, axis=3)
    for wanted in ("auto", 1):
        np.testing.assert_array_equal(with_channels(grey, wanted), grey)
        np.testing.assert_array_equal(with_channels(same, wanted), grey)
    for images in (grey, same):
        np.testing.assert_array_equal(with_channels(images, 3), same)
    for wanted in ("auto", 3):
        assert with_channels(colour, wanted) is colour
    for image, found in zip(colour, with_channels(colour, 1), strict=True):
        np.testing.assert_array_equal(found, np.asarray(Image.fromarray(image).convert("L")))
    one_pixel = same.copy()
    one_pixel[3, 4, 6, 2] ^= 1
    assert with_channels(one_pixel, "auto") is one_pixel
    for channels in (2, 4):
        other = np.zeros((2, 5, 7, channels), np.uint8)
        assert with_channels(other, "auto") is other
        with pytest.raises(DataError, match=rf"{channels} channels, .* data\.channels = 3"):
            with_channels(other, 3)


def test_resize_keeps_the_order_of_many_images() -> None:
    levels = (np.arange(9000) % 251).astype(np.uint8)
    flat = np.broadcast_to(levels[:, None, None], (9000, 2, 2))
    resized = resize(np.ascontiguousarray(flat), (3, 3))
    np.testing.assert_array_equal(resized, np.broadcast_to(levels[:, None, None], (9000, 3, 3)))


@given(fraction=st.floats(0.01, 0.99), seed=st.integers(0, 5))
def test_split_is_a_stratified_partition(fraction: float, seed: int) -> None:
    data = make_data(60)
    data = data._replace(images=np.arange(60, dtype=np.uint8).reshape(60, 1, 1))
    rest, held = split(data, fraction, seed)
    everything = np.concatenate([rest.images, held.images]).ravel()
    assert sorted(everything.tolist()) == list(range(60))
    counts = np.bincount(held.labels, minlength=3)
    assert counts.min() == counts.max() == min(max(1, round(fraction * 20)), 19)
    np.testing.assert_array_equal(split(data, fraction, seed)[1].images, held.images)


def test_the_seed_chooses_the_images_that_are_held_out() -> None:
    data = make_data(60)
    chosen = [[image.tobytes() for image in split(data, 0.2, seed)[1].images] for seed in range(4)]
    assert len({tuple(images) for images in chosen}) == 4
    first = [image.tobytes() for image in data.images[:12]]  # the first of each class
    assert all(images != first for images in chosen)


def test_joined_images_keep_their_order_and_labels() -> None:
    train, val = make_data(5, 5), make_data(3, 3)
    both = train.joined(val)
    np.testing.assert_array_equal(both.images[:5], train.images)
    np.testing.assert_array_equal(both.images[5:], val.images)
    assert both.labels.tolist() == [0, 1, 2, 3, 4, 0, 1, 2]


def test_a_class_with_one_image_cannot_be_split() -> None:
    data = make_data(10, 3)
    lonely = data._replace(labels=np.array([0] * 9 + [2], np.uint8))
    with pytest.raises(DataError, match="class 2 has 1 image"):
        split(lonely, 0.5, 0)


def test_describe_counts_and_measures_the_training_pixels() -> None:
    train, val, test = make_data(60), make_data(30), make_data(9)
    info = describe(Splits(train, val, test))
    assert (info["height"], info["width"], info["n_classes"]) == (5, 7, 3)
    for name, n in (("train", 60), ("val", 30), ("test", 9)):
        assert info["splits"][name] == {"n": n, "per_class": [n // 3] * 3}
    assert info["pixel_mean"] == pytest.approx(train.images.mean() / 255, abs=1e-6)
    assert info["pixel_std"] == pytest.approx(train.images.std() / 255, abs=1e-6)


def test_describe_has_names_channels_and_the_preparation() -> None:
    data = make_data(60)
    info = describe(Splits(data, data, data))
    assert (info["class_names"], info["channels"]) == (["0", "1", "2"], 1)
    assert info["preparation"] == "resize"
    colour = data._replace(images=np.repeat(data.images[..., None], 3, axis=3))
    named = describe(Splits(colour, colour, colour), ("a", "b", "c", "d"), "mnist")
    assert (named["class_names"], named["n_classes"]) == (["a", "b", "c", "d"], 4)
    assert (named["channels"], named["preparation"]) == (3, "mnist")
    assert named["splits"]["train"]["per_class"] == [20, 20, 20, 0]
    for key in ("pixel_mean", "pixel_std", "height", "width"):
        assert named[key] == info[key]
    fourth = data._replace(labels=np.full(60, 3, np.uint8))
    with pytest.raises(DataError, match=r"test split has labels \['d'\], which"):
        describe(Splits(data, data, fourth), ("a", "b", "c", "d"))


def test_describe_refuses_what_cannot_be_learned() -> None:
    train, other = make_data(60), make_data(9, 4)
    with pytest.raises(DataError, match=r"test split has labels \[3\]"):
        describe(Splits(train, train, other))
    with pytest.raises(DataError, match=r"val split has labels \[3\]"):
        describe(Splits(train, other, train))
    for size in ((5, 8), (6, 7)):
        wrong = make_data(9, 3, size)
        for splits in (Splits(train, train, wrong), Splits(train, wrong, train)):
            with pytest.raises(DataError, match="image sizes differ"):
                describe(splits)
    one_class = make_data(60, 1)
    for label in (0, 7):
        same = one_class._replace(labels=np.full(60, label, np.uint8))
        with pytest.raises(DataError, match=rf"only the labels \[{label}\], expected at least 2"):
            describe(Splits(same, same, same))
    # A class between others may have no images.
    gap = make_data(9)._replace(labels=np.array([0, 0, 0, 2, 2, 2, 0, 2, 2], np.uint8))
    info = describe(Splits(gap, gap, gap))
    assert (info["n_classes"], info["splits"]["train"]["per_class"]) == (3, [4, 0, 5])
    black = train._replace(images=np.zeros_like(train.images))
    with pytest.raises(DataError, match=r"pixels hardly differ: .* is 0\.0, expected a number in"):
        describe(Splits(black, train, train))


def test_describe_refuses_a_standard_deviation_that_rounds_to_0() -> None:
    """One pixel of 70 million differs: models need at least 1e-6."""
    images = np.zeros((70_000, 32, 32), np.uint8)
    images[0, 0, 0] = 1
    train = LabelledImages(images, (np.arange(70_000) % 2).astype(np.uint8))
    with pytest.raises(DataError, match=r"pixels hardly differ: .* is 0\.0, expected a number in"):
        describe(Splits(train, train, train))


def blob(height: int = 20, width: int = 30) -> torch.Tensor:
    """Return one soft dot, to the right of the centre and above it."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.exp(-((x - 20.0) ** 2 + (y - 7.0) ** 2) / 8)[None]


def centre(image: torch.Tensor) -> tuple[float, float]:
    """Return the column and row of an image's centre of mass."""
    y, x = torch.meshgrid(*(torch.arange(n) for n in image.shape), indexing="ij")
    return float((image * x).sum() / image.sum()), float((image * y).sum() / image.sum())


NOTHING = AugmentConfig(rotate=0, scale=0, shear=0, shift=0)


def test_augment_with_no_changes_is_the_identity() -> None:
    images = blob()
    assert augment(images, NOTHING, torch.Generator()) is images
    tiny = AugmentConfig(rotate=1e-9, scale=0, shear=0, shift=0)
    torch.testing.assert_close(augment(images, tiny, torch.Generator()), images, atol=1e-5, rtol=0)


def test_all_channels_of_an_image_are_mapped_alike() -> None:
    grey = torch.rand(6, 9, 12, generator=torch.Generator().manual_seed(1))
    colour = torch.stack([grey, grey.flip(0), grey], dim=3)
    config = AugmentConfig(elastic=0.05)
    mapped = augment(colour, config, torch.Generator().manual_seed(2))
    assert mapped.shape == colour.shape
    for channel in range(3):
        alone = augment(colour[..., channel], config, torch.Generator().manual_seed(2))
        torch.testing.assert_close(mapped[..., channel], alone, rtol=0, atol=1e-6)


KNOBS = {"rotate": 40.0, "scale": 0.5, "shear": 35.0, "shift": 0.1}


def affine_maps(config: AugmentConfig, n: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """Return maps (n, 2, 2) and shifts (n, 2) of `augment`, as x and y in pixels.

    A pixel of images whose values are their own x and y becomes its source in the image. The pixels
    around the centre come from inside the image, where the maps are affine.
    """
    y, x = torch.meshgrid(torch.arange(60.0) - 29.5, torch.arange(90.0) - 44.5, indexing="ij")
    ramps = torch.stack([x, y]).double()
    found = torch.stack(
        [
            augment(ramp.expand(n, -1, -1), config, torch.Generator().manual_seed(7))
            for ramp in ramps
        ],
        dim=-1,
    )
    inner = (slice(26, 34), slice(40, 50))
    places = torch.stack([x, y, torch.ones_like(x)], dim=-1)[inner].flatten(0, 1).double()
    fitted = torch.linalg.pinv(places) @ found[:, *inner].flatten(1, 2)
    torch.testing.assert_close(places @ fitted, found[:, *inner].flatten(1, 2))
    return fitted[:, :2].transpose(1, 2), fitted[:, 2]


def only(*names: str) -> AugmentConfig:
    """Return a config of these knobs alone."""
    return AugmentConfig(**{name: KNOBS[name] if name in names else 0 for name in KNOBS})


def assert_uniform(values: torch.Tensor, limit: float, error: float = 1e-6) -> None:
    """Check that values, known up to a relative error, spread evenly from -limit to limit."""
    assert limit * 0.97 <= values.abs().max() <= limit * (1 + error)
    quarters = torch.histc(values.float(), bins=4, min=-limit, max=limit) / len(values)
    assert (quarters - 0.25).abs().max() < 0.06


def test_rotate_alone_turns_to_both_sides_up_to_its_degrees() -> None:
    maps, shifts = affine_maps(only("rotate"))
    angles = torch.atan2(maps[:, 1, 0], maps[:, 0, 0])
    assert_uniform(torch.rad2deg(angles), 40)
    turns = torch.stack([angles.cos(), -angles.sin(), angles.sin(), angles.cos()], dim=1)
    torch.testing.assert_close(maps, turns.view(-1, 2, 2))
    torch.testing.assert_close(shifts, torch.zeros_like(shifts))


def test_scale_alone_changes_the_size_up_and_down_by_its_fraction() -> None:
    maps, shifts = affine_maps(only("scale"))
    assert_uniform(1 / maps[:, 0, 0] - 1, 0.5)
    torch.testing.assert_close(maps, maps[:, :1, :1] * torch.eye(2, dtype=maps.dtype))
    torch.testing.assert_close(shifts, torch.zeros_like(shifts))


def test_shear_alone_shifts_rows_to_both_sides_up_to_its_degrees() -> None:
    maps, shifts = affine_maps(only("shear"))
    assert_uniform(torch.rad2deg(torch.atan(maps[:, 0, 1])), 35)
    maps[:, 0, 1] = 0
    torch.testing.assert_close(maps, torch.eye(2, dtype=maps.dtype).expand_as(maps))
    torch.testing.assert_close(shifts, torch.zeros_like(shifts))


def test_shift_alone_moves_along_both_sides_up_to_its_fraction_of_each() -> None:
    maps, shifts = affine_maps(only("shift"))
    assert_uniform(shifts[:, 0], 9)
    assert_uniform(shifts[:, 1], 6)
    torch.testing.assert_close(maps, torch.eye(2, dtype=maps.dtype).expand_as(maps))


def test_all_changes_together_are_those_of_each_alone_drawn_independently() -> None:
    """Source = rotation (scale (shear (pixel))) + shift, with the numbers that each alone draws."""
    (turns, _), (sizes, _), (shears, _), (_, shifts) = (affine_maps(only(name)) for name in KNOBS)
    maps, moved = affine_maps(only(*KNOBS))
    torch.testing.assert_close(maps, turns @ sizes @ shears)
    torch.testing.assert_close(moved, shifts)
    draws = torch.stack([turns[:, 1, 0], sizes[:, 0, 0], shears[:, 0, 1], *shifts.T])
    correlations = torch.corrcoef(draws) - torch.eye(5)
    assert correlations.abs().max() < 0.2


@pytest.mark.parametrize("paper", [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.2, 0.9, 0.5)])
def test_an_image_s_surroundings_are_as_its_border_even_if_a_stroke_reaches_it(
    paper: tuple[float, float, float],
) -> None:
    """Dark digits on white paper would get black corners, which no picture has."""
    images = torch.tensor(paper).expand(50, 20, 30, 3).clone()
    images[:, 5:, 12:16] = 0.4
    generator = torch.Generator().manual_seed(0)
    mapped = augment(images, only("rotate", "shift", "scale"), generator)
    low, high = (
        extreme(torch.tensor([*zip(paper, 3 * [0.4], strict=True)]), 1).values
        for extreme in (torch.min, torch.max)
    )
    assert (mapped >= low - 1e-6).all()
    assert (mapped <= high + 1e-6).all()
    corner = mapped[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    torch.testing.assert_close(corner, torch.tensor(paper).expand_as(corner))


@pytest.mark.parametrize("scale", [0.05, 0.2])
def test_elastic_maps_are_as_smooth_as_their_scale(scale: float) -> None:
    """A pixel's own shift is correlated with that of a pixel at distance d by exp(-d^2 / 4 s^2)."""
    n, config = (
        2000,
        AugmentConfig(rotate=0, scale=0, shear=0, shift=0, elastic=0.02, elastic_scale=scale),
    )
    ramp = torch.arange(60.0).expand(n, 8, -1)
    shifts = (
        augment(ramp, config, torch.Generator().manual_seed(0))[:, 4, 24:34] - ramp[:, 4, 24:34]
    )
    assert float(shifts.std()) == pytest.approx(0.02 * 60, rel=0.05)
    assert float(shifts.mean()) == pytest.approx(0, abs=0.05)
    for distance in (3, 9):
        got = torch.corrcoef(shifts[:, [0, distance]].T)[0, 1]
        expected = np.exp(-((distance / 60) ** 2) / (4 * scale**2))
        assert float(got) == pytest.approx(expected, abs=0.08)


def test_augment_depends_only_on_its_generator() -> None:
    images = make_data(8, size=(9, 9)).images
    pixels = torch.from_numpy(images).float() / 255
    a, b = (augment(pixels, AugmentConfig(), torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(a, b)
    assert not torch.equal(a, augment(pixels, AugmentConfig(), torch.Generator().manual_seed(8)))


def test_elastic_shifts_have_unit_deviation_and_a_gaussian_correlation() -> None:
    noise = torch.randn(4000, 2, 11, 11, generator=torch.Generator().manual_seed(0))
    shifts = smooth(noise, 20, 30, scale=0.1)
    assert shifts.shape == (4000, 20, 30, 2)
    torch.testing.assert_close(shifts.std(dim=0), torch.ones(20, 30, 2), atol=0.06, rtol=0)
    assert shifts.mean(dim=0).abs().max() < 0.08
    # Noise smoothed by a Gaussian has the correlation exp(-d^2 / 4 s^2) at distance d.
    x = shifts[:, 9, :, 0]
    for distance in (1, 3, 6):
        got = (x[:, 10] * x[:, 10 + distance]).mean()
        expected = np.exp(-((distance / 30) ** 2) / (4 * 0.1**2))
        assert abs(float(got) - expected) < 0.06


def test_elastic_maps_move_pixels_by_their_standard_deviation() -> None:
    config = AugmentConfig(rotate=0, scale=0, shear=0, shift=0, elastic=0.05, elastic_scale=0.5)
    images = blob().expand(500, -1, -1)
    x0, y0 = centre(images[0])
    mapped = augment(images, config, torch.Generator().manual_seed(0))
    moves = torch.tensor([centre(image) for image in mapped]) - torch.tensor([x0, y0])
    # Such a smooth map shifts the small blob as a whole: 0.05 of 30 columns and of 20 rows.
    torch.testing.assert_close(moves.std(dim=0), torch.tensor([1.5, 1.0]), rtol=0.15, atol=0)


@pytest.mark.parametrize(("elastic", "corrupt"), [(0.0, 0.0), (0.04, 0.0), (0.0, 1.0), (0.04, 0.7)])
def test_augment_changes_a_share_as_in_the_whole_batch(elastic: float, corrupt: float) -> None:
    config = AugmentConfig(elastic=elastic, corrupt=corrupt)
    pixels = torch.from_numpy(make_data(11, size=(9, 12)).images).float() / 255
    whole = augment(pixels, config, torch.Generator().manual_seed(3))
    for share in (slice(0, 6), slice(6, 11), slice(11, 11)):
        generator = torch.Generator().manual_seed(3)
        mapped = augment(pixels[share], config, generator, share, batch=11)
        torch.testing.assert_close(mapped, whole[share], atol=1e-6, rtol=0)


CORRUPTIONS = ("noise", "blur", "contrast", "background", "thickness")


def corrupted(images: torch.Tensor, corrupt: float = 1.0, **sizes: float) -> torch.Tensor:
    """Return images with these corruptions alone, and no maps."""
    config = AugmentConfig(
        rotate=0,
        scale=0,
        shear=0,
        shift=0,
        corrupt=corrupt,
        **{**dict.fromkeys(CORRUPTIONS, 0.0), **sizes},
    )
    return augment(images, config, torch.Generator().manual_seed(4))


def grey(value: float, n: int = 600) -> torch.Tensor:
    """Return n images of 20 x 30 in one grey."""
    return torch.full((n, 20, 30), value)


def bar(n: int = 1) -> torch.Tensor:
    """Return n images of 20 x 40 with a bright bar of 6 columns from top to bottom."""
    images = torch.zeros(n, 20, 40)
    images[:, :, 17:23] = 1
    return images


def test_noise_has_a_deviation_up_to_its_size_and_stays_between_black_and_white() -> None:
    noisy = corrupted(torch.full((600, 60, 90), 0.5), noise=0.1)
    deviations = noisy.flatten(1).std(dim=1)
    assert_uniform(deviations * 2 - 0.1, 0.1, error=0.05)
    assert float(noisy.mean()) == pytest.approx(0.5, abs=1e-3)
    normal = (noisy - 0.5) / deviations[:, None, None]
    assert float((normal**4).mean()) == pytest.approx(3, abs=0.1)  # as of a Gaussian
    neighbours = torch.stack([normal[:, :, 0].flatten(), normal[:, :, 1].flatten()])
    assert abs(float(torch.corrcoef(neighbours)[0, 1])) < 0.03
    ends = corrupted(grey(0.1), noise=1.0)
    assert (float(ends.min()), float(ends.max())) == (0, 1)


def test_noise_differs_from_channel_to_channel() -> None:
    noisy = corrupted(torch.full((4, 30, 30, 3), 0.5), noise=0.1).reshape(-1, 3)
    assert (torch.corrcoef(noisy.T) - torch.eye(3)).abs().max() < 0.1


def test_blur_adds_a_variance_up_to_its_size_of_each_side() -> None:
    images = torch.zeros(600, 61, 121)
    images[:, 30, 60] = 1
    blurred = corrupted(images, blur=0.05)
    torch.testing.assert_close(blurred.sum(dim=(1, 2)), torch.ones(600))
    for axis, side in ((2, 61), (1, 121)):
        places = torch.arange(float(side)) - side // 2
        deviations = (blurred.sum(dim=axis) @ places**2).sqrt() / side
        wide = deviations[deviations > 0.01]  # a Gaussian narrower than a pixel is cut off
        assert_uniform(wide * 2 - 0.06, 0.04)
    torch.testing.assert_close(corrupted(grey(0.3), blur=0.1), grey(0.3))


def test_contrast_fades_towards_any_grey_by_up_to_its_size() -> None:
    ramp = torch.linspace(0, 1, 30).expand(600, 20, 30)
    faded = corrupted(ramp, contrast=0.6)
    kept = faded[:, 0, -1] - faded[:, 0, 0]
    assert_uniform((1 - kept) * 2 - 0.6, 0.6)
    torch.testing.assert_close(faded, faded[:, :1, :1] + kept[:, None, None] * ramp)
    some = kept < 0.9
    assert_uniform((faded[:, 0, 0] / (1 - kept))[some] * 2 - 1, 1)


def test_background_is_a_light_from_any_side() -> None:
    lit = corrupted(grey(0.0), background=0.8).double()
    assert lit.min() >= 0
    corners = torch.stack([lit[:, 0, 0], lit[:, 0, -1], lit[:, -1, 0], lit[:, -1, -1]])
    strength = 2 * corners.mean(dim=0)  # the light is 1/2 in the middle
    assert_uniform(strength * 2 - 0.8, 0.8)
    slopes = torch.stack([lit[:, 0, -1] - lit[:, 0, 0], lit[:, -1, 0] - lit[:, 0, 0]], dim=1)
    lengths = slopes.norm(dim=1) / strength
    torch.testing.assert_close(lengths, torch.full_like(lengths, 0.5**0.5))
    angles = torch.atan2(slopes[:, 1], slopes[:, 0])
    assert_uniform(angles, np.pi)
    # a linear ramp
    torch.testing.assert_close(
        lit.diff(n=2, dim=2), torch.zeros(600, 20, 28).double(), rtol=0, atol=1e-6
    )
    white = corrupted(grey(1.0), background=0.8)
    torch.testing.assert_close(1 - white.double(), lit.flip(1, 2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("paper", [0.0, 1.0])
def test_thickness_moves_both_edges_of_a_stroke_to_either_side(paper: float) -> None:
    images = (bar(600) - paper).abs()
    changed = corrupted(images, thickness=0.1)  # of 20 rows: up to 2 pixels
    widths = (changed - paper).abs()[:, 10].sum(dim=1)
    assert_uniform(widths - 6, 4)
    torch.testing.assert_close(changed, changed.flip(2))
    torch.testing.assert_close(changed, changed[:, :1].expand_as(changed))


def test_a_fraction_of_the_images_has_one_corruption_each_equally_often() -> None:
    """The bar tells them apart: each leaves something that no other one does."""
    images = bar(4000)
    changed = corrupted(
        images, 0.4, noise=0.2, blur=0.1, contrast=0.5, background=0.5, thickness=0.1
    )
    touched = (changed != images).any(dim=(1, 2))
    rows_differ = (changed.diff(dim=1).abs() > 1e-5).any(dim=(1, 2))
    middle, edge = changed[:, 10, 20], changed[:, 10, 0]
    noise = touched & (changed[:, :, 0].std(dim=1) > 0) & (changed == 0).any(dim=(1, 2))
    background = rows_differ & ~noise
    contrast = touched & ~rows_differ & (edge > 1e-3)
    soft = touched & ~rows_differ & (edge <= 1e-3)
    thickness = soft & (middle == 1) & (((changed > 0) & (changed < 1)).sum(dim=(1, 2)) == 40)
    found = torch.stack([noise, background, contrast, thickness, soft & ~thickness])
    assert (found.sum(dim=0) == touched).all()
    shares = found.float().mean(dim=1)
    assert (shares - 0.08).abs().max() < 0.015


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(9, 12), (1, 1), (28, 28, 1), (5, 7, 3), (6, 6, 4)])
def test_corruptions_suit_every_shape(name: str, shape: tuple[int, ...]) -> None:
    images = torch.rand(40, *shape, generator=torch.Generator().manual_seed(1))
    before = images.clone()
    changed = corrupted(images, **{name: 0.3})
    assert (changed.shape, changed.dtype) == (images.shape, images.dtype)
    assert changed.isfinite().all()
    assert changed.min() >= 0
    assert changed.max() <= 1 + 1e-6
    assert torch.equal(images, before)
    if shape == (9, 12):
        assert not torch.equal(changed, images)


@pytest.mark.parametrize("name", ["blur", "contrast", "background", "thickness"])
def test_each_channel_is_corrupted_like_a_grey_image(name: str) -> None:
    images = torch.rand(20, 9, 12, 3, generator=torch.Generator().manual_seed(1))
    changed = corrupted(images, **{name: 0.3})
    for channel in range(3):
        alone = corrupted(images[..., channel], **{name: 0.3})
        torch.testing.assert_close(changed[..., channel], alone)


@pytest.mark.parametrize(
    "off", [{"corrupt": 0.0}, {"corrupt": 1.0, **dict.fromkeys(CORRUPTIONS, 0.0)}]
)
def test_corruptions_that_are_off_draw_no_numbers(off: dict[str, float]) -> None:
    """A training without them keeps its bits: the same images, the same stream of numbers."""
    images, plain, config = blob(), AugmentConfig(elastic=0.03), AugmentConfig(elastic=0.03, **off)
    one, two = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    expected = augment(images, dataclasses.replace(plain, corrupt=0.0), one)
    assert torch.equal(augment(images, config, two), expected)
    assert torch.equal(one.get_state(), two.get_state())
    assert torch.equal(corrupted(images, 0.0, noise=0.4), images)


def test_read_images_refuses_labels_and_write_idx_refuses_floats(tmp_path: Path) -> None:
    write_idx(tmp_path / "labels", np.arange(9, dtype=np.uint8))
    np.testing.assert_array_equal(read_labels(tmp_path / "labels"), np.arange(9))
    with pytest.raises(IdxError, match="magic"):
        read_images(tmp_path / "labels")
    with pytest.raises(TypeError, match="float32"):
        write_idx(tmp_path / "labels", np.zeros(3, np.float32))  # type: ignore[arg-type]
