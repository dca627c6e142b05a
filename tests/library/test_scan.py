"""The selective scan: the C kernel against the reference, and the choice of the backend."""

from __future__ import annotations

import ctypes
import logging
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mnist_mamba import scan
from mnist_mamba.c_build import CACHE_VARIABLE, build_library, isa_flags
from mnist_mamba.config import ModelConfig
from mnist_mamba.model import MambaMixer
from mnist_mamba.model.classifier import Block, ScanOrder
from mnist_mamba.scan import (
    ScanBackendError,
    available_backends,
    c_library,
    choose,
    cpu,
    mamba_ssm,
    selective_scan,
    triton_scan,
)
from mnist_mamba.scan.reference import selective_scan_reference
from tests.models import ARCHITECTURES, make_images, make_model

OPTIONAL = ("D", "z", "delta_bias")
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def make_inputs(
    batch: int,
    d_inner: int,
    d_state: int,
    length: int,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    without: tuple[str, ...] = (),
    transposed: bool = False,
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    def sequence(channels: int) -> Tensor:
        if transposed:
            return draw(batch, length, channels).transpose(1, 2)
        return draw(batch, channels, length)

    inputs = {
        "u": sequence(d_inner),
        "delta": sequence(d_inner),
        "A": -torch.exp(draw(d_inner, d_state)),
        "B": sequence(d_state),
        "C": sequence(d_state),
        "D": draw(d_inner),
        "z": sequence(d_inner),
        "delta_bias": draw(d_inner),
    }
    return {name: value for name, value in inputs.items() if name not in without}


def run(
    inputs: dict[str, Any], backend: str, softplus: bool = True, seed: int = 1
) -> dict[str, Any]:
    """Return the output and the gradient of each input under a random gradient of the output."""
    leaves = {name: value.detach().requires_grad_() for name, value in inputs.items()}
    out = selective_scan(**leaves, delta_softplus=softplus, backend=backend)
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
    grads = torch.autograd.grad(out, list(leaves.values()), weight)
    return {"out": out.detach(), **dict(zip(leaves, grads, strict=True))}


def assert_close(got: dict[str, Tensor], exact: dict[str, Tensor]) -> None:
    """Compare with the reference in float64 tensor by tensor, relative in the L2 norm."""
    assert got.keys() == exact.keys()
    dtype = got["out"].dtype
    for name, expected in exact.items():
        assert got[name].shape == expected.shape
        assert got[name].dtype == dtype
        error = float((got[name].double() - expected).norm())
        assert error <= TOLERANCE[dtype] * float(expected.norm()), name


def assert_matches_reference(inputs: dict[str, Any], softplus: bool = True) -> None:
    got = run(inputs, "cpu", softplus)
    exact = {name: value.double() for name, value in inputs.items()}
    assert_close(got, run(exact, "reference", softplus))
    assert got["out"].dtype == inputs["u"].dtype


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 18), st.integers(1, 80)),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    without=st.sets(st.sampled_from(OPTIONAL)),
    softplus=st.booleans(),
    transposed=st.booleans(),
)
def test_cpu_is_the_reference(
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    without: set[str],
    softplus: bool,
    transposed: bool,
) -> None:
    inputs = make_inputs(*shape, dtype, without=tuple(without), transposed=transposed)
    if not softplus:  # delta must be positive for the state to decay
        inputs["delta"] = inputs["delta"].abs()
        if "delta_bias" in inputs:
            inputs["delta_bias"] = inputs["delta_bias"].abs()
    assert_matches_reference(inputs, softplus)


@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1, 1),
        (2, 16, 16, 64),  # exactly one block, one chunk
        (2, 17, 3, 65),  # one more than a block, a chunk
        (2, 5, 3, 130),  # two chunks and a rest
        (1, 200, 4, 35),  # channels split among tasks
        (33, 40, 2, 5),  # one task an item, no split
        (70, 3, 2, 5),  # several items a task
        (2, 5, 256, 3),
        (1, 2, 4, 300),
    ],
    ids=str,
)
def test_shapes_at_the_borders(shape: tuple[int, int, int, int]) -> None:
    assert_matches_reference(make_inputs(*shape))


@pytest.mark.parametrize("without", [(), *((name,) for name in OPTIONAL), OPTIONAL], ids=str)
def test_each_optional_argument(without: tuple[str, ...]) -> None:
    assert_matches_reference(make_inputs(3, 20, 5, 21, without=without))


def test_the_reference_is_the_formula() -> None:
    """Two steps of a one-channel, one-state scan, worked out by hand."""
    one = torch.ones(1, 1, 2, dtype=torch.float64)
    decay = torch.log(torch.tensor([[0.5]], dtype=torch.float64))
    out = selective_scan_reference(
        3 * one, one, decay, 2 * one, 10 * one, D=torch.tensor([1.0], dtype=torch.float64)
    )
    assert out.flatten().tolist() == pytest.approx([63.0, 93.0])  # h = 6, then 0.5 * 6 + 6


