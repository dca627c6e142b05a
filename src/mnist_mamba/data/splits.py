"""Resampling, splitting and measuring data sets."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from mnist_mamba.config import LIMITS
from mnist_mamba.data.idx import Bytes


class DataError(ValueError):
    """Data that is missing or cannot be used; the message says what was expected."""


class LabelledImages(NamedTuple):
    """(n, height, width) uint8 images with (n,) uint8 labels."""

    images: Bytes
    labels: Bytes

    def joined(self, other: LabelledImages) -> LabelledImages:
        """Return these images followed by the others."""
        images = np.concatenate([self.images, other.images])
        return LabelledImages(images, np.concatenate([self.labels, other.labels]))

    def select(self, chosen: np.ndarray | slice) -> LabelledImages:
        """Return the images at a mask, at indices or in a slice."""
        return LabelledImages(self.images[chosen], self.labels[chosen])


class Splits(NamedTuple):
    """The three splits of a data set; no choice may be made on test data."""

    train: LabelledImages
    val: LabelledImages
    test: LabelledImages


def resize(images: Bytes, size: tuple[int, int]) -> Bytes:
    """Resample (n, h, w) uint8 images to `size` (height, width), bicubic and antialiased."""
    if images.shape[1:] == size:
        return images
    # Here, because nothing else in this module needs torch, which takes a second to import.
    import torch
    import torch.nn.functional as F

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
    """Split off a stratified random sample.

    Args:
        data: the images to split.
        held_out: fraction of each class to hold out, at least one image.
        seed: seed of the random choice.

    Returns:
        The remaining and the held-out images, both in their original order.

    Raises:
        DataError: a class with a single image, which cannot be in both.
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
    """Return image dims, number of classes, pixel statistics and image counts of a data set.

    Pixel statistics are those of the training split, with pixels in [0, 1].

    Raises:
        DataError: splits of different image sizes, labels missing from the training split, a
            single class, or pixels that hardly differ.
    """
    shapes = {name: part.images.shape[1:] for name, part in splits._asdict().items()}
    if len(set(shapes.values())) > 1:
        raise DataError(f"image sizes differ between the splits: {shapes}")
    classes = set(splits.train.labels.tolist())
    for name, part in splits._asdict().items():
        unseen = sorted(set(part.labels.tolist()) - classes)
        if unseen:
            raise DataError(f"the {name} split has labels {unseen}, which the train split lacks")
    if len(classes) < 2:
        raise DataError(f"got only the labels {sorted(classes)}, expected at least 2 classes")
    n_classes = max(classes) + 1
    pixels = splits.train.images
    # Exact integer sums: the same statistics on any machine.
    total, count = int(pixels.sum(dtype=np.int64)), pixels.size
    squares = sum(int(np.square(image, dtype=np.int64).sum()) for image in pixels)
    mean = total / count
    std = round(max(squares / count - mean * mean, 0.0) ** 0.5 / 255, 6)
    if std not in LIMITS["pixel_std"]:
        raise DataError(
            f"the training pixels hardly differ: their standard deviation is {std}, expected "
            f"{LIMITS['pixel_std']}"
        )
    return {
        "height": int(pixels.shape[1]),
        "width": int(pixels.shape[2]),
        "channels": 1,
        "n_classes": n_classes,
        "pixel_mean": round(mean / 255, 6),
        "pixel_std": std,
        "splits": {
            name: {
                "n": len(part.labels),
                "per_class": np.bincount(part.labels, minlength=n_classes).tolist(),
            }
            for name, part in splits._asdict().items()
        },
    }
