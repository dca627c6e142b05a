"""The model file (docs/format.md): its header, its tensors, and how to read and write its bytes.

Needs numpy only; `mnist_mamba.export` turns a torch model into such a file.
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mnist_mamba.config import (
    EXIT_MARGIN,
    LIMITS,
    MAX_ACTIVATIONS,
    MAX_LENGTH,
    MAX_NAME_BYTES,
    Direction,
    Pool,
    Preparation,
    Range,
    Stem,
    expected_name,
    oversized_activations,
    stem_convs,
    token_grid,
    whole,
)
from mnist_mamba.engine.binding import EXIT_MARGINS, is_exit_margin

Array = NDArray[np.float32]
TensorKind = Literal["vector", "table", "panels"]

MAGIC = b"\x89MAMBA\r\n"
VERSION = 2
HEADER_BYTES = 128
MEMBER_BYTES = 64
NAMES_STEP = 64
LANES = 16
FLAG_TIED_A = 1
FLAG_POS_EMBED = 2
FLAG_LOCAL_CONV = 4
STEMS = get_args(Stem)
DIRECTIONS = get_args(Direction)
POOLS = get_args(Pool)
PREPARATIONS = get_args(Preparation)
WeightType = Literal["float32", "int8"]
WEIGHT_TYPES = get_args(WeightType)
"""The file stores the index of a choice here, so append new choices."""

CRC_OFFSET = 12
CHECKED_FROM = 16
"""The checksum covers the bytes from here to the end."""

CONVERT = (
    "`python -m pipeline.export convert OLD.bin NEW.bin`, for digits with `--preparation mnist`"
)
"""How to make a file of this version from one of version 1."""


class FormatError(ValueError):
    """A file that is not a valid model; the message names field, got and expected."""


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of the header or of a record with its range; offsets follow from the order."""

    name: str
    code: Literal["I", "f"]
    range: Range

    @property
    def limits(self) -> tuple[float, float]:
        """Smallest and largest value, as the file's type holds them."""
        if self.code == "I":
            return self.range.low, self.range.high
        return float(np.float32(self.range.low)), float(np.float32(self.range.high))


_RANGES = LIMITS | {
    "preparation": whole(0, len(PREPARATIONS) - 1),
    "weight_type": whole(0, len(WEIGHT_TYPES) - 1),
    "exit_margin": EXIT_MARGIN,
    "names_bytes": whole(NAMES_STEP, 65536),
    "stem": whole(0, len(STEMS) - 1),
    "patch_height": LIMITS["height"],
    "patch_width": LIMITS["width"],
    "direction": whole(0, len(DIRECTIONS) - 1),
    "pool": whole(0, len(POOLS) - 1),
}


def _fields(flags: int, names: str) -> tuple[Field, ...]:
    """Return the flags and the named fields; a float's name ends in a dot."""
    return (
        Field("flags", "I", whole(0, flags)),
        *(
            Field(name.rstrip("."), "f" if name.endswith(".") else "I", _RANGES[name.rstrip(".")])
            for name in names.split()
        ),
    )


HEADER_FIELDS = _fields(
    0,
    "members height width channels n_classes preparation weight_type "
    "exit_margin. pixel_mean. pixel_std. names_bytes",
)
MEMBER_FIELDS = _fields(
    FLAG_TIED_A | FLAG_POS_EMBED | FLAG_LOCAL_CONV,
    "stem patch_height patch_width stem_width d_model n_layers d_state d_conv d_inner dt_rank "
    "direction pool norm_eps.",
)


