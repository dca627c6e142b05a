"""The converter of model files of version 1, the only code that still reads them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

from mnist_mamba.config import LIMITS, Preparation
from mnist_mamba.engine.format import (
    CHECKED_FROM,
    CRC_OFFSET,
    MAGIC,
    MEMBER_FIELDS,
    PREPARATIONS,
    FormatError,
    assemble,
    decode,
)

HEADER_BYTES = 256


def convert(
    data: bytes, preparation: Preparation = "resize", class_names: Sequence[str] = ()
) -> bytes:
    """Return the bytes of the same model in a file of today's version.

    Args:
        data: a file of version 1.
        preparation: how a picture of any size becomes an image of the model's.
        class_names: one for each class; default: "0", "1", ...

    Raises:
        FormatError: not a sound file of version 1, or the file does not allow the class names.
    """
    if len(data) < HEADER_BYTES or data[: len(MAGIC)] != MAGIC:
        raise FormatError("got a file without version 1's magic and header, expected a model file")
    version, crc = struct.unpack_from("<II", data, CRC_OFFSET - 4)
    if version != 1:
        raise FormatError(f"version: got {version}, expected 1")
    if zlib.crc32(data[CHECKED_FROM:]) != crc:
        raise FormatError(
            "crc32: got another one from the file's bytes, expected its own (damaged)"
        )
    if any(data[100:HEADER_BYTES]):
        raise FormatError("reserved bytes: got other values, expected zeros")
    flags, *sizes = struct.unpack_from("<5I", data, CHECKED_FROM)
    shape = struct.unpack_from("<12If", data, CHECKED_FROM + 20)  # stem to norm_eps
    pixel_mean, pixel_std, more_members = struct.unpack_from("<ffI", data, 88)
    header = dict(zip(("height", "width", "channels", "n_classes"), sizes, strict=True)) | {
        "flags": 0,
        "preparation": PREPARATIONS.index(preparation),
        "weight_type": 0,
        "exit_margin": 0.0,
        "pixel_mean": pixel_mean,
        "pixel_std": pixel_std,
    }
    for name, value in (("n_classes", header["n_classes"]), ("members", more_members + 1)):
        if value not in LIMITS[name]:
            raise FormatError(f"{name}: got {value}, expected {LIMITS[name]}")
    names = tuple(class_names) or tuple(str(i) for i in range(header["n_classes"]))
    if len(names) != header["n_classes"]:
        raise FormatError(f"class names: got {len(names)}, expected {header['n_classes']}")
    record = dict(zip((field.name for field in MEMBER_FIELDS), (flags, *shape), strict=True))
    converted = assemble(header, [record] * (more_members + 1), names, data[HEADER_BYTES:])
    decode(converted)
    return converted
