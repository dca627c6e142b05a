"""The selective scan of Mamba-1 (Gu & Dao 2023, arXiv 2312.00752) and the choice of its backend.

Five backends compute the same function: ``reference`` (plain torch, the definition), ``parallel``
(plain torch without a loop over time steps, for exporters), ``cpu`` (our C kernel), ``triton`` (our
GPU kernel) and ``cuda`` (mamba-ssm's GPU kernel). ``auto`` chooses the first that works: cpu for
tensors on the CPU, triton and then cuda for tensors on a GPU, and otherwise the reference.
docs/the-scan.md derives the function, its gradients and the C kernel.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from mnist_mamba.config import SCANS
from mnist_mamba.scan import c_library, cpu, mamba_ssm, triton_scan
from mnist_mamba.scan.checks import check_arguments
from mnist_mamba.scan.errors import ScanBackendError
from mnist_mamba.scan.reference import selective_scan_parallel, selective_scan_reference

__all__ = ["BACKENDS", "ScanBackendError", "available_backends", "choose", "selective_scan"]

_Function = TypeVar("_Function", bound=Callable[..., Any])

logger = logging.getLogger(__name__)

PLAIN = ("reference", "parallel")
"""Backends in plain torch, which run everywhere."""
BACKENDS = ("auto", *PLAIN, *itertools.chain.from_iterable(SCANS.values()))

_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "reference": selective_scan_reference,
    "parallel": selective_scan_parallel,
    "cpu": cpu.selective_scan_cpu,
    "triton": triton_scan.selective_scan_triton,
    "cuda": mamba_ssm.selective_scan_cuda,
}


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Run a selective state space model over a sequence; differentiable in every tensor.

    With delta = softplus(delta + delta_bias), where softplus and bias are optional, as are D and z:

        h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t
        out_t = (C_t . h_t + D u_t) silu(z_t)

    Gu & Dao 2023, arXiv 2312.00752. The arguments have the order and the layout of mamba-ssm's.

    Args:
        u: input (batch, d_inner, length): float32, float64, float16 or bfloat16. The batch may be
            empty.
        delta: step size (batch, d_inner, length), dtype of u.
        A: decay rates (d_inner, d_state), negative: dtype of u, or float32 if that is a half type.
        B: input matrix (batch, d_state, length), dtype of u.
        C: output matrix (batch, d_state, length), dtype of u.
        D: skip connection (d_inner), dtypes as A, or None.
        z: gate (batch, d_inner, length), dtype of u, or None.
        delta_bias: (d_inner), dtypes as A, or None.
        delta_softplus: whether to apply a softplus to delta + delta_bias.
        backend: "auto", "reference", "parallel", "cpu", "triton" or "cuda".

    Returns:
        out (batch, d_inner, length), dtype of u.

    Raises:
        TypeError: an argument is not a tensor or has the wrong dtype.
        ValueError: wrong shape, tensors on different devices, or unknown backend.
        ScanBackendError: the requested backend cannot run here.

    Examples:
        Three steps of one channel with one state, which keeps half of itself at each step:

        >>> import torch
        >>> from mnist_mamba.scan import selective_scan
        >>> u = torch.tensor([[[6.0, 0.0, 1.0]]])
        >>> ones = torch.ones(1, 1, 3)
        >>> A = torch.tensor([[0.5]]).log()
        >>> selective_scan(u, delta=ones, A=A, B=ones, C=ones, backend="reference")
        tensor([[[6.0000, 3.0000, 2.5000]]])
    """
    check_arguments(u, delta, A, B, C, D, z, delta_bias)
    if backend == "auto":
        name = _first_on(u.device, lambda name: _why_unfit(name, u, A))
    else:
        name = choose(backend, u.device)
    if u.shape[0] == 0:  # nothing to run a kernel for
        name = "reference"
    return _FUNCTIONS[name](u, delta, A, B, C, D, z, delta_bias, delta_softplus)


def choose(backend: str, device: torch.device | str) -> str:
    """Return the backend for tensors on this device, one of BACKENDS but "auto".

    ``auto`` asks each backend once per process, and logs one warning if it has to fall back to the
    reference. To name a backend is to try it again.

    Args:
        backend: one of BACKENDS.
        device: the tensors' device.

    Raises:
        ValueError: unknown backend.
        ScanBackendError: a backend other than ``auto`` is requested and cannot run here.
    """
    if backend not in BACKENDS:
        raise ValueError(f"scan backend: got {backend!r}, expected one of {', '.join(BACKENDS)}")
    device = torch.device(device)
    if backend in PLAIN:
        return backend
    if backend == "auto":
        return _first_on(device)
    reason = _why_unavailable(backend, device)
    if reason is not None:
        raise ScanBackendError(f"scan backend {backend!r}: {reason}")
    _log_choice(backend, device)
    return backend


def _first_on(device: torch.device, why_not: Callable[[str], str | None] = lambda _: None) -> str:
    """Return the first backend that works on this device and for which why_not gives no reason."""
    reasons = []
    for name in SCANS.get(device.type, ("cpu",)):
        reason = _why_auto_skips(name, device) or why_not(name)
        if reason is None:
            _log_choice(name, device)
            return name
        reasons.append(reason)
    because = "; ".join(reasons)
    _log_once(
        logging.WARNING, f"selective scan on {device}: using the slow reference, because {because}"
    )
    return "reference"


def _constant(function: _Function) -> _Function:
    """Let torch.compile call the function once, when it traces, instead of tracing it.

    This is torch.compiler.assume_constant_result, which would import the compiler.
    """
    setattr(function, "_dynamo_marked_constant", True)  # noqa: B010
    return function


@_constant
def _log_choice(name: str, device: torch.device) -> None:
    detail = f", {c_library.isa()}" if name == "cpu" else ""
    _log_once(logging.INFO, f"selective scan on {device}: backend {name}{detail}")


def available_backends() -> tuple[str, ...]:
    """Return the backends that work on this machine; those of PLAIN always do.

    The first call builds the C kernel and, on a machine with a GPU, checks mamba-ssm's kernel.
    """
    names = [*PLAIN]
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        names += [n for n in SCANS[device] if _why_unavailable(n, torch.device(device)) is None]
    return tuple(names)


def _why_unfit(name: str, u: Tensor, A: Tensor) -> str | None:
    """Return None if the backend takes these dtypes and shapes, else the reason why not."""
    if name == "triton":
        return triton_scan.why_unfit(u, A)
    if name == "cuda":
        return mamba_ssm.why_unfit(u, A)
    return None


@_constant
def _why_auto_skips(name: str, device: torch.device) -> str | None:
    """Ask the backend once per process, so that a failing build does not run at each call."""
    return _first_answer(name, device)


@_constant
def _why_unavailable(name: str, device: torch.device) -> str | None:
    if name == "triton":
        return triton_scan.why_unavailable(device)
    if name == "cuda":
        return mamba_ssm.why_unavailable(device)
    if device.type != "cpu":
        return f"the C kernel needs tensors on the CPU, got tensors on {device}"
    return c_library.why_unavailable()


_first_answer = functools.cache(_why_unavailable)


@functools.lru_cache(maxsize=64)
def _log_once(level: int, message: str) -> None:
    logger.log(level, "%s", message)
