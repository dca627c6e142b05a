"""The definition of the selective scan: plain torch, one step after the other."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def selective_scan_reference(
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
    """Scan the sequence with a python loop; every other backend is tested against this one.

    With delta = softplus(delta + delta_bias):

        h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t
        out_t = (C_t . h_t + D u_t) silu(z_t)

    Gu & Dao 2023, arXiv 2312.00752. Shapes and errors: see ``selective_scan``, which checks them.
    It computes in the dtype of ``u``, in float32 where that is a half type, and autograd
    differentiates it.

    Returns:
        (batch, d_inner, length), dtype of ``u``.
    """
    dtype = torch.float32 if u.dtype in (torch.float16, torch.bfloat16) else u.dtype
    x, step, a, b, c = (tensor.to(dtype) for tensor in (u, delta, A, B, C))
    if delta_bias is not None:
        step = step + delta_bias.to(dtype)[:, None]
    if delta_softplus:
        step = functional.softplus(step)

    state = x.new_zeros(x.shape[0], x.shape[1], a.shape[1])  # (batch, d_inner, d_state)
    outputs = []
    for t in range(x.shape[2]):
        step_t = step[:, :, t, None]
        decay = torch.exp(step_t * a)
        state = decay * state + step_t * b[:, None, :, t] * x[:, :, t, None]
        outputs.append((state * c[:, None, :, t]).sum(dim=-1))
    y = torch.stack(outputs, dim=-1)

    if D is not None:
        y = y + D.to(dtype)[:, None] * x
    if z is not None:
        y = y * functional.silu(z.to(dtype))
    return y.to(u.dtype)