@pytest.mark.parametrize("without", [(), OPTIONAL], ids=str)
@pytest.mark.parametrize("softplus", [True, False])
def test_gradcheck(without: tuple[str, ...], softplus: bool) -> None:
    inputs = make_inputs(2, 3, 2, 4, torch.float64, without=without)
    names = list(inputs)
    leaves = tuple(value.requires_grad_() for value in inputs.values())

    def function(*values: Tensor) -> Tensor:
        named = dict(zip(names, values, strict=True))
        return selective_scan(**named, delta_softplus=softplus, backend="cpu")

    assert torch.autograd.gradcheck(function, leaves)


def test_gradcheck_over_blocks_and_chunks() -> None:
    inputs = make_inputs(2, 18, 2, 66, torch.float64)
    names = list(inputs)

    def function(*values: Tensor) -> Tensor:
        named = dict(zip(names, values, strict=True))
        return selective_scan(**named, delta_softplus=True, backend="cpu")

    leaves = tuple(value.requires_grad_() for value in inputs.values())
    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("shape", [(5, 40, 9, 70), (1, 200, 9, 70), (70, 20, 17, 8)], ids=str)
def test_same_bits_for_every_thread_count(shape: tuple[int, int, int, int]) -> None:
    inputs = make_inputs(*shape)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 1, 2, 3, 8):
            torch.set_num_threads(threads)
            results.append(run(inputs, "cpu"))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(result[name], results[0][name]) for name in result)


def test_the_layout_does_not_change_the_bits() -> None:
    plain = make_inputs(3, 33, 5, 20)
    strided = {
        name: value.transpose(1, 2).contiguous().transpose(1, 2) if value.dim() == 3 else value
        for name, value in plain.items()
    }
    expected = run(plain, "cpu")
    got = run(strided, "cpu")
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert got["out"].stride() == strided["delta"].stride()  # the layout of delta