def _struct(fields: tuple[Field, ...]) -> struct.Struct:
    return struct.Struct("<" + "".join(field.code for field in fields))


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """One tensor of the file: V(n), T(rows, n) or P(out, in) of docs/format.md."""

    name: str
    kind: TensorKind
    shape: tuple[int, ...]

    @property
    def stored_floats(self) -> int:
        """Number of floats in the file, padding included."""
        if self.kind == "panels":
            return pad(self.shape[0]) * self.shape[1]
        return math.prod(self.shape[:-1]) * pad(self.shape[-1])

    @property
    def int8_row(self) -> np.dtype[Any]:
        """A row in a file with int8 weights: a scale and int8 values, or a vector's float."""
        if self.kind == "vector":
            return np.dtype("<f4")
        return np.dtype([("scale", "<f4"), ("values", "i1", self.shape[1:])])

    def stored_bytes(self, weight_type: int) -> int:
        """Return the number of bytes in a file whose header has this `weight_type`."""
        is_int8 = WEIGHT_TYPES[weight_type] == "int8"
        return self.shape[0] * self.int8_row.itemsize if is_int8 else 4 * self.stored_floats

    def rounded(self, values: Array) -> bytes:
        """Return the bytes of `values` in a file with int8 weights.

        A row's largest magnitude becomes one of 96 to 127 steps: the number with the least sum of
        squared errors. That matters in short rows, like those of a stem's first convolution.
        """
        if self.kind == "vector":
            return values.astype(self.int8_row).tobytes()
        rows = np.zeros(self.shape[0], self.int8_row)
        exact, least = values.astype(np.float64), np.full(len(rows), np.inf)
        trial = rows.copy()
        for steps in range(127, 95, -1):
            scale = trial["scale"] = (np.abs(exact).max(axis=1) / steps).astype(np.float32)
            divisor = np.where(scale == 0, np.inf, scale)[:, None]
            trial["values"] = np.rint(exact / divisor).clip(-127, 127)
            error = ((_expanded(trial) - exact) ** 2).sum(axis=1)
            rows = np.where(error < least, trial, rows)
            least = np.minimum(error, least)
        return rows.tobytes()

    def expanded(self, data: bytes) -> bytes:
        """Return the bytes in a file of floats from those in a file with int8 weights."""
        rows = np.frombuffer(data, self.int8_row)
        return self.pack(rows if self.kind == "vector" else _expanded(rows))

    def pack(self, values: Array) -> bytes:
        """Return the bytes of `values` in a file with float32 weights."""
        if self.kind != "panels":
            padding = [(0, 0)] * (values.ndim - 1) + [(0, pad(self.shape[-1]) - self.shape[-1])]
            return np.pad(values, padding).astype("<f4").tobytes()
        out, inputs = self.shape
        padded = np.pad(values, [(0, pad(out) - out), (0, 0)])
        panels = padded.reshape(-1, LANES, inputs).transpose(0, 2, 1)
        return np.ascontiguousarray(panels).astype("<f4").tobytes()

    def unpack(self, data: bytes) -> Array:
        """Return the values that `pack` stored, without padding.

        Raises:
            FormatError: a value is not finite, or padding is not 0.
        """
        stored = np.frombuffer(data, dtype="<f4").astype(np.float32)
        is_padding = np.frombuffer(self.pack(np.ones(self.shape, np.float32)), dtype="<f4") == 0
        bad = np.where(is_padding, stored.view(np.uint32) << 1 != 0, ~np.isfinite(stored))
        if bad.any():
            i = bad.argmax()
            expected = "0 as padding" if is_padding[i] else "a finite number"
            raise FormatError(
                f"tensor {self.name}: float {i}: got {stored[i]}, expected {expected}"
            )
        if self.kind != "panels":
            return stored.reshape(*self.shape[:-1], -1)[..., : self.shape[-1]].copy()
        out, inputs = self.shape
        rows = stored.reshape(-1, inputs, LANES).transpose(0, 2, 1).reshape(-1, inputs)
        return rows[:out].copy()


def _expanded(rows: NDArray[Any]) -> Array:
    """Return the floats of rows of int8 weights, as the engine computes them."""
    with np.errstate(over="ignore", invalid="ignore"):
        floats = _flushed(rows["scale"])[:, None] * rows["values"].astype(np.float32)
    return _flushed(floats)


def _flushed(values: Array) -> Array:
    """Return the values with 0 for those below 2^-126, which the engine counts as zero."""
    return np.where(np.abs(values) < np.finfo(np.float32).tiny, np.float32(0), values)


def pad(n: int) -> int:
    """Return n rounded up to whole panels."""
    return math.ceil(n / LANES) * LANES


Header = dict[str, Any]
"""The fields of a header, or of a member's record, by name."""


@dataclasses.dataclass(frozen=True)
class ModelFile:
    """The contents of a file: its fields, the members' shapes, and unpadded tensors by name."""

    header: Header
    shapes: list[Header]
    class_names: tuple[str, ...]
    tensors: dict[str, Array]


def sequence_length(header: Header, shape: Header) -> int:
    """Return the number of a member's tokens per image."""
    patch = shape["patch_height"], shape["patch_width"]
    rows, columns = token_grid(STEMS[shape["stem"]], header["height"], header["width"], patch)
    return rows * columns


