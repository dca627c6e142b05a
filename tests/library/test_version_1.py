"""The converter of model files of version 1."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from mnist_mamba.engine import Engine, EngineError
from mnist_mamba.engine.format import MAGIC, FormatError, decode, encode
from mnist_mamba.engine.version_1 import convert

GOLDEN = Path(__file__).parents[2] / "csrc" / "tests" / "golden"
WHOLE = (
    *("stem", "patch_height", "patch_width", "stem_width", "d_model", "n_layers", "d_state"),
    *("d_conv", "d_inner", "dt_rank", "direction", "pool"),
)


def sealed(body: bytes) -> bytes:
    """Return a file of version 1: `body` is what its checksum covers."""
    return MAGIC + struct.pack("<II", 1, zlib.crc32(body)) + body


def version_1(data: bytes) -> bytes:
    """Return today's file, whose members are alike, as version 1 stored it."""
    file = decode(data)
    header, shape = file.header, file.shapes[0]
    image = (header[name] for name in ("height", "width", "channels", "n_classes"))
    fields = struct.pack("<5I", shape["flags"], *image)
    fields += struct.pack("<12I", *(shape[name] for name in WHOLE))
    floats = (shape["norm_eps"], header["pixel_mean"], header["pixel_std"])
    fields += struct.pack("<3fI", *floats, len(file.shapes) - 1)
    before = 128 + 64 * len(file.shapes) + header["names_bytes"]
    return sealed(fields.ljust(240, b"\0") + data[before:])


@pytest.mark.parametrize("name", ["patch_tied", "conv3_cross_odd_image", "ensemble"])
def test_a_converted_file_is_the_same_model(name: str) -> None:
    data = (GOLDEN / f"{name}.bin").read_bytes()
    old = version_1(data)
    assert convert(old) == data
    names = tuple("ABCDEFGHIJ")
    converted = convert(old, "mnist", names)
    file, today = decode(converted), decode(data)
    assert file.class_names == names
    assert file.header == today.header | {"preparation": 1}
    assert file.shapes == today.shapes
    with Engine(data) as before, Engine(converted) as after:
        size = int(before.info["height"]), int(before.info["width"])
        images = np.arange(3 * size[0] * size[1]).reshape(3, *size).astype(np.uint8)
        np.testing.assert_array_equal(after.logits(images), before.logits(images))
        assert after.class_names == names
    with pytest.raises(EngineError, match=r"convert OLD\.bin NEW\.bin`.* `--preparation mnist`"):
        Engine(old)


def test_what_cannot_be_converted_is_refused() -> None:
    data = (GOLDEN / "patch_tied.bin").read_bytes()
    old = version_1(data)
    body = old[16:]

    def changed(offset: int, value: int) -> bytes:
        return sealed(body[: offset - 16] + struct.pack("<I", value) + body[offset - 12 :])

    for wrong, message in (
        (data, "version: got 2, expected 1"),
        (b"", "expected a model file"),
        (old[:255], "expected a model file"),
        (old[:-1] + b"\1", "crc32: "),
        (sealed(body[:-64]), "file size: "),
        (changed(96, 0xFFFFFFFF), "members: got 4294967296"),
        (changed(32, 0xFFFFFFFF), "n_classes: got 4294967295"),
        (changed(52, 0), "d_model: got 0"),
        (changed(200, 1), "reserved bytes"),
    ):
        with pytest.raises(FormatError, match=message):
            convert(wrong)
    for names, message in (
        (("a", "b"), "class names: got 2, expected 10"),
        (("a",) * 10, "class name 1: "),
        (("a\0b", *"cdefghij", ""), "class name 0: "),  # not the names a, b, c, ...
        ((*"abcdefghi", "\udcff"), "class name 9: "),
        ((*"abcdefghi", "\ud800"), "class name 9: "),
        (("a" * 10**6, *"bcdefghij"), "^class name 0: .{1,80}$"),
    ):
        with pytest.raises(FormatError, match=message):
            convert(old, "resize", names)
    colours = decode((GOLDEN / "colours.bin").read_bytes())
    with pytest.raises(FormatError, match="preparation: got 1"):
        convert(version_1(encode(colours)), "mnist", ("a", "b", "c"))