def test_slices_and_odd_strides() -> None:
    """Inputs as they come out of one projection: slices of it, every second step of it."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(2, 2 * 9, 3 * 20 + 2 * 4, generator=generator).transpose(1, 2)
    u, delta, z, b, c = (part[:, :, ::2] for part in wide.split((20, 20, 20, 4, 4), dim=1))
    inputs = make_inputs(2, 20, 4, 9)
    inputs |= {"u": u, "delta": delta, "z": z, "B": b, "C": c}
    inputs["A"] = inputs["A"].T.contiguous().T
    inputs["D"] = torch.stack([inputs["D"], inputs["D"]], dim=1)[:, 0]
    assert_matches_reference(inputs)


def test_broadcast_inputs() -> None:
    inputs = make_inputs(3, 18, 4, 17, torch.float64)
    full = {name: value.shape for name, value in inputs.items()}
    small = {
        "u": inputs["u"][:1],
        "delta": inputs["delta"][:, :1],
        "A": inputs["A"][:1],
        "B": inputs["B"][:, :, :1],
        "C": inputs["C"][:1, :1, :1],
        "D": inputs["D"][:1],
        "z": inputs["z"][:, :, :1],
        "delta_bias": inputs["delta_bias"][:1],
    }
    results = []
    for backend in ("cpu", "reference"):
        leaves = {name: value.detach().requires_grad_() for name, value in small.items()}
        expanded = {name: value.expand(full[name]) for name, value in leaves.items()}
        out = selective_scan(**expanded, delta_softplus=True, backend=backend)
        out.sum().backward()  # its gradient is a broadcast too
        results.append([out.detach(), *(leaf.grad for leaf in leaves.values())])
    for got, expected in zip(*results, strict=True):
        assert got.shape == expected.shape
        assert float((got - expected).norm()) <= 1e-12 * float(expected.norm())


@pytest.mark.parametrize("value", [-200.0, -60.0, -20.0, 19.99, 20.0, 20.01, 60.0, 1e4])
def test_extreme_deltas(value: float) -> None:
    inputs = make_inputs(2, 17, 3, 18)
    inputs["delta"] = torch.full_like(inputs["delta"], value)
    inputs["delta_bias"] = torch.zeros_like(inputs["delta_bias"])
    got, expected = run(inputs, "cpu"), run(inputs, "reference")
    for name in expected:
        assert bool(torch.isfinite(got[name]).all()), name
        error = float((got[name] - expected[name]).norm())
        assert error <= 1e-5 * float(expected[name].norm()) + 1e-30, name


@pytest.mark.parametrize("value", [-1e4, -90.0, 90.0, 1e4])
def test_extreme_gates(value: float) -> None:
    inputs = make_inputs(2, 17, 3, 18)
    inputs["z"] = torch.full_like(inputs["z"], value)
    got, expected = run(inputs, "cpu"), run(inputs, "reference")
    for name in expected:
        error = float((got[name] - expected[name]).norm())
        assert error <= 1e-5 * float(expected[name].norm()) + 1e-30, name


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(bad: float) -> None:
    """A diverging run must be seen: its own channel and time are poisoned, the past is not."""
    inputs = make_inputs(2, 17, 3, 18)
    inputs["delta"][1, 4, 9] = bad
    out = run(inputs, "cpu")["out"]
    reference = run(inputs, "reference")["out"]
    assert not bool(torch.isfinite(out[1, 4, 9]))
    assert torch.equal(torch.isfinite(out), torch.isfinite(reference))


def test_without_gradients_the_same_output() -> None:
    inputs = make_inputs(2, 20, 4, 35)
    with torch.no_grad():
        plain = selective_scan(**inputs, delta_softplus=True, backend="cpu")
    assert plain.grad_fn is None
    assert torch.equal(plain, run(inputs, "cpu")["out"])


def test_only_the_gradients_asked_for() -> None:
    inputs = make_inputs(2, 4, 3, 5)
    inputs["A"].requires_grad_()
    selective_scan(**inputs, backend="cpu").sum().backward()
    assert inputs["A"].grad is not None
    assert inputs["u"].grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_half_types_compute_in_float32(dtype: torch.dtype, backend: str) -> None:
    inputs = make_inputs(2, 17, 3, 9)
    half = {
        name: value if name in ("A", "D", "delta_bias") else value.to(dtype)
        for name, value in inputs.items()
    }
    got = run(half, backend)
    assert got["out"].dtype == dtype
    assert got["u"].dtype == dtype
    assert got["A"].dtype == torch.float32
    exact = run({name: value.float() for name, value in half.items()}, "reference")["out"]
    assert torch.allclose(got["out"].float(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_second_derivatives_are_refused() -> None:
    inputs = make_inputs(1, 2, 2, 3)
    inputs["u"].requires_grad_()
    out = selective_scan(**inputs, backend="cpu")
    with pytest.raises(RuntimeError, match=r"no second derivatives.*backend='reference'"):
        torch.autograd.grad(out.sum(), inputs["u"], create_graph=True)


# Arguments


@pytest.mark.parametrize(
    ("name", "change", "error", "message"),
    [
        ("u", lambda t: t[0], ValueError, r"u: got shape \(6, 5\), expected \(batch"),
        ("u", lambda t: t[:, :, :0], ValueError, r"u: got shape \(2, 6, 0\)"),
        ("delta", lambda t: t[:, :5], ValueError, r"delta: got .*expected .*= \(2, 6, 5\)"),
        ("A", lambda t: t[:4], ValueError, r"A: got shape \(4, 3\), expected \(d_inner=6"),
        ("A", lambda t: t[:, :0], ValueError, r"A: got shape \(6, 0\)"),
        ("B", lambda t: t[:, :2], ValueError, r"B: got shape \(2, 2, 5\), expected .*\(2, 3, 5\)"),
        ("C", lambda t: t[:, :, None], ValueError, r"C: got shape \(2, 3, 1, 5\)"),
        ("D", lambda t: t[:2], ValueError, r"D: got shape \(2,\), expected \(d_inner\)"),
        ("z", lambda t: t[:1], ValueError, r"z: got shape \(1, 6, 5\)"),
        ("delta_bias", lambda t: t[None], ValueError, r"delta_bias: got shape \(1, 6\)"),
        ("u", lambda t: t.int(), TypeError, r"u: got dtype torch\.int32, expected one of"),
        ("B", lambda t: t.double(), TypeError, r"B: got dtype torch\.float64, expected .*float32"),
        ("A", lambda t: t.double(), TypeError, r"A: got dtype torch\.float64"),
        ("D", lambda t: t.bfloat16(), TypeError, r"D: got dtype torch\.bfloat16"),
        ("C", lambda t: t.to("meta"), ValueError, r"C: got device meta, expected cpu"),
        ("C", lambda t: t.numpy(), TypeError, r"C: got ndarray, expected a tensor"),
        ("A", lambda t: None, TypeError, r"A: got NoneType, expected a tensor"),
    ],
)
def test_wrong_arguments(
    name: str, change: Callable[[Tensor], object], error: type[Exception], message: str
) -> None:
    inputs = make_inputs(2, 6, 3, 5)
    inputs[name] = change(inputs[name])
    with pytest.raises(error, match=message):
        selective_scan(**inputs)


def test_the_kernel_refuses_bad_calls() -> None:
    with pytest.raises(RuntimeError, match="refused its arguments: a pointer is NULL"):
        c_library._check(2)
    empty = {**make_inputs(1, 2, 2, 3), "u": torch.empty(0, 2, 3)}
    with pytest.raises(RuntimeError, match="a dimension or the thread count is smaller than 1"):
        c_library.scan_forward(empty, True, torch.empty(0, 2, 3), False)
    with pytest.raises(RuntimeError, match="a dimension or the thread count is smaller than 1"):
        MambaMixer(4, scan="cpu")(torch.empty(0, 3, 4))


# Instruction sets


WORKING_ISAS = [
    isa for i, isa in enumerate(c_library.ISAS) if c_library.load().mamba_scan_isa_works(i)
]


@pytest.fixture(params=WORKING_ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(c_library.ISA_VARIABLE, request.param)
    assert c_library.isa() == request.param
    return str(request.param)


@pytest.mark.parametrize("shape", [(2, 17, 3, 17), (3, 70, 16, 49), (65, 5, 2, 33)])
@pytest.mark.parametrize("transposed", [False, True])
def test_each_instruction_set_is_the_reference(
    isa: str, shape: tuple[int, int, int, int], transposed: bool
) -> None:
    assert_matches_reference(make_inputs(*shape, transposed=transposed))


def test_the_best_instruction_set_is_taken() -> None:
    assert c_library.isa() == WORKING_ISAS[-1]


def test_an_instruction_set_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = next(isa for isa in c_library.ISAS if isa not in WORKING_ISAS)
    for wanted in (missing, "sse9"):
        monkeypatch.setenv(c_library.ISA_VARIABLE, wanted)
        with pytest.raises(ScanBackendError, match=f"MAMBA_ISA={wanted}: expected one .*scalar"):
            c_library.isa()


# The fused block


def make_mixer(d_model: int = 8, seed: int = 0, **options: Any) -> MambaMixer:
    """No parameter is left at a telling 0 or 1."""
    torch.manual_seed(seed)
    mixer = MambaMixer(d_model, scan="cpu", **options)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return mixer


def make_norm(d_model: int = 8) -> nn.RMSNorm:
    norm = nn.RMSNorm(d_model, eps=1e-5)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    return norm


def run_block(
    mixer: MambaMixer, hidden: Tensor, reverse: bool, norm: nn.RMSNorm | None = None
) -> dict[str, Tensor]:
    """Return the output of the kernel, or of torch where that is chosen, and all gradients."""
    leaf = hidden.detach().requires_grad_()
    if mixer.runs_fused(leaf):
        out = mixer.fused(leaf, reverse, norm)
    elif norm is None:
        out = mixer(leaf, reverse=reverse)
    else:
        out = leaf + mixer(norm(leaf), reverse=reverse)
    leaves = {"hidden": leaf, **dict(mixer.named_parameters())}
    if norm is not None:
        leaves["norm"] = norm.weight
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
    grads = torch.autograd.grad(out, list(leaves.values()), weight)
    return {"out": out.detach(), **dict(zip(leaves, grads, strict=True))}


def assert_block_matches_reference(
    mixer: MambaMixer, hidden: Tensor, reverse: bool = False, norm: nn.RMSNorm | None = None
) -> None:
    """Compare tensor by tensor with the composed mixer in float64; the modules end as doubles."""
    assert mixer.runs_fused(hidden)
    got = run_block(mixer, hidden, reverse, norm)
    mixer.double().scan_backend = "reference"
    exact = run_block(mixer, hidden.double(), reverse, None if norm is None else norm.double())
    assert_close(got, exact)
    assert got["out"].dtype == hidden.dtype


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 4),
    length=st.integers(1, 80),
    d_model=st.integers(1, 20),
    d_state=st.integers(1, 18),
    d_conv=st.integers(1, 6),
    dt_rank=st.integers(1, 5),
    a=st.sampled_from(["free", "tied"]),
    bidirectional=st.booleans(),
    reverse=st.booleans(),
    with_norm=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_the_fused_block_is_the_composed_one(
    batch: int,
    length: int,
    d_model: int,
    d_state: int,
    d_conv: int,
    dt_rank: int,
    a: Any,
    bidirectional: bool,
    reverse: bool,
    with_norm: bool,
    dtype: torch.dtype,
) -> None:
    mixer = make_mixer(
        d_model,
        d_state=d_state,
        d_conv=d_conv,
        dt_rank=dt_rank,
        a=a,
        bidirectional=bidirectional,
    ).to(dtype)
    hidden = torch.randn(batch, length, d_model, dtype=dtype)
    norm = make_norm(d_model).to(dtype) if with_norm else None
    assert_block_matches_reference(mixer, hidden, reverse, norm)


@pytest.mark.parametrize("length", [1, 64, 65, 130])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_each_instruction_set_runs_the_block(isa: str, length: int, bidirectional: bool) -> None:
    mixer = make_mixer(17, bidirectional=bidirectional)
    assert_block_matches_reference(mixer, torch.randn(3, length, 17), norm=make_norm(17))


def test_the_forward_of_a_mixer_is_the_kernel_without_norm() -> None:
    mixer = make_mixer()
    hidden = torch.randn(2, 5, 8)
    for reverse in (False, True):
        assert torch.equal(mixer(hidden, reverse=reverse), mixer.fused(hidden, reverse))


@pytest.mark.parametrize("a", ["free", "tied"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("with_norm", [False, True])
def test_the_fused_block_has_the_right_gradient(
    a: Any, bidirectional: bool, with_norm: bool
) -> None:
    options = {"d_state": 3, "d_conv": 2, "dt_rank": 2, "a": a, "bidirectional": bidirectional}
    mixer = make_mixer(3, **options).double()
    norm = make_norm(3).double() if with_norm else None
    hidden = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    leaves = [hidden, *mixer.parameters(), *([] if norm is None else norm.parameters())]
    for reverse in (False, True):
        assert torch.autograd.gradcheck(
            lambda *leaves, reverse=reverse: mixer.fused(leaves[0], reverse, norm), leaves
        )


@pytest.mark.parametrize(
    ("batch", "length", "options"),
    [
        (5, 70, {}),
        (33, 20, {"bidirectional": True}),  # more sequences than groups of them
        (70, 9, {"d_state": 17}),
    ],
    ids=str,
)
def test_the_block_has_the_same_bits_for_every_thread_count(
    batch: int, length: int, options: dict[str, Any]
) -> None:
    mixer, norm = make_mixer(20, **options), make_norm(20)
    hidden = torch.randn(batch, length, 20)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 1, 2, 3, 8):
            torch.set_num_threads(threads)
            results.append(run_block(mixer, hidden, False, norm))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(result[name], results[0][name]) for name in result)


def test_the_block_reads_any_layout() -> None:
    """Of the input, of the output's gradient and of a weight."""
    mixer, norm = make_mixer(), make_norm()
    hidden = torch.randn(3, 5, 8)
    expected = run_block(mixer, hidden, False, norm)
    in_proj = mixer.in_proj.weight
    in_proj.data = in_proj.data.T.contiguous().T
    got = run_block(mixer, hidden.transpose(0, 2).contiguous().transpose(0, 2), False, norm)
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    leaf = hidden.clone().requires_grad_()
    mixer.fused(leaf, False, norm).sum().backward()  # its gradient is a broadcast
    mixer.double().scan_backend = "reference"
    exact = hidden.double().requires_grad_()
    (exact + mixer(norm.double()(exact))).sum().backward()
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad.double(), exact.grad, rtol=1e-4, atol=1e-5)