def tensor_specs(header: Header, shapes: Sequence[Header]) -> list[TensorSpec]:
    """Return the tensors of a file with this header and these members, in file order."""
    if len(shapes) == 1:
        return _member_specs(header, shapes[0])
    return [
        dataclasses.replace(spec, name=member_field(i, spec.name))
        for i, shape in enumerate(shapes)
        for spec in _member_specs(header, shape)
    ]


def member_field(member: int, name: str) -> str:
    """Return the name of a tensor or field of one of several members."""
    return f"members.{member}.{name}"


def _member_specs(header: Header, shape: Header) -> list[TensorSpec]:
    d_model, d_inner = shape["d_model"], shape["d_inner"]
    d_state, dt_rank = shape["d_state"], shape["dt_rank"]
    specs: list[TensorSpec] = []

    def add(kind: TensorKind, name: str, *shape: int) -> None:
        specs.append(TensorSpec(name, kind, shape))

    if STEMS[shape["stem"]] == "patch":
        pixels = shape["patch_height"] * shape["patch_width"]
        add("panels", "stem.weight", d_model, pixels * header["channels"])
        add("vector", "stem.bias", d_model)
    convs = stem_convs(STEMS[shape["stem"]], header["channels"], shape["stem_width"], d_model)
    for i, (inputs, out, _) in enumerate(convs, start=1):
        add("panels", f"stem.conv{i}.weight", out, 9 * inputs)
        add("vector", f"stem.conv{i}.bias", out)
    if shape["flags"] & FLAG_POS_EMBED:
        add("table", "pos_embed", sequence_length(header, shape), d_model)
    bidirectional = shape["direction"] == DIRECTIONS.index("bidirectional")
    for i in range(shape["n_layers"]):
        if shape["flags"] & FLAG_LOCAL_CONV:
            add("table", f"layers.{i}.local.weight", 9, d_model)
            add("vector", f"layers.{i}.local.bias", d_model)
        add("panels", f"layers.{i}.in_proj.x", d_inner, d_model)
        add("panels", f"layers.{i}.in_proj.z", d_inner, d_model)
        for suffix in ("", "_b") if bidirectional else ("",):
            add("table", f"layers.{i}.conv1d{suffix}.weight", shape["d_conv"], d_inner)
            add("vector", f"layers.{i}.conv1d{suffix}.bias", d_inner)
            add("panels", f"layers.{i}.x_proj{suffix}", dt_rank + 2 * d_state, d_inner)
            add("panels", f"layers.{i}.dt_proj{suffix}.weight", d_inner, dt_rank)
            add("vector", f"layers.{i}.dt_proj{suffix}.bias", d_inner)
            if shape["flags"] & FLAG_TIED_A:
                add("vector", f"layers.{i}.A{suffix}", d_inner)
            else:
                add("table", f"layers.{i}.A{suffix}", d_state, d_inner)
            add("vector", f"layers.{i}.D{suffix}", d_inner)
        add("panels", f"layers.{i}.out_proj", d_model, d_inner)
    add("panels", "head.weight", header["n_classes"], d_model)
    add("vector", "head.bias", header["n_classes"])
    return specs


def encode(file: ModelFile) -> bytes:
    """Return the bytes of a file; `members` and `names_bytes` of its header are not used.

    Raises:
        FormatError: a float of the header or of a record is out of its range; a tensor has another
            shape, or a value that is NaN or infinite.
    """
    _check_floats(HEADER_FIELDS, file.header)
    for shape in file.shapes:
        _check_floats(MEMBER_FIELDS, shape)
    is_int8 = WEIGHT_TYPES[file.header["weight_type"]] == "int8"
    tensors = []
    for spec in tensor_specs(file.header, file.shapes):
        values = file.tensors[spec.name]
        if values.shape != spec.shape:
            raise FormatError(f"{spec.name} has shape {values.shape}, expected {spec.shape}")
        if not np.isfinite(values).all():
            raise FormatError(f"{spec.name} holds NaN or infinite values: the training diverged")
        tensors.append(spec.rounded(values) if is_int8 else spec.pack(values))
    return assemble(file.header, file.shapes, file.class_names, b"".join(tensors))


def rounded(model: bytes) -> bytes:
    """Return a model file with int8 weights; one that has them already stays as it is.

    Raises:
        FormatError: docs/format.md does not allow the file.
    """
    file = decode(model)
    if WEIGHT_TYPES[file.header["weight_type"]] == "int8":
        return model
    header = file.header | {"weight_type": WEIGHT_TYPES.index("int8")}
    return encode(dataclasses.replace(file, header=header))


