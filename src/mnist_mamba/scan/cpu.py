"""The selective scan and the residual block on the CPU: the kernels of csrc/scan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mnist_mamba.scan import c_library
from mnist_mamba.scan.checks import TENSORS, checked_inputs, checked_kept
from mnist_mamba.scan.operators import Kernel


def selective_scan_cpu(
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
    """Scan with the C kernel on ``torch.get_num_threads()`` threads; bits do not depend on them.

    It computes in float32 or float64, half types in float32. Strided u, delta, z, B and C are read
    in place. The result has the memory layout of ``delta``: if that comes from a linear layer (a
    transposed (batch, length, d_inner)), the next linear layer needs no copy either.

    Arguments: see ``selective_scan``, which checks them.

    Raises:
        ScanBackendError: the kernel cannot be built.
    """
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    tensors = [
        None if tensor is None else tensor.to(dtype)
        for tensor in (u, delta, A, B, C, D, z, delta_bias)
    ]
    return _scan(*tensors, delta_softplus).to(u.dtype)


class DirectionWeights(NamedTuple):
    """The parameters of a mixer that each direction has for itself, in the kernel's order."""

    conv_weight: Tensor
    """(Di, 1, K)"""
    conv_bias: Tensor
    """(Di)"""
    x_proj: Tensor
    """(R + 2 N, Di)"""
    dt_proj: Tensor
    """(Di, R)"""
    dt_bias: Tensor
    """(Di)"""
    A_log: Tensor
    """(Di, N): A = -exp(A_log); or, tied, (Di, 1): A[d, n] = -(n + 1) exp(A_log[d])"""
    D: Tensor
    """(Di)"""


def mamba_block_cpu(
    hidden: Tensor,
    in_proj: Tensor,
    out_proj: Tensor,
    directions: Sequence[DirectionWeights],
    reverse: bool = False,
    norm: Tensor | None = None,
    norm_eps: float = 0.0,
) -> Tensor:
    """Run a whole mixer and, if a norm is given, the norm before it and the residual around it.

    Each sequence goes through all of it in one core's cache, forward and backward. For the backward
    pass it keeps the input, the outputs of in_proj and x_proj, and the states at chunk borders:
    nothing of size d_state x length. All tensors have one dtype, float32 or float64.

    Args:
        hidden: input (batch, length, d_model), before the norm.
        in_proj: (2 Di, d_model): rows of x, rows of z.
        out_proj: (d_model, Di).
        directions: one, or two, which run in opposite directions and whose outputs are averaged.
        reverse: whether the first direction runs from the last step to the first.
        norm: weight (d_model) of the RMSNorm, or None for neither norm nor residual.
        norm_eps: added to the mean of squares.

    Returns:
        (batch, length, d_model).

    Raises:
        TypeError, ValueError: a weight has the wrong dtype, shape or device.
        ScanBackendError: the kernel cannot be built.
    """
    weights = [norm, in_proj, out_proj, *(w for direction in directions for w in direction)]
    absent = [None] * (len(c_library.WEIGHTS) - len(weights))
    return _block(hidden, *weights, *absent, reverse, norm_eps)


def _scan_forward(compute: bool, *arguments: Any) -> tuple[Tensor, Tensor]:
    *tensors, delta_softplus, keep = arguments
    tensors = checked_inputs(tensors)
    out = torch.empty_like(tensors[1])
    kept = _memory(out, c_library.scan_item_bytes(tensors) if keep else 0)
    if compute:
        c_library.scan_forward(tensors, delta_softplus, out, kept if keep else None)
    return out, kept


def _scan_backward(
    compute: bool, grad_out: Tensor, kept: Tensor, *arguments: Any
) -> list[Tensor | None]:
    *tensors, delta_softplus = arguments
    tensors = checked_inputs(tensors)
    shape = (grad_out.shape[0], c_library.scan_item_bytes(tensors))
    kept = checked_kept(kept, shape, torch.uint8, grad_out)
    # empty_like gives an expanded input a gradient of its full size; autograd sums it.
    grads = [None if tensor is None else torch.empty_like(tensor) for tensor in tensors]
    if compute:
        c_library.scan_backward(tensors, delta_softplus, grad_out, kept, grads)
    return grads


def _block_forward(compute: bool, hidden: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    *weights, reverse, norm_eps, keep = arguments
    hidden, *weights = _contiguous([hidden, *weights])
    plan = c_library.block_plan(hidden, weights, reverse, norm_eps, fake=not compute)
    out = torch.empty_like(hidden)
    kept = _memory(hidden, plan.saved_item_bytes if keep else 0)
    if compute:
        c_library.block_forward(plan, hidden, weights, out, kept if keep else None)
    return out, kept


def _block_backward(
    compute: bool, grad_out: Tensor, kept: Tensor, hidden: Tensor, *arguments: Any
) -> list[Tensor | None]:
    *weights, reverse, norm_eps = arguments
    hidden, grad_out, *weights = _contiguous([hidden, grad_out, *weights])
    plan = c_library.block_plan(hidden, weights, reverse, norm_eps, fake=not compute)
    kept = checked_kept(kept, (hidden.shape[0], plan.saved_item_bytes), torch.uint8, hidden)
    grads = [None if tensor is None else torch.empty_like(tensor) for tensor in (hidden, *weights)]
    if compute:
        c_library.block_backward(plan, hidden, weights, kept, grad_out, grads)
    return grads


def _contiguous(tensors: Sequence[Tensor | None]) -> list[Any]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _memory(tensor: Tensor, item_bytes: int) -> Tensor:
    """Return item_bytes of memory for each sequence of the tensor; torch aligns it to 64."""
    return tensor.new_empty(tensor.shape[0], item_bytes, dtype=torch.uint8)


_scan = Kernel(
    "selective_scan_cpu",
    devices=["CPU"],
    tensors=TENSORS,
    options=["bool delta_softplus"],
    forward=_scan_forward,
    backward=_scan_backward,
)
_block = Kernel(
    "mamba_block_cpu",
    devices=["CPU"],
    tensors=["hidden", *c_library.WEIGHTS],
    options=["bool reverse", "float norm_eps"],
    forward=_block_forward,
    backward=_block_backward,
)
