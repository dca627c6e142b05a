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
MAX_UNPACKED = 2**30
"""Largest number of bytes that a gzip file may expand to."""


class IdxError(ValueError):
    """A file that is not a usable IDX file; the message names what was got and expected."""


def read_images(path: Path) -> Bytes:
    """Return the (n, height, width) uint8 images of an IDX file, gzipped or not.

    Raises:
        IdxError: not IDX, not unsigned bytes of rank 3, empty, truncated or with trailing bytes; or
            gzipped and larger than MAX_UNPACKED.
        OSError: the file cannot be read.
    """
    return _read(path, rank=3)


def read_labels(path: Path) -> Bytes:
    """Return the (n,) uint8 labels of an IDX file, gzipped or not.

    Raises:
        IdxError, OSError: as for `read_images`.
    """
    return _read(path, rank=1)


def _read(path: Path, rank: int) -> Bytes:
    with path.open("rb") as raw:
        packed = raw.peek(2)[:2] == b"\x1f\x8b"
        file = gzip.GzipFile(fileobj=raw) if packed else raw
        try:
            return _parse(file, path, rank, MAX_UNPACKED if packed else None)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise IdxError(f"{path}: damaged gzip: {error}") from error


def _parse(file: BinaryIO | gzip.GzipFile, path: Path, rank: int, ceiling: int | None) -> Bytes:
    """Read an IDX file of up to `ceiling` bytes; `path` is for messages."""
    header = 4 + 4 * rank
    data = _take(file, header)
    if len(data) < header:
        raise IdxError(f"{path}: got {len(data)} bytes, expected an IDX header of {header}")
    magic = (0, 0, UINT8, rank)
    if tuple(data[:4]) != magic:
        raise IdxError(
            f"{path}: magic: got {data[:4].hex(' ')}, expected {bytes(magic).hex(' ')} "
            f"(IDX, unsigned bytes, {rank} dims)"
        )
    dims = struct.unpack(f">{rank}I", data[4:])
    shape = " x ".join(map(str, dims))
    if 0 in dims:
        raise IdxError(f"{path}: dims: got {shape}, expected none to be 0")
    size = math.prod(dims)
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


def _take(file: BinaryIO | gzip.GzipFile, size: int) -> bytearray:
    """Read `size` bytes, or all if there are fewer; memory grows with what is read."""
    data = bytearray()
    while len(data) < size and (chunk := file.read(min(size - len(data), 2**20))):
        data += chunk
    return data


def write_idx(path: Path, values: Bytes) -> None:
    """Write uint8 values of any rank as an IDX file, whole or not at all.

    Raises:
        TypeError: values of another dtype.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "train-labels-idx1-ubyte"
    ...     write_idx(path, np.array([7, 2, 1], dtype=np.uint8))
    ...     print(path.stat().st_size, read_labels(path))
    11 [7 2 1]
    """
    if values.dtype != np.uint8:
        raise TypeError(f"values have dtype {values.dtype}, expected uint8")
    header = bytes((0, 0, UINT8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
    write_bytes(path, header + values.tobytes())
