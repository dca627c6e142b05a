"""The model file: round trips, damage, and agreement with docs/format.md."""

from __future__ import annotations

import dataclasses
import math
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils import prune

from mnist_mamba.config import MAX_ACTIVATIONS, MAX_LENGTH, MAX_NAME_BYTES
from mnist_mamba.engine import Engine
from mnist_mamba.engine import format as model_format
from mnist_mamba.engine.binding import is_exit_margin
from mnist_mamba.engine.format import FormatError, read_model
from mnist_mamba.export import describe, folded_tensors, load_model, write_model
from mnist_mamba.model import MambaClassifier
from mnist_mamba.training.evaluation import predict
from tests.models import ARCHITECTURES, make_images, make_model

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "csrc" / "tests" / "golden"
FORMAT_PAGE = ROOT / "docs" / "format.md"


@pytest.fixture(scope="module")
def model_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("format") / "model.bin"
    write_model(path, make_model("patch_forward_mean"))
    return path.read_bytes()


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("norm_f", {"eps": 0.1}),
        ("layers.0.norm", {"eps": 0.1}),
        ("stem.conv1", {"padding_mode": "circular"}),
        ("stem.conv2", {"stride": (1, 1)}),
        ("layers.1.local.conv", {"dilation": (2, 2)}),
        ("layers.0.mixer.conv1d", {"dilation": (2,)}),
    ],
)
def test_a_model_that_its_config_does_not_describe_is_refused(
    part: str, change: dict[str, Any], tmp_path: Path
) -> None:
    model = make_model("conv_local_cross")
    for name, value in change.items():
        setattr(model.get_submodule(part), name, value)
    (setting,) = change
    with pytest.raises(FormatError, match=f"the part {re.escape(part)}: {setting} is "):
        write_model(tmp_path / "model.bin", model)
    assert not (tmp_path / "model.bin").exists()


def test_a_pruned_or_replaced_part_is_refused(tmp_path: Path) -> None:
    model = make_model("patch_forward_mean")
    prune.l1_unstructured(model.head, "weight", 0.5)
    with pytest.raises(FormatError, match=r"the weight head\.weight is None"):
        write_model(tmp_path / "model.bin", model)
    prune.remove(model.head, "weight")
    write_model(tmp_path / "model.bin", model)
    model.norm_f = torch.nn.Identity()
    with pytest.raises(FormatError, match=r"the part norm_f is <class .*Identity"):
        write_model(tmp_path / "model.bin", model)


class RMSNorm(torch.nn.RMSNorm):
    """A norm of torch's name that computes something else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def replace_norm(model: Any) -> None:
    model.members[2].norm_f = RMSNorm(8, eps=1e-5)


def replace_a_member_s_config(model: Any) -> None:
    model.members[1].config = dataclasses.replace(model.members[1].config, pool="last")


def swap_layers(model: Any) -> None:
    layers = model.members[0].layers
    layers[0], layers[1] = layers[1], layers[0]


def replace_method(model: Any) -> None:
    model.members[1].pooled = lambda residual: residual[:, 0]


def add_hook(model: Any) -> None:
    model.members[0].head.register_forward_hook(lambda module, inputs, out: 2 * out)


def replace_convolution(model: Any) -> None:
    model.members[0].stem.conv1._conv_forward = lambda x, weight, bias: 0 * x


def run_last_layer_first(model: Any) -> None:
    layers = model.members[0].layers._modules
    layers["0"] = layers.pop("0")


class Doubled(torch.nn.Parameter):
    """A weight that says itself what torch's functions do with it."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> torch.Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            out: torch.Tensor = func(*args, **(kwargs or {}))
        return 2 * out if func is torch.nn.functional.linear else out


def replace_weight(model: Any) -> None:
    model.members[1].head.weight = Doubled(model.members[1].head.weight.detach())