def assemble(
    header: Header, shapes: Sequence[Header], class_names: Sequence[str], tensors: bytes
) -> bytes:
    """Return the bytes of a file whose tensors are packed already.

    Raises:
        FormatError: the file does not allow the class names.
    """
    encoded = [name.encode(errors="surrogatepass") for name in class_names]
    for i, name in enumerate(encoded):
        _decode_name(name, class_names[:i])
    names = b"".join(name + b"\0" for name in encoded)
    names += bytes(-len(names) % NAMES_STEP)
    header = header | {"members": len(shapes), "names_bytes": len(names)}
    body = _packed(HEADER_FIELDS, header).ljust(HEADER_BYTES - CHECKED_FROM, b"\0")
    for shape in shapes:
        body += _packed(MEMBER_FIELDS, shape).ljust(MEMBER_BYTES, b"\0")
    body += names + tensors
    return MAGIC + struct.pack("<II", VERSION, zlib.crc32(body)) + body


def _packed(fields: tuple[Field, ...], values: Header) -> bytes:
    return _struct(fields).pack(*(values[field.name] for field in fields))


def read_model(path: str | Path) -> ModelFile:
    """Read and check a model file.

    Raises:
        FormatError: docs/format.md does not allow the file.
        OSError: the file cannot be read.
    """
    return decode(Path(path).read_bytes())


def decode(data: bytes) -> ModelFile:
    """Parse and check the bytes of a model file; raise FormatError as `read_model` does."""
    header = _decode_header(data)
    names_at = HEADER_BYTES + MEMBER_BYTES * header["members"]
    offset = names_at + header["names_bytes"]
    if len(data) < offset:
        raise FormatError(
            f"file size: got {len(data)} bytes, expected at least {offset} before its tensors"
        )
    shapes = [_decode_member(data, header, i) for i in range(header["members"])]
    class_names = _decode_names(data[names_at:offset], header["n_classes"])
    specs = tensor_specs(header, shapes)
    is_int8 = WEIGHT_TYPES[header["weight_type"]] == "int8"
    sizes = [spec.stored_bytes(header["weight_type"]) for spec in specs]
    expected = offset + sum(sizes)
    if len(data) != expected:
        raise FormatError(f"file size: got {len(data)} bytes, expected {expected} from its dims")
    (stored,) = struct.unpack_from("<I", data, CRC_OFFSET)
    actual = zlib.crc32(data[CHECKED_FROM:])
    if stored != actual:
        raise FormatError(
            f"crc32: got {actual:08X} from its bytes, expected {stored:08X} (damaged file?)"
        )
    tensors: dict[str, Array] = {}
    for spec, size in zip(specs, sizes, strict=True):
        stored = data[offset : offset + size]
        tensors[spec.name] = spec.unpack(spec.expanded(stored) if is_int8 else stored)
        offset += size
    return ModelFile(header, shapes, class_names, tensors)


def _decode_header(data: bytes) -> Header:
    if len(data) < HEADER_BYTES:
        raise FormatError(f"file size: got {len(data)} bytes, expected at least {HEADER_BYTES}")
    if data[:8] != MAGIC:
        raise FormatError(f"magic: got {data[:8]!r}, expected {MAGIC!r}")
    (version,) = struct.unpack_from("<I", data, 8)
    if version == VERSION << 24:
        raise FormatError(
            f"byte order: got version {version}, which is {VERSION} in big-endian, expected a "
            "little-endian file"
        )
    if version != VERSION:
        hint = f": run {CONVERT}" if version == 1 else ""
        raise FormatError(f"version: got {version}, expected {VERSION}{hint}")
    header = _unpacked(HEADER_FIELDS, data, CHECKED_FROM)
    _check_whole_numbers(HEADER_FIELDS, header)
    if header["names_bytes"] % NAMES_STEP:
        got = header["names_bytes"]
        raise FormatError(f"names_bytes: got {got}, expected a multiple of {NAMES_STEP}")
    if PREPARATIONS[header["preparation"]] == "mnist" and header["channels"] != 1:
        raise FormatError(
            f"preparation: got {header['preparation']} (mnist), expected 0 (resize) for "
            f"{header['channels']} channels"
        )
    _check_floats(HEADER_FIELDS, header)
    _check_reserved(data[CHECKED_FROM + _struct(HEADER_FIELDS).size : HEADER_BYTES])
    return header


