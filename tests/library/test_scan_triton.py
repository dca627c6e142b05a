"""Our Triton kernel against the reference: on a GPU or, without one, interpreted by numpy."""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mnist_mamba import scan
from mnist_mamba.model import MambaMixer
from mnist_mamba.scan import (
    ScanBackendError,
    choose,
    mamba_ssm,
    selective_scan,
    triton_scan,
)
from mnist_mamba.scan.reference import selective_scan_reference
from tests.library.scan_cases import OPTIONAL, lazy, make_inputs

ROOT = Path(__file__).parents[2]
KERNEL = "mnist_mamba.scan.triton_kernels"
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3}

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


@pytest.fixture(scope="module")
def device() -> Iterator[str]:
    """Return the device on which the kernel runs: the GPU or, interpreted by numpy, the CPU.

    Triton reads TRITON_INTERPRET when it is imported, which an earlier test may have done. So it is
    imported again here.
    """
    if torch.cuda.is_available():
        yield "cuda"
        return
    before = _take_out_triton()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        yield "cpu"
    _take_out_triton()
    sys.modules.update(before)


@pytest.fixture(autouse=True)
def auto_asks_again() -> Iterator[None]:
    scan._first_answer.cache_clear()
    yield
    scan._first_answer.cache_clear()


def _take_out_triton() -> dict[str, ModuleType]:
    """Remove Triton's Python modules and what was made of them; return the modules."""
    triton_scan._kernels.cache_clear()
    names = [name for name in sys.modules if name == KERNEL or name.split(".")[0] == "triton"]
    return {name: sys.modules.pop(name) for name in names if not name.startswith("triton._C")}


def run(inputs: dict[str, Any], backend: str, softplus: bool, weight: torch.Tensor) -> Any:
    """Return output and gradients by name, in float64 on the CPU."""
    leaves = {name: value.detach().requires_grad_() for name, value in inputs.items()}
    out = selective_scan(**leaves, delta_softplus=softplus, backend=backend)
    grads = torch.autograd.grad(out, list(leaves.values()), weight.to(out))
    found = {"out": out.detach(), **dict(zip(leaves, grads, strict=True))}
    for name, grad in zip(leaves, grads, strict=True):
        assert (grad.shape, grad.dtype) == (leaves[name].shape, leaves[name].dtype)
    return {name: value.cpu().double() for name, value in found.items()}


def assert_matches_reference(
    device: str, inputs: dict[str, Any], softplus: bool = True, dtype: torch.dtype = torch.float32
) -> None:
    exact = {name: value.to(dtype).double() for name, value in inputs.items()}
    weight = torch.randn(inputs["u"].shape, generator=torch.Generator().manual_seed(1))
    weight = weight.to(dtype).double()
    expected = run(exact, "reference", softplus, weight)
    given = {name: value.to(device, dtype) for name, value in inputs.items()}
    got = run(given, "triton", softplus, weight)
    for name, value in expected.items():
        error = float((got[name] - value).norm())
        assert error <= TOLERANCE[dtype] * float(value.norm()), name


@needs_triton
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 18), st.integers(1, 9)),
    without=st.sets(st.sampled_from(OPTIONAL)),
    softplus=st.booleans(),
    transposed=st.booleans(),
)
def test_triton_is_the_reference(
    device: str,
    shape: tuple[int, int, int, int],
    without: set[str],
    softplus: bool,
    transposed: bool,
) -> None:
    inputs = make_inputs(*shape, without=tuple(without), transposed=transposed)
    if not softplus:  # delta must be positive for the state to decay
        inputs["delta"] = inputs["delta"].abs()
        if "delta_bias" in inputs:
            inputs["delta_bias"] = inputs["delta_bias"].abs()
    assert_matches_reference(device, inputs, softplus)


@needs_triton
@pytest.mark.parametrize(
    "shape", [(1, 32, 8, 4), (1, 33, 8, 4), (2, 64, 64, 2), (1, 1, 1, 1), (2, 5, 3, 60)], ids=str
)
def test_shapes_at_the_borders(device: str, shape: tuple[int, int, int, int]) -> None:
    assert_matches_reference(device, make_inputs(*shape))


@needs_triton
def test_half_types_are_computed_in_float32(device: str) -> None:
    assert_matches_reference(device, make_inputs(2, 8, 4, 6), dtype=torch.float16)


