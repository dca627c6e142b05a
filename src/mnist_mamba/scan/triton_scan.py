"""Backend ``triton``: our own GPU kernel. PyTorch for CUDA comes with Triton, its compiler."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mnist_mamba.scan.checks import TENSORS, checked_inputs, checked_kept
from mnist_mamba.scan.errors import ScanBackendError
from mnist_mamba.scan.operators import Kernel

MAX_D_STATE = 64
"""Most states per channel: they stay in the registers of one warp."""
_CHANNELS = 32
"""Channels per Triton program, which is one warp."""


def why_unavailable(device: torch.device) -> str | None:
    """Return None if the kernel works on this device, else the reason why not."""
    if device.type != "cuda" and not _is_interpreted():
        return f"the Triton kernel needs CUDA tensors, got tensors on {device}"
    try:
        _kernels()
    except ScanBackendError as error:
        return str(error)
    return None


def _is_interpreted() -> bool:
    """Return whether Triton interprets kernels with numpy, as in tests without a GPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _kernels() -> ModuleType:
    """Return the module with the kernels; only success is cached."""
    try:
        return importlib.import_module("mnist_mamba.scan.triton_kernels")
    except Exception as error:  # Triton looks for drivers when imported, which raises anything
        raise ScanBackendError(
            f"Triton cannot be imported ({type(error).__name__}: {error})"
        ) from error


def why_unfit(u: Tensor, A: Tensor) -> str | None:
    """Return None if the kernel takes these dtypes and shapes, else the reason why not."""
    if u.dtype == torch.float64:
        return "the Triton kernel has no float64; use float32 or backend='reference'"
    if A.shape[1] > MAX_D_STATE:
        return f"the Triton kernel takes d_state <= {MAX_D_STATE}, got {A.shape[1]}"
    return None


def selective_scan_triton(
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
    """Scan with our Triton kernel: float32 and half types, computed in float32, d_state up to 64.

    It keeps all states for the backward pass: batch x length x d_inner x d_state floats.

    Arguments: see ``selective_scan``, which checks them.

    Raises:
        ScanBackendError: not CUDA tensors, no Triton, float64 or too many states.
    """
    reason = why_unavailable(u.device) or why_unfit(u, A)
    if reason is not None:
        raise ScanBackendError(f"scan backend 'triton': {reason}")
    return _scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus)


def _forward(compute: bool, *arguments: Any) -> tuple[Tensor, Tensor]:
    *tensors, softplus, keep = arguments
    inputs = checked_inputs(tensors)
    u, _, A, *_ = inputs
    batch, channels, length = u.shape
    # The layout that out_proj reads.
    out: Tensor = u.new_empty(batch, length, channels)
    kept = (batch, length, channels, A.shape[1]) if keep else (0,)
    states = u.new_empty(kept, dtype=torch.float32)
    if compute:
        _launch("scan_forward", inputs, (out, states), softplus=softplus, keep=keep)
    return out.transpose(1, 2), states


def _backward(
    compute: bool, grad: Tensor, states: Tensor, *arguments: Any
) -> tuple[Tensor | None, ...]:
    *tensors, softplus = arguments
    inputs = checked_inputs(tensors)
    u, _, A, _, _, D, z, delta_bias = inputs
    batch, channels, length = u.shape
    n_states, blocks = A.shape[1], -(-channels // _CHANNELS)
    states = checked_kept(states, (batch, length, channels, n_states), torch.float32, u)
    like_u = {"dtype": u.dtype, "device": u.device}
    part = {"dtype": torch.float32, "device": u.device}
    du = torch.empty(batch, channels, length, **like_u)
    ddelta, dz = (torch.empty(batch, length, channels, **like_u) for _ in range(2))
    da = torch.empty(batch, channels, n_states, **part)
    db, dc = (torch.empty(batch, blocks, length, n_states, **part) for _ in range(2))
    dd, dbias = (torch.empty(batch, channels, **part) for _ in range(2))
    outs = (states, grad, du, ddelta, da, db, dc, dd, dz, dbias)
    if compute:
        _launch("scan_backward", inputs, outs, *grad.stride(), softplus=softplus)
    return (
        du,
        ddelta.transpose(1, 2),
        da.sum(0).to(A.dtype),
        db.sum(1).to(u.dtype).transpose(1, 2),
        dc.sum(1).to(u.dtype).transpose(1, 2),
        None if D is None else dd.sum(0).to(D.dtype),
        None if z is None else dz.transpose(1, 2),
        None if delta_bias is None else dbias.sum(0).to(delta_bias.dtype),
    )


def _launch(
    name: str, inputs: Sequence[Any], outs: Sequence[Tensor], *strides: int, **switches: bool
) -> None:
    """Run a kernel for each item of the batch and each _CHANNELS channels."""
    u, delta, A, B, C, D, z, delta_bias = inputs
    batch, channels, length = u.shape
    # The kernel never reads a None's stand-in.
    pointers = (u if tensor is None else tensor for tensor in inputs)
    kernel = getattr(_kernels(), name)[batch, -(-channels // _CHANNELS)]
    # Triton launches on the current GPU, which may be another than the tensors'.
    with torch.cuda.device_of(u):
        kernel(
            *pointers,
            *outs,
            channels,
            length,
            *(stride for tensor in (u, delta, B, C) for stride in tensor.stride()),
            *((0, 0, 0) if z is None else z.stride()),
            *strides,
            n_states=A.shape[1],
            STATES=max(2, 1 << (A.shape[1] - 1).bit_length()),
            CHANNELS=_CHANNELS,
            has_d=D is not None,
            has_z=z is not None,
            has_bias=delta_bias is not None,
            num_warps=1,
            **switches,
        )


_scan = Kernel(
    "selective_scan_triton",
    devices=["CUDA", "CPU"],  # the CPU where Triton interprets
    tensors=TENSORS,
    options=["bool delta_softplus"],
    forward=_forward,
    backward=_backward,
)
