"""The scan and the inner part of the mixer on the CPU: autograd functions around csrc/scan."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mnist_mamba.scan import kernel

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
    """Scan with the C kernel on ``torch.get_num_threads()`` threads; same bits for any number.

    float32 and float64; half types are computed in float32. Strided inputs (u, delta, z, B, C) are
    read in place, and the result has the memory layout of ``delta``: when that comes from a linear
    layer (a transposed (batch, length, d_inner)), the next linear layer needs no copy either.

    Shapes and errors: see ``selective_scan``, which checks them.

    Raises:
        ScanBackendError: the kernel cannot be built.
    """
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    tensors = [
        None if tensor is None else tensor.to(dtype)
        for tensor in (u, delta, A, B, C, D, z, delta_bias)
    ]
    out: Tensor = _SelectiveScan.apply(  # type: ignore[no-untyped-call]
        *tensors, delta_softplus, _backward_may_follow(*tensors)
    )
    return out.to(u.dtype)


def mamba_inner_cpu(
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_proj_weight: Tensor,
    dt_proj_weight: Tensor,
    A: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    reverse: bool = False,
) -> Tensor:
    """Run the mixer between its outer projections, fused: from in_proj's output to the gated y.

    u = silu(conv(x)); dt, B, C = x_proj(u); y = scan(u, softplus(dt_proj(dt)), A, B, C, D, z).
    All of one dtype, float32 or float64. Nothing of size d_state x length is kept for the backward.

    Args:
        xz: (batch, length, 2 Di): x, then z.
        conv_weight: (Di, K); conv_bias: (Di).
        x_proj_weight: (R + 2 N, Di).
        dt_proj_weight: (Di, R); delta_bias: (Di).
        A: (Di, N); D: (Di).
        reverse: whether to run from the last step to the first.

    Returns:
        (batch, length, Di).

    Raises:
        ScanBackendError: the kernel cannot be built.

    Source: `mamba_inner_fn` of mamba_ssm has the same boundaries, but for out_proj.
    """
    tensors = (xz, conv_weight, conv_bias, x_proj_weight, dt_proj_weight, A, D, delta_bias)
    out: Tensor = _MambaInner.apply(  # type: ignore[no-untyped-call]
        *tensors, reverse, _backward_may_follow(*tensors)
    )
    return out


def _backward_may_follow(*tensors: Tensor | None) -> bool:
    """Asked outside of an autograd function, where gradients are always off."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


