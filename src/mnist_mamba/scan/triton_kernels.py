"""The selective scan and its gradients as Triton kernels, which `triton_scan` launches.

A program walks over the tokens of one item of the batch with CHANNELS channels, whose states
(CHANNELS, STATES) stay in registers. Tensors come with their own strides: the mixer's projections
leave channels innermost, its convolution tokens. All arithmetic is float32, and all offsets are
int64: strides may span more than 2^31 elements.

Triton compiles these functions, and it knows no type annotation but constexpr.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _softplus(x):
    e = tl.exp(tl.minimum(x, 20.0))
    rounded = 1.0 + e
    kept = rounded - 1.0  # of a small e, less than e
    # log(1 + e): the quotient repairs what was lost (Higham 2002, section 1.14.1).
    log1p = tl.where(kept == 0.0, e, tl.log(rounded) * (e / tl.where(kept == 0.0, 1.0, kept)))
    return tl.where(x > 20.0, x, log1p)


@triton.jit
def scan_forward(
    u_ptr, delta_ptr, a_ptr, b_ptr, c_ptr, d_ptr, z_ptr, bias_ptr, out_ptr, states_ptr,
    channels, length: tl.constexpr,
    u_item, u_channel, u_token, delta_item, delta_channel, delta_token,
    b_item, b_state, b_token, c_item, c_state, c_token, z_item, z_channel, z_token,
    n_states: tl.constexpr, STATES: tl.constexpr, CHANNELS: tl.constexpr,
    has_d: tl.constexpr, has_z: tl.constexpr, has_bias: tl.constexpr, softplus: tl.constexpr,
    keep: tl.constexpr,
):  # fmt: skip
    """Write out (batch, length, channels); if keep, states (batch, length, channels, n_states)."""
    item = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS).to(tl.int64)
    n = tl.arange(0, STATES).to(tl.int64)
    of_d, of_n = d < channels, n < n_states
    of_dn = of_d[:, None] & of_n[None, :]
    dn = d[:, None] * n_states + n[None, :]

    a = tl.load(a_ptr + dn, of_dn, 0.0).to(tl.float32)
    h = tl.zeros([CHANNELS, STATES], tl.float32)
    t = tl.full([], 0, tl.int64)
    for _ in range(length):
        u = tl.load(u_ptr + item * u_item + d * u_channel + t * u_token, of_d, 0.0).to(tl.float32)
        at = delta_ptr + item * delta_item + d * delta_channel + t * delta_token
        delta = tl.load(at, of_d, 0.0).to(tl.float32)
        b = tl.load(b_ptr + item * b_item + n * b_state + t * b_token, of_n, 0.0).to(tl.float32)
        c = tl.load(c_ptr + item * c_item + n * c_state + t * c_token, of_n, 0.0).to(tl.float32)
        if has_bias:
            delta += tl.load(bias_ptr + d, of_d, 0.0).to(tl.float32)
        if softplus:
            delta = _softplus(delta)
        h = tl.exp(delta[:, None] * a) * h + (delta * u)[:, None] * b[None, :]
        if keep:
            tl.store(states_ptr + (item * length + t) * channels * n_states + dn, h, of_dn)
        y = tl.sum(h * c[None, :], axis=1)
        if has_d:
            y += tl.load(d_ptr + d, of_d, 0.0).to(tl.float32) * u
        if has_z:
            at = z_ptr + item * z_item + d * z_channel + t * z_token
            z = tl.load(at, of_d, 0.0).to(tl.float32)
            y *= z * tl.sigmoid(z)
        tl.store(out_ptr + (item * length + t) * channels + d, y, of_d)
        t += 1


@triton.jit
def scan_backward(
    u_ptr, delta_ptr, a_ptr, b_ptr, c_ptr, d_ptr, z_ptr, bias_ptr, states_ptr, grad_ptr,
    du_ptr, ddelta_ptr, da_ptr, db_ptr, dc_ptr, dd_ptr, dz_ptr, dbias_ptr,
    channels, length: tl.constexpr,
    u_item, u_channel, u_token, delta_item, delta_channel, delta_token,
    b_item, b_state, b_token, c_item, c_state, c_token, z_item, z_channel, z_token,
    grad_item, grad_channel, grad_token,
    n_states: tl.constexpr, STATES: tl.constexpr, CHANNELS: tl.constexpr,
    has_d: tl.constexpr, has_z: tl.constexpr, has_bias: tl.constexpr, softplus: tl.constexpr,
):  # fmt: skip
    """Write all gradients; the caller sums those of inputs that items or channels share.

    du (batch, channels, length); ddelta, dz (batch, length, channels); db, dc (batch, programs per
    item, length, n_states); da (batch, channels, n_states); dd, dbias (batch, channels).
    """
    item = tl.program_id(0).to(tl.int64)
    program = tl.program_id(1)
    d = program * CHANNELS + tl.arange(0, CHANNELS).to(tl.int64)
    n = tl.arange(0, STATES).to(tl.int64)
    of_d, of_n = d < channels, n < n_states
    of_dn = of_d[:, None] & of_n[None, :]
    dn = d[:, None] * n_states + n[None, :]

    a = tl.load(a_ptr + dn, of_dn, 0.0).to(tl.float32)
    da = tl.zeros([CHANNELS, STATES], tl.float32)
    dh = tl.zeros([CHANNELS, STATES], tl.float32)
    dd = tl.zeros([CHANNELS], tl.float32)
    dbias = tl.zeros([CHANNELS], tl.float32)
    t = tl.full([], length - 1, tl.int64)
    for _ in range(length):
        u = tl.load(u_ptr + item * u_item + d * u_channel + t * u_token, of_d, 0.0).to(tl.float32)
        at = delta_ptr + item * delta_item + d * delta_channel + t * delta_token
        raw = tl.load(at, of_d, 0.0).to(tl.float32)
        b = tl.load(b_ptr + item * b_item + n * b_state + t * b_token, of_n, 0.0).to(tl.float32)
        c = tl.load(c_ptr + item * c_item + n * c_state + t * c_token, of_n, 0.0).to(tl.float32)
        at = grad_ptr + item * grad_item + d * grad_channel + t * grad_token
        dy = tl.load(at, of_d, 0.0).to(tl.float32)
        states = states_ptr + (item * length + t) * channels * n_states + dn
        h = tl.load(states, of_dn, 0.0)
        before = tl.load(states - channels * n_states, of_dn & (t > 0), 0.0)
        delta = raw
        if has_bias:
            delta += tl.load(bias_ptr + d, of_d, 0.0).to(tl.float32)
        slope = tl.sigmoid(delta)
        if softplus:
            delta = _softplus(delta)
        here = (item * length + t) * channels + d
        skip = tl.load(d_ptr + d, of_d, 0.0).to(tl.float32) if has_d else tl.zeros_like(u)
        if has_z:
            at = z_ptr + item * z_item + d * z_channel + t * z_token
            z = tl.load(at, of_d, 0.0).to(tl.float32)
            gate = tl.sigmoid(z)
            y = tl.sum(h * c[None, :], axis=1) + skip * u
            tl.store(dz_ptr + here, dy * y * gate * (1.0 + z * (1.0 - gate)), of_d)
            dy *= z * gate
        dh += dy[:, None] * c[None, :]
        dc = tl.sum(dy[:, None] * h, axis=0)
        db = tl.sum(dh * (delta * u)[:, None], axis=0)
        part = ((item * tl.num_programs(1) + program) * length + t) * n_states + n
        tl.store(dc_ptr + part, dc, of_n)
        tl.store(db_ptr + part, db, of_n)
        decay = tl.exp(delta[:, None] * a)
        dlog = dh * before * decay
        da += dlog * delta[:, None]
        dh_b = tl.sum(dh * b[None, :], axis=1)
        ddelta = tl.sum(dlog * a, axis=1) + dh_b * u
        if softplus:
            ddelta *= slope
        dd += dy * u
        dbias += ddelta
        tl.store(ddelta_ptr + here, ddelta, of_d)
        tl.store(du_ptr + (item * channels + d) * length + t, dh_b * delta + dy * skip, of_d)
        dh *= decay
        t -= 1
    tl.store(da_ptr + item * channels * n_states + dn, da, of_dn)
    if has_d:
        tl.store(dd_ptr + item * channels + d, dd, of_d)
    if has_bias:
        tl.store(dbias_ptr + item * channels + d, dbias, of_d)
