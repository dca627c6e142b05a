"""Deterministic corruptions of images, to measure a classifier's robustness.

Images are (n, height, width) or (n, height, width, channels) uint8.
All are computed in float64 and rounded to bytes at the end, so that machines agree. Directions
alternate from image to image and depend on no label and no model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mnist_mamba.data.augment import blur_matrix, sample
from mnist_mamba.data.idx import Bytes

NOISE_SEED = 0


def shift(images: Bytes, percent: float) -> Bytes:
    """Shift by a percentage of both sides, towards one of the four corners after the other."""
    turn = torch.arange(len(images)) % 4
    signs = torch.stack([1 - 2 * (turn % 2), 1 - 2 * (turn // 2)], dim=1)
    maps = torch.eye(2, 3, dtype=torch.float64).repeat(len(images), 1, 1)
    maps[:, :, 2] = 2 * percent / 100 * signs
    return _mapped(images, maps)


def rotate(images: Bytes, degrees: float) -> Bytes:
    """Rotate about the centre, every second image the other way."""
    height, width = images.shape[1:3]
    signs = 1 - 2 * (torch.arange(len(images), dtype=torch.float64) % 2)
    angles = signs * math.radians(degrees)
    cos, sin, zero = torch.cos(angles), torch.sin(angles), torch.zeros(len(images))
    # grid_sample's coordinates run from -1 to 1 along both sides.
    aspect = height / width
    rows = [torch.stack([cos, -sin * aspect, zero], 1), torch.stack([sin / aspect, cos, zero], 1)]
    return _mapped(images, torch.stack(rows, dim=1))


def scale(images: Bytes, percent: float) -> Bytes:
    """Scale the content about the centre to a percentage of its size."""
    maps = torch.eye(2, 3, dtype=torch.float64).repeat(len(images), 1, 1) * (100 / percent)
    return _mapped(images, maps)


def noise(images: Bytes, percent: float) -> Bytes:
    """Add fixed Gaussian noise with a standard deviation of a percentage of white."""
    draw = np.random.default_rng(NOISE_SEED).standard_normal(images.shape)
    return _bytes(images + draw * (2.55 * percent))


def blur(images: Bytes, percent: float) -> Bytes:
    """Blur by a Gaussian with a standard deviation of a percentage of the sides."""
    rows, columns = (
        blur_matrix(n, torch.tensor([[n * percent / 100]], dtype=torch.float64)).numpy()
        for n in images.shape[1:3]
    )
    planes = images if images.ndim == 3 else np.moveaxis(images, 3, 1)
    blurred = rows @ planes.astype(np.float64) @ columns.T
    return _bytes(blurred if images.ndim == 3 else np.moveaxis(blurred, 1, 3))


def invert(images: Bytes, percent: float) -> Bytes:
    """Fade towards the negative; 100 is the negative itself."""
    return _bytes(images * (1 - percent / 50) + 2.55 * percent)


CORRUPTIONS: dict[str, Callable[[Bytes, float], Bytes]] = {
    "shift": shift,
    "rotate": rotate,
    "scale": scale,
    "noise": noise,
    "blur": blur,
    "invert": invert,
}
"""Corruptions by name; each maps uint8 images to the same shape, given a strength."""


def _mapped(images: Bytes, maps: Tensor) -> Bytes:
    """Map each image by its (2, 3) map from output to input."""
    mapped = []
    chunks = zip(torch.from_numpy(images).split(1000), maps.split(1000), strict=True)
    for chunk, matrices in chunks:
        grid = F.affine_grid(matrices, [len(chunk), 1, *chunk.shape[1:3]], align_corners=False)
        mapped.append(sample(chunk.double(), grid))
    return _bytes(torch.cat(mapped).numpy())


def _bytes(values: NDArray[np.floating[Any]]) -> Bytes:
    rounded: Bytes = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return rounded
