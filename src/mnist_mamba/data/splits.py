"""Resampling, splitting and measuring data sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from mnist_mamba.config import LIMITS, Preparation, printable
from mnist_mamba.data.idx import Bytes

SHOWN = 5
"""Number of files or classes that a message names; it counts all."""
TEST_SEED = 0
"""Seed that selects the test images of a source without a test set; no param changes it."""


class DataError(ValueError):
    """Data that is missing or cannot be used; the message says what was expected."""


def some(names: Sequence[str]) -> str:
    """Return the first few names, as a terminal may show them, and the number of the others."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(printable, names[:SHOWN])) + more


class LabelledImages(NamedTuple):
    """(n, height, width) or (n, height, width, channels) uint8 images with (n,) uint8 labels."""

    images: Bytes
    labels: Bytes

    def joined(self, other: LabelledImages) -> LabelledImages:
        """Return these images followed by the others."""
        images = np.concatenate([self.images, other.images])
        return LabelledImages(images, np.concatenate([self.labels, other.labels]))

    def select(self, chosen: np.ndarray | slice) -> LabelledImages:
        """Return the images at a mask, at indices or in a slice."""
        return LabelledImages(self.images[chosen], self.labels[chosen])


class DataSet(NamedTuple):
    """The images of a source, before any of them are held out for validation."""

    train: LabelledImages
    test: LabelledImages
    class_names: tuple[str, ...] = ()
    """One name per class; () stands for the numbers from 0."""


class Splits(NamedTuple):
    """The three splits of a data set; no choice may be made on test data."""

    train: LabelledImages
    val: LabelledImages
    test: LabelledImages


def with_channels(images: Bytes, channels: Literal["auto", 1, 3]) -> Bytes:
    """Return images as grey, (n, height, width), or as RGB, (n, height, width, 3).

    Args:
        images: grey, RGB, or of any number of channels, which `auto` leaves as they are.
        channels: 1, 3, or `auto`, which makes RGB images grey if all their pixels are.

    Raises:
        DataError: images of 2 or 4 channels, if 1 or 3 is demanded.
    """
    if images.ndim == 3:
        return images if channels != 3 else np.repeat(images[..., None], 3, axis=3)
    if images.shape[3] != 3:
        if channels == "auto":
            return images
        raise DataError(
            f"the images have {images.shape[3]} channels, expected 1 or 3 to convert them to "
            f"data.channels = {channels}"
        )
    if channels == "auto":
        grey = all((image[..., :1] == image).all() for image in images)
        return np.ascontiguousarray(images[..., 0]) if grey else images
    return images if channels == 3 else np.stack([_grey(image) for image in images])


def _grey(image: Bytes) -> Bytes:
    """Return the luma of an RGB image (ITU-R BT.601), rounded as Pillow rounds it."""
    luma = image.astype(np.uint32) @ np.array([19595, 38470, 7471], np.uint32)
    return ((luma + 0x8000) >> 16).astype(np.uint8)


def resize(images: Bytes, size: tuple[int, int]) -> Bytes:
    """Resample uint8 images to `size` (height, width), bicubic and antialiased.

    Args:
        images: (n, height, width) or (n, height, width, channels).
        size: the new height and width.
    """
    if images.shape[1:3] == size:
        return images
    # Here, because nothing else in this module needs torch, which takes a second to import.
    import torch
    import torch.nn.functional as F

    resized = []
    for chunk in torch.from_numpy(images).split(4096):
        grey = chunk.ndim == 3
        planes = chunk[:, None] if grey else chunk.permute(0, 3, 1, 2)
        floats = F.interpolate(
            planes.float(), size=size, mode="bicubic", align_corners=False, antialias=True
        )
        rounded = floats.round().clamp(0, 255).to(torch.uint8)
        resized.append(rounded[:, 0] if grey else rounded.permute(0, 2, 3, 1))
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


def describe(
    splits: Splits, class_names: tuple[str, ...] = (), preparation: Preparation = "resize"
) -> dict[str, Any]:
    """Return image dims, classes, pixel statistics and image counts of a data set.

    Pixel statistics are those of the training split, with pixels in [0, 1].

    Args:
        splits: the images.
        class_names: one name per class; () names them by their numbers.
        preparation: how a picture becomes such an image.

    Raises:
        DataError: splits of different image sizes, labels missing from the training split, a
            single class, or pixels that hardly differ.
    """
    shapes = {name: part.images.shape[1:] for name, part in splits._asdict().items()}
    if len(set(shapes.values())) > 1:
        raise DataError(f"image sizes differ between the splits: {shapes}")
    classes = set(splits.train.labels.tolist())
    names = class_names or tuple(str(label) for label in range(max(classes) + 1))
    for name, part in splits._asdict().items():
        unseen = sorted(set(part.labels.tolist()) - classes)
        if unseen:
            found = [names[label] for label in unseen] if class_names else unseen
            raise DataError(f"the {name} split has labels {found}, which the train split lacks")
    if len(classes) < 2:
        raise DataError(f"got only the labels {sorted(classes)}, expected at least 2 classes")
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
        "channels": int(pixels.shape[3]) if pixels.ndim == 4 else 1,
        "n_classes": len(names),
        "class_names": list(names),
        "preparation": preparation,
        "pixel_mean": round(mean / 255, 6),
        "pixel_std": std,
        "splits": {
            name: {
                "n": len(part.labels),
                "per_class": np.bincount(part.labels, minlength=len(names)).tolist(),
            }
            for name, part in splits._asdict().items()
        },
    }
