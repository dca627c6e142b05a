"""The definition of the selective scan in plain torch, one time step after another."""

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
    """Scan the sequence in a Python loop, in the dtype of u, or in float32 if that is a half type.

    Every other backend is tested against this one. Autograd differentiates it. Formula, arguments
    and errors: see ``selective_scan``, which checks the arguments.
    """
    dtype = torch.float32 if u.dtype in (torch.float16, torch.bfloat16) else u.dtype
    out_dtype = u.dtype
    u, delta, A, B, C = (tensor.to(dtype) for tensor in (u, delta, A, B, C))
    if delta_bias is not None:
        delta = delta + delta_bias.to(dtype)[:, None]
    if delta_softplus:
        delta = functional.softplus(delta)

    h = u.new_zeros(u.shape[0], u.shape[1], A.shape[1])  # (batch, d_inner, d_state)
    outputs = []
    for t in range(u.shape[2]):
        delta_t = delta[:, :, t, None]
        decay = torch.exp(delta_t * A)
        h = decay * h + delta_t * B[:, None, :, t] * u[:, :, t, None]
        outputs.append((h * C[:, None, :, t]).sum(dim=-1))
    y = torch.stack(outputs, dim=-1)

    if D is not None:
        y = y + D.to(dtype)[:, None] * u
    if z is not None:
        y = y * functional.silu(z.to(dtype))
    return y.to(out_dtype)