def test_the_block_gives_only_the_gradients_asked_for() -> None:
    mixer, norm = make_mixer(bidirectional=True), make_norm()
    hidden = torch.randn(2, 5, 8)
    full = run_block(mixer, hidden, False, norm)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(hidden.shape, generator=generator, dtype=torch.float64).float()

    mixer.fused(hidden, False, norm).backward(weight)  # the input needs none
    assert hidden.grad is None
    for name, parameter in mixer.named_parameters():
        assert parameter.grad is not None, name
        assert torch.equal(parameter.grad, full[name]), name

    for parameter in (*mixer.parameters(), norm.weight):
        parameter.requires_grad_(False)
        parameter.grad = None
    leaf = hidden.clone().requires_grad_()
    mixer.fused(leaf, False, norm).backward(weight)  # only the input does
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, full["hidden"])
    assert all(parameter.grad is None for parameter in (*mixer.parameters(), norm.weight))


def test_the_block_refuses_second_derivatives() -> None:
    mixer, norm = make_mixer(), make_norm()
    hidden = torch.randn(1, 3, 8, requires_grad=True)
    out = mixer.fused(hidden, False, norm)
    with pytest.raises(RuntimeError, match=r"no second derivatives.*backend='reference'"):
        torch.autograd.grad(out.sum(), hidden, create_graph=True)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_block_that_is_not_finite_stays_so(bad: float) -> None:
    """A diverging run must be seen: the sequence is poisoned from there on, the others are not."""
    mixer, norm = make_mixer(), make_norm()
    hidden = torch.randn(3, 70, 8)
    hidden[1, 66, 4] = bad
    out = mixer.fused(hidden, False, norm)
    finite = torch.isfinite(out).all(dim=2)
    assert bool(finite[[0, 2]].all())
    assert bool(finite[1, :66].all())
    assert not bool(finite[1, 66])


