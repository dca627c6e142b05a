"""The model file (docs/format.md): one table of its header, one of its tensors, write and read."""

from __future__ import annotations

import dataclasses
import itertools
import math
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mnist_mamba.atomic_write import write_bytes
from mnist_mamba.config import MAX_ACTIVATIONS, MAX_LENGTH, Direction, ModelConfig, Pool, Stem
from mnist_mamba.model import Classifier, ConvStem, MambaClassifier

Array = NDArray[np.float32]

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
"""A choice is stored as its place here, so new ones go to the end."""

CRC_OFFSET = 12
CHECKED_FROM = 16
"""The checksum covers the bytes from here to the end."""


class FormatError(ValueError):
    """A file that is not a model; the message names field, got and expected."""


@dataclasses.dataclass(frozen=True)
class Field:
    """One header field with its inclusive range; offsets follow from the order."""

    name: str
    code: Literal["I", "f"]
    low: float
    high: float

    @property
    def limits(self) -> tuple[float, float]:
        """The range as the file's type holds it."""
        if self.code == "I":
            return self.low, self.high
        return float(np.float32(self.low)), float(np.float32(self.high))


FIELDS = (
    Field("flags", "I", 0, FLAG_TIED_A | FLAG_POS_EMBED | FLAG_LOCAL_CONV),
    Field("height", "I", 1, 4096),
    Field("width", "I", 1, 4096),
    Field("channels", "I", 1, 1),
    Field("n_classes", "I", 2, 256),
    Field("stem", "I", 0, len(STEMS) - 1),
    Field("patch_height", "I", 1, 4096),
    Field("patch_width", "I", 1, 4096),
    Field("stem_width", "I", 1, 512),
    Field("d_model", "I", 1, 2048),
    Field("n_layers", "I", 1, 64),
    Field("d_state", "I", 1, 256),
    Field("d_conv", "I", 1, 16),
    Field("d_inner", "I", 1, 8192),
    Field("dt_rank", "I", 1, 2048),
    Field("direction", "I", 0, len(DIRECTIONS) - 1),
    Field("pool", "I", 0, len(POOLS) - 1),
    Field("norm_eps", "f", 2**-149, 0.1),
    Field("pixel_mean", "f", 0.0, 1.0),
    Field("pixel_std", "f", 1e-6, 1e6),
    Field("more_members", "I", 0, 63),
)
FIELDS_STRUCT = struct.Struct("<" + "".join(field.code for field in FIELDS))
RESERVED_FROM = CHECKED_FROM + FIELDS_STRUCT.size


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """A tensor of the file: V(n), T(rows, n) or P(out, in) of docs/format.md."""

    name: str
    kind: Literal["vector", "table", "panels"]
    shape: tuple[int, ...]

    @property
    def stored_floats(self) -> int:
        """Floats in the file, padding included."""
        if self.kind == "panels":
            return pad(self.shape[0]) * self.shape[1]
        return math.prod(self.shape[:-1]) * pad(self.shape[-1])

    def pack(self, values: Array) -> bytes:
        """The file's bytes of `values`, which has this spec's shape."""
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
        """The values that `pack` stored, without padding."""
        stored = np.frombuffer(data, dtype="<f4").astype(np.float32)
        if self.kind != "panels":
            return stored.reshape(*self.shape[:-1], -1)[..., : self.shape[-1]].copy()
        out, inputs = self.shape
        rows = stored.reshape(-1, inputs, LANES).transpose(0, 2, 1).reshape(-1, inputs)
        return rows[:out].copy()


