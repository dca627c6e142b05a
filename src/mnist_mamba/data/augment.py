"""Random affine maps of whole batches: one pass of grid_sample, no per-image work."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mnist_mamba.config import AugmentConfig


def augment(pixels: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Map each image of (batch, height, width), floating, by its own random affine map.

    What comes in from outside the image is 0.
    """
    if config.is_identity:
        return pixels
    batch, height, width = pixels.shape
    uniform = torch.rand(5, batch, generator=generator) * 2 - 1
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
    theta = torch.stack(rows, dim=1).to(pixels)
    grid = F.affine_grid(theta, [batch, 1, height, width], align_corners=False)
    mapped = F.grid_sample(pixels[:, None], grid, padding_mode="zeros", align_corners=False)
    return mapped[:, 0]