def watch_block_forward(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Return the list that each call of the kernel will put its `keep` into."""
    kept: list[bool] = []
    forward = c_library.block_forward

    def watched(*arguments: Any) -> Any:
        kept.append(arguments[-1])
        return forward(*arguments)

    monkeypatch.setattr(c_library, "block_forward", watched)
    return kept


def test_nothing_is_kept_without_a_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = watch_block_forward(monkeypatch)
    mixer = make_mixer()
    hidden = torch.randn(1, 5, 8)
    expected = mixer(hidden)
    with torch.no_grad():
        assert torch.equal(mixer(hidden), expected)
    with torch.inference_mode():
        assert torch.equal(mixer(hidden), expected)
    for parameter in mixer.parameters():
        parameter.requires_grad_(False)
    assert torch.equal(mixer(hidden), expected)
    assert kept == [True, False, False, False]


# Models of fused blocks


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_in_float64_is_the_reference(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = watch_block_forward(monkeypatch)
    model = make_model(architecture, scan="cpu").double()
    pixels = make_images(model.config, 3).double() / 255
    logits = model(pixels)
    assert len(calls) == model.config.n_layers * model.config.members
    logits.square().sum().backward()
    exact = make_model(architecture, scan="reference").double()
    expected = exact(pixels)
    expected.square().sum().backward()
    error = float((logits - expected).detach().norm())
    assert error <= 1e-11 * float(expected.detach().norm())
    for (name, mine), other in zip(model.named_parameters(), exact.parameters(), strict=True):
        assert mine.grad is not None, name
        assert other.grad is not None, name
        assert float((mine.grad - other.grad).norm()) <= 1e-11 * float(other.grad.norm()), name


def test_a_model_of_bfloat16_weights_runs_composed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = watch_block_forward(monkeypatch)
    model = make_model("patch_bidirectional", scan="cpu")
    pixels = make_images(model.config, 3) / 255
    exact = model(pixels)
    assert len(calls) == 2
    model = model.bfloat16()
    logits = model(pixels.bfloat16())
    logits.float().square().sum().backward()
    assert len(calls) == 2
    assert logits.dtype == torch.bfloat16
    assert float((logits - exact).detach().norm()) <= 0.05 * float(exact.detach().norm())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name


class ReversingMixer(nn.Module):
    """Somebody else's mixer."""

    def forward(self, hidden: Tensor, reverse: bool = False) -> Tensor:
        return hidden.flip(1) if reverse else 2 * hidden


@pytest.mark.parametrize("reverse", [False, True])
def test_a_block_takes_another_mixer(reverse: bool) -> None:
    block = Block(
        ARCHITECTURES["patch_forward_mean"], ScanOrder(columns=False, reverse=reverse), "cpu"
    )
    block.mixer = ReversingMixer()  # type: ignore[assignment]
    hidden = torch.randn(2, 5, 8)
    normed = block.norm(hidden)
    expected = hidden + (normed.flip(1) if reverse else 2 * normed)
    assert torch.equal(block(hidden), expected)


def test_what_the_fused_block_does_not_take() -> None:
    hidden = torch.randn(1, 3, 8)
    assert MambaMixer(8, scan="cpu").runs_fused(hidden, nn.RMSNorm(8, eps=1e-5))
    norms = [
        nn.RMSNorm(8),  # torch chooses eps
        nn.RMSNorm(8, eps=1e-5, elementwise_affine=False),
        nn.RMSNorm(8, eps=1e-5).double(),
        nn.LayerNorm(8, eps=1e-5),
    ]
    assert not any(MambaMixer(8, scan="cpu").runs_fused(hidden, norm) for norm in norms)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m.D, "data", m.D.data.double()),
        lambda m: setattr(m, "in_proj", nn.Linear(8, 32)),  # with a bias
        lambda m: setattr(m, "out_proj", nn.Sequential(nn.Linear(16, 8, bias=False))),
        lambda m: setattr(m, "conv1d", nn.Conv1d(16, 16, 4, groups=16, padding=3, bias=False)),
        lambda m: setattr(m.conv1d, "padding", (5,)),
        lambda m: m.x_proj.register_forward_hook(lambda *_: None),
        lambda m: m.register_forward_hook(lambda *_: None),
    ],
    ids=["dtype", "bias", "wrapped", "no bias", "padding", "hook", "hook of the mixer"],
)
def test_a_changed_mixer_is_not_run_fused(change: Callable[[Any], object]) -> None:
    mixer, hidden = MambaMixer(8, scan="cpu"), torch.randn(1, 3, 8)
    change(mixer)
    assert not mixer.runs_fused(hidden)


