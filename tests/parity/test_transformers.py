"""Outputs and gradients of our mixer and of Hugging Face's, which share no code."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mnist_mamba.data.torchvision_compat import import_torchvision
from mnist_mamba.model import MambaMixer

# transformers imports torchvision, which with a CPU build of torch needs help to import.
import_torchvision()
transformers = pytest.importorskip("transformers", reason="the test extra is not installed")
from transformers.models.mamba.modeling_mamba import MambaMixer as TheirMixer  # noqa: E402

SHAPES: dict[str, dict[str, Any]] = {
    "default": {"d_model": 64, "length": 49},
    "state_1": {"d_model": 16, "d_state": 1, "length": 28},
    "state_8": {"d_model": 24, "d_state": 8, "length": 49, "d_conv": 3},
    "state_64": {"d_model": 16, "d_state": 64, "length": 28},
    "odd_inner": {"d_model": 7, "d_state": 16, "expand": 3, "length": 28, "dt_rank": 3},
    "one_token": {"d_model": 32, "length": 1},
    "pixel_sequence": {"d_model": 8, "d_state": 4, "length": 784, "d_conv": 2},
}


def make_pair(
    d_model: int, d_state: int = 16, d_conv: int = 4, expand: int = 2, dt_rank: Any = "auto"
) -> tuple[MambaMixer, TheirMixer]:
    """Return both mixers with the same weights, loaded key for key."""
    torch.manual_seed(3)
    ours = MambaMixer(d_model, d_state, d_conv, expand, dt_rank, scan="reference")
    config = transformers.MambaConfig(
        hidden_size=d_model,
        state_size=d_state,
        conv_kernel=d_conv,
        expand=expand,
        time_step_rank=ours.dt_rank,
        num_hidden_layers=1,
        use_mambapy=False,
    )
    theirs = TheirMixer(config, layer_idx=0)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float(((actual - expected).norm() / expected.norm()).detach())


def run(mixer: MambaMixer | TheirMixer, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the output, and every gradient of a random weighted sum of it, by name."""
    x = hidden.clone().requires_grad_()
    mixer.zero_grad()
    y = mixer(x)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(6))
    (y * weights).sum().backward()
    gradients = {name: p.grad.clone() for name, p in mixer.named_parameters()}
    return {"output": y.detach(), "input gradient": x.grad, **gradients}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_mixer_agrees_with_transformers(shape: dict[str, Any]) -> None:
    dims = {name: value for name, value in shape.items() if name != "length"}
    ours, theirs = make_pair(**dims)
    torch.manual_seed(4)
    hidden = torch.randn(2, shape["length"], shape["d_model"])
    expected = run(theirs, hidden)
    for backend in ("reference", "cpu"):
        ours.scan_backend = backend
        actual = run(ours, hidden)
        assert actual.keys() == expected.keys()
        errors = {name: relative_error(actual[name], expected[name]) for name in expected}
        assert max(errors.values()) <= 1e-5, (backend, errors)


def test_a_tied_mixer_s_untied_state_gives_the_same_outputs() -> None:
    torch.manual_seed(5)
    ours = MambaMixer(16, a="tied", scan="reference")
    with torch.no_grad():
        ours.get_parameter("a_log").normal_()
    _, theirs = make_pair(16)
    theirs.load_state_dict(ours.untied_state_dict(), strict=True)
    hidden = torch.randn(2, 28, 16)
    assert relative_error(ours(hidden), theirs(hidden)) <= 1e-5
