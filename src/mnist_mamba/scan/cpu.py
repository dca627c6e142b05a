"""The selective scan and the residual block on the CPU: autograd functions around csrc/scan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mnist_mamba.scan import c_library
from mnist_mamba.scan.checks import backward_may_follow

_SCAN_NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


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
    out: Tensor = _SelectiveScan.apply(  # type: ignore[no-untyped-call]
        *tensors, delta_softplus, backward_may_follow(*tensors)
    )
    return out.to(u.dtype)


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
    keep = backward_may_follow(hidden, *weights)
    out: Tensor = _MambaBlock.apply(  # type: ignore[no-untyped-call]
        hidden, reverse, norm_eps, keep, *weights
    )
    return out


class _SelectiveScan(torch.autograd.Function):
    """The scan, which keeps its inputs and the states at chunk borders and recomputes the rest."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *tensors, delta_softplus, keep = arguments
        tensors = [t.contiguous() if t is not None and t.dim() < 3 else t for t in tensors]
        inputs = dict(zip(_SCAN_NAMES, tensors, strict=True))
        out = torch.empty_like(inputs["delta"])
        checkpoints = c_library.scan_forward(inputs, delta_softplus, out, keep)
        ctx.save_for_backward(*tensors, checkpoints)
        ctx.delta_softplus = delta_softplus
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivatives()
        *tensors, checkpoints = ctx.saved_tensors
        inputs = dict(zip(_SCAN_NAMES, tensors, strict=True))
        # empty_like gives an expanded input a gradient of its full size; autograd sums it.
        grads = {name: None if t is None else torch.empty_like(t) for name, t in inputs.items()}
        c_library.scan_backward(inputs, ctx.delta_softplus, grad_out, checkpoints, grads)
        needed = zip(_SCAN_NAMES, ctx.needs_input_grad, strict=False)
        return (*(grads[name] if need else None for name, need in needed), None, None)


class _MambaBlock(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, reverse: bool, norm_eps: float, keep: bool, *weights: Any
    ) -> Tensor:
        hidden = hidden.contiguous()
        weights = tuple(None if w is None else w.contiguous() for w in weights)
        out = torch.empty_like(hidden)
        ctx.plan = c_library.block_plan(hidden, weights, reverse, norm_eps)
        saved = c_library.block_forward(ctx.plan, hidden, weights, out, keep)
        ctx.save_for_backward(hidden, saved, *weights)
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivatives()
        hidden, saved, *weights = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grads = [None if w is None else torch.empty_like(w) for w in weights]
        c_library.block_backward(
            ctx.plan, hidden, weights, saved, grad_out.contiguous(), grad_hidden, grads
        )
        return (grad_hidden, None, None, None, *grads)


def _refuse_second_derivatives() -> None:
    if torch.is_grad_enabled():  # create_graph=True; torch's own check looks at grad_out only
        raise RuntimeError(
            "the C kernel of the selective scan has no second derivatives (create_graph=True): "
            "use backend='reference'"
        )
