"""The C and the Python reader of the model file, which share no code, refuse the same files.

Each file is tried as it is and with a corrected checksum, so that the checksum hides no other
check.
"""

from __future__ import annotations

import dataclasses
import random
import struct
import zlib
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest

from mnist_mamba.engine import Engine, EngineError
from mnist_mamba.engine.format import (
    CHECKED_FROM,
    CRC_OFFSET,
    HEADER_BYTES,
    HEADER_FIELDS,
    MEMBER_BYTES,
    MEMBER_FIELDS,
    FormatError,
    decode,
    encode,
    tensor_specs,
)

GOLDEN = Path(__file__).parents[2] / "csrc" / "tests" / "golden"
SEEDS = [
    GOLDEN / f"{name}.bin"
    for name in (
        "patch_no_positions",
        "conv_tied_odd_image",
        "mixed_members",
        "colours_conv3",
        "int8_weights",
    )
]
LIMITS = (0, 1, 2, 3, 15, 16, 17, 64, 65, 255, 256, 257, 512, 513, 2048, 2049, 4096, 4097, 8192)
EXTREMES = (8193, 65536, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x01000000)
FLOATS = (
    *(0x7F800000, 0xFF800000, 0x7FC00000, 0x7F7FFFFF, 1, 0x80000000, 0x3DCCCCCD, 0x3DCCCCCE),
    *(0x007FFFFF, 0x00800000, 0x80000001),
)
"""Infinities, NaN, the largest float, the smallest, -0, 0.1 and the float after it;
the largest denormal, the smallest number that is not one, and the largest number below 0."""
NAME_BYTES = (
    *(b"\0", b"1", b"\x1f", b"\x7f", b"\x80", b"\xc3\xa4", b"\xed\xa0\x80", b"\xff"),
    *(b"\xc2\x80", b"\xc2\x9f", b"\xc2\xa0"),
)


def sealed(data: bytes) -> bytes:
    """Return the bytes with a correct checksum."""
    if len(data) <= CHECKED_FROM:
        return data
    crc = struct.pack("<I", zlib.crc32(data[CHECKED_FROM:]))
    return data[:CRC_OFFSET] + crc + data[CHECKED_FROM:]


def with_u32(data: bytes, offset: int, value: int) -> bytes:
    return data[:offset] + struct.pack("<I", value) + data[offset + 4 :]


def c_says(data: bytes) -> str | None:
    """Return the C reader's error, or None."""
    try:
        Engine(data, threads=1).close()
    except EngineError as error:
        return str(error) if error.status == 4 else f"not an error of the file: {error}"
    return None


def python_says(data: bytes) -> str | None:
    """Return the Python reader's error, or None."""
    try:
        decode(data)
    except FormatError as error:
        return str(error)
    return None


def field(message: str | None) -> str | None:
    """Return the field that an error names; for a tensor, also the float's index."""
    if message is None:
        return None
    name, after = message.split(":")[:2]
    if name.startswith("tensor "):
        return f"{name}:{after}"
    return name.split("reserved ")[0] + "reserved" if "reserved " in name else name


def compare(data: bytes, same_field: bool) -> bool:
    """Check that both readers agree on a file, as it is and sealed; return whether it is valid."""
    for variant in (data, sealed(data)):
        c, python = c_says(variant), python_says(variant)
        assert (c is None) == (python is None), f"C: {c}; Python: {python}"
        if same_field:
            assert field(c) == field(python), f"C: {c}; Python: {python}"
    return c is None


def before_tensors(data: bytes) -> int:
    """Return the number of bytes before the tensors of a sound file."""
    members, names_bytes = (struct.unpack_from("<I", data, offset)[0] for offset in (20, 60))
    return int(HEADER_BYTES + MEMBER_BYTES * members + names_bytes)


def tensor_offsets(data: bytes) -> list[int]:
    """Return where each tensor of a sound file begins: with a float, or a row's scale."""
    file = decode(data)
    specs = tensor_specs(file.header, file.shapes)
    sizes = [spec.stored_bytes(file.header["weight_type"]) for spec in specs]
    return list(accumulate(sizes[:-1], initial=before_tensors(data)))


