"""Data sets in numpy's .npz files."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from mnist_mamba.config import LIMITS
from mnist_mamba.data.idx import MAX_CHANNELS, MAX_UNPACKED, Bytes
from mnist_mamba.data.splits import TEST_SEED, DataError, DataSet, LabelledImages, split

TRAIN, TEST, WHOLE = ("x_train", "y_train"), ("x_test", "y_test"), ("x", "y")
NAMES = "class_names"
MAX_SHOWN = 100
"""Number of characters of a value that an error shows."""
MAX_NAME = 255
"""Longest class name, in characters: no name of up to 255 bytes of UTF-8 has more."""


def load_npz(path: Path, test_fraction: float) -> DataSet:
    """Return the data set of an .npz file.

    It has the arrays x_train, y_train, x_test and y_test, or x and y, of which a part becomes the
    test set. x is uint8, (n, height, width) or (n, height, width, channels); y has whole numbers
    from 0, (n,) or (n, 1). class_names, (classes,) text, is optional.

    Args:
        path: the file.
        test_fraction: fraction of each class to split off as test images if the file has x and y.

    Raises:
        DataError: another file, other arrays, or a compressed array above MAX_UNPACKED bytes.
        OSError: the file cannot be read.
    """
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: not a regular file, expected an .npz file")
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                return _load(archive, path, test_fraction)
        except DataError:
            raise
        except Exception as error:  # the readers of archives raise errors of many types
            raise DataError(f"{path}: not a readable .npz file: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _shown(value: object) -> str:
    """Return a value of the file as text that is short whatever the file has."""
    text = str(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _load(archive: zipfile.ZipFile, path: Path, test_fraction: float) -> DataSet:
    found = {name[:-4] for name in archive.namelist() if name.endswith(".npy")}
    names: tuple[str, ...] = ()
    if NAMES in found:
        names = tuple(str(name) for name in _array(archive, path, NAMES, "U").tolist())
    if found >= {*TRAIN, *TEST}:
        train, test = (_part(archive, path, *part, names) for part in (TRAIN, TEST))
    elif found >= set(WHOLE):
        train, test = split(_part(archive, path, *WHOLE, names), test_fraction, TEST_SEED)
    else:
        wanted = ", ".join((*TRAIN, *TEST))
        raise DataError(
            f"{path}: got the arrays {_shown(sorted(found))}, expected {wanted}, or x, y"
        )
    return DataSet(train, test, names)


def _part(
    archive: zipfile.ZipFile, path: Path, x: str, y: str, names: tuple[str, ...]
) -> LabelledImages:
    images, labels = _array(archive, path, x, "u"), _array(archive, path, y, "iu")
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise DataError(
            f"{path}: {x}: got {images.dtype} {images.shape}, expected uint8 of 0 to 255, "
            "(n, height, width) or (n, height, width, channels)"
        )
    if images.ndim == 4 and not 1 <= images.shape[3] <= MAX_CHANNELS:
        raise DataError(
            f"{path}: {x}: got the shape {images.shape}, expected 1 to {MAX_CHANNELS} channels as "
            "the last"
        )
    if labels.shape[1:] == (1,):
        labels = labels[:, 0]
    if labels.shape != images.shape[:1] or not labels.size:
        raise DataError(
            f"{path}: {y}: got the shape {labels.shape}, expected one label for each of the "
            f"{len(images)} images of {x}, at least one"
        )
    high = (len(names) or int(LIMITS["n_classes"].high)) - 1
    if labels.min() < 0 or labels.max() > high:
        raise DataError(
            f"{path}: {y}: got {labels.min()} to {labels.max()}, expected labels in 0..{high}"
        )
    grey: Bytes = images[..., 0] if images.shape[3:] == (1,) else images
    return LabelledImages(grey, labels.astype(np.uint8))


def _array(archive: zipfile.ZipFile, path: Path, name: str, kinds: str) -> NDArray[Any]:
    """Return an array whose dtype is of one of these kinds; its header is checked before memory."""
    entry = archive.getinfo(f"{name}.npy")
    stored = entry.compress_type == zipfile.ZIP_STORED
    ceiling = path.stat().st_size if stored else MAX_UNPACKED
    if entry.file_size > ceiling:
        raise DataError(
            f"{path}: {name}: got {entry.file_size} bytes, expected up to {ceiling}: write a large "
            "array without compression, by numpy.savez"
        )
    with archive.open(entry) as file:
        shape, dtype = _header(file, path, name)
        if dtype.kind not in kinds:
            raise DataError(
                f"{path}: {name}: got the dtype {_shown(dtype)}, expected "
                f"{'text' if kinds == 'U' else 'uint8' if kinds == 'u' else 'whole numbers'}"
            )
        most = int(LIMITS["n_classes"].high)
        if name == NAMES and (
            len(shape) != 1 or shape[0] > most or dtype.itemsize > np.dtype(f"U{MAX_NAME}").itemsize
        ):
            raise DataError(
                f"{path}: {name}: got {_shown(dtype)} {_shown(shape)}, expected one "
                f"dimension of up to {most} names of up to {MAX_NAME} characters"
            )
        if math.prod(shape) * dtype.itemsize != entry.file_size - file.tell():
            raise DataError(
                f"{path}: {name}: got {entry.file_size} bytes, which is not the size of "
                f"{_shown(dtype)} {_shown(shape)}"
            )
    with archive.open(entry) as file:
        return npy.read_array(file, allow_pickle=False)


def _header(file: IO[bytes], path: Path, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return the shape and dtype of an .npy file, and leave `file` at its first value."""
    try:
        version = npy.read_magic(file)
        if version not in ((1, 0), (2, 0), (3, 0)):
            raise ValueError(f"got version {version[0]}.{version[1]}, expected 1.0, 2.0 or 3.0")
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(file)
    except Exception as error:  # the header is parsed as Python, which fails in many ways
        raise DataError(f"{path}: {name}: not an array: {_reason(error)}") from error
    if any(type(side) is not int or side < 0 for side in shape) or not dtype.itemsize:
        raise DataError(
            f"{path}: {name}: got the shape {_shown(shape)} of {_shown(dtype)}, expected whole "
            "numbers from 0, and a dtype of at least one byte"
        )
    return shape, dtype
