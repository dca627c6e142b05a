"""Backend ``cuda``: the CUDA kernel of the mamba-ssm package, checked before its first use."""

from __future__ import annotations

import functools
import importlib
import logging
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mnist_mamba.scan.errors import ScanBackendError
from mnist_mamba.scan.operators import refusal
from mnist_mamba.scan.reference import selective_scan_reference

logger = logging.getLogger(__name__)

MAX_D_STATE = 256
"""Most states per channel that mamba-ssm's kernel takes."""
INSTALL_HINT = "on Linux with an NVIDIA GPU: pip install 'mnist-mamba[cuda]'"

_INTERFACE = "mamba_ssm.ops.selective_scan_interface"
_TOLERANCE = 1e-3  # relative L2: the kernel's exp2f is approximate; a wrong kernel is far worse
_lock = threading.Lock()


def why_unavailable(device: torch.device) -> str | None:
    """Return None if mamba-ssm's kernel works on this device, else the reason why not."""
    if device.type != "cuda":
        return f"mamba-ssm needs CUDA tensors, got tensors on {device}"
    try:
        with _lock:
            check_kernel(device)
    except ScanBackendError as error:
        return str(error)
    return None


@functools.cache
def _interface() -> ModuleType:
    """Return mamba-ssm's interface module with its kernel; only success is cached."""
    try:
        module = importlib.import_module(_INTERFACE)
    except Exception as error:  # it imports CUDA, Triton and more, which raise anything
        raise ScanBackendError(
            f"mamba-ssm cannot be imported ({type(error).__name__}: {error}); {INSTALL_HINT}"
        ) from error
    # Newer releases import without their kernel, so an import alone proves nothing.
    if getattr(module, "selective_scan_cuda", None) is None:
        raise ScanBackendError(f"mamba-ssm is installed without its CUDA kernel; {INSTALL_HINT}")
    return module


@functools.cache
def check_kernel(device: torch.device) -> None:
    """Compare the kernel with the reference on a small input; only success is cached.

    Raises:
        ScanBackendError: no kernel, or one that fails or computes something else.
    """
    kernel = _interface().selective_scan_fn
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    batch, d_inner, d_state, length = 2, 8, 4, 11
    inputs = {
        "u": draw(batch, d_inner, length),
        "delta": draw(batch, d_inner, length),
        "A": -torch.exp(draw(d_inner, d_state)),
        "B": draw(batch, d_state, length),
        "C": draw(batch, d_state, length),
        "D": draw(d_inner),
        "z": draw(batch, d_inner, length),
        "delta_bias": draw(d_inner),
    }
    grad_out = draw(batch, d_inner, length)
    try:
        got = _results(kernel, inputs, grad_out)
        expected = _results(selective_scan_reference, inputs, grad_out)
    except Exception as error:  # a kernel built for another GPU or torch raises anything
        raise ScanBackendError(
            f"mamba-ssm's kernel fails on {device} ({type(error).__name__}: {error})"
        ) from error
    for name, value in expected.items():
        difference = float((got[name] - value).norm() / value.norm())
        if not difference <= _TOLERANCE:
            raise ScanBackendError(
                f"mamba-ssm's kernel gives a wrong {name} on {device}: got relative error "
                f"{difference:.1e}, expected at most {_TOLERANCE:.0e}"
            )
    logger.info("selective scan on %s: mamba-ssm's CUDA kernel, self-check passed", device)


def _results(
    scan: Callable[..., Tensor], inputs: dict[str, Tensor], grad_out: Tensor
) -> dict[str, Tensor]:
    leaves = {name: value.detach().clone().requires_grad_() for name, value in inputs.items()}
    with torch.enable_grad():
        out = scan(**leaves, delta_softplus=True)
        gradients = torch.autograd.grad(out, list(leaves.values()), grad_out)
    named = {f"gradient of {name}": grad for name, grad in zip(leaves, gradients, strict=True)}
    return {"output": out.detach(), **named}


def why_unfit(u: Tensor, A: Tensor) -> str | None:
    """Return None if the kernel takes these dtypes and shapes, else the reason why not."""
    if u.dtype == torch.float64:
        return "mamba-ssm's kernel has no float64; use float32 or backend='reference'"
    if A.shape[1] > MAX_D_STATE:
        return f"mamba-ssm's kernel takes d_state <= {MAX_D_STATE}, got {A.shape[1]}"
    return None


def selective_scan_cuda(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """Scan with mamba-ssm's CUDA kernel: float32 and half types, d_state up to 256.

    Arguments: see ``selective_scan``, which checks them.

    Raises:
        ScanBackendError: not CUDA tensors, no working kernel, float64 or too many states.
    """
    reason = why_unavailable(u.device) or why_unfit(u, A)
    if reason is not None:
        raise ScanBackendError(f"scan backend 'cuda': {reason}")
    # The kernel expects float32 parameters for every dtype of u.
    skip = None if D is None else D.float()
    bias = None if delta_bias is None else delta_bias.float()
    # It reads memory, which does not hold the values of a lazy view. It cannot read fake tensors or
    # those of torch.func: they have no memory, and torch says so.
    tensors = (u, delta, A.float(), B, C, skip, z, bias)
    resolved = (None if tensor is None else tensor.resolve_neg() for tensor in tensors)
    once: Any = _Once
    out: Tensor = _interface().selective_scan_fn(*once.apply(*resolved), delta_softplus)
    if out.requires_grad:
        out.register_hook(torch.resolve_neg)
    return out


class _Once(torch.autograd.Function):
    """The identity, whose gradients refuse to be differentiated.

    mamba-ssm's gradients have no graph, so a second derivative would silently lack their part.
    """

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor | None) -> Any:
        ctx.set_materialize_grads(False)
        return tuple(None if tensor is None else tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        if not torch.is_grad_enabled():
            return grads
        refuse: Any = _Refuse
        return refuse.apply(
            *(None if grad is None else grad.detach().requires_grad_() for grad in grads)
        )


class _Refuse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *tensors: Tensor | None) -> Any:
        return tuple(None if tensor is None else tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *_: Tensor | None) -> Any:
        raise refusal("second derivatives")
