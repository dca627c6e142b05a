"""The selective scan in plain torch: its definition, and a form without a loop over time steps."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class _Inputs(NamedTuple):
    """Inputs of the recurrence in the dtype that it runs in; delta has its bias and softplus."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor


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
    x = _inputs(u, delta, A, B, C, delta_bias, delta_softplus)
    h = x.u.new_zeros(u.shape[0], u.shape[1], A.shape[1])  # (batch, d_inner, d_state)
    outputs = []
    for t in range(u.shape[2]):
        delta_t = x.delta[:, :, t, None]
        decay = torch.exp(delta_t * x.A)
        h = decay * h + delta_t * x.B[:, None, :, t] * x.u[:, :, t, None]
        outputs.append((h * x.C[:, None, :, t]).sum(dim=-1))
    return _gated(torch.stack(outputs, dim=-1), x.u, D, z).to(u.dtype)


def selective_scan_parallel(
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
    """Scan all time steps at once in log2(length) passes (Hillis & Steele 1986).

    After the pass of distance k, h_t has the inputs of the last 2k steps, and decay_t is the
    product of their decays. Exporters and compilers see a short graph, at the price of
    (batch, d_inner, d_state, length) values in memory. Dtypes, arguments and errors are those of
    ``selective_scan_reference``.
    """
    if u.shape[2] == 1:  # no pass follows that uses A; autograd would have no gradient of it
        return selective_scan_reference(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    x = _inputs(u, delta, A, B, C, delta_bias, delta_softplus)
    decay = torch.exp(x.delta[:, :, None] * x.A[..., None])
    h = (x.delta * x.u)[:, :, None] * x.B[:, None]
    distance = 1
    while distance < u.shape[2]:
        later = decay[..., distance:]
        reached = h[..., distance:] + later * h[..., :-distance]
        decay = torch.cat([decay[..., :distance], later * decay[..., :-distance]], dim=-1)
        h = torch.cat([h[..., :distance], reached], dim=-1)
        distance *= 2
    return _gated((h * x.C[:, None]).sum(dim=2), x.u, D, z).to(u.dtype)


def _inputs(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> _Inputs:
    """Return the recurrence's inputs in the dtype of u, or in float32 if that is a half type."""
    dtype = torch.float32 if u.dtype in (torch.float16, torch.bfloat16) else u.dtype
    u, delta, A, B, C = (tensor.to(dtype) for tensor in (u, delta, A, B, C))
    if delta_bias is not None:
        delta = delta + delta_bias.to(dtype)[:, None]
    if delta_softplus:
        delta = functional.softplus(delta)
    return _Inputs(u, delta, A, B, C)


def _gated(y: Tensor, u: Tensor, D: Tensor | None, z: Tensor | None) -> Tensor:
    """Return (y + D u) silu(z) in the dtype of y; y and u are (batch, d_inner, length)."""
    if D is not None:
        y = y + D.to(y.dtype)[:, None] * u
    if z is not None:
        y = y * functional.silu(z.to(y.dtype))
    return y