def single_changes(data: bytes) -> Iterator[bytes]:
    """Yield files in which one field, one float or the size is changed."""
    end = before_tensors(data)
    header, records = CHECKED_FROM + 4 * len(HEADER_FIELDS), HEADER_BYTES + MEMBER_BYTES
    fields = (*range(CHECKED_FROM, header + 4, 4), *range(HEADER_BYTES, records + 4, 4))
    for offset in (8, *fields, HEADER_BYTES - 4, records + 20, end - 4):
        (old,) = struct.unpack_from("<I", data, offset)
        for value in {*LIMITS, *EXTREMES, *FLOATS, old + 1, old - 1, old * 2, old // 2}:
            yield with_u32(data, offset, value % 2**32)
    for offset in (
        *tensor_offsets(data),
        *range(end, len(data), (len(data) - end) // 48 // 4 * 4 + 4),
    ):
        yield from (with_u32(data, offset, value) for value in FLOATS)
    for offset in range(end - 64, end - 40):
        yield from (data[:offset] + name + data[offset + len(name) :] for name in NAME_BYTES)
    for size in (0, 1, 8, 15, 16, 17, 127, 128, 129, end - 1, end, len(data) - 64, len(data) - 1):
        yield data[:size]
    yield from (data + bytes(extra) for extra in (1, 4, 64, 4096))


@pytest.mark.parametrize("seed", SEEDS, ids=lambda path: path.stem)
def test_a_single_change_is_refused_for_the_same_field(seed: Path) -> None:
    data = seed.read_bytes()
    assert compare(data, same_field=True)
    accepted = [compare(changed, same_field=True) for changed in single_changes(data)]
    # Some changes give another valid model: another pool, other pixel statistics, another weight.
    assert len(accepted) - sum(accepted) > 100
    assert sum(accepted) > 10


HEAD_END = HEADER_BYTES + MEMBER_BYTES + 64
"""End of the class names of a model of one member."""


def scrambled(data: bytes, other: bytes, generator: random.Random) -> bytes:
    """Return a file with several random changes."""
    mutant = bytearray(data)
    for _ in range(generator.randint(1, 6)):
        kind = generator.randrange(8)
        if kind < 4:
            offset = 4 * generator.randrange(CHECKED_FROM // 4, HEAD_END // 4)
            value = generator.choice((*LIMITS, *EXTREMES, *FLOATS, generator.randrange(2**32)))
            struct.pack_into("<I", mutant, offset, value)
        elif kind < 6:
            mutant[generator.randrange(len(mutant))] ^= 1 << generator.randrange(8)
        elif kind == 6:
            del mutant[max(HEAD_END, generator.randrange(len(mutant))) :]
        else:
            start = 4 * generator.randrange(HEAD_END // 4)
            mutant[start:HEAD_END] = other[start:HEAD_END]
    return bytes(mutant)


@pytest.mark.parametrize("seed", [1, 2])
def test_both_readers_agree_on_files_with_several_changes(seed: int) -> None:
    generator = random.Random(seed)
    files = [path.read_bytes() for path in SEEDS]
    for _ in range(2000):
        data, other = generator.sample(files, 2)
        compare(scrambled(data, other, generator), same_field=False)


def test_dims_that_keep_the_size_are_checked_for_their_meaning() -> None:
    """Width 5 leaves the file's size as it is, but no patch of width 2 divides it."""
    data = SEEDS[0].read_bytes()
    offsets = {field.name: CHECKED_FROM + 4 * i for i, field in enumerate(HEADER_FIELDS)}
    offsets |= {field.name: HEADER_BYTES + 4 * i for i, field in enumerate(MEMBER_FIELDS)}
    swapped = data
    for name, value in (("height", 16), ("width", 4), ("patch_height", 8), ("patch_width", 2)):
        swapped = with_u32(swapped, offsets[name], value)
    before = {name: struct.unpack_from("<I", data, offsets[name])[0] for name in offsets}
    assert before["patch_height"] * before["patch_width"] == 16
    assert compare(swapped, same_field=True)
    assert not compare(with_u32(swapped, offsets["width"], 5), same_field=True)


@pytest.mark.parametrize("seed", range(8))
def test_both_readers_expand_int8_weights_to_the_same_floats(seed: int) -> None:
    """Random bytes, and scales of any sign and size, give the logits of Python's floats."""
    data = bytearray((GOLDEN / "int8_weights.bin").read_bytes())
    generator = np.random.default_rng(seed)
    file = decode(bytes(data))
    offset = before_tensors(data)
    for spec in tensor_specs(file.header, file.shapes):
        size = spec.stored_bytes(1)
        if spec.kind != "vector":
            rows = np.frombuffer(data, spec.int8_row, count=spec.shape[0], offset=offset).copy()
            rows["scale"] *= generator.choice([-1, 1, 0, 0.7, 1e-38], len(rows))
            rows["values"] = generator.integers(-128, 128, rows["values"].shape)
            data[offset : offset + size] = rows.tobytes()
        offset += size
    file = decode(sealed(bytes(data)))
    floats = encode(dataclasses.replace(file, header=file.header | {"weight_type": 0}))
    images = generator.integers(0, 256, (5, file.header["height"], file.header["width"]), np.uint8)
    with (
        Engine(sealed(bytes(data)), threads=1) as int8,
        Engine(floats, threads=1) as float32,
    ):
        assert np.ptp(int8.logits(images)) > 0.01
        np.testing.assert_array_equal(int8.logits(images), float32.logits(images))


@pytest.mark.parametrize(("scale", "byte"), [(2.0**-127, 127), (2.0**-126, 1), (2.0**-125, -1)])
def test_both_readers_count_the_same_int8_weights_as_zero(scale: float, byte: int) -> None:
    """The logits are these weights times numbers near 1, so that nothing hides a tiny one."""
    data = bytearray((GOLDEN / "int8_weights.bin").read_bytes())
    file = decode(bytes(data))
    spec, at = tensor_specs(file.header, file.shapes)[-2], tensor_offsets(bytes(data))[-2]
    rows = np.zeros(spec.shape[0], spec.int8_row)
    rows["scale"], rows["values"] = scale, byte
    data[at:] = rows.tobytes().ljust(len(data) - at, b"\0")  # without a bias
    file = decode(sealed(bytes(data)))
    assert file.tensors[spec.name].any() == (scale >= 2.0**-126)
    floats = encode(dataclasses.replace(file, header=file.header | {"weight_type": 0}))
    images = np.full((1, file.header["height"], file.header["width"]), 200, np.uint8)
    with (
        Engine(sealed(bytes(data)), threads=1) as int8,
        Engine(floats, threads=1) as float32,
    ):
        np.testing.assert_array_equal(int8.logits(images), float32.logits(images))