@needs_triton
def test_the_softplus_of_a_large_step_is_the_step(device: str) -> None:
    inputs = make_inputs(1, 4, 2, 3)
    inputs["delta"] = torch.full_like(inputs["delta"], 200.0)
    assert_matches_reference(device, inputs)


@needs_triton
@pytest.mark.parametrize("step", [-4.0, -10.0, -16.0, -17.0, -40.0, -80.0])
def test_the_softplus_of_a_small_step_keeps_its_digits(device: str, step: float) -> None:
    one = torch.ones(1, 1, 1, device=device)
    A, exact = torch.zeros(1, 1, device=device), math.log1p(math.exp(step))
    out = triton_scan.selective_scan_triton(one, step * one, A, one, one, delta_softplus=True)
    assert out.item() == pytest.approx(exact, rel=2e-6)


@needs_triton
def test_strides_may_span_more_than_2_to_the_31(device: str) -> None:
    n, stride = 33, 2**26
    try:  # of this memory, few pages are touched
        xz = torch.empty(2 * n, stride, dtype=torch.float16, device=device)
    except RuntimeError:
        pytest.skip("no address space for 9 GB")
    xz[:, :2] = torch.arange(2.0 * n, device=device)[:, None] / (2 * n)
    u, z = (half[:, None, :2].transpose(0, 1) for half in xz.chunk(2))
    delta, A = torch.full_like(u.contiguous(), 0.5), -torch.ones(n, 1, device=device)
    B = torch.ones(1, 1, 2, dtype=torch.float16, device=device)
    weight = torch.ones(1, n, 2, dtype=torch.float16, device=device)
    for strided in ({"u": u}, {"z": z}):
        inputs = {"u": u.contiguous(), "delta": delta, "A": A, "B": B, "C": B, "z": z.contiguous()}
        got = run({**inputs, **strided}, "triton", False, weight)
        expected = run(inputs, "triton", False, weight)
        assert all(torch.equal(got[name], expected[name]) for name in expected)


@needs_triton
def test_the_values_of_lazy_views_are_read(device: str) -> None:
    weight = torch.randn(1, 4, 5, generator=torch.Generator().manual_seed(1))
    plain = {name: value.to(device) for name, value in make_inputs(1, 4, 2, 5).items()}
    expected = run(plain, "triton", True, weight)
    views = {name: lazy(value) for name, value in plain.items()}
    got = run(views, "triton", True, lazy(weight))
    assert all(torch.equal(got[name], expected[name]) for name in expected)


@needs_triton
def test_torch_checks_it_as_an_operator(device: str) -> None:
    inputs = make_inputs(1, 4, 2, 5).values()
    arguments = [value.to(device).requires_grad_() for value in inputs]
    torch.library.opcheck(triton_scan._scan.forward, (*arguments, True, True))


@needs_triton
@pytest.mark.parametrize("reverse", [False, True])
def test_a_mixer_runs_on_it(device: str, reverse: bool) -> None:
    torch.manual_seed(0)
    mixer = MambaMixer(8, d_state=4, a="tied", bidirectional=True, scan="triton").to(device)
    hidden = torch.randn(2, 5, 8, device=device)
    got = mixer(hidden, reverse=reverse)
    got.square().sum().backward()
    gradients = [parameter.grad for parameter in mixer.parameters()]
    mixer.zero_grad(set_to_none=True)
    mixer.scan_backend = "reference"
    expected = mixer(hidden, reverse=reverse)
    expected.square().sum().backward()
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    for got_one, parameter in zip(gradients, mixer.parameters(), strict=True):
        torch.testing.assert_close(got_one, parameter.grad, rtol=1e-4, atol=1e-5)