def make_complex(model: Any) -> None:
    weight = model.members[1].norm_f.weight
    model.members[1].norm_f.weight = torch.nn.Parameter(weight.detach() * 1j)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (replace_norm, "the part members.2.norm_f is <class 'tests"),
        (replace_a_member_s_config, "the part members.1: config is ModelConfig"),
        (swap_layers, "the part members.0.layers.0: order is ScanOrder"),
        (replace_method, "the part members.1: pooled is <function"),
        (add_hook, "the part members.0.head: _forward_hooks is OrderedDict"),
        (replace_convolution, "the part members.0.stem.conv1: _conv_forward is <function"),
        (run_last_layer_first, "the order of parts"),
        (replace_weight, "the weight members.1.head.weight is a Doubled"),
        (make_complex, "the weight members.1.norm_f.weight has torch.complex64"),
    ],
)
def test_a_changed_ensemble_is_refused(
    change: Callable[[Any], None], named: str, tmp_path: Path
) -> None:
    model = make_model("ensemble")
    change(model)
    with pytest.raises(FormatError, match=re.escape(named)):
        write_model(tmp_path / "model.bin", model)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("margin", [-1.0, -1e-9, math.nan, math.inf, 1e6 + 0.03, 1e-40, 1e-46])
def test_an_exit_margin_that_no_reader_takes_is_not_written(margin: float, tmp_path: Path) -> None:
    model: Any = make_model("ensemble")
    model.exit_margin = margin
    with pytest.raises(FormatError, match=r"exit_margin: got .*, expected 0 or 2\^-126 to 1e\+06"):
        write_model(tmp_path / "model.bin", model)
    assert not list(tmp_path.iterdir())
    model.exit_margin = 1e6
    write_model(tmp_path / "model.bin", model)
    assert read_model(tmp_path / "model.bin").header["exit_margin"] == 1e6


def test_a_model_under_global_hooks_is_refused(tmp_path: Path) -> None:
    hook = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        with pytest.raises(FormatError, match="hooks for all modules"):
            write_model(tmp_path / "model.bin", make_model("patch_tied"))
    finally:
        hook.remove()


def test_a_quantised_model_is_refused(tmp_path: Path) -> None:
    model = make_model("patch_tied")
    quantised = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear})
    with pytest.raises(FormatError, match=r"the part .* is <class .*quantized"):
        write_model(tmp_path / "model.bin", quantised)


def test_what_changes_no_result_is_exported(tmp_path: Path) -> None:
    model = make_model("ensemble")
    state = torch.get_rng_state()
    write_model(tmp_path / "before.bin", model)
    assert torch.equal(torch.get_rng_state(), state)
    model.notes = "of a user"
    model.members[0].head.register_full_backward_hook(lambda *_: None).remove()
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = 0.5
    model.train()
    write_model(tmp_path / "after.bin", model)
    assert (tmp_path / "before.bin").read_bytes() == (tmp_path / "after.bin").read_bytes()


def reseal(data: bytes) -> bytes:
    """Return the bytes with a correct checksum, so that the checks after it run."""
    crc = zlib.crc32(data[model_format.CHECKED_FROM :])
    resealed = bytearray(data)
    struct.pack_into("<I", resealed, model_format.CRC_OFFSET, crc)
    return bytes(resealed)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_round_trips(name: str, tmp_path: Path) -> None:
    model = make_model(name)
    path = tmp_path / "model.bin"
    write_model(path, model)
    file = read_model(path)
    config = model.config
    assert file.class_names == config.resolved_class_names
    for shape, member in zip(file.shapes, config.member_configs, strict=True):
        assert shape["d_inner"] == member.d_inner
        assert model_format.sequence_length(file.header, shape) == member.length
    expected = folded_tensors(model)
    specs = model_format.tensor_specs(file.header, file.shapes)
    assert list(file.tensors) == [spec.name for spec in specs]
    assert file.tensors.keys() == expected.keys()
    for tensor, values in expected.items():
        np.testing.assert_array_equal(file.tensors[tensor], values, err_msg=tensor)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_int8_weights_are_rounded_to_the_nearest_step(name: str, tmp_path: Path) -> None:
    model, path = make_model(name), tmp_path / "model.bin"
    write_model(path, model, "int8")
    data, file = path.read_bytes(), read_model(path)
    assert file.header["weight_type"] == 1
    offset = 128 + 64 * model.config.members + file.header["names_bytes"]
    for spec in model_format.tensor_specs(file.header, file.shapes):
        exact, found = folded_tensors(model)[spec.name], file.tensors[spec.name]
        if spec.kind == "vector":
            np.testing.assert_array_equal(found, exact)
            offset += 4 * len(exact)
            continue
        for row, values in enumerate(exact):
            (scale,) = struct.unpack_from("<f", data, offset)
            steps = np.frombuffer(data, np.int8, len(values), offset + 4)
            assert 96 <= np.abs(steps).max() <= 127
            assert np.abs(values - found[row]).max() <= scale / 2 * 1.0001
            np.testing.assert_array_equal(found[row], np.float32(scale) * steps)
            whole = np.abs(values).max() / 127  # the usual scale is not better
            usual = ((np.rint(values / whole) * whole - values) ** 2).sum()
            assert ((found[row] - values) ** 2).sum() <= usual * 1.0001
            offset += 4 + len(values)
    assert offset == len(data)
    write_model(path, model)
    assert model_format.rounded(path.read_bytes()) == data
    assert model_format.rounded(data) == data


