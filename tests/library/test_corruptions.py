"""Corruptions: their strength, and that they are deterministic."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from mnist_mamba.data.corruptions import CORRUPTIONS, blur, invert, noise, rotate, scale, shift
from mnist_mamba.data.idx import Bytes


def dots(n: int, row: int, column: int) -> Bytes:
    """Return n images of 20 x 40 with a bright square of 3 x 3 around a pixel."""
    images = np.zeros((n, 20, 40), np.uint8)
    images[:, row - 1 : row + 2, column - 1 : column + 2] = 200
    return images


def centres(images: Bytes) -> NDArray[np.float64]:
    """Return (n, 2): row and column of each image's centre of mass."""
    weights = images.astype(np.float64)
    rows, columns = np.arange(images.shape[1]), np.arange(images.shape[2])
    total = weights.sum(axis=(1, 2))
    sums = (weights.sum(axis=2) @ rows, weights.sum(axis=1) @ columns)
    return np.stack([part / total for part in sums], axis=1)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_are_deterministic_and_keep_shape_and_input(name: str) -> None:
    images = np.random.default_rng(1).integers(0, 256, (7, 9, 12), dtype=np.uint8)
    before = images.copy()
    corrupted = CORRUPTIONS[name](images, 20)
    assert (corrupted.shape, corrupted.dtype) == (images.shape, np.uint8)
    assert not np.array_equal(corrupted, images)
    np.testing.assert_array_equal(CORRUPTIONS[name](images, 20), corrupted)
    np.testing.assert_array_equal(images, before)
    nothing = 100 if name == "scale" else 0
    np.testing.assert_array_equal(CORRUPTIONS[name](images, nothing), images)


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name != "noise"])
def test_each_channel_is_corrupted_like_a_grey_image(name: str) -> None:
    images = np.random.default_rng(1).integers(0, 256, (7, 9, 12, 3), dtype=np.uint8)
    corrupted = CORRUPTIONS[name](images, 20)
    for channel in range(3):
        alone = CORRUPTIONS[name](np.ascontiguousarray(images[..., channel]), 20)
        np.testing.assert_array_equal(corrupted[..., channel], alone)


def test_noise_differs_from_channel_to_channel() -> None:
    noisy = noise(np.full((2, 30, 30, 3), 128, np.uint8), 10).astype(np.float64) - 128
    assert noisy.std() == pytest.approx(25.5, rel=0.05)
    assert abs(np.corrcoef(noisy.reshape(-1, 3).T)[0, 1:]).max() < 0.1


def test_shift_moves_images_to_the_four_corners() -> None:
    moves = centres(shift(dots(5, 10, 20), 10)) - (10, 20)
    expected = [[-2, -4], [-2, 4], [2, -4], [2, 4], [-2, -4]]
    np.testing.assert_allclose(np.abs(moves), np.abs(expected), atol=1e-9)
    assert {tuple(np.sign(move)) for move in moves[:4]} == {(-1, -1), (-1, 1), (1, -1), (1, 1)}
    np.testing.assert_array_equal(moves[4], moves[0])


def test_rotate_turns_about_the_centre_to_both_sides() -> None:
    # The centre is at row 9.5 and column 19.5.
    turned = centres(rotate(dots(2, 9, 28), 30)) - (9.5, 19.5)
    before = complex(28 - 19.5, 9 - 9.5)
    angles = [np.degrees(np.angle(complex(x, y) / before)) for y, x in turned]
    np.testing.assert_allclose(sorted(angles), [-30, 30], atol=1)
    np.testing.assert_allclose([abs(complex(x, y)) for y, x in turned], abs(before), atol=0.1)


def test_scale_resizes_about_the_centre_by_its_percentage() -> None:
    for percent in (50, 150):
        scaled = scale(dots(1, 12, 24), percent)
        expected = (9.5 + 2.5 * percent / 100, 19.5 + 4.5 * percent / 100)
        np.testing.assert_allclose(centres(scaled)[0], expected, atol=0.2)
        mass = scaled.sum(dtype=np.int64) / dots(1, 12, 24).sum(dtype=np.int64)
        assert mass == pytest.approx((percent / 100) ** 2, rel=0.15)


def test_noise_has_its_standard_deviation() -> None:
    grey = np.full((50, 20, 40), 128, np.uint8)
    noisy = noise(grey, 10)
    assert noisy.std() == pytest.approx(25.5, rel=0.02)
    assert noisy.mean() == pytest.approx(128, abs=0.5)
    assert not np.array_equal(noisy[0], noisy[1])


def test_noise_is_the_same_on_every_machine_and_stays_between_black_and_white() -> None:
    """metrics/eval.json is comparable only if the corrupted images are the same everywhere."""
    grey = np.full((1, 2, 3), 128, np.uint8)
    np.testing.assert_array_equal(noise(grey, 40)[0], [[141, 115, 193], [139, 73, 165]])
    black, white = (np.full((20, 9, 9), value, np.uint8) for value in (0, 255))
    assert (noise(black, 20) == 0).mean() == pytest.approx(0.5, abs=0.05)
    assert (noise(white, 20) == 255).mean() == pytest.approx(0.5, abs=0.05)


def test_blur_keeps_the_mass_and_adds_its_variance_along_both_sides() -> None:
    image = np.zeros((1, 40, 80), np.uint8)
    image[0, 17:24, 37:44] = 255
    blurred = blur(image, 5).astype(np.float64)[0]  # 2 rows, 4 columns
    assert blurred.sum() == pytest.approx(49 * 255, rel=0.02)
    for axis, deviation in ((1, 2), (0, 4)):
        mass = blurred.sum(axis=axis)
        places = np.arange(len(mass)) - len(mass) // 2
        variance = (mass @ places**2) / mass.sum()
        assert variance == pytest.approx((7**2 - 1) / 12 + deviation**2, rel=0.08)
    flat = np.full((1, 9, 12), 77, np.uint8)
    np.testing.assert_array_equal(blur(flat, 10), flat)


def test_invert_fades_to_the_negative_and_rounds_to_the_nearest() -> None:
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    np.testing.assert_array_equal(invert(images, 100), 255 - images)
    for percent in (20, 50, 90):
        exact = images * (1 - percent / 50) + 255 * percent / 100
        assert np.abs(invert(images, percent) - exact).max() <= 0.5 + 1e-9


@pytest.mark.parametrize("paper", [0, 255, 90])
@pytest.mark.parametrize("name", ["shift", "rotate", "scale"])
def test_surroundings_are_as_the_border_and_images_of_a_large_set_are_like_those_of_a_small_one(
    name: str, paper: int
) -> None:
    images = np.full((2004, 6, 8), paper, np.uint8)
    images[:, 2:, 3:5] = 160  # a stroke that reaches the lower border
    corrupted = CORRUPTIONS[name](images, 30)
    assert corrupted.min() >= min(paper, 160)
    assert corrupted.max() <= max(paper, 160)
    np.testing.assert_array_equal(corrupted, np.tile(corrupted[:4], (501, 1, 1)))
