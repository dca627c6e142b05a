"""The model file (docs/format.md): its header, its tensors, and how to read and write its bytes.

Needs numpy only; `mnist_mamba.export` turns a torch model into such a file.
"""

from __future__ import annotations

import dataclasses
import math
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mnist_mamba.config import (
    LIMITS,
    MAX_ACTIVATIONS,
    MAX_LENGTH,
    Direction,
    Pool,
    Range,
    Stem,
    oversized_activations,
    stem_convs,
    token_grid,
    whole,
)

Array = NDArray[np.float32]
TensorKind = Literal["vector", "table", "panels"]

MAGIC = b"\x89MAMBA\r\n"
VERSION = 1
HEADER_BYTES = 256
LANES = 16
FLAG_TIED_A = 1
FLAG_POS_EMBED = 2
FLAG_LOCAL_CONV = 4
STEMS = get_args(Stem)
DIRECTIONS = get_args(Direction)
POOLS = get_args(Pool)
"""The file stores the index of a choice here, so append new choices."""

CRC_OFFSET = 12
CHECKED_FROM = 16
"""The checksum covers the bytes from here to the end."""


class FormatError(ValueError):
    """A file that is not a valid model; the message names field, got and expected."""


@dataclasses.dataclass(frozen=True)
class Field:
    """One header field with its range; offsets follow from the order."""

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
    "flags": whole(0, FLAG_TIED_A | FLAG_POS_EMBED | FLAG_LOCAL_CONV),
    "stem": whole(0, len(STEMS) - 1),
    "patch_height": LIMITS["height"],
    "patch_width": LIMITS["width"],
    "direction": whole(0, len(DIRECTIONS) - 1),
    "pool": whole(0, len(POOLS) - 1),
    "more_members": whole(0, int(LIMITS["members"].high) - 1),
}
_WHOLE_NUMBERS = (
    *("flags", "height", "width", "channels", "n_classes", "stem", "patch_height", "patch_width"),
    *("stem_width", "d_model", "n_layers", "d_state", "d_conv", "d_inner", "dt_rank"),
    *("direction", "pool"),
)
FIELDS = (
    *(Field(name, "I", _RANGES[name]) for name in _WHOLE_NUMBERS),
    *(Field(name, "f", _RANGES[name]) for name in ("norm_eps", "pixel_mean", "pixel_std")),
    Field("more_members", "I", _RANGES["more_members"]),
)
FIELDS_STRUCT = struct.Struct("<" + "".join(field.code for field in FIELDS))
RESERVED_FROM = CHECKED_FROM + FIELDS_STRUCT.size


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

    def pack(self, values: Array) -> bytes:
        """Return the file's bytes of `values`, which must have this spec's shape."""
        if values.shape != self.shape:
            raise ValueError(f"{self.name} has shape {values.shape}, expected {self.shape}")
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


def pad(n: int) -> int:
    """Return n rounded up to whole panels."""
    return math.ceil(n / LANES) * LANES


Header = dict[str, Any]


def sequence_length(header: Header) -> int:
    """Return the number of tokens per image."""
    patch = header["patch_height"], header["patch_width"]
    rows, columns = token_grid(STEMS[header["stem"]], header["height"], header["width"], patch)
    return rows * columns


def tensor_specs(header: Header) -> list[TensorSpec]:
    """Return the tensors of a file with this header, in file order."""
    specs, members = _member_specs(header), header["more_members"] + 1
    if members == 1:
        return specs
    return [
        dataclasses.replace(spec, name=member_tensor(i, spec.name))
        for i in range(members)
        for spec in specs
    ]


def member_tensor(member: int, name: str) -> str:
    """Return the name of a tensor of one of several members."""
    return f"members.{member}.{name}"