def test_int8_weights_of_any_size_can_be_read() -> None:
    largest, spec = np.finfo(np.float32).max, model_format.TensorSpec("t", "table", (5, 3))
    values = np.array(
        [[0, 0, 0], [1e-45, 0, -1e-44], [1e-42, 0, 0], [largest, -largest, 1], [0, -3e38, 1e30]],
        np.float32,
    )
    found = spec.unpack(spec.expanded(spec.rounded(values)))
    assert np.isfinite(found).all()
    assert not found[:3].any()  # the engine counts denormals as zero
    half_steps = np.abs(values).max(axis=1, keepdims=True) / 190
    assert (np.abs(found - values) <= half_steps)[3:].all()


@pytest.mark.parametrize("weight_type", ["float32", "int8"])
def test_what_is_not_a_number_is_not_written(weight_type: Any) -> None:
    model = make_model("patch_tied")
    for name, value in (("head.weight", np.nan), ("layers.0.D", np.inf)):
        tensors = folded_tensors(model)
        tensors[name].flat[0] = value
        with pytest.raises(FormatError, match=rf"{re.escape(name)} holds NaN"):
            model_format.encode(describe(model.config, tensors, weight_type))
    tensors = folded_tensors(model) | {"head.weight": np.zeros((10, 9), np.float32)}
    with pytest.raises(FormatError, match=r"head\.weight has shape \(10, 9\), expected \(10, 8\)"):
        model_format.encode(describe(model.config, tensors, weight_type))


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("weight_type", ["float32", "int8"])
def test_a_file_becomes_a_model_again(name: str, weight_type: Any, tmp_path: Path) -> None:
    model, path = make_model(name), tmp_path / "model.bin"
    write_model(path, model, weight_type)
    loaded = load_model(path, scan="reference")
    images = make_images(model.config, 9)
    found = predict(loaded, images).numpy()
    with Engine(path) as engine:
        np.testing.assert_allclose(engine.logits(images.numpy()), found, rtol=0, atol=2e-6)
    if weight_type == "float32":
        np.testing.assert_allclose(found, predict(model, images).numpy(), rtol=0, atol=2e-6)
    assert loaded.config.members == model.config.members
    members = zip(loaded.config.member_configs, model.config.member_configs, strict=True)
    for got, wanted in members:
        kept = {"stem_norm": wanted.stem_norm, "dt_rank": wanted.dt_rank}
        if wanted.stem == "patch":
            kept |= {"stem_width": wanted.stem_width}
        else:
            kept |= {"patch": wanted.patch}
        named = dataclasses.replace(wanted, class_names=wanted.resolved_class_names)
        assert dataclasses.replace(got, **kept) == named


