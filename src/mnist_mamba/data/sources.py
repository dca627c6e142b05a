"""Sources of images: MNIST, scikit-learn's digits, or a user's own IDX files."""

from __future__ import annotations

import hashlib
import logging
import tempfile
import urllib.request
from http.client import HTTPException
from pathlib import Path

import numpy as np

from mnist_mamba.data.idx import IdxError, read_images, read_labels
from mnist_mamba.data.splits import DataError, LabelledImages, split

logger = logging.getLogger(__name__)

IDX_NAMES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
"""File names of MNIST, and of a user's data set; each may end in .gz."""
MAX_DOWNLOAD = 2**26
"""Largest file, in bytes, that is read from a mirror; MNIST's largest has 10 MB."""


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
    # A fixed seed: the test set does not depend on params.yaml.
    return split(everything, test_fraction, seed=0)


def load_mnist(mirror: str | None) -> tuple[LabelledImages, LabelledImages]:
    """Return MNIST's train and test sets through torchvision, which checks each file's MD5.

    Args:
        mirror: folder or URL with the four .gz files, tried before the public mirrors; None uses
            only the public mirrors.

    Raises:
        DataError: no mirror has the files, or `mirror` has a truncated or altered one.
    """
    from mnist_mamba.data.torchvision_compat import import_torchvision

    import_torchvision()
    from torchvision.datasets import MNIST

    with tempfile.TemporaryDirectory(prefix="mnist-") as scratch:
        raw = Path(scratch) / "MNIST" / "raw"
        raw.mkdir(parents=True)
        if mirror:
            _copy_from_mirror(mirror, raw, dict(MNIST.resources))
        try:
            # Does not download files that are present with the right checksum.
            MNIST(scratch, download=True)
        except (RuntimeError, OSError, HTTPException) as error:
            asked = f"MNIST_MIRROR = {mirror} and the" if mirror else "The"
            raise DataError(
                f"{asked} public mirrors gave no good copy of MNIST ({_last(error)}). Connect to "
                "the network, or set MNIST_MIRROR to a folder or URL with its four .gz files"
            ) from error
        return load_idx(raw)


def _last(error: BaseException) -> str:
    """Return an error's last line, which says why."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].rstrip(".")


def _copy_from_mirror(mirror: str, raw: Path, md5s: dict[str, str]) -> None:
    """Copy the .gz files from the mirror; log a warning if it lacks any.

    Raises:
        DataError: a file whose checksum is wrong.
    """
    for name, md5 in md5s.items():
        try:
            data = _fetch(mirror, name)
        except (OSError, ValueError, RuntimeError, HTTPException) as error:  # ~name of nobody
            logger.warning("MNIST_MIRROR = %s: cannot get %s: %s", mirror, name, error)
            return
        if hashlib.md5(data, usedforsecurity=False).hexdigest() != md5:
            raise DataError(
                f"MNIST_MIRROR = {mirror}: {name} is truncated or altered "
                f"(its MD5 is not {md5}); replace it, or unset MNIST_MIRROR"
            )
        (raw / name).write_bytes(data)
    logger.info("MNIST from the mirror %s", mirror)


def _fetch(mirror: str, name: str) -> bytes:
    """Return one file of a folder or URL, of which a server may send up to MAX_DOWNLOAD bytes."""
    if "://" in mirror:
        source = urllib.request.urlopen(f"{mirror.rstrip('/')}/{name}", timeout=60)
    else:
        source = (Path(mirror).expanduser() / name).open("rb")
    with source:
        data: bytes = source.read(MAX_DOWNLOAD + 1)
    if len(data) > MAX_DOWNLOAD:
        raise ValueError(f"got more than {MAX_DOWNLOAD} bytes, expected a file of MNIST")
    return data