def _member_specs(header: Header) -> list[TensorSpec]:
    d_model, d_inner = header["d_model"], header["d_inner"]
    d_state, dt_rank = header["d_state"], header["dt_rank"]
    specs: list[TensorSpec] = []

    def add(kind: TensorKind, name: str, *shape: int) -> None:
        specs.append(TensorSpec(name, kind, shape))

    if STEMS[header["stem"]] == "patch":
        add("panels", "stem.weight", d_model, header["patch_height"] * header["patch_width"])
        add("vector", "stem.bias", d_model)
    convs = stem_convs(STEMS[header["stem"]], header["stem_width"], d_model)
    for i, (channels, out, _) in enumerate(convs, start=1):
        add("panels", f"stem.conv{i}.weight", out, 9 * channels)
        add("vector", f"stem.conv{i}.bias", out)
    if header["flags"] & FLAG_POS_EMBED:
        add("table", "pos_embed", sequence_length(header), d_model)
    bidirectional = header["direction"] == DIRECTIONS.index("bidirectional")
    for i in range(header["n_layers"]):
        if header["flags"] & FLAG_LOCAL_CONV:
            add("table", f"layers.{i}.local.weight", 9, d_model)
            add("vector", f"layers.{i}.local.bias", d_model)
        add("panels", f"layers.{i}.in_proj.x", d_inner, d_model)
        add("panels", f"layers.{i}.in_proj.z", d_inner, d_model)
        for suffix in ("", "_b") if bidirectional else ("",):
            add("table", f"layers.{i}.conv1d{suffix}.weight", header["d_conv"], d_inner)
            add("vector", f"layers.{i}.conv1d{suffix}.bias", d_inner)
            add("panels", f"layers.{i}.x_proj{suffix}", dt_rank + 2 * d_state, d_inner)
            add("panels", f"layers.{i}.dt_proj{suffix}.weight", d_inner, dt_rank)
            add("vector", f"layers.{i}.dt_proj{suffix}.bias", d_inner)
            if header["flags"] & FLAG_TIED_A:
                add("vector", f"layers.{i}.A{suffix}", d_inner)
            else:
                add("table", f"layers.{i}.A{suffix}", d_state, d_inner)
            add("vector", f"layers.{i}.D{suffix}", d_inner)
        add("panels", f"layers.{i}.out_proj", d_model, d_inner)
    add("panels", "head.weight", header["n_classes"], d_model)
    add("vector", "head.bias", header["n_classes"])
    return specs


def encode(header: Header, tensors: Mapping[str, Array]) -> bytes:
    """Return the bytes of a file; `tensors` holds one array for each of `tensor_specs(header)`."""
    fields = FIELDS_STRUCT.pack(*(header[field.name] for field in FIELDS))
    body = fields.ljust(HEADER_BYTES - CHECKED_FROM, b"\0")
    body += b"".join(spec.pack(tensors[spec.name]) for spec in tensor_specs(header))
    return MAGIC + struct.pack("<II", VERSION, zlib.crc32(body)) + body


@dataclasses.dataclass(frozen=True)
class ModelFile:
    """The contents of a file: header fields and unpadded tensors, both by name."""

    header: Header
    tensors: dict[str, Array]


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
    specs = tensor_specs(header)
    expected = HEADER_BYTES + 4 * sum(spec.stored_floats for spec in specs)
    if len(data) != expected:
        raise FormatError(f"file size: got {len(data)} bytes, expected {expected} from its dims")
    (stored,) = struct.unpack_from("<I", data, CRC_OFFSET)
    actual = zlib.crc32(data[CHECKED_FROM:])
    if stored != actual:
        raise FormatError(
            f"crc32: got {actual:08X} from its bytes, expected {stored:08X} (damaged file?)"
        )
    tensors: dict[str, Array] = {}
    offset = HEADER_BYTES
    for spec in specs:
        size = 4 * spec.stored_floats
        tensors[spec.name] = spec.unpack(data[offset : offset + size])
        offset += size
    return ModelFile(header, tensors)


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
        raise FormatError(f"version: got {version}, expected {VERSION}")
    values = FIELDS_STRUCT.unpack_from(data, CHECKED_FROM)
    header: Header = dict(zip((field.name for field in FIELDS), values, strict=True))
    # In the order of docs/format.md, so that all readers name the same one of several bad fields.
    for field in FIELDS:
        if field.code == "I":
            _check_range(header, field.name, *_limits(header, field))
    _check_fit(header)
    for field in FIELDS:
        if field.code == "f":
            _check_range(header, field.name, *field.limits)
    if any(data[RESERVED_FROM:HEADER_BYTES]):
        raise FormatError("reserved bytes: got other values, expected zeros")
    return header


def _limits(header: Header, field: Field) -> tuple[float, float]:
    """Return a field's range; a field that the stem does not use must be 0.

    The stem itself has been checked before the fields that depend on it.
    """
    used = True
    if field.name in ("patch_height", "patch_width", "stem_width"):
        used = (STEMS[header["stem"]] == "patch") == field.name.startswith("patch")
    return field.limits if used else (0, 0)


def _check_range(header: Header, name: str, low: float, high: float) -> None:
    if not low <= header[name] <= high:  # also refuses NaN
        raise FormatError(f"{name}: got {header[name]}, expected {low:g} to {high:g}")


def _check_fit(header: Header) -> None:
    if STEMS[header["stem"]] == "patch":
        for side in ("height", "width"):
            patch, image = header[f"patch_{side}"], header[side]
            if image % patch:
                raise FormatError(f"patch_{side}: got {patch}, expected a divisor of {image}")
    length = sequence_length(header)
    if length > MAX_LENGTH:
        raise FormatError(f"sequence length: got {length}, expected at most {MAX_LENGTH}")
    if found := oversized_activations(STEMS[header["stem"]], length, header):
        name, size = found
        raise FormatError(f"{name}: got {size}, expected up to {MAX_ACTIVATIONS} in all")