def _decode_member(data: bytes, header: Header, member: int) -> Header:
    """Return a member's shape."""
    record = data[HEADER_BYTES + MEMBER_BYTES * member :][:MEMBER_BYTES]
    shape = _unpacked(MEMBER_FIELDS, record, 0)
    try:
        _check_whole_numbers(MEMBER_FIELDS, shape)
        _check_fit(header, shape)
        _check_floats(MEMBER_FIELDS, shape)
        _check_reserved(record[_struct(MEMBER_FIELDS).size :])
    except FormatError as error:
        if header["members"] == 1:
            raise
        raise FormatError(member_field(member, str(error))) from None
    return shape


def _decode_names(block: bytes, n_classes: int) -> tuple[str, ...]:
    names: list[str] = []
    left = block
    for i in range(n_classes):
        name, end, left = left.partition(b"\0")
        if not end or not 1 <= len(name) <= MAX_NAME_BYTES:
            raise FormatError(
                f"class name {i}: got {len(name)} bytes, expected 1..{MAX_NAME_BYTES} and a NUL"
            )
        names.append(_decode_name(name, names))
    needed = -(-(len(block) - len(left)) // NAMES_STEP) * NAMES_STEP
    if len(block) != needed:
        raise FormatError(f"names_bytes: got {len(block)}, expected {needed}")
    if any(left):
        raise FormatError("class names: got other bytes after the last name, expected zeros")
    return tuple(names)


def _decode_name(name: bytes, earlier: Sequence[str]) -> str:
    """Return the name of the class after the earlier ones."""
    text = name.decode(errors="surrogateescape")
    if expected := expected_name(text, earlier):
        got = reprlib.repr(name)
        raise FormatError(f"class name {len(earlier)}: got {got}, expected {expected}")
    return text


def _unpacked(fields: tuple[Field, ...], data: bytes, offset: int) -> Header:
    values = struct.unpack_from(f"<{len(fields)}I", data, offset)
    return {
        field.name: value if field.code == "I" else _float(value)
        for field, value in zip(fields, values, strict=True)
    }


def _float(bits: int) -> float:
    """Return the float32 with these bits, also where the processor counts denormals as zero."""
    if bits & 0x7F800000:
        return float(struct.unpack("<f", struct.pack("<I", bits))[0])
    return (bits & 0x7FFFFF) * math.ldexp(-1 if bits >> 31 else 1, -149)


# Whole numbers are checked before floats, as in docs/format.md, so that all readers name the same
# one of several bad fields.
def _check_whole_numbers(fields: tuple[Field, ...], values: Header) -> None:
    for field in fields:
        if field.code == "I":
            _check_range(values, field.name, *_limits(values, field))


def _check_floats(fields: tuple[Field, ...], values: Header) -> None:
    for field in fields:
        if field.name == "exit_margin":
            if not is_exit_margin(values[field.name]):
                raise FormatError(f"exit_margin: got {values[field.name]}, expected {EXIT_MARGINS}")
        elif field.code == "f":
            _check_range(values, field.name, *field.limits)


def _check_reserved(data: bytes) -> None:
    if any(data):
        raise FormatError("reserved bytes: got other values, expected zeros")


def _limits(shape: Header, field: Field) -> tuple[float, float]:
    """Return a field's range; a field that the stem does not use must be 0.

    The stem itself has been checked before the fields that depend on it.
    """
    used = True
    if field.name in ("patch_height", "patch_width", "stem_width"):
        used = (STEMS[shape["stem"]] == "patch") == field.name.startswith("patch")
    return field.limits if used else (0, 0)


def _check_range(values: Header, name: str, low: float, high: float) -> None:
    if not low <= values[name] <= high:  # also refuses NaN
        raise FormatError(f"{name}: got {values[name]}, expected {low:g} to {high:g}")


def _check_fit(header: Header, shape: Header) -> None:
    stem = STEMS[shape["stem"]]
    if stem == "patch":
        for side in ("height", "width"):
            patch, image = shape[f"patch_{side}"], header[side]
            if image % patch:
                raise FormatError(f"patch_{side}: got {patch}, expected a divisor of {image}")
    length = sequence_length(header, shape)
    if length > MAX_LENGTH:
        raise FormatError(f"sequence length: got {length}, expected at most {MAX_LENGTH}")
    if found := oversized_activations(stem, length, header | shape):
        name, size = found
        raise FormatError(f"{name}: got {size}, expected up to {MAX_ACTIVATIONS} in all")
