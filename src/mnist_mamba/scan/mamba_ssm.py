"""Backend ``cuda``: the CUDA kernel of the mamba-ssm package, checked before its first use."""

from __future__ import annotations

import functools
import importlib
import logging
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mnist_mamba.scan.errors import ScanBackendError
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
    with _lock:
        found = _interface()
        if isinstance(found, str):
            return found
        return check_kernel(device)


@functools.lru_cache(maxsize=1)
def _interface() -> Any | str:
    """Return mamba-ssm's interface module with its kernel, or why there is none."""
    try:
        module = importlib.import_module(_INTERFACE)
    except Exception as error:  # it imports CUDA, Triton and more, which raise anything
        return f"mamba-ssm cannot be imported ({type(error).__name__}: {error}); {INSTALL_HINT}"
    # Newer releases import without their kernel, so an import alone proves nothing.
    if getattr(module, "selective_scan_cuda", None) is None:
        return f"mamba-ssm is installed without its CUDA kernel; {INSTALL_HINT}"
    return module


@functools.lru_cache(maxsize=16)
def check_kernel(device: torch.device) -> str | None:
    """Return None if the kernel agrees with the reference on a small input, else what is wrong."""
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
        got = _results(_kernel(), inputs, grad_out)
        expected = _results(selective_scan_reference, inputs, grad_out)
    except Exception as error:  # a kernel built for another GPU or torch raises anything
        return f"mamba-ssm's kernel fails on {device} ({type(error).__name__}: {error})"
    for name, value in expected.items():
        difference = float((got[name] - value).norm() / value.norm())
        if not difference <= _TOLERANCE:
            return (
                f"mamba-ssm's kernel gives a wrong {name} on {device}: got relative error "
                f"{difference:.1e}, expected at most {_TOLERANCE:.0e}"
            )
    logger.info("selective scan on %s: mamba-ssm's CUDA kernel, self-check passed", device)
    return None


def _kernel() -> Callable[..., Tensor]:
    module = _interface()
    if isinstance(module, str):
        raise ScanBackendError(module)
    function: Callable[..., Tensor] = module.selective_scan_fn
    return function


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
    return _kernel()(u, delta, A.float(), B, C, skip, z, bias, delta_softplus)