def test_a_file_that_no_model_computes_does_not_become_one(tmp_path: Path) -> None:
    file = read_model(GOLDEN / "patch_tied.bin")
    path = tmp_path / "model.bin"
    wide = [file.shapes[0] | {"d_inner": 17}]
    tensors = {
        spec.name: np.zeros(spec.shape, np.float32)
        for spec in model_format.tensor_specs(file.header, wide)
    }
    path.write_bytes(model_format.encode(dataclasses.replace(file, shapes=wide, tensors=tensors)))
    with pytest.raises(FormatError, match="d_inner = 17: expected a multiple of d_model"):
        load_model(path)
    file.tensors["layers.1.A"][3] = 0  # a state that keeps its value: exp(-inf)
    path.write_bytes(model_format.encode(file))
    images = make_images(ARCHITECTURES["patch_tied"], 9)
    with Engine(path) as engine:
        np.testing.assert_allclose(
            engine.logits(images.numpy()), predict(load_model(path), images), rtol=0, atol=2e-6
        )
    file.tensors["layers.1.A"][3] = 0.25
    path.write_bytes(model_format.encode(file))
    with pytest.raises(FormatError, match=r"layers\.1\.A: got 0\.25, expected 0 or less"):
        load_model(path)


@given(
    kind=st.sampled_from(["vector", "table", "panels"]),
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
)
def test_pack_and_unpack_round_trip_in_aligned_blocks(kind: str, rows: int, columns: int) -> None:
    shape = (columns,) if kind == "vector" else (rows, columns)
    spec = model_format.TensorSpec("t", kind, shape)  # type: ignore[arg-type]
    values = np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape)
    packed = spec.pack(values)
    assert len(packed) == 4 * spec.stored_floats
    assert len(packed) % 64 == 0
    np.testing.assert_array_equal(spec.unpack(packed), values)
    # Padding is zeros.
    assert np.frombuffer(packed, "<f4").sum(dtype=np.float64) == values.sum(dtype=np.float64)


