"""The choice of the scan's backend and instruction set, and what a user is told about it."""

from __future__ import annotations

import errno
import itertools
import logging
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mnist_mamba import scan
from mnist_mamba.c_build import CACHE_VARIABLE
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
from tests.library.scan_cases import WORKING_ISAS, lazy, make_inputs


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget what earlier tests found out and warned of, and forget again afterwards."""

    def forget() -> None:
        memos = (
            c_library.load,
            c_library.isa_number,
            mamba_ssm._interface,
            mamba_ssm.check_kernel,
            scan._first_answer,
            scan._log_once,
        )
        for memo in memos:
            memo.cache_clear()

    forget()
    yield
    monkeypatch.undo()
    forget()


def test_auto_takes_the_kernel_on_the_cpu(fresh: None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="mnist_mamba.scan")
    assert choose("auto", "cpu") == "cpu"
    assert choose("auto", torch.device("cpu")) == "cpu"
    assert choose("reference", "cuda") == "reference"
    assert caplog.text.count("backend cpu") == 1
    assert choose("parallel", "cuda") == "parallel"
    assert available_backends()[:3] == ("reference", "parallel", "cpu")


@pytest.mark.parametrize("backend", ["reference", "parallel", "cpu", "auto"])
def test_an_empty_batch_has_an_empty_result_and_no_gradient(backend: str) -> None:
    inputs = {
        name: (value if value.dim() < 3 else value[:0]).requires_grad_()
        for name, value in make_inputs(1, 5, 3, 9).items()
    }
    out = selective_scan(**inputs, delta_softplus=True, backend=backend)
    assert out.shape == (0, 5, 9)
    out.sum().backward()  # type: ignore[no-untyped-call]
    for name, value in inputs.items():
        assert value.grad is not None, name
        assert value.grad.shape == value.shape, name
        assert not value.grad.any(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("channels", [1, 3, 16, 40])
def test_scan_checkpoints_are_as_small_as_the_header_says(
    channels: int, dtype: torch.dtype
) -> None:
    for states, length in itertools.product((1, 3, 16, 64, 65), (1, 64, 65, 66, 129, 193, 4097)):
        u = torch.empty(1, channels, length, dtype=dtype)
        tensors = [u, u, torch.empty(channels, states, dtype=dtype)]
        elements = c_library.scan_item_bytes(tensors) / u.element_size()
        rounded = math.ceil(channels / 16) * 16 * math.ceil(states / 4) * 4
        assert elements <= rounded * (length - 1) / 64
        assert (elements == 0) == (length <= 64)


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(
        ValueError, match="got 'tpu', expected one of auto, reference, parallel, cpu, triton, cuda"
    ):
        choose("tpu", "cpu")


def test_a_backend_for_tensors_on_another_device(fresh: None) -> None:
    with pytest.raises(ScanBackendError, match="needs tensors on the CPU, got tensors on cuda"):
        choose("cpu", "cuda:0")
    with pytest.raises(ScanBackendError, match="needs CUDA tensors, got tensors on cpu"):
        choose("cuda", "cpu")
    with pytest.raises(ScanBackendError, match="needs CUDA tensors, got tensors on cpu"):
        mamba_ssm.selective_scan_cuda(**make_inputs(1, 2, 2, 3))


def test_without_a_compiler_auto_warns_once_and_takes_the_reference(
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
    assert "cpu" not in available_backends()
    with pytest.raises(ScanBackendError, match=r"'/nonexistent/cc'.*set CC"):
        selective_scan(**inputs, backend="cpu")
    with pytest.raises(ScanBackendError, match="cannot be built"):
        cpu.selective_scan_cpu(**inputs)


def test_a_named_backend_is_tried_again(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk was full, say. `auto` keeps to its first answer, so that a program does not mix."""
    path = c_library.library_path()

    def full() -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(c_library, "library_path", full)
    assert choose("auto", "cpu") == "reference"
    with pytest.raises(ScanBackendError, match="No space left on device"):
        choose("cpu", "cpu")
    monkeypatch.setattr(c_library, "library_path", lambda: path)
    assert choose("cpu", "cpu") == "cpu"
    assert choose("auto", "cpu") == "reference"