class _SelectiveScan(torch.autograd.Function):
    """Keeps the inputs and the states at the chunk borders; the backward recomputes the rest."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *tensors, delta_softplus, keep = arguments
        inputs = {**dict(zip(_SCAN_NAMES, tensors, strict=True)), "W": None}
        out = torch.empty_like(inputs["delta"])
        checkpoints = kernel.scan_forward(inputs, delta_softplus, False, out, keep)
        ctx.save_for_backward(*tensors, checkpoints)
        ctx.delta_softplus = delta_softplus
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivatives()
        *tensors, checkpoints = ctx.saved_tensors
        inputs = {**dict(zip(_SCAN_NAMES, tensors, strict=True)), "W": None}
        # empty_like gives an expanded input a gradient of its full size; autograd sums it.
        grads = {
            name: None if t is None else torch.empty_like(t) if t.dim() == 3 else _parameter_grad(t)
            for name, t in inputs.items()
        }
        kernel.scan_backward(inputs, ctx.delta_softplus, False, grad_out, checkpoints, grads)
        needed = zip(_SCAN_NAMES, ctx.needs_input_grad, strict=False)
        return (*(grads[name] if need else None for name, need in needed), None, None)


class _MambaInner(torch.autograd.Function):
    """Convolution, SiLU, projections and scan, on (batch, length, channels) memory throughout.

    Keeps xz, the scan's inputs and the states at the chunk borders. The gradients of x and z, and
    those of dt, B and C, are written side by side where the linear layers' backward wants them.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        xz, conv_weight, conv_bias, x_proj, dt_proj, A, D, delta_bias, reverse, keep = arguments
        xz = xz.contiguous()
        batch, length, width = xz.shape
        u = xz.new_empty(batch, length, width // 2)
        conv = _conv_tensors(xz, conv_weight, conv_bias)
        kernel.conv_forward(conv, reverse, u.transpose(1, 2))
        projected = torch.mm(u.flatten(0, 1), x_proj.t()).view(batch, length, -1)
        scan = _scan_tensors(xz, u, projected, dt_proj, A, D, delta_bias)
        out = torch.empty_like(u)
        checkpoints = kernel.scan_forward(scan, True, reverse, out.transpose(1, 2), keep)
        ctx.save_for_backward(
            xz, conv_weight, conv_bias, x_proj, dt_proj, A, D, delta_bias, u, projected, checkpoints
        )
        ctx.reverse = reverse
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivatives()
        xz, conv_weight, conv_bias, x_proj, dt_proj, A, D, delta_bias, u, projected, checkpoints = (
            ctx.saved_tensors
        )
        grad_xz, grad_u = torch.empty_like(xz), torch.empty_like(u)
        grad_projected = torch.empty_like(projected)
        parameters = [_parameter_grad(p) for p in (dt_proj, A, D, delta_bias)]
        kernel.scan_backward(
            _scan_tensors(xz, u, projected, dt_proj, A, D, delta_bias),
            True,
            ctx.reverse,
            grad_out.transpose(1, 2),
            checkpoints,
            _scan_tensors(grad_xz, grad_u, grad_projected, *parameters),
        )
        flat = grad_projected.flatten(0, 1)
        grad_x_proj = torch.mm(flat.t(), u.flatten(0, 1))
        grad_u.flatten(0, 1).addmm_(flat, x_proj)  # in place: grad_u is contiguous
        conv_grads = [_parameter_grad(p) for p in (conv_weight, conv_bias)]
        kernel.conv_backward(
            _conv_tensors(xz, conv_weight, conv_bias),
            ctx.reverse,
            grad_u.transpose(1, 2),
            _conv_tensors(grad_xz, *conv_grads),
        )
        return (grad_xz, *conv_grads, grad_x_proj, *parameters, None, None)


def _conv_tensors(xz: Tensor, weight: Tensor, bias: Tensor) -> dict[str, Tensor | None]:
    """The convolution's tensors, or their gradients, by the kernel's names; x as (batch, Di, L)."""
    x = xz[:, :, : xz.shape[2] // 2].transpose(1, 2)
    return {"x": x, "weight": weight, "bias": bias}


def _scan_tensors(
    xz: Tensor,
    u: Tensor,
    projected: Tensor,
    dt_proj: Tensor,
    A: Tensor,
    D: Tensor,
    delta_bias: Tensor,
) -> dict[str, Tensor | None]:
    """The scan's tensors, or their gradients, by the kernel's names."""
    rank, states = dt_proj.shape[1], A.shape[1]
    dt, B, C = (t.transpose(1, 2) for t in projected.split([rank, states, states], dim=2))
    return {
        "u": u.transpose(1, 2),
        "delta": dt,
        "B": B,
        "C": C,
        "z": xz[:, :, u.shape[2] :].transpose(1, 2),
        "A": A,
        "D": D,
        "delta_bias": delta_bias,
        "W": dt_proj,
    }


def _parameter_grad(parameter: Tensor) -> Tensor:
    """Memory for a parameter's gradient, which the kernels write contiguously."""
    return torch.empty_like(parameter, memory_format=torch.contiguous_format)


def _refuse_second_derivatives() -> None:
    if torch.is_grad_enabled():  # create_graph=True; torch's own check looks at grad_out only
        raise RuntimeError(
            "the C kernel of the selective scan has no second derivatives (create_graph=True); "
            "use backend='reference'"
        )