def test_panel_elements_are_where_the_specification_says() -> None:
    values = np.arange(40 * 3, dtype=np.float32).reshape(40, 3)
    stored = np.frombuffer(model_format.TensorSpec("t", "panels", (40, 3)).pack(values), "<f4")
    for o, i in ((0, 0), (17, 2), (39, 1)):
        assert stored[((o // 16) * 3 + i) * 16 + o % 16] == values[o, i]


@pytest.mark.parametrize("extreme", [{"norm_eps": 0.1}, {"pixel_std": 1e-6, "pixel_mean": 1.0}])
def test_values_at_the_limits_are_allowed(extreme: dict[str, float], tmp_path: Path) -> None:
    config = dataclasses.replace(ARCHITECTURES["patch_forward_mean"], **extreme)
    path = tmp_path / "model.bin"
    write_model(path, MambaClassifier(config, scan="reference"))
    file = read_model(path)
    with Engine(path) as engine:
        loaded = load_model(path).config
        for name, value in extreme.items():
            assert getattr(loaded, name) == value
            stored = (file.header | file.shapes[0])[name]
            assert stored == engine.info[name] == pytest.approx(value)


def test_every_truncation_is_refused(model_bytes: bytes) -> None:
    for length in range(0, len(model_bytes), 61):
        with pytest.raises(FormatError):
            model_format.decode(model_bytes[:length])
    with pytest.raises(FormatError, match="file size"):
        model_format.decode(model_bytes + b"\0")


@given(position=st.integers(0, 9855), bit=st.integers(0, 7))
def test_every_flipped_bit_is_refused(model_bytes: bytes, position: int, bit: int) -> None:
    assert position < len(model_bytes)
    damaged = bytearray(model_bytes)
    damaged[position] ^= 1 << bit
    with pytest.raises(FormatError):
        model_format.decode(bytes(damaged))


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, 0, "magic"),
        (8, 3, "version: got 3, expected 2"),
        (
            8,
            1,
            "version: got 1, expected 2: run `python -m pipeline.export convert OLD.bin NEW.bin`, "
            "for digits with `--preparation mnist`",
        ),
        (16, 1, "flags: got 1"),
        (20, 65, "members: got 65"),
        (20, 0, "members: got 0"),
        (24, 0, "height: got 0"),
        (32, 5, "channels: got 5"),
        (36, 257, "n_classes: got 257"),
        (36, 11, "class name 10: got 0 bytes"),
        (40, 2, "preparation: got 2"),
        (44, 2, "weight_type: got 2"),
        (48, 0xBF800000, "exit_margin: got -1.0"),
        (48, 0x49742410, "exit_margin: got 1000001.0"),
        (48, 0x7FC00000, "exit_margin: got nan"),
        (48, 0x007FFFFF, "exit_margin: got 1.17549"),
        (48, 0x80000001, "exit_margin: got -1.4"),
        (52, 0x40000000, "pixel_mean: got 2.0"),
        (56, 0, "pixel_std: got 0.0"),
        (60, 65, "names_bytes: got 65, expected a multiple of 64"),
        (60, 128, "names_bytes: got 128, expected 64"),
        (60, 65536, "file size: got 9856 bytes, expected at least"),
        (124, 1, "reserved bytes"),
        (128, 8, "flags: got 8"),
        (132, 3, "stem: got 3"),
        (136, 3, "patch_height: got 3, expected a divisor of 8"),
        (140, 0, "patch_width: got 0"),
        (144, 1, "stem_width: got 1, expected 0"),
        (148, 4000, "d_model: got 4000"),
        (152, 65, "n_layers: got 65"),
        (156, 0, "d_state: got 0"),
        (160, 17, "d_conv: got 17"),
        (164, 0xFFFFFFFF, "d_inner: got 4294967295"),
        (168, 0, "dt_rank: got 0"),
        (172, 4, "direction: got 4"),
        (176, 2, "pool: got 2"),
        (180, 0x7FC00000, "norm_eps: got nan"),
        (184, 1, "reserved bytes"),
        (192, 0x00300030, "class name 1: got b'0', expected another name than that of class 0"),
        (192, 0x0031FF30, "class name 0: got b'0\\xff1'"),
        (192, 0x00310730, "class name 0: got b'0\\x071', expected UTF-8 without"),
        (252, 1, "class names: got"),
        (156, 5, "file size"),
        (256, 0x7F800000, "tensor stem.weight: float 0: got inf, expected a finite number"),
        (-4, 0xBF800000, "tensor head.bias: float 15: got -1.0, expected 0 as padding"),
        (8, 0x02000000, "byte order"),
    ],
)
def test_each_check_names_its_field(
    model_bytes: bytes, offset: int, value: int, message: str
) -> None:
    damaged = bytearray(model_bytes)
    struct.pack_into("<I", damaged, offset, value)  # from the end if offset < 0
    with pytest.raises(FormatError) as error:
        model_format.decode(reseal(bytes(damaged)))
    assert message in str(error.value)


@pytest.mark.parametrize("bits", [1, 0x007FFFFF, 0x80000001])
def test_a_denormal_margin_is_refused_where_denormals_count_as_zero(
    model_bytes: bytes, bits: int
) -> None:
    damaged = bytearray(model_bytes)
    struct.pack_into("<I", damaged, 48, bits)
    torch.set_flush_denormal(True)
    try:
        with pytest.raises(FormatError, match="exit_margin: got"):
            model_format.decode(reseal(bytes(damaged)))
    finally:
        torch.set_flush_denormal(False)


def worked_example() -> tuple[bytes, dict[str, list[float]], list[float]]:
    """Return the example of docs/format.md: its bytes, the values noted there, and its logits."""
    text = FORMAT_PAGE.read_text(encoding="utf-8").split("## An example, byte by byte")[1]
    (size,) = (int(word.replace(",", "")) for word in re.findall(r"has ([\d,]+) bytes", text))
    data, values = bytearray(size), {}
    for line in text.split("```")[1].splitlines()[1:]:
        offset, row, note = int(line[:8], 16), bytes.fromhex(line[10:57]), line[59:]
        data[offset : offset + 16] = row
        if " = " in note:
            name, numbers = note.split(" = ")
            values[name] = [float(number) for number in numbers.split(",")]
    return bytes(data), values, [float(word) for word in re.findall(r"\*\*(-?[\d.]+)\*\*", text)]