def test_a_block_with_a_norm_of_another_kind_is_run_by_torch() -> None:
    torch.manual_seed(0)
    config = ModelConfig(height=8, width=8, n_classes=3, d_model=8)
    block = Block(config, ScanOrder(columns=False, reverse=True), scan="cpu")
    block.norm = nn.LayerNorm(8)  # type: ignore[assignment]
    residual = torch.randn(2, 5, 8)
    expected = residual + block.mixer(block.norm(residual), reverse=True)
    assert torch.equal(block(residual), expected)


@pytest.mark.parametrize("d_state", [20, 32, 64])
def test_many_tied_states(d_state: int) -> None:
    """The powers start anew every 16 states."""
    torch.manual_seed(0)
    mixer = MambaMixer(9, d_state, a="tied", scan="cpu")
    norm = nn.RMSNorm(9, eps=1e-5)
    assert_block_matches_reference(mixer, torch.randn(3, 70, 9), False, norm)


def test_the_block_kernel_refuses_other_shapes_and_types() -> None:
    mixer, hidden = MambaMixer(8, scan="cpu"), torch.randn(1, 3, 8)
    weights = mixer.direction_weights()

    def call(direction: cpu.DirectionWeights) -> None:
        cpu.mamba_block_cpu(hidden, mixer.in_proj.weight, mixer.out_proj.weight, [direction])

    with pytest.raises(ValueError, match=r"x_proj: got shape \(32, 16\), expected \(33, 16\)"):
        call(weights._replace(x_proj=weights.x_proj[:-1]))
    with pytest.raises(TypeError, match=r"D: got dtype torch\.float64, expected torch\.float32"):
        call(weights._replace(D=weights.D.double()))


# The C code itself


PROBE = """
#include <stddef.h>
#include "vector_math.h"
void probe_exp2(const float *x, float *y, ptrdiff_t n);
void probe_log1p(const float *x, float *y, ptrdiff_t n);
void probe_softplus(const float *x, float *y, ptrdiff_t n);
void probe_slope(const float *x, float *y, ptrdiff_t n);
void probe_sigmoid(const float *x, float *y, ptrdiff_t n);
static vreal slope_of(vreal x) { vreal slope; v_softplus(x, &slope); return slope; }
static vreal softplus_of(vreal x) { vreal slope; return v_softplus(x, &slope); }
#define EACH(name, function) void name(const float *x, float *y, ptrdiff_t n) \
    { for (ptrdiff_t i = 0; i < n; i += LANES) v_store(y + i, function(v_load(x + i))); }
EACH(probe_exp2, v_exp2)
EACH(probe_log1p, v_log1p)
EACH(probe_softplus, softplus_of)
EACH(probe_slope, slope_of)
EACH(probe_sigmoid, v_sigmoid)
"""


