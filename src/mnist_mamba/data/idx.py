"""IDX, the format of the MNIST files: big-endian dims, then the values."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from mnist_mamba.atomic_write import write_bytes

Bytes = NDArray[np.uint8]

UINT8 = 0x08
IMAGES, LABELS = (3, 4), (1,)
"""Numbers of dims of image files, grey or with channels, and of label files."""
MAX_CHANNELS = 4
MAX_UNPACKED = 2**30
"""Largest number of bytes that a gzip file may expand to."""


class IdxError(ValueError):
    """A file that is not a usable IDX file; the message names what was got and expected."""


def read_images(path: Path) -> Bytes:
    """Return the uint8 images of an IDX file, gzipped or not.

    Returns:
        (n, height, width) grey images, or (n, height, width, channels) with 2 to 4 channels.

    Raises:
        IdxError: not IDX, not unsigned bytes of rank 3 or 4, more than 4 channels, empty, truncated
            or with trailing bytes; or gzipped and larger than MAX_UNPACKED.
        OSError: the file cannot be read.
    """
    images = _read(path, IMAGES)
    return images[..., 0] if images.shape[3:] == (1,) else images


def read_labels(path: Path) -> Bytes:
    """Return the (n,) uint8 labels of an IDX file, gzipped or not.

    Raises:
        IdxError, OSError: as for `read_images`.
    """
    return _read(path, LABELS)


def _read(path: Path, ranks: tuple[int, ...]) -> Bytes:
    if path.exists() and not path.is_file():  # opening a FIFO would wait for a writer
        raise IdxError(f"{path}: not a regular file, expected an IDX file")
    with path.open("rb") as raw:
        packed = raw.peek(2)[:2] == b"\x1f\x8b"
        file = gzip.GzipFile(fileobj=raw) if packed else raw
        try:
            return _parse(file, path, ranks, MAX_UNPACKED if packed else None)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise IdxError(f"{path}: damaged gzip: {error}") from error


def _parse(
    file: BinaryIO | gzip.GzipFile, path: Path, ranks: tuple[int, ...], ceiling: int | None
) -> Bytes:
    """Read an IDX file of up to `ceiling` bytes; `path` is for messages."""
    magic = _take(file, 4)
    rank = magic[3] if len(magic) == 4 and magic[3] in ranks else ranks[0]
    header = 4 + 4 * rank
    data = magic + _take(file, header - 4)
    if len(data) < header:
        raise IdxError(f"{path}: got {len(data)} bytes, expected an IDX header of {header}")
    expected = (0, 0, UINT8, rank)
    if tuple(magic) != expected:
        raise IdxError(
            f"{path}: magic: got {magic.hex(' ')}, expected {bytes(expected).hex(' ')} "
            f"(IDX, unsigned bytes, {' or '.join(map(str, ranks))} dims)"
        )
    dims = struct.unpack(f">{rank}I", data[4:])
    if problem := _unreadable(dims):
        raise IdxError(f"{path}: dims: {problem}")
    shape, size = " x ".join(map(str, dims)), math.prod(dims)
    if ceiling is not None and header + size > ceiling:
        raise IdxError(
            f"{path}: dims: got {shape}, which is {header + size} bytes, expected up to {ceiling} "
            "of a gzip file: unpack it with gunzip"
        )
    values = _take(file, size + 1)
    if len(values) != size:
        got = f"more than {header + size}" if len(values) > size else header + len(values)
        raise IdxError(f"{path}: got {got} bytes, expected {header + size} for {shape}")
    return np.frombuffer(values, dtype=np.uint8).reshape(dims)


def _unreadable(dims: tuple[int, ...]) -> str | None:
    """Return why no reader takes these dims, or None."""
    shape = " x ".join(map(str, dims))
    if 0 in dims:
        return f"got {shape}, expected none to be 0"
    if len(dims) not in IMAGES + LABELS:
        return f"got {len(dims)}, expected 1 (labels), 3 (grey images) or 4 (with channels)"
    if len(dims) == 4 and dims[3] > MAX_CHANNELS:
        return f"got {shape}, expected 1 to {MAX_CHANNELS} channels as the last"
    return None


def _take(file: BinaryIO | gzip.GzipFile, size: int) -> bytearray:
    """Read `size` bytes, or all if there are fewer; memory grows with what is read."""
    data = bytearray()
    while len(data) < size and (chunk := file.read(min(size - len(data), 2**20))):
        data += chunk
    return data


def write_idx(path: Path, values: Bytes) -> None:
    """Write images or labels as an IDX file, whole or not at all.

    Args:
        path: the file.
        values: uint8, (n, height, width) or (n, height, width, 1 to 4 channels) images or (n,)
            labels.

    Raises:
        TypeError: not an array, or one of another dtype.
        ValueError: another shape, or an empty one.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "train-labels-idx1-ubyte"
    ...     write_idx(path, np.array([7, 2, 1], dtype=np.uint8))
    ...     print(path.stat().st_size, read_labels(path))
    11 [7 2 1]
    """
    if not isinstance(values, np.ndarray) or values.dtype != np.uint8:
        found = getattr(values, "dtype", type(values).__name__)
        raise TypeError(f"values: got {found}, expected a numpy array of dtype uint8")
    if problem := _unreadable(values.shape):
        raise ValueError(f"values: dims: {problem}")
    header = bytes((0, 0, UINT8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
    write_bytes(path, header + values.tobytes())
