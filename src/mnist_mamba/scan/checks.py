"""Checks of the selective scan's arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

TENSORS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
"""Names of the scan's tensors, in the order of its arguments."""

_HALF = (torch.float16, torch.bfloat16)
_DTYPES = (torch.float32, torch.float64, *_HALF)


def check_arguments(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
) -> None:
    """Check types, shapes, dtypes and devices; ``u`` and ``A`` determine the shapes of the others.

    Raises:
        TypeError: an argument is not a tensor or has the wrong dtype.
        ValueError: wrong shape or device.
    """
    optional = ("D", "z", "delta_bias")
    given: dict[str, Tensor] = {}
    for name, value in zip(TENSORS, (u, delta, A, B, C, D, z, delta_bias), strict=True):
        if value is None and name in optional:
            continue
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: got {type(value).__name__}, expected a tensor")
        given[name] = value

    if u.dim() != 3 or min(u.shape[1:]) < 1:
        raise ValueError(
            f"u: got shape {tuple(u.shape)}, expected (batch, d_inner >= 1, length >= 1)"
        )
    if A.dim() != 2 or A.shape[0] != u.shape[1] or A.shape[1] < 1:
        raise ValueError(
            f"A: got shape {tuple(A.shape)}, expected (d_inner={u.shape[1]}, d_state >= 1)"
        )
    _check_shapes(given, u, A)
    _check_dtypes(given, u)
    for name, tensor in given.items():
        if tensor.device != u.device:
            raise ValueError(f"{name}: got device {tensor.device}, expected {u.device}, as u has")


def checked_inputs(tensors: Sequence[Any]) -> list[Any]:
    """Check the tensors and return them as the kernels read them: parameters are contiguous."""
    check_arguments(*tensors)
    return [t.contiguous() if t is not None and t.dim() < 3 else t for t in tensors]


def checked_kept(kept: Tensor, shape: tuple[int, ...], dtype: torch.dtype, like: Tensor) -> Tensor:
    """Check what a forward pass kept and return it as the kernels read it, contiguous.

    Hooks on saved tensors may have moved it, even to bytes that no number can begin at.
    """
    got, expected = (tuple(kept.shape), kept.dtype, kept.device), (shape, dtype, like.device)
    if got != expected:
        raise ValueError(
            "kept: got shape {}, {} on {}, expected {}, {} on {}, as the forward pass of the same "
            "tensors returns it".format(*got, *expected)
        )
    aligned = kept.storage_offset() % 8 == 0
    return kept.contiguous() if aligned else kept.clone(memory_format=torch.contiguous_format)


def _check_shapes(given: dict[str, Tensor], u: Tensor, A: Tensor) -> None:
    batch, d_inner, length = u.shape
    inner = ("(batch, d_inner, length)", (batch, d_inner, length))
    state = ("(batch, d_state, length)", (batch, A.shape[1], length))
    vector = ("(d_inner)", (d_inner,))
    expected = {"delta": inner, "z": inner, "B": state, "C": state, "D": vector}
    expected["delta_bias"] = vector
    for name, (meaning, shape) in expected.items():
        if name in given and tuple(given[name].shape) != shape:
            got = tuple(given[name].shape)
            raise ValueError(f"{name}: got shape {got}, expected {meaning} = {shape}")


def _check_dtypes(given: dict[str, Tensor], u: Tensor) -> None:
    if u.dtype not in _DTYPES:
        names = ", ".join(str(dtype) for dtype in _DTYPES)
        raise TypeError(f"u: got dtype {u.dtype}, expected one of {names}")
    parameter_dtypes = (u.dtype, torch.float32) if u.dtype in _HALF else (u.dtype,)
    for name, tensor in given.items():
        allowed = parameter_dtypes if name in ("A", "D", "delta_bias") else (u.dtype,)
        if tensor.dtype not in allowed:
            names = " or ".join(str(dtype) for dtype in allowed)
            raise TypeError(f"{name}: got dtype {tensor.dtype}, expected {names} (u: {u.dtype})")