def pad(n: int) -> int:
    """n rounded up to whole panels."""
    return -(-n // LANES) * LANES


Header = dict[str, Any]


def sequence_length(header: Header) -> int:
    """Tokens of an image, from the header's dims."""
    if header["stem"] == STEMS.index("patch"):
        rows = header["height"] // header["patch_height"]
        columns = header["width"] // header["patch_width"]
    else:
        rows, columns = math.ceil(header["height"] / 4), math.ceil(header["width"] / 4)
    return int(rows * columns)


def tensor_specs(header: Header) -> list[TensorSpec]:
    """The tensors of a file with this header, in file order."""
    specs, members = _member_specs(header), header["more_members"] + 1
    if members == 1:
        return specs
    return [
        dataclasses.replace(spec, name=_of_member(i, spec.name))
        for i in range(members)
        for spec in specs
    ]


def _of_member(member: int, name: str) -> str:
    """The name of a tensor of one of several members."""
    return f"members.{member}.{name}"


def _member_specs(header: Header) -> list[TensorSpec]:
    d_model, d_inner = header["d_model"], header["d_inner"]
    d_state, dt_rank = header["d_state"], header["dt_rank"]
    specs: list[TensorSpec] = []

    def vector(name: str, n: int) -> None:
        specs.append(TensorSpec(name, "vector", (n,)))

    def table(name: str, rows: int, n: int) -> None:
        specs.append(TensorSpec(name, "table", (rows, n)))

    def panels(name: str, out: int, inputs: int) -> None:
        specs.append(TensorSpec(name, "panels", (out, inputs)))

    if header["stem"] == STEMS.index("patch"):
        panels("stem.weight", d_model, header["patch_height"] * header["patch_width"])
        vector("stem.bias", d_model)
    else:
        widths = [1, header["stem_width"], d_model]
        if header["stem"] == STEMS.index("conv3"):
            widths.insert(1, math.ceil(header["stem_width"] / 2))
        for i, (channels, out) in enumerate(itertools.pairwise(widths), start=1):
            panels(f"stem.conv{i}.weight", out, 9 * channels)
            vector(f"stem.conv{i}.bias", out)
    if header["flags"] & FLAG_POS_EMBED:
        table("pos_embed", sequence_length(header), d_model)
    bidirectional = header["direction"] == DIRECTIONS.index("bidirectional")
    for i in range(header["n_layers"]):
        if header["flags"] & FLAG_LOCAL_CONV:
            table(f"layers.{i}.local.weight", 9, d_model)
            vector(f"layers.{i}.local.bias", d_model)
        panels(f"layers.{i}.in_proj.x", d_inner, d_model)
        panels(f"layers.{i}.in_proj.z", d_inner, d_model)
        for suffix in ("", "_b") if bidirectional else ("",):
            table(f"layers.{i}.conv1d{suffix}.weight", header["d_conv"], d_inner)
            vector(f"layers.{i}.conv1d{suffix}.bias", d_inner)
            panels(f"layers.{i}.x_proj{suffix}", dt_rank + 2 * d_state, d_inner)
            panels(f"layers.{i}.dt_proj{suffix}.weight", d_inner, dt_rank)
            vector(f"layers.{i}.dt_proj{suffix}.bias", d_inner)
            if header["flags"] & FLAG_TIED_A:
                vector(f"layers.{i}.A{suffix}", d_inner)
            else:
                table(f"layers.{i}.A{suffix}", d_state, d_inner)
            vector(f"layers.{i}.D{suffix}", d_inner)
        panels(f"layers.{i}.out_proj", d_model, d_inner)
    panels("head.weight", header["n_classes"], d_model)
    vector("head.bias", header["n_classes"])
    return specs


def header_of(config: ModelConfig) -> Header:
    """The header's fields for a model's config."""
    patch = config.patch if config.stem == "patch" else (0, 0)
    flags = FLAG_TIED_A * (config.a == "tied") + FLAG_POS_EMBED * config.pos_embed
    flags += FLAG_LOCAL_CONV * config.local_conv
    return {
        "flags": flags,
        "height": config.height,
        "width": config.width,
        "channels": config.channels,
        "n_classes": config.n_classes,
        "stem": STEMS.index(config.stem),
        "patch_height": patch[0],
        "patch_width": patch[1],
        "stem_width": 0 if config.stem == "patch" else config.stem_width,
        "d_model": config.d_model,
        "n_layers": config.n_layers,
        "d_state": config.d_state,
        "d_conv": config.d_conv,
        "d_inner": config.d_inner,
        "dt_rank": config.resolved_dt_rank,
        "direction": DIRECTIONS.index(config.direction),
        "pool": POOLS.index(config.pool),
        "norm_eps": config.norm_eps,
        "pixel_mean": config.pixel_mean,
        "pixel_std": config.pixel_std,
        "more_members": config.members - 1,
    }


def folded_tensors(model: Classifier) -> dict[str, Array]:
    """A model's values by their names in the file, with the folds that docs/format.md lists.

    Products are taken in float64 and rounded once.
    """
    if isinstance(model, MambaClassifier):
        return _member_tensors(model)
    return {
        _of_member(i, name): values
        for i, member in enumerate(model.classifiers)
        for name, values in _member_tensors(member).items()
    }


def _member_tensors(model: MambaClassifier) -> dict[str, Array]:
    state = {name: value.detach().cpu().double() for name, value in model.state_dict().items()}
    config = model.config
    folded: dict[str, Tensor] = {}
    if config.stem == "patch":
        folded["stem.weight"] = state["stem.linear.weight"]
        folded["stem.bias"] = state["stem.linear.bias"]
    elif isinstance(model.stem, ConvStem):
        for i in range(1, model.stem.n_convs + 1):
            weight, bias = model.stem.folded(i)
            folded[f"stem.conv{i}.weight"] = weight.permute(0, 2, 3, 1).flatten(1)
            folded[f"stem.conv{i}.bias"] = bias
    if config.pos_embed:
        folded["pos_embed"] = state["pos_embed"]
    for i, block in enumerate(model.blocks):
        mixer = block.mixer
        if block.local is not None:
            taps, bias = block.local.folded()
            folded[f"layers.{i}.local.weight"], folded[f"layers.{i}.local.bias"] = taps, bias
        source, target = f"layers.{i}.mixer", f"layers.{i}"
        in_proj = state[f"{source}.in_proj.weight"] * state[f"layers.{i}.norm.weight"]
        folded[f"{target}.in_proj.x"], folded[f"{target}.in_proj.z"] = in_proj.chunk(2)
        for suffix in mixer.suffixes:
            taps = state[f"{source}.conv1d{suffix}.weight"].squeeze(1)
            folded[f"{target}.conv1d{suffix}.weight"] = taps.T
            folded[f"{target}.conv1d{suffix}.bias"] = state[f"{source}.conv1d{suffix}.bias"]
            folded[f"{target}.x_proj{suffix}"] = state[f"{source}.x_proj{suffix}.weight"]
            folded[f"{target}.dt_proj{suffix}.weight"] = state[f"{source}.dt_proj{suffix}.weight"]
            folded[f"{target}.dt_proj{suffix}.bias"] = state[f"{source}.dt_proj{suffix}.bias"]
            log = state[f"{source}.{mixer.a_name(suffix)}"]
            A = -torch.exp(log) * math.log2(math.e)
            folded[f"{target}.A{suffix}"] = A.squeeze(1) if mixer.tied else A.T
            folded[f"{target}.D{suffix}"] = state[f"{source}.D{suffix}"]
        scans = len(mixer.suffixes)
        folded[f"{target}.out_proj"] = state[f"{source}.out_proj.weight"] / scans
    folded["head.weight"] = state["head.weight"] * state["norm_f.weight"]
    folded["head.bias"] = state["head.bias"]
    return {name: value.numpy().astype(np.float32) for name, value in folded.items()}


def encode(header: Header, tensors: Mapping[str, Array]) -> bytes:
    """The bytes of a file; `tensors` holds one array for each of `tensor_specs(header)`."""
    fields = FIELDS_STRUCT.pack(*(header[field.name] for field in FIELDS))
    body = fields.ljust(HEADER_BYTES - CHECKED_FROM, b"\0")
    body += b"".join(spec.pack(tensors[spec.name]) for spec in tensor_specs(header))
    return MAGIC + struct.pack("<II", VERSION, zlib.crc32(body)) + body


def write_model(path: Path, model: Classifier) -> None:
    """Write a model as the file that the C engine maps; whole or not at all.

    Raises:
        FormatError: a weight that is NaN or infinite, which the engine would refuse.
        OSError: the file cannot be written.
    """
    tensors = folded_tensors(model)
    for name, values in tensors.items():
        if not np.isfinite(values).all():
            raise FormatError(f"{name} holds NaN or infinite values: the training has diverged")
    write_bytes(path, encode(header_of(model.config), tensors))


@dataclasses.dataclass(frozen=True)
class ModelFile:
    """A file's contents: header fields and unpadded tensors, both by name."""

    header: Header
    tensors: dict[str, Array]


def read_model(path: Path) -> ModelFile:
    """Read and check a model file.

    Raises:
        FormatError: anything that docs/format.md does not allow.
        OSError: the file cannot be read.
    """
    return decode(path.read_bytes())


def decode(data: bytes) -> ModelFile:
    """`read_model` on bytes."""
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
        finite = np.isfinite(np.frombuffer(data, "<f4", spec.stored_floats, offset))
        if not finite.all():
            raise FormatError(
                f"tensor {spec.name}: float {finite.argmin()}: got a NaN or infinity, expected "
                "finite ones"
            )
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
    # In the order of docs/format.md, so that readers name the same field of several.
    for field in FIELDS:
        if field.code == "I":
            _check_range(header, field.name, *_limits(header, field))
    _check_length(header)
    _check_activations(header)
    for field in FIELDS:
        if field.code == "f":
            _check_range(header, field.name, *field.limits)
    if any(data[RESERVED_FROM:HEADER_BYTES]):
        raise FormatError("reserved bytes: got other values, expected zeros")
    return header


def _limits(header: Header, field: Field) -> tuple[float, float]:
    """A whole number's range, which for those of the stem hangs on the stem."""
    patch = header["stem"] == STEMS.index("patch")
    match field.name:
        case "patch_height" | "patch_width":
            used = patch
        case "stem_width":
            used = not patch
        case _:
            used = True
    return field.limits if used else (0, 0)


def _check_range(header: Header, name: str, low: float, high: float) -> None:
    if not low <= header[name] <= high:  # also refuses NaN
        raise FormatError(f"{name}: got {header[name]}, expected {low:g} to {high:g}")


def _check_length(header: Header) -> None:
    if header["stem"] == STEMS.index("patch"):
        for side in ("height", "width"):
            patch, image = header[f"patch_{side}"], header[side]
            if image % patch:
                raise FormatError(f"patch_{side}: got {patch}, expected a divisor of {image}")
    if sequence_length(header) > MAX_LENGTH:
        raise FormatError(
            f"sequence length: got {sequence_length(header)}, expected at most {MAX_LENGTH}"
        )


def _check_activations(header: Header) -> None:
    length = sequence_length(header)
    pixels = header["height"] * header["width"]
    quarter = math.ceil(header["height"] / 2) * math.ceil(header["width"] / 2)
    conv3 = header["stem"] == STEMS.index("conv3")
    arrays = {
        "d_model": (length, header["d_model"]),
        "d_inner": (length, header["d_inner"]),
        "dt_rank + 2 d_state": (length, header["dt_rank"] + 2 * header["d_state"]),
        "stem_width": (quarter, header["stem_width"]),
        "half of stem_width": (pixels, math.ceil(header["stem_width"] / 2) if conv3 else 0),
    }
    for name, (rows, columns) in arrays.items():
        if rows * columns > MAX_ACTIVATIONS:
            raise FormatError(
                f"{name}: got {columns} at each of {rows} places, expected up to "
                f"{MAX_ACTIVATIONS} in all"
            )
