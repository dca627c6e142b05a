"""Sources of images without a download: a user's own IDX files, and scikit-learn's digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mnist_mamba.data.idx import IdxError, read_images, read_labels
from mnist_mamba.data.splits import TEST_SEED, DataError, LabelledImages, split

IDX_NAMES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
"""File names of MNIST, and of a user's data set; each may end in .gz."""


def load_idx(folder: Path) -> tuple[LabelledImages, LabelledImages]:
    """Return train and test sets from a folder with the four IDX files, gzipped or not.

    Raises:
        DataError: a file is missing or damaged, or numbers of images and labels differ.
    """
    found = {key: _find(folder, name) for key, name in IDX_NAMES.items()}
    parts = []
    for part in ("train", "test"):
        try:
            images, labels = (
                read_images(found[f"{part}_images"]),
                read_labels(found[f"{part}_labels"]),
            )
        except IdxError as error:
            raise DataError(str(error)) from error
        if len(images) != len(labels):
            raise DataError(f"{folder}: {len(images)} {part} images but {len(labels)} labels")
        parts.append(LabelledImages(images, labels))
    return parts[0], parts[1]


def _find(folder: Path, name: str) -> Path:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise DataError(f"{folder / name} (or {name}.gz) not found: expected all four IDX files")


def load_digits(test_fraction: float = 0.2) -> tuple[LabelledImages, LabelledImages]:
    """Return scikit-learn's 1,797 handwritten 8x8 digits, split into train and test sets.

    Source: UCI Optical Recognition of Handwritten Digits, doi.org/10.24432/C50P49.
    """
    from sklearn.datasets import load_digits as sklearn_digits

    digits = sklearn_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    everything = LabelledImages(images, digits.target.astype(np.uint8))
    return split(everything, test_fraction, TEST_SEED)
