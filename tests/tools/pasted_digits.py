"""A generator of pictures of digits: pasted onto larger canvases, as the accuracy bars demand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True)
class Ranges:
    """Ranges of uniform random numbers.

    Attributes:
        seed: of numpy.random.default_rng.
        canvas: height and width of a picture, in pixels.
        share: side of the pasted digit, of the canvas's shorter side; its ink is 20/28 of it.
        contrast: between ink and paper, in grey levels; either may be the brighter one.
        light: change of the brightness from one edge to the other, in any direction.
        noise: standard deviation of Gaussian noise, in grey levels.
    """

    seed: int
    canvas: tuple[int, int]
    share: tuple[float, float]
    contrast: tuple[float, float]
    light: float = 0
    noise: float = 0


PLAIN = Ranges(seed=26, canvas=(40, 400), share=(0.3, 0.9), contrast=(40, 255))
LIGHT_AND_NOISE = Ranges(
    seed=62, canvas=(60, 400), share=(0.4, 0.9), contrast=(80, 200), light=40, noise=8
)


def paste(rng: np.random.Generator, digit: NDArray[np.uint8], ranges: Ranges) -> NDArray[np.uint8]:
    """Return a picture (h, w) of an image (28, 28) of a bright digit at a random place."""
    height, width = (int(side) for side in rng.integers(*ranges.canvas, 2))
    side = min(max(16, int(min(height, width) * rng.uniform(*ranges.share))), height, width)
    method = Image.Resampling(int(rng.choice([2, 3, 4])))  # bilinear, bicubic, box
    ink = np.zeros((height, width))
    y, x = (int(rng.integers(0, length - side + 1)) for length in (height, width))
    resized = Image.fromarray(digit).resize((side, side), method)
    ink[y : y + side, x : x + side] = np.asarray(resized) / 255
    contrast = rng.uniform(*ranges.contrast) * rng.choice([-1, 1])
    paper = rng.uniform(max(0, -contrast), 255 - max(0, contrast))
    angle, light = rng.uniform(0, 2 * np.pi), rng.uniform(0, ranges.light)
    rows, columns = np.mgrid[-0.5 : 0.5 : height * 1j, -0.5 : 0.5 : width * 1j]
    picture = paper + contrast * ink + light * (np.cos(angle) * columns + np.sin(angle) * rows)
    picture += rng.normal(0, rng.uniform(0, ranges.noise), picture.shape)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)