def test_the_worked_example_gives_its_logits() -> None:
    data, values, logits = worked_example()
    file = model_format.decode(data)
    assert set(file.tensors) == set(values)
    for name, numbers in values.items():
        assert file.tensors[name].flatten().tolist() == numbers, name
    with Engine(data) as engine:
        answer = engine.logits(np.ones((1, 1, 1), np.float32))
    np.testing.assert_allclose(answer, [logits], atol=6e-6)
    assert (ROOT / "csrc/fuzz/seeds/model/smallest.bin").read_bytes() == data


PARTS = {
    "Header": (model_format.CHECKED_FROM, model_format.HEADER_FIELDS, model_format.HEADER_BYTES),
    "Members": (0, model_format.MEMBER_FIELDS, model_format.MEMBER_BYTES),
}


def chapter(title: str) -> str:
    """Return the text of a chapter of docs/format.md."""
    return FORMAT_PAGE.read_text(encoding="utf-8").split(f"## {title}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize("title", PARTS)
def test_the_offsets_match_the_specification(title: str) -> None:
    text = chapter(title)
    offset, fields, size = PARTS[title]
    for field in fields:
        kind = {"I": "u32", "f": "f32"}[field.code]
        assert f"| {offset} | {kind} | {field.name} |" in text
        offset += 4
    assert f"| {offset} | {size - offset} bytes | reserved |" in text
    assert f"of {size} bytes" in FORMAT_PAGE.read_text(encoding="utf-8")


def test_the_limits_match_the_specification() -> None:
    """The ranges of all fields, and the limits of sequence length and activations."""
    text = FORMAT_PAGE.read_text(encoding="utf-8")
    number = r"([\d.e+-]*\d)"
    choices = {
        "stem": model_format.STEMS,
        "direction": model_format.DIRECTIONS,
        "pool": model_format.POOLS,
        "preparation": model_format.PREPARATIONS,
        "weight_type": model_format.WEIGHT_TYPES,
    }
    for title, field in ((part, field) for part in PARTS for field in PARTS[part][1]):
        low, high = field.range.low, field.range.high
        row = rf"^\| \d+ \| \w+ \| {field.name} \| (.*) \|$"
        (allowed,) = re.findall(row, chapter(title), re.MULTILINE)
        match field.name:
            case "flags":
                wanted = sum(1 << int(bit) for bit in re.findall(r"bit (\d+) `", allowed))
                assert (low, high) == (0, wanted)
            case "stem" | "direction" | "pool" | "preparation" | "weight_type":
                expected = [(str(i), name) for i, name in enumerate(choices[field.name])]
                assert re.findall(r"(\d+) (\w+)", allowed.split(";")[0]) == expected
                assert (low, high) == (0, len(expected) - 1)
            case "patch_height" | "patch_width":
                side = field.name.removeprefix("patch_")
                assert allowed == f"patch stem: divides {side}; conv stems: 0"
            case "exit_margin":
                assert allowed == "0, with which every member answers, or 2^-126..1e6"
                allowed_margins = (0.0, -0.0, 2.0**-126, 1e6)
                assert all(is_exit_margin(margin) for margin in allowed_margins)
            case "norm_eps":
                assert allowed == f"0 < eps <= {high}"
            case _:
                ((lowest, highest),) = re.findall(rf"{number}\.\.{number}", allowed)
                assert (float(lowest), float(highest)) == (low, high), field.name
    assert f"It must be {MAX_LENGTH:,} or less" in text
    assert f"1..{MAX_NAME_BYTES} bytes of UTF-8" in text
    assert MAX_ACTIVATIONS == 2**24
    assert "must be 2^24 or less" in text


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_diverged_model_is_not_written(value: float, tmp_path: Path) -> None:
    model = make_model("patch_forward_mean")
    with torch.no_grad():
        model.head.weight[0, 0] = value
    path = tmp_path / "model.bin"
    path.write_bytes(b"the old one")
    with pytest.raises(FormatError, match=r"head\.weight holds NaN"):
        write_model(path, model)
    assert path.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [path]
