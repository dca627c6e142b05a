"""From raw images to fixed train, validation and test splits."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from mnist_mamba.data.idx import Bytes


class DataError(ValueError):
    """Data that cannot be had or cannot be used; the message says what to do."""


class LabelledImages(NamedTuple):
    """(n, height, width) uint8 images with (n,) uint8 labels."""

    images: Bytes
    labels: Bytes

    def joined(self, other: LabelledImages) -> LabelledImages:
        """These images, then the other ones."""
        images = np.concatenate([self.images, other.images])
        return LabelledImages(images, np.concatenate([self.labels, other.labels]))

    def select(self, chosen: np.ndarray) -> LabelledImages:
        """The images at a mask or at indices."""
        return LabelledImages(self.images[chosen], self.labels[chosen])


class Splits(NamedTuple):
    """The three parts of a data set; test data chooses nothing."""

    train: LabelledImages
    val: LabelledImages
    test: LabelledImages


def resize(images: Bytes, size: tuple[int, int]) -> Bytes:
    """Resample (n, h, w) uint8 images to `size` (height, width), bicubic and antialiased."""
    if images.shape[1:] == size:
        return images
    resized = []
    for chunk in torch.from_numpy(images).split(4096):
        floats = F.interpolate(
            chunk[:, None].float(), size=size, mode="bicubic", align_corners=False, antialias=True
        )
        resized.append(floats.round().clamp(0, 255).to(torch.uint8)[:, 0])
    return torch.cat(resized).numpy()


def split(
    data: LabelledImages, held_out: float, seed: int
) -> tuple[LabelledImages, LabelledImages]:
    """Split off a stratified random part.

    Args:
        data: what to split.
        held_out: fraction of each class that goes to the second part, at least one image.
        seed: fixes the choice.

    Returns:
        The rest and the held-out part, both in their original order.

    Raises:
        DataError: a class with a single image, which cannot stand in both parts.
    """
    generator = np.random.default_rng(seed)
    chosen = np.zeros(len(data.labels), dtype=bool)
    for label in np.unique(data.labels):
        members = np.flatnonzero(data.labels == label)
        if len(members) < 2:
            raise DataError(f"class {label} has {len(members)} image, expected at least 2 to split")
        count = min(max(1, round(held_out * len(members))), len(members) - 1)
        chosen[generator.permutation(members)[:count]] = True
    return data.select(~chosen), data.select(chosen)


def describe(splits: Splits) -> dict[str, Any]:
    """What the later stages need to know of the data: dims, classes, pixel statistics, counts.

    Pixel statistics are over the training split, on pixels in [0, 1].

    Raises:
        DataError: splits of different image sizes, or test labels that training never sees.
    """
    shapes = {name: part.images.shape[1:] for name, part in splits._asdict().items()}
    if len(set(shapes.values())) > 1:
        raise DataError(f"image sizes differ between the splits: {shapes}")
    n_classes = int(splits.train.labels.max()) + 1
    for name, part in splits._asdict().items():
        unseen = sorted(set(part.labels.tolist()) - set(splits.train.labels.tolist()))
        if unseen:
            raise DataError(f"the {name} split has labels {unseen}, which training never sees")
    if n_classes < 2:
        raise DataError(f"got {n_classes} class, expected at least 2")
    pixels = splits.train.images
    # Exact integer sums: the same figures on any machine.
    total, count = int(pixels.sum(dtype=np.int64)), pixels.size
    squares = int(np.square(pixels, dtype=np.int64).sum())
    mean = total / count
    std = max(squares / count - mean * mean, 0.0) ** 0.5
    if std == 0:
        raise DataError("all training pixels are the same: there is nothing to learn from")
    return {
        "height": int(pixels.shape[1]),
        "width": int(pixels.shape[2]),
        "channels": 1,
        "n_classes": n_classes,
        "pixel_mean": round(mean / 255, 6),
        "pixel_std": round(std / 255, 6),
        "splits": {
            name: {
                "n": len(part.labels),
                "per_class": np.bincount(part.labels, minlength=n_classes).tolist(),
            }
            for name, part in splits._asdict().items()
        },
    }
