"""Random affine and elastic maps of whole batches: one pass of grid_sample, no per-image work."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mnist_mamba.config import AugmentConfig


def augment(
    pixels: Tensor,
    config: AugmentConfig,
    generator: torch.Generator,
    share: slice = slice(None),
    batch: int | None = None,
) -> Tensor:
    """Map each image of (n, height, width), floating, by its own random map.

    An affine map, and if asked for a smooth random shift of each pixel (Simard et al. 2003).

    What comes in from outside the image is 0. The images may be just the `share` of a larger
    `batch`: numbers are drawn for all of it, so that an image's map is the same whoever maps it.
    """
    if config.is_identity:
        return pixels
    height, width = pixels.shape[1:]
    drawn = torch.rand(5, len(pixels) if batch is None else batch, generator=generator)
    uniform = drawn[:, share] * 2 - 1
    angle = uniform[0] * math.radians(config.rotate)
    shear = torch.tan(uniform[1] * math.radians(config.shear))
    scale = 1 / (1 + uniform[2] * config.scale)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    # grid_sample's coordinates run from -1 to 1 along both sides, so rotation needs the aspect.
    aspect = height / width
    rows = [
        torch.stack([cos, (shear * cos - sin) * aspect, 2 * config.shift * uniform[3]], dim=1),
        torch.stack([sin / aspect, shear * sin + cos, 2 * config.shift * uniform[4]], dim=1),
    ]
    grid = _grid(torch.stack(rows, dim=1).to(pixels), height, width)
    if config.elastic:
        knots = math.ceil(1 / config.elastic_scale) + 1
        noise = torch.randn(drawn.shape[1], 2, knots, knots, generator=generator)
        shifts = smooth(noise[share].to(pixels), height, width, config.elastic_scale)
        grid += 2 * config.elastic * shifts
    mapped = F.grid_sample(pixels[:, None], grid, padding_mode="zeros", align_corners=False)
    return mapped[:, 0]


def smooth(noise: Tensor, height: int, width: int, scale: float) -> Tensor:
    """Spread noise at evenly spaced knots over an image by a Gaussian.

    noise (n, 2, knots, knots), independent and standard normal, to (n, height, width, 2), each
    standard normal too; scale is the Gaussian's standard deviation as a fraction of the sides.
    """
    rows, columns = (_gaussian(n, noise.shape[-1], scale).to(noise) for n in (height, width))
    shifts: Tensor = rows @ noise @ columns.T
    return shifts.permute(0, 2, 3, 1)


def _gaussian(n: int, knots: int, scale: float) -> Tensor:
    """(n, knots): row i weighs the knots by their distance from i; squares of a row sum to 1."""
    places, centres = (torch.arange(n) + 0.5) / n, torch.linspace(0, 1, knots)
    weights = torch.exp(-0.5 * ((places[:, None] - centres) / scale) ** 2)
    norms: Tensor = torch.linalg.vector_norm(weights, dim=1, keepdim=True)
    return weights / norms


def _grid(maps: Tensor, height: int, width: int) -> Tensor:
    """Where each pixel comes from: maps (n, 2, 3) to (n, height, width, 2) of x and y.

    This is F.affine_grid, but one matrix product instead of a small one for each image, which
    takes a tenth of the time.
    """
    x, y = (
        (torch.arange(n, dtype=maps.dtype, device=maps.device) * 2 + 1) / n - 1
        for n in (width, height)
    )
    columns, rows = x.repeat(height), y.repeat_interleave(width)
    pixels = torch.stack([columns, rows, torch.ones_like(columns)])
    return (maps.flatten(0, 1) @ pixels).view(-1, 2, height, width).permute(0, 2, 3, 1)