@needs_triton
def test_states_are_kept_only_where_a_backward_may_follow(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []
    launch = triton_scan._launch

    def spy(name: str, inputs: Any, outs: Any, *strides: int, **switches: bool) -> None:
        kept.append(outs[1].numel())
        launch(name, inputs, outs, *strides, **switches)

    monkeypatch.setattr(triton_scan, "_launch", spy)
    inputs = {name: value.to(device) for name, value in make_inputs(1, 3, 2, 4).items()}
    leaves = {name: value.requires_grad_() for name, value in inputs.items()}
    triton_scan.selective_scan_triton(**leaves)
    with torch.no_grad():
        triton_scan.selective_scan_triton(**leaves)
    assert kept == [4 * 3 * 2, 0]


@needs_triton
def test_no_tokens_and_no_second_derivatives(device: str) -> None:
    inputs = {name: value.to(device) for name, value in make_inputs(2, 3, 2, 0).items()}
    with pytest.raises(ValueError, match=r"u: got shape \(2, 3, 0\), expected .*length >= 1"):
        triton_scan.selective_scan_triton(**inputs)
    leaf = make_inputs(1, 3, 2, 2)["u"].to(device).requires_grad_()
    others = {name: value.to(device) for name, value in make_inputs(1, 3, 2, 2).items()}
    out = triton_scan.selective_scan_triton(**{**others, "u": leaf})
    (grad,) = torch.autograd.grad(out.sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match=r"no second derivatives.*backend='reference'"):
        grad.sum().backward()


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from mnist_mamba.scan import triton_kernels

switches = {"has_d": True, "has_z": True, "has_bias": True, "softplus": True}
sizes = {"length": 49, "n_states": 5, "STATES": 8, "CHANNELS": 32}
kernels = (triton_kernels.scan_forward, {"keep": True}), (triton_kernels.scan_backward, {})
for kernel, more in kernels:
    fixed = {**sizes, **switches, **more}
    types = {
        name: "constexpr" if name in fixed else "*fp32" if name.endswith("_ptr") else "i32"
        for name in kernel.arg_names
    }
    source = ASTSource(kernel, types, constexprs=fixed)
    compiled = triton.compile(source, GPUTarget("cuda", 90, 32), {"num_warps": 1})
    assert len(compiled.asm["cubin"]) > 1000, kernel
"""


@needs_triton
def test_the_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    """The compiler refuses more than the interpreter does, and needs no GPU either."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": "src"}
    script = tmp_path / "compile_kernels.py"
    script.write_text(COMPILE, encoding="utf-8")
    command = [sys.executable, script]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_inputs_that_triton_does_not_take_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ScanBackendError, match="'triton': the Triton kernel needs CUDA tensors"):
        selective_scan(**make_inputs(1, 2, 2, 2), backend="triton")
    with pytest.raises(ScanBackendError, match="needs CUDA tensors, got tensors on cpu"):
        choose("triton", "cpu")
    inputs = make_inputs(1, 2, 65, 2)
    assert "d_state <= 64, got 65" in str(triton_scan.why_unfit(inputs["u"], inputs["A"]))
    assert "float64" in str(triton_scan.why_unfit(inputs["u"].double(), inputs["A"]))


def test_without_triton_auto_takes_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, KERNEL, None)
    triton_scan._kernels.cache_clear()
    monkeypatch.setattr(mamba_ssm, "why_unavailable", lambda _: None)
    assert choose("auto", "cuda") == "cuda"
    monkeypatch.setattr(mamba_ssm, "why_unavailable", lambda _: "mamba-ssm is not installed")
    scan._first_answer.cache_clear()
    assert choose("auto", "cuda") == "reference"
    with pytest.raises(ScanBackendError, match="Triton cannot be imported"):
        choose("triton", "cuda")


def test_auto_on_a_gpu_takes_the_first_kernel_that_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(triton_scan, "why_unavailable", lambda _: None)
    assert choose("auto", "cuda") == "triton"
    # The tensors stay on the CPU: there need not be a GPU for the choice.
    monkeypatch.setitem(scan.SCANS, "cpu", scan.SCANS["cuda"])
    taken = []
    for name in ("triton", "cuda"):

        def spy(*arguments: Any, name: str = name) -> torch.Tensor:
            taken.append(name)
            return selective_scan_reference(*arguments)

        monkeypatch.setitem(scan._FUNCTIONS, name, spy)
    small, wide = make_inputs(1, 2, 2, 2), make_inputs(1, 2, 65, 2)
    monkeypatch.setattr(mamba_ssm, "why_unavailable", lambda _: None)
    selective_scan(**small)
    selective_scan(**wide)
    assert taken == ["triton", "cuda"]
    monkeypatch.setattr(mamba_ssm, "why_unavailable", lambda _: "mamba-ssm is not installed")
    scan._first_answer.cache_clear()
    double = {name: value.double() for name, value in small.items()}
    for inputs in (wide, double):
        torch.testing.assert_close(selective_scan(**inputs), selective_scan_reference(**inputs))
    assert taken == ["triton", "cuda"]
