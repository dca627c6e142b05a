"""Shared by the tests of the selective scan: random inputs, comparisons, instruction sets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from mnist_mamba.scan import c_library, selective_scan

OPTIONAL = ("D", "z", "delta_bias")
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def make_inputs(
    batch: int,
    d_inner: int,
    d_state: int,
    length: int,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    without: tuple[str, ...] = (),
    transposed: bool = False,
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    def sequence(channels: int) -> Tensor:
        if transposed:
            return draw(batch, length, channels).transpose(1, 2)
        return draw(batch, channels, length)

    inputs = {
        "u": sequence(d_inner),
        "delta": sequence(d_inner),
        "A": -torch.exp(draw(d_inner, d_state)),
        "B": sequence(d_state),
        "C": sequence(d_state),
        "D": draw(d_inner),
        "z": sequence(d_inner),
        "delta_bias": draw(d_inner),
    }
    return {name: value for name, value in inputs.items() if name not in without}


def lazy(tensor: Tensor) -> Tensor:
    """Return an equal tensor whose negative bit is set: its memory holds the negated values."""
    view: Tensor = torch._neg_view(-tensor)
    assert view.is_neg()
    return view


def run(
    inputs: dict[str, Any], backend: str, softplus: bool = True, seed: int = 1
) -> dict[str, Any]:
    """Return the output, and each input's gradient for a random gradient of the output."""
    leaves = {name: value.detach().requires_grad_() for name, value in inputs.items()}
    out = selective_scan(**leaves, delta_softplus=softplus, backend=backend)
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
    grads = torch.autograd.grad(out, list(leaves.values()), weight)
    return {"out": out.detach(), **dict(zip(leaves, grads, strict=True))}


def assert_close(got: dict[str, Tensor], exact: dict[str, Tensor]) -> None:
    """Compare with exact values tensor by tensor, relative in the L2 norm."""
    assert got.keys() == exact.keys()
    dtype = got["out"].dtype
    for name, expected in exact.items():
        assert got[name].shape == expected.shape
        assert got[name].dtype == dtype
        error = float((got[name].double() - expected).norm())
        assert error <= TOLERANCE[dtype] * float(expected.norm()), name


def assert_matches_reference(
    inputs: dict[str, Any], softplus: bool = True, backend: str = "cpu"
) -> None:
    """Compare a backend's output and gradients with those of the reference in float64."""
    got = run(inputs, backend, softplus)
    exact = {name: value.double() for name, value in inputs.items()}
    assert_close(got, run(exact, "reference", softplus))
    assert got["out"].dtype == inputs["u"].dtype


WORKING_ISAS = [
    isa for i, isa in enumerate(c_library.ISAS) if c_library.load().mamba_scan_isa_works(i)
]
each_isa = pytest.mark.parametrize("isa", WORKING_ISAS)


@contextmanager
def instruction_set(isa: str) -> Iterator[None]:
    """Run the C kernels of this instruction set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(c_library.ISA_VARIABLE, isa)
        _choose_again()
        assert c_library.isa() == isa
        yield
    _choose_again()


def _choose_again() -> None:
    """Forget the instruction set, and the plans for it."""
    c_library.isa_number.cache_clear()
    c_library._block_plan.cache_clear()