def test_the_elementary_functions_are_accurate(isa: str, tmp_path: Path) -> None:
    source = tmp_path / f"probe_{isa}.c"
    source.write_text(f"#define SIMD_{isa.upper()}\n{PROBE}", encoding="utf-8")
    flags = [*c_library.cflags(), *isa_flags("{}").get(isa, ())]
    library = ctypes.CDLL(str(build_library("probe", [source], c_library.include_dirs(), flags)))

    def apply(name: str, x: np.ndarray) -> np.ndarray:
        y = np.empty_like(x)
        pointer = ctypes.POINTER(ctypes.c_float)
        function = getattr(library, name)
        function.argtypes = [pointer, pointer, ctypes.c_ssize_t]
        function(x.ctypes.data_as(pointer), y.ctypes.data_as(pointer), x.size)
        return y

    def ulps(got: np.ndarray, exact: np.ndarray) -> float:
        return float(np.max(np.abs(got - exact) / np.spacing(np.abs(exact).astype(np.float32))))

    random = np.random.default_rng(0)
    x = np.concatenate([random.uniform(-126, 127.4375, 1_000_000), random.normal(0, 1e-3, 1024)])
    x = x.astype(np.float32)
    assert ulps(apply("probe_exp2", x), np.exp2(x.astype(np.float64))) <= 1.5
    w = np.concatenate([random.uniform(0, 1, 300_000), 10 ** random.uniform(-37, 0, 100_000)])
    w = w.astype(np.float32)
    assert ulps(apply("probe_log1p", w), np.log1p(w.astype(np.float64))) <= 2.0

    # The rounding of -x log2(e) grows with x; it is that of any float exp of a rounded argument.
    x = random.uniform(-20, 20, 400_000).astype(np.float32)
    exact = x.astype(np.float64)
    sigmoid = 1 / (1 + np.exp(-exact))
    softplus = np.maximum(exact, 0) + np.log1p(np.exp(-np.abs(exact)))
    for name, expected in (("sigmoid", sigmoid), ("slope", sigmoid), ("softplus", softplus)):
        relative = np.abs(apply(f"probe_{name}", x) - expected) / expected
        assert np.max(relative) <= 4e-6, name

    tiny, huge = np.float32(2.0**-126), np.float32(2.0**127.4375)
    special = np.zeros(16, np.float32)
    special[:9] = [np.nan, np.inf, -np.inf, 128.0, 1e30, -126.0, -127.0, -1e30, 0.0]
    expected = np.ones(16, np.float32)
    expected[:9] = [np.nan, huge, tiny, huge, huge, tiny, tiny, tiny, 1.0]
    np.testing.assert_array_max_ulp(apply("probe_exp2", special), expected, maxulp=1)
    assert apply("probe_exp2", special)[8] == 1.0


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not there")
def test_the_kernel_compiles_without_a_warning() -> None:
    warnings = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror"]
    folder, *others = c_library.include_dirs()
    warnings += [f"-I{other}" for other in others]
    for openmp in ([], ["-fopenmp"]):
        for name in c_library.SOURCES:
            more = isa_flags("kernel_{}.c").get(name, ())
            command = ["gcc", "-std=c11", "-fsyntax-only", *openmp, *warnings, *more, folder / name]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr


# The choice of the backend


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget what earlier tests found out and warned of, and forget again afterwards."""

    def forget() -> None:
        memos = (
            c_library._load,
            mamba_ssm._interface,
            mamba_ssm._self_check,
            scan._warn_once,
            scan._log_once,
        )
        for memo in memos:
            memo.cache_clear()

    forget()
    yield
    monkeypatch.undo()
    forget()


def fake_mamba_ssm(monkeypatch: pytest.MonkeyPatch, outcome: object) -> None:
    """Make the import of mamba-ssm give this module, or raise this exception; of Triton, fail."""

    def import_module(name: str) -> object:
        assert name == "mamba_ssm.ops.selective_scan_interface"
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(mamba_ssm, "importlib", SimpleNamespace(import_module=import_module))
    monkeypatch.setattr(triton_scan, "_kernels", lambda: "Triton cannot be imported")


def working_mamba_ssm(function: Callable[..., Tensor] = selective_scan_reference) -> object:
    return SimpleNamespace(selective_scan_cuda=object(), selective_scan_fn=function)


def test_auto_takes_the_kernel_on_the_cpu(fresh: None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="mnist_mamba.scan")
    assert choose("auto", "cpu") == "cpu"
    assert choose("auto", torch.device("cpu")) == "cpu"
    assert choose("reference", "cuda") == "reference"
    assert caplog.text.count("backend cpu") == 1
    assert available_backends()[:2] == ("reference", "cpu")


def test_an_unknown_backend() -> None:
    with pytest.raises(
        ValueError, match="got 'tpu', expected one of auto, reference, cpu, triton, cuda"
    ):
        choose("tpu", "cpu")


def test_a_backend_for_other_tensors(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ScanBackendError, match="needs tensors on the CPU, got tensors on cuda"):
        choose("cpu", "cuda:0")
    with pytest.raises(ScanBackendError, match="needs CUDA tensors, got tensors on cpu"):
        choose("cuda", "cpu")
    with pytest.raises(ScanBackendError, match="needs CUDA tensors, got tensors on cpu"):
        mamba_ssm.selective_scan_cuda(**make_inputs(1, 2, 2, 3))


def test_without_a_compiler_one_warning_and_the_reference(
    fresh: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("CC", "/nonexistent/cc")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    inputs = make_inputs(2, 3, 2, 4)
    for _ in range(3):
        out = selective_scan(**inputs)
    assert torch.equal(out, selective_scan_reference(**inputs))
    warnings = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "/nonexistent/cc" in warnings[0].getMessage()
    assert "reference" in warnings[0].getMessage()
    assert available_backends() == ("reference",)
    with pytest.raises(ScanBackendError, match=r"'/nonexistent/cc'.*set CC"):
        selective_scan(**inputs, backend="cpu")
    with pytest.raises(ScanBackendError, match="cannot be built"):
        cpu.selective_scan_cpu(**inputs)


@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        (ImportError("no module"), r"cannot be imported \(ImportError: no module\).*pip install"),
        (RuntimeError("no driver"), r"cannot be imported \(RuntimeError: no driver\)"),
        (SimpleNamespace(selective_scan_cuda=None), r"without its CUDA kernel.*pip install"),
        (SimpleNamespace(), r"without its CUDA kernel"),
    ],
    ids=["absent", "broken", "pure", "older"],
)
def test_without_mamba_ssm(
    fresh: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    outcome: object,
    message: str,
) -> None:
    fake_mamba_ssm(monkeypatch, outcome)
    with pytest.raises(ScanBackendError, match=message):
        choose("cuda", "cuda")
    assert [choose("auto", "cuda") for _ in range(3)] == ["reference"] * 3
    assert len([r for r in caplog.records if r.levelno == logging.WARNING]) == 1


def test_a_working_mamba_ssm_is_taken(
    fresh: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The self-check runs on the CPU here, on a fake kernel: there is no GPU to run a real one."""
    caplog.set_level(logging.INFO, logger="mnist_mamba.scan")
    fake_mamba_ssm(monkeypatch, working_mamba_ssm())
    assert mamba_ssm._self_check(torch.device("cpu")) is None
    assert "self-check passed" in caplog.text
    monkeypatch.setattr(mamba_ssm, "_self_check", lambda device: None)
    assert choose("auto", "cuda") == "cuda"
    assert choose("cuda", "cuda:0") == "cuda"


def test_the_kernel_gets_float32_parameters(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, torch.dtype] = {}

    def kernel(*arguments: Any) -> Any:
        u, delta, a, b, c, d, z, bias, softplus = arguments
        assert softplus is True
        for name, value in {"u": u, "A": a, "D": d, "delta_bias": bias, "z": z}.items():
            seen[name] = value.dtype
        return selective_scan_reference(u, delta, a, b, c, d, z, bias, softplus)

    fake_mamba_ssm(monkeypatch, working_mamba_ssm(kernel))
    monkeypatch.setattr(mamba_ssm, "why_unavailable", lambda device: None)
    inputs = {name: value.bfloat16() for name, value in make_inputs(1, 2, 2, 3).items()}
    out = mamba_ssm.selective_scan_cuda(**inputs, delta_softplus=True)
    assert out.dtype == torch.bfloat16
    assert [seen[name] for name in ("A", "D", "delta_bias")] == [torch.float32] * 3
    assert [seen[name] for name in ("u", "z")] == [torch.bfloat16] * 2


def test_a_wrong_kernel_is_found_out(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong_forward(**inputs: Any) -> Tensor:
        return 1.01 * selective_scan_reference(**inputs)

    def wrong_backward(**inputs: Any) -> Any:
        out = selective_scan_reference(**inputs)
        skip = inputs["A"].sum()
        return out + (skip - skip.detach())  # the right output, a wrong gradient of A

    def failing(**inputs: Any) -> Tensor:
        raise RuntimeError("no kernel image is available")

    device = torch.device("cpu")
    for function, message in (
        (wrong_forward, "wrong output"),
        (wrong_backward, "wrong gradient of A"),
        (failing, "RuntimeError: no kernel image is available"),
    ):
        mamba_ssm._interface.cache_clear()
        mamba_ssm._self_check.cache_clear()
        fake_mamba_ssm(monkeypatch, working_mamba_ssm(function))
        assert message in str(mamba_ssm._self_check(device))


def test_what_the_cuda_kernel_does_not_take(
    fresh: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    big = make_inputs(1, 1, 257, 2)
    double = make_inputs(1, 2, 2, 3, torch.float64)
    monkeypatch.setattr(mamba_ssm, "why_unavailable", lambda device: None)
    with pytest.raises(ScanBackendError, match="d_state <= 256, got 257"):
        mamba_ssm.selective_scan_cuda(**big)
    with pytest.raises(ScanBackendError, match="no float64"):
        mamba_ssm.selective_scan_cuda(**double)
    # auto steps back to the reference instead, and says so once
    monkeypatch.setitem(scan.SCANS, "cpu", ("cuda",))
    for _ in range(2):
        out = selective_scan(**double)
    assert torch.equal(out, selective_scan_reference(**double))
    assert len([r for r in caplog.records if r.levelno == logging.WARNING]) == 1
