"""The C kernel of the selective scan against the reference in plain torch."""

from __future__ import annotations

import ctypes
import doctest
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mnist_mamba import scan
from mnist_mamba.c_build import CACHE_VARIABLE, build_library, isa_flags
from mnist_mamba.scan import c_library, selective_scan
from mnist_mamba.scan.reference import selective_scan_reference
from tests.library.scan_cases import (
    OPTIONAL,
    assert_matches_reference,
    each_isa,
    instruction_set,
    make_inputs,
    run,
)


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
        (2, 16, 16, 64),  # exactly one lane block, one chunk
        (2, 17, 3, 65),  # one more than a lane block, a chunk
        (2, 5, 3, 130),  # two chunks and a rest
        (1, 200, 4, 35),  # several lane ranges
        (33, 40, 2, 5),  # one task per item, one lane range
        (70, 3, 2, 5),  # several items per task
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 16, 33, 49])
def test_parallel_is_the_reference(length: int, dtype: torch.dtype) -> None:
    without = OPTIONAL[length % 4 :][:1] if length % 2 else ()
    inputs = make_inputs(2, 5, 3, length, dtype, without=without)
    assert_matches_reference(inputs, backend="parallel")


def test_the_reference_is_the_formula() -> None:
    """Two steps of one channel with one state, calculated by hand."""
    one = torch.ones(1, 1, 2, dtype=torch.float64)
    decay = torch.log(torch.tensor([[0.5]], dtype=torch.float64))
    out = selective_scan_reference(
        3 * one, one, decay, 2 * one, 10 * one, D=torch.tensor([1.0], dtype=torch.float64)
    )
    assert out.flatten().tolist() == pytest.approx([63.0, 93.0])  # h = 6, then 0.5 * 6 + 6


def test_the_example_of_the_docstring() -> None:
    found = doctest.testmod(scan)
    assert (found.attempted > 0, found.failed) == (True, 0)


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


def test_gradcheck_over_lane_blocks_and_chunks() -> None:
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
    """Slices of one projection, and every second step of it."""
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
def test_values_that_are_not_finite_stay_so(bad: float) -> None:
    """A diverging training must show: the channel is not finite from that step on, the past is."""
    inputs = make_inputs(2, 17, 3, 18)
    inputs["delta"][1, 4, 9] = bad
    out = run(inputs, "cpu")["out"]
    reference = run(inputs, "reference")["out"]
    assert not bool(torch.isfinite(out[1, 4, 9]))
    assert torch.equal(torch.isfinite(out), torch.isfinite(reference))


def test_the_output_is_the_same_without_gradients() -> None:
    inputs = make_inputs(2, 20, 4, 35)
    with torch.no_grad():
        plain = selective_scan(**inputs, delta_softplus=True, backend="cpu")
    assert plain.grad_fn is None
    assert torch.equal(plain, run(inputs, "cpu")["out"])


def test_only_requested_gradients_are_returned() -> None:
    inputs = make_inputs(2, 4, 3, 5)
    inputs["A"].requires_grad_()
    selective_scan(**inputs, backend="cpu").sum().backward()
    assert inputs["A"].grad is not None
    assert inputs["u"].grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", ["cpu", "reference", "parallel"])
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
    (slope,) = torch.autograd.grad(out.sum(), inputs["u"], create_graph=True)
    with pytest.raises(RuntimeError, match=r"no second derivatives.*backend='reference'"):
        slope.sum().backward()


@each_isa
@pytest.mark.parametrize("shape", [(2, 17, 3, 17), (3, 70, 16, 49), (65, 5, 2, 33)])
@pytest.mark.parametrize("transposed", [False, True])
def test_each_instruction_set_is_the_reference(
    isa: str, shape: tuple[int, int, int, int], transposed: bool
) -> None:
    with instruction_set(isa):
        assert_matches_reference(make_inputs(*shape, transposed=transposed))


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
    inputs = list(make_inputs(1, 2, 2, 3).values())
    with pytest.raises(RuntimeError, match="a dimension or the thread count is smaller than 1"):
        c_library.scan_forward(inputs, True, torch.empty(0, 2, 3), None)


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


@each_isa
def test_the_elementary_functions_are_accurate(
    isa: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
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

    # The rounding error of -x log2(e) grows with x, as in any float exp of a rounded argument.
    x = random.uniform(-20, 20, 400_000).astype(np.float32)
    exact = x.astype(np.float64)
    sigmoid = 1 / (1 + np.exp(-exact))
    softplus = np.maximum(exact, 0) + np.log1p(np.exp(-np.abs(exact)))
    for name, expected in (("sigmoid", sigmoid), ("slope", sigmoid), ("softplus", softplus)):
        relative = np.abs(apply(f"probe_{name}", x) - expected) / expected
        assert np.max(relative) <= 4e-6, name

    tiny, huge = np.float32(2.0**-126), np.float32(2.0**127.4375)  # smaller results are 0
    special = np.zeros(16, np.float32)
    special[:9] = [np.nan, np.inf, -np.inf, 128.0, 1e30, -126.0, -127.0, -1e30, 0.0]
    expected = np.ones(16, np.float32)
    expected[:9] = [np.nan, huge, 0.0, huge, huge, tiny, 0.0, 0.0, 1.0]
    np.testing.assert_array_max_ulp(apply("probe_exp2", special), expected, maxulp=1)
    assert apply("probe_exp2", special)[8] == 1.0


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_the_kernel_compiles_without_a_warning() -> None:
    warnings = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror"]
    warnings += [f"-I{folder}" for folder in c_library.include_dirs()]
    for openmp in ([], ["-fopenmp"]):
        for source in c_library.sources():
            more = isa_flags("kernel_{}.c").get(source.name, ())
            command = ["gcc", "-std=c11", "-fsyntax-only", *openmp, *warnings, *more, str(source)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