def test_auto_builds_once(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    builds = []

    def failing() -> Path:
        builds.append(1)
        raise OSError("broken")

    monkeypatch.setattr(c_library, "library_path", failing)
    for _ in range(3):
        selective_scan(**make_inputs(1, 2, 2, 3))
    assert len(builds) == 1


# mamba-ssm, for which a stand-in is imported: CI has neither a GPU nor the package.

INTERFACE = "mamba_ssm.ops.selective_scan_interface"
WORKING = """
from mnist_mamba.scan.reference import selective_scan_reference as selective_scan_fn
selective_scan_cuda = object()
"""
WRONG_OUTPUT = """
from mnist_mamba.scan.reference import selective_scan_reference
def selective_scan_fn(**inputs): return 1.01 * selective_scan_reference(**inputs)
selective_scan_cuda = object()
"""
WRONG_GRADIENT = """
from mnist_mamba.scan.reference import selective_scan_reference
def selective_scan_fn(**inputs):
    skip = inputs["A"].sum()
    return selective_scan_reference(**inputs) + (skip - skip.detach())
selective_scan_cuda = object()
"""
FLOAT32_PARAMETERS = """
import torch
from mnist_mamba.scan.reference import selective_scan_reference
def selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus):
    assert A.dtype == D.dtype == delta_bias.dtype == torch.float32
    assert u.dtype == z.dtype == torch.bfloat16
    return selective_scan_reference(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
selective_scan_cuda = object()
"""

ONLY_MEMORY = """
import torch
from mnist_mamba.scan.reference import selective_scan_reference

class Kernel(torch.autograd.Function):
    @staticmethod
    def forward(ctx, out):
        return out.clone()

    @staticmethod
    def backward(ctx, grad):
        assert not grad.is_neg()
        return grad

def selective_scan_fn(*inputs):
    assert not any(tensor.is_neg() for tensor in inputs[:-1])
    return Kernel.apply(selective_scan_reference(*inputs))

selective_scan_cuda = object()
"""
NO_GRAPH = """
import torch
from mnist_mamba.scan.reference import selective_scan_reference

class Kernel(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *inputs):
        ctx.save_for_backward(*inputs[:-1])
        return selective_scan_reference(*inputs)

    @staticmethod
    def backward(ctx, grad):
        leaves = [t if t is None else t.detach().requires_grad_() for t in ctx.saved_tensors]
        with torch.enable_grad():
            out = selective_scan_reference(*leaves, True)
            present = [leaf for leaf in leaves if leaf is not None]
            grads = iter(torch.autograd.grad(out, present, grad.detach()))
        return *(None if leaf is None else next(grads) for leaf in leaves), None

def selective_scan_fn(*inputs, **named):
    names = "u delta A B C D z delta_bias".split()
    given = [named.get(name) for name in names] + [True] if named else inputs
    return Kernel.apply(*given)

selective_scan_cuda = object()
"""
FAILS_ONCE = """
from mnist_mamba.scan.reference import selective_scan_reference
calls = []
def selective_scan_fn(**inputs):
    calls.append(1)
    if len(calls) == 1:
        raise RuntimeError("CUDA out of memory")
    return selective_scan_reference(**inputs)
selective_scan_cuda = object()
"""


def install_mamba_ssm(monkeypatch: pytest.MonkeyPatch, folder: Path, interface: str | None) -> None:
    """Make Python import this source as mamba-ssm's interface, or nothing; hide Triton."""
    monkeypatch.setattr(triton_scan, "why_unavailable", lambda device: "Triton is hidden")
    package = folder / "mamba_ssm" / "ops"
    package.mkdir(parents=True)
    for folder_of_package in (package.parent, package):  # a real mamba-ssm would win without
        (folder_of_package / "__init__.py").touch()
    (package / "selective_scan_interface.py").write_text(interface or "", encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    for name in ("mamba_ssm", "mamba_ssm.ops", INTERFACE):
        monkeypatch.setitem(sys.modules, name, None)  # restored afterwards
        if interface is not None:
            del sys.modules[name]


@pytest.mark.parametrize(
    ("interface", "message"),
    [
        (None, r"cannot be imported \(ModuleNotFoundError: .*pip install"),
        ("raise RuntimeError('no driver')", r"cannot be imported \(RuntimeError: no driver\)"),
        ("selective_scan_cuda = None", r"without its CUDA kernel.*pip install"),
        ("", r"without its CUDA kernel"),
    ],
    ids=["absent", "broken", "pure", "older"],
)
def test_without_mamba_ssm(
    fresh: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    interface: str | None,
    message: str,
) -> None:
    install_mamba_ssm(monkeypatch, tmp_path, interface)
    with pytest.raises(ScanBackendError, match=message):
        choose("cuda", "cuda")
    assert [choose("auto", "cuda") for _ in range(3)] == ["reference"] * 3
    assert len([r for r in caplog.records if r.levelno == logging.WARNING]) == 1


@pytest.mark.parametrize(
    ("interface", "message"),
    [
        (WORKING, None),
        (WRONG_OUTPUT, "wrong output"),
        (WRONG_OUTPUT.replace("1.01", "float('nan')"), "wrong output"),
        (WRONG_GRADIENT, "wrong gradient of A"),
        ("def selective_scan_fn(**_): 1 / 0\nselective_scan_cuda = 1", "fails.*ZeroDivisionError"),
    ],
    ids=["working", "output", "nan", "gradient", "failing"],
)
def test_a_mamba_ssm_that_computes_something_else_is_refused(
    fresh: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    interface: str,
    message: str | None,
) -> None:
    """Its kernel is checked on the CPU, since there may be no GPU, but chosen for a GPU."""
    install_mamba_ssm(monkeypatch, tmp_path, interface)
    check = mamba_ssm.check_kernel
    monkeypatch.setattr(mamba_ssm, "check_kernel", lambda _: check(torch.device("cpu")))
    if message is None:
        assert choose("auto", "cuda") == choose("cuda", "cuda:0") == "cuda"
    else:
        assert choose("auto", "cuda") == "reference"
        with pytest.raises(ScanBackendError, match=message):
            choose("cuda", "cuda")


def test_mamba_ssm_gets_float32_parameters(
    fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install_mamba_ssm(monkeypatch, tmp_path, FLOAT32_PARAMETERS)
    monkeypatch.setattr(mamba_ssm, "why_unavailable", lambda device: None)
    inputs = {name: value.bfloat16() for name, value in make_inputs(1, 2, 2, 3).items()}
    out = mamba_ssm.selective_scan_cuda(**inputs, delta_softplus=True)
    assert out.dtype == torch.bfloat16


def test_mamba_ssm_gets_no_lazy_views(
    fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install_mamba_ssm(monkeypatch, tmp_path, ONLY_MEMORY)
    monkeypatch.setattr(mamba_ssm, "why_unavailable", lambda device: None)
    plain = make_inputs(1, 2, 2, 3)
    inputs = {name: lazy(value).requires_grad_() for name, value in plain.items()}
    out = mamba_ssm.selective_scan_cuda(**inputs, delta_softplus=True)
    torch.testing.assert_close(out, selective_scan_reference(**plain, delta_softplus=True))
    out.backward(lazy(torch.ones_like(out)))
    with torch.no_grad():
        assert not mamba_ssm.selective_scan_cuda(**plain).requires_grad


def test_second_derivatives_of_mamba_ssm_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its gradients have no graph: a gradient penalty would lack their part without a word."""
    install_mamba_ssm(monkeypatch, tmp_path, NO_GRAPH)
    monkeypatch.setattr(mamba_ssm, "why_unavailable", lambda device: None)
    inputs = {name: t.requires_grad_() for name, t in make_inputs(1, 2, 2, 3).items()}
    out = mamba_ssm.selective_scan_cuda(**inputs, delta_softplus=True)
    (expected,) = torch.autograd.grad(out.square().sum(), inputs["u"], retain_graph=True)
    loss = out.square().sum() + (inputs["delta"] * inputs["u"]).pow(3).sum()
    (grad,) = torch.autograd.grad(loss, inputs["u"], create_graph=True)
    other_path = 3 * inputs["delta"] ** 3 * inputs["u"] ** 2
    torch.testing.assert_close(grad, expected + other_path)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        grad.square().sum().backward()


def test_a_failed_check_of_mamba_ssm_is_not_remembered(
    fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install_mamba_ssm(monkeypatch, tmp_path, FAILS_ONCE)
    device = torch.device("cpu")
    with pytest.raises(ScanBackendError, match="out of memory"):
        mamba_ssm.check_kernel(device)
    mamba_ssm.check_kernel(device)


def test_inputs_that_mamba_ssm_does_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mamba_ssm, "why_unavailable", lambda device: None)
    with pytest.raises(ScanBackendError, match="d_state <= 256, got 257"):
        mamba_ssm.selective_scan_cuda(**make_inputs(1, 1, 257, 2))
    with pytest.raises(ScanBackendError, match="no float64"):
        mamba_ssm.selective_scan_cuda(**make_inputs(1, 2, 2, 3, torch.float64))


# Instruction sets


def test_the_best_instruction_set_is_taken() -> None:
    assert c_library.isa() == WORKING_ISAS[-1]


def test_an_unusable_instruction_set_is_refused(
    fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = next(isa for isa in c_library.ISAS if isa not in WORKING_ISAS)
    for wanted in (missing, "sse9"):
        monkeypatch.setenv(c_library.ISA_VARIABLE, wanted)
        with pytest.raises(ScanBackendError, match=f"MAMBA_ISA={wanted}: expected one .*scalar"):
            c_library.isa()
    monkeypatch.setenv(c_library.ISA_VARIABLE, "")  # as if it were not set
    assert c_library.isa() == WORKING_ISAS[-1]


def test_the_instruction_set_stays_the_same(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward pass share memory whose layout depends on it."""
    before = c_library.isa()
    monkeypatch.setenv(c_library.ISA_VARIABLE, "scalar" if before != "scalar" else "sse9")
    assert c_library.isa() == before
