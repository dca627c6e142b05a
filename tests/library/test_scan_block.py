"""The fused residual block in C against the modules that it fuses, run by torch."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import register_parametrization

from mnist_mamba.config import ModelConfig
from mnist_mamba.model import MambaMixer
from mnist_mamba.model.classifier import Block, ScanOrder
from mnist_mamba.scan import c_library, cpu
from tests.library.scan_cases import assert_close, each_isa, instruction_set
from tests.models import ARCHITECTURES, make_images, make_model


def make_mixer(d_model: int = 8, seed: int = 0, **options: Any) -> MambaMixer:
    """Return a mixer none of whose parameters is still 0 or 1."""
    torch.manual_seed(seed)
    mixer = MambaMixer(d_model, scan="cpu", **options)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return mixer


def make_norm(d_model: int = 8) -> nn.RMSNorm:
    norm = nn.RMSNorm(d_model, eps=1e-5)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    return norm


def run_block(
    mixer: MambaMixer, hidden: Tensor, reverse: bool, norm: nn.RMSNorm | None = None
) -> dict[str, Tensor]:
    """Return the output and all gradients, by the C kernel or, if the mixer says so, by torch."""
    leaf = hidden.detach().requires_grad_()
    if mixer.runs_fused(leaf):
        out = mixer.fused(leaf, reverse, norm)
    elif norm is None:
        out = mixer(leaf, reverse=reverse)
    else:
        out = leaf + mixer(norm(leaf), reverse=reverse)
    leaves = {"hidden": leaf, **dict(mixer.named_parameters())}
    if norm is not None:
        leaves["norm"] = norm.weight
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
    grads = torch.autograd.grad(out, list(leaves.values()), weight)
    return {"out": out.detach(), **dict(zip(leaves, grads, strict=True))}


def assert_block_matches_reference(
    mixer: MambaMixer, hidden: Tensor, reverse: bool = False, norm: nn.RMSNorm | None = None
) -> None:
    """Compare with the composed mixer in float64; converts both modules to float64."""
    assert mixer.runs_fused(hidden)
    got = run_block(mixer, hidden, reverse, norm)
    mixer.double().scan_backend = "reference"
    exact = run_block(mixer, hidden.double(), reverse, None if norm is None else norm.double())
    assert_close(got, exact)
    assert got["out"].dtype == hidden.dtype


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 4),
    length=st.integers(1, 80),
    d_model=st.integers(1, 20),
    d_state=st.integers(1, 18),
    d_conv=st.integers(1, 6),
    dt_rank=st.integers(1, 5),
    a=st.sampled_from(["free", "tied"]),
    bidirectional=st.booleans(),
    reverse=st.booleans(),
    with_norm=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_the_fused_block_is_the_composed_one(
    batch: int,
    length: int,
    d_model: int,
    d_state: int,
    d_conv: int,
    dt_rank: int,
    a: Any,
    bidirectional: bool,
    reverse: bool,
    with_norm: bool,
    dtype: torch.dtype,
) -> None:
    mixer = make_mixer(
        d_model,
        d_state=d_state,
        d_conv=d_conv,
        dt_rank=dt_rank,
        a=a,
        bidirectional=bidirectional,
    ).to(dtype)
    hidden = torch.randn(batch, length, d_model, dtype=dtype)
    norm = make_norm(d_model).to(dtype) if with_norm else None
    assert_block_matches_reference(mixer, hidden, reverse, norm)


@each_isa
@pytest.mark.parametrize("length", [1, 64, 65, 130])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_each_instruction_set_runs_the_block(isa: str, length: int, bidirectional: bool) -> None:
    mixer = make_mixer(17, bidirectional=bidirectional)
    with instruction_set(isa):
        assert_block_matches_reference(mixer, torch.randn(3, length, 17), norm=make_norm(17))


def test_the_forward_of_a_mixer_is_the_kernel_without_norm() -> None:
    mixer = make_mixer()
    hidden = torch.randn(2, 5, 8)
    for reverse in (False, True):
        assert torch.equal(mixer(hidden, reverse=reverse), mixer.fused(hidden, reverse))


@pytest.mark.parametrize("a", ["free", "tied"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("with_norm", [False, True])
def test_the_fused_block_has_the_right_gradient(
    a: Any, bidirectional: bool, with_norm: bool
) -> None:
    options = {"d_state": 3, "d_conv": 2, "dt_rank": 2, "a": a, "bidirectional": bidirectional}
    mixer = make_mixer(3, **options).double()
    norm = make_norm(3).double() if with_norm else None
    hidden = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    leaves = [hidden, *mixer.parameters(), *([] if norm is None else norm.parameters())]
    for reverse in (False, True):
        assert torch.autograd.gradcheck(
            lambda *leaves, reverse=reverse: mixer.fused(leaves[0], reverse, norm), leaves
        )


@pytest.mark.parametrize(
    ("batch", "length", "options"),
    [
        (5, 70, {}),
        (33, 20, {"bidirectional": True}),  # more items than batch groups
        (70, 9, {"d_state": 17}),
    ],
    ids=str,
)
def test_the_block_has_the_same_bits_for_every_thread_count(
    batch: int, length: int, options: dict[str, Any]
) -> None:
    mixer, norm = make_mixer(20, **options), make_norm(20)
    hidden = torch.randn(batch, length, 20)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 1, 2, 3, 8):
            torch.set_num_threads(threads)
            results.append(run_block(mixer, hidden, False, norm))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(result[name], results[0][name]) for name in result)


def test_the_block_reads_any_layout() -> None:
    """Layouts of the input, of the output's gradient and of a weight."""
    mixer, norm = make_mixer(), make_norm()
    hidden = torch.randn(3, 5, 8)
    expected = run_block(mixer, hidden, False, norm)
    in_proj = mixer.in_proj.weight
    in_proj.data = in_proj.data.T.contiguous().T
    got = run_block(mixer, hidden.transpose(0, 2).contiguous().transpose(0, 2), False, norm)
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    leaf = hidden.clone().requires_grad_()
    mixer.fused(leaf, False, norm).sum().backward()  # its gradient is a broadcast
    mixer.double().scan_backend = "reference"
    exact = hidden.double().requires_grad_()
    (exact + mixer(norm.double()(exact))).sum().backward()
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad.double(), exact.grad, rtol=1e-4, atol=1e-5)


def test_the_block_returns_only_requested_gradients() -> None:
    mixer, norm = make_mixer(bidirectional=True), make_norm()
    hidden = torch.randn(2, 5, 8)
    full = run_block(mixer, hidden, False, norm)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(hidden.shape, generator=generator, dtype=torch.float64).float()

    mixer.fused(hidden, False, norm).backward(weight)  # the input needs none
    assert hidden.grad is None
    for name, parameter in mixer.named_parameters():
        assert parameter.grad is not None, name
        assert torch.equal(parameter.grad, full[name]), name

    for parameter in (*mixer.parameters(), norm.weight):
        parameter.requires_grad_(False)
        parameter.grad = None
    leaf = hidden.clone().requires_grad_()
    mixer.fused(leaf, False, norm).backward(weight)  # only the input does
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, full["hidden"])
    assert all(parameter.grad is None for parameter in (*mixer.parameters(), norm.weight))


def test_the_block_refuses_second_derivatives() -> None:
    mixer, norm = make_mixer(), make_norm()
    hidden = torch.randn(1, 3, 8, requires_grad=True)
    out = mixer.fused(hidden, False, norm)
    (slope,) = torch.autograd.grad(out.sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match=r"no second derivatives.*backend='reference'"):
        slope.sum().backward()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_in_a_block_that_are_not_finite_stay_so(bad: float) -> None:
    """A diverging training must show: one sequence is not finite from that step on, others are."""
    mixer, norm = make_mixer(), make_norm()
    hidden = torch.randn(3, 70, 8)
    hidden[1, 66, 4] = bad
    out = mixer.fused(hidden, False, norm)
    finite = torch.isfinite(out).all(dim=2)
    assert bool(finite[[0, 2]].all())
    assert bool(finite[1, :66].all())
    assert not bool(finite[1, 66])


def watch_block_forward(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Return a list to which each call of the kernel appends whether it keeps anything."""
    kept: list[bool] = []
    forward = c_library.block_forward

    def watched(*arguments: Any) -> Any:
        kept.append(arguments[-1] is not None)
        return forward(*arguments)

    monkeypatch.setattr(c_library, "block_forward", watched)
    return kept


def test_nothing_is_kept_without_a_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = watch_block_forward(monkeypatch)
    mixer = make_mixer()
    hidden = torch.randn(1, 5, 8)
    expected = mixer(hidden)
    with torch.no_grad():
        assert torch.equal(mixer(hidden), expected)
    with torch.inference_mode():
        assert torch.equal(mixer(hidden), expected)
    for parameter in mixer.parameters():
        parameter.requires_grad_(False)
    assert torch.equal(mixer(hidden), expected)
    assert kept == [True, False, False, False]


def test_the_block_s_kernel_refuses_empty_tensors() -> None:
    mixer = MambaMixer(4, scan="cpu")
    for shape in ((0, 3, 4), (2, 0, 4)):
        with pytest.raises(ValueError, match=re.escape(f"hidden: got shape {shape}, expected")):
            mixer.fused(torch.empty(shape), False)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_mixer_maps_an_empty_batch_to_an_empty_batch(backend: str, bidirectional: bool) -> None:
    mixer = MambaMixer(4, scan=backend, bidirectional=bidirectional)
    hidden = torch.empty(0, 3, 4, requires_grad=True)
    out = mixer(hidden)
    assert out.shape == (0, 3, 4)
    out.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.shape == (0, 3, 4)
    for name, parameter in mixer.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


# Models of fused blocks


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_in_float64_is_the_reference(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = watch_block_forward(monkeypatch)
    model = make_model(architecture, scan="cpu").double()
    pixels = make_images(model.config, 3).double() / 255
    logits = model(pixels)
    assert len(calls) == sum(member.n_layers for member in model.config.member_configs)
    logits.square().sum().backward()
    exact = make_model(architecture, scan="reference").double()
    expected = exact(pixels)
    expected.square().sum().backward()
    error = float((logits - expected).detach().norm())
    assert error <= 1e-11 * float(expected.detach().norm())
    for (name, mine), other in zip(model.named_parameters(), exact.parameters(), strict=True):
        assert mine.grad is not None, name
        assert other.grad is not None, name
        assert float((mine.grad - other.grad).norm()) <= 1e-11 * float(other.grad.norm()), name


def test_a_model_of_bfloat16_weights_runs_composed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = watch_block_forward(monkeypatch)
    model = make_model("patch_bidirectional", scan="cpu")
    pixels = make_images(model.config, 3) / 255
    exact = model(pixels)
    assert len(calls) == 2
    model = model.bfloat16()
    logits = model(pixels.bfloat16())
    logits.float().square().sum().backward()
    assert len(calls) == 2
    assert logits.dtype == torch.bfloat16
    assert float((logits - exact).detach().norm()) <= 0.05 * float(exact.detach().norm())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name


class ReversingMixer(nn.Module):
    """A mixer that is not ours."""

    def forward(self, hidden: Tensor, reverse: bool = False) -> Tensor:
        return hidden.flip(1) if reverse else 2 * hidden


@pytest.mark.parametrize("reverse", [False, True])
def test_a_block_takes_another_mixer(reverse: bool) -> None:
    block = Block(
        ARCHITECTURES["patch_forward_mean"], ScanOrder(columns=False, reverse=reverse), "cpu"
    )
    block.mixer = ReversingMixer()  # type: ignore[assignment]
    hidden = torch.randn(2, 5, 8)
    normed = block.norm(hidden)
    expected = hidden + (normed.flip(1) if reverse else 2 * normed)
    assert torch.equal(block(hidden), expected)


def test_what_the_fused_block_does_not_take() -> None:
    hidden = torch.randn(1, 3, 8)
    assert MambaMixer(8, scan="cpu").runs_fused(hidden, nn.RMSNorm(8, eps=1e-5))
    norms = [
        nn.RMSNorm(8),  # torch chooses eps
        nn.RMSNorm(8, eps=9e-31),
        nn.RMSNorm(8, eps=0.0),
        nn.RMSNorm(8, eps=1e-5, elementwise_affine=False),
        nn.RMSNorm(8, eps=1e-5).double(),
        nn.LayerNorm(8, eps=1e-5),
    ]
    assert not any(MambaMixer(8, scan="cpu").runs_fused(hidden, norm) for norm in norms)


@pytest.mark.parametrize("size", [1e-15, 1e-20, 1e-21])
@pytest.mark.parametrize("eps", [1e-30, 1e-37, 1e-38])
def test_a_tiny_eps_of_a_block_s_norm_is_added_to_tiny_squares(eps: float, size: float) -> None:
    block, residual = make_whole_block()
    block.norm.eps = eps
    residual *= size
    assert block.mixer.runs_fused(residual, block.norm) == (eps >= 1e-30)
    got = block(residual).detach()
    block.double().mixer.scan_backend = "reference"
    assert_close({"out": got}, {"out": block(residual.double()).detach()})


class Doubled(nn.Module):
    """A parametrisation."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class Louder(MambaMixer):
    """A subclass that does something else."""

    def forward(self, hidden: Tensor, reverse: bool = False) -> Tensor:
        return 3 * super().forward(hidden, reverse)


def replace_forward(linear: Any) -> None:
    linear.forward = lambda x: 2 * nn.functional.linear(x, linear.weight)


def replace_convolution(conv: Any) -> None:
    original = conv._conv_forward
    conv._conv_forward = lambda x, weight, bias: 2 * original(x, weight, bias)


def parametrised(module: str, weight: str) -> Callable[[MambaMixer], object]:
    return lambda m: register_parametrization(m.get_submodule(module), weight, Doubled())


def pruned(module: str, weight: str) -> Callable[[MambaMixer], object]:
    return lambda m: prune.random_unstructured(m.get_submodule(module), weight, 0.5)


def replace_conv(mixer: Any) -> None:
    mixer.conv1d = nn.Conv1d(16, 16, 4, padding=3, padding_mode="reflect")


class Halved(torch.Tensor):
    """A weight that computes linear maps itself, as quantised weights do."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = super().__torch_function__(function, types, args, kwargs or {})
        return 0.5 * result if function is torch.nn.functional.linear else result


def halve(mixer: Any) -> None:
    weight = torch.Tensor._make_subclass(Halved, mixer.in_proj.weight.detach())
    mixer.in_proj.weight = nn.Parameter(weight)


CHANGES: dict[str, Callable[[Any], object]] = {
    "own operations": halve,
    "bias": lambda m: setattr(m, "in_proj", nn.Linear(8, 32)),
    "wrapped": lambda m: setattr(m, "out_proj", nn.Sequential(nn.Linear(16, 8, bias=False))),
    "wrapped dt_proj": lambda m: setattr(m, "dt_proj", nn.Sequential(nn.Linear(1, 16))),
    "no bias": lambda m: setattr(
        m, "conv1d", nn.Conv1d(16, 16, 4, groups=16, padding=3, bias=False)
    ),
    "no dt bias": lambda m: setattr(m, "dt_proj", nn.Linear(1, 16, bias=False)),
    "padding": lambda m: setattr(m.conv1d, "padding", (5,)),
    "padding mode": lambda m: setattr(m.conv1d, "padding_mode", "circular"),
    "dilation": lambda m: setattr(m.conv1d, "dilation", (2,)),
    "groups": lambda m: setattr(m, "conv1d", nn.Conv1d(16, 16, 4, groups=8, padding=3)),
    "another convolution": replace_conv,
    "more taps": lambda m: setattr(m, "conv1d", nn.Conv1d(16, 16, 6, groups=16, padding=3)),
    "parametrised D": parametrised("", "D"),
    "parametrised A_log": parametrised("", "A_log"),
    "parametrised taps": parametrised("conv1d", "weight"),
    "parametrised dt_proj": parametrised("dt_proj", "weight"),
    "weight norm": lambda m: weight_norm(m.x_proj),
    "pruned D": pruned("", "D"),
    "pruned A_log": pruned("", "A_log"),
    "pruned dt_proj": pruned("dt_proj", "weight"),
    "pruned in_proj": pruned("in_proj", "weight"),
    "forward of a part": lambda m: replace_forward(m.in_proj),
    "call of a part": lambda m: setattr(m.x_proj, "_call_impl", lambda x: 2 * m.x_proj.forward(x)),
    "convolution of a part": lambda m: replace_convolution(m.conv1d),
    "state matrix": lambda m: setattr(
        m, "state_matrix", lambda suffix: 2 * MambaMixer.state_matrix(m, suffix)
    ),
    "inputs of the scan": lambda m: setattr(
        m, "scan_inputs", lambda x, suffix: MambaMixer.scan_inputs(m, 2 * x, suffix)
    ),
    "subclass": lambda m: setattr(m, "__class__", Louder),
}


@pytest.mark.parametrize("name", CHANGES)
def test_torch_runs_a_changed_mixer(name: str) -> None:
    block, residual = make_whole_block()
    CHANGES[name](block.mixer)
    assert not block.mixer.runs_fused(residual, block.norm)
    results = []
    for backend in ("cpu", "reference"):
        block.mixer.scan_backend = backend
        leaf = residual.clone().requires_grad_()
        out = block(leaf)
        results.append((out.detach(), *torch.autograd.grad(out.square().sum(), leaf)))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    expected = results[0][0] - residual
    normed = block.norm(residual)
    torch.testing.assert_close(block.mixer(normed, reverse=True).detach(), expected)


def make_whole_block() -> tuple[Block, Tensor]:
    torch.manual_seed(0)
    config = ModelConfig(height=8, width=8, n_classes=3, d_model=8)
    block = Block(config, ScanOrder(columns=False, reverse=True), scan="cpu")
    residual = torch.randn(2, 6, 8)
    assert block.mixer.runs_fused(residual, block.norm)
    return block, residual


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m.D, "data", m.D.data.double()),
        lambda m: setattr(m.conv1d, "stride", (2,)),
        lambda m: setattr(m.conv1d, "groups", 8),
        lambda m: setattr(m, "D", nn.Parameter(torch.ones(1))),
        lambda m: setattr(m, "A_log", nn.Parameter(torch.ones(16, 1))),
        lambda m: setattr(m, "out_proj", nn.Linear(16, 4, bias=False)),
        lambda m: setattr(m, "forward", m.forward),
        lambda m: setattr(m.in_proj, "weight", nn.Parameter(m.in_proj.weight.detach().to_sparse())),
        lambda m: m.to("meta"),
    ],
    ids=["dtype", "stride", "groups", "D", "A", "width", "forward", "sparse", "meta"],
)
def test_a_changed_mixer_is_not_run_fused(change: Callable[[Any], object]) -> None:
    mixer, hidden = MambaMixer(8, scan="cpu"), torch.randn(1, 3, 8)
    change(mixer)
    assert not mixer.runs_fused(hidden)


def test_autocast_is_torch_s() -> None:
    mixer, hidden = MambaMixer(8, scan="cpu"), torch.randn(1, 3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert not mixer.runs_fused(hidden)
        assert mixer(hidden).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        (nn.Linear, "forward"),
        (nn.RMSNorm, "forward"),
        (nn.Conv1d, "forward"),
        (nn.Conv1d, "_conv_forward"),
        (nn.Module, "_call_impl"),
        (MambaMixer, "scan_inputs"),
        (MambaMixer, "state_matrix"),
    ],
)
def test_a_method_replaced_in_its_class_is_called(
    kind: Any, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    block, residual = make_whole_block()
    expected = block(residual)
    original, calls = getattr(kind, method), []

    def replaced(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return original(*arguments, **options)

    monkeypatch.setattr(kind, method, replaced)
    assert not block.mixer.runs_fused(residual, block.norm)
    torch.testing.assert_close(block(residual), expected)
    assert calls
    monkeypatch.undo()
    assert block.mixer.runs_fused(residual, block.norm)


MIXER_PARTS = ("in_proj", "conv1d", "x_proj", "dt_proj", "out_proj")
PARTS = ("norm", "mixer", *(f"mixer.{part}" for part in MIXER_PARTS))
HOOKS = ("forward_pre_hook", "forward_hook", "full_backward_pre_hook", "full_backward_hook")


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_are_called(part: str, kind: str) -> None:
    block, residual = make_whole_block()
    expected = block(residual)
    calls = []
    register = getattr(block.get_submodule(part), f"register_{kind}")
    register(lambda *_: calls.append(1))
    out = block(residual.requires_grad_())
    out.sum().backward()
    assert calls == [1]
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("kind", HOOKS)
def test_global_hooks_are_called_for_each_part(kind: str) -> None:
    block, residual = make_whole_block()
    seen = []
    register = getattr(torch.nn.modules.module, f"register_module_{kind}")
    handle = register(lambda module, *_: seen.append(module))
    try:
        block(residual.requires_grad_()).sum().backward()
    finally:
        handle.remove()
    assert all(any(block.get_submodule(part) is module for module in seen) for part in PARTS)
    assert block.mixer.runs_fused(residual, block.norm)


@pytest.mark.parametrize("change", [lambda _: None, CHANGES["bias"]], ids=["fused", "composed"])
def test_functional_call_computes_with_its_weights(change: Callable[[Any], object]) -> None:
    block, residual = make_whole_block()
    change(block.mixer)
    weights = {name: 0.9 * p.detach() for name, p in block.named_parameters()}
    for value in weights.values():
        value.requires_grad_()
    out = functional_call(block, weights, (residual,))
    grads = torch.autograd.grad(out.square().sum(), list(weights.values()))
    block.load_state_dict(weights)
    expected = block(residual)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(
        grads, torch.autograd.grad(expected.square().sum(), list(block.parameters()))
    )


def replica_of(module: nn.Module) -> Any:
    """Return what torch.nn.parallel.replicate makes for a GPU: its weights are plain tensors."""
    replica: Any = module._replicate_for_data_parallel()
    for name, parameter in module._parameters.items():
        setattr(replica, name, None if parameter is None else parameter.clone())
    for name, part in module._modules.items():
        replica._modules[name] = None if part is None else replica_of(part)
    return replica


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_replica_computes_the_same(backend: str) -> None:
    block, residual = make_whole_block()
    block.mixer.scan_backend = backend
    assert torch.equal(replica_of(block)(residual), block(residual))


def test_a_block_with_a_norm_of_another_kind_is_run_by_torch() -> None:
    torch.manual_seed(0)
    config = ModelConfig(height=8, width=8, n_classes=3, d_model=8)
    block = Block(config, ScanOrder(columns=False, reverse=True), scan="cpu")
    block.norm = nn.LayerNorm(8)  # type: ignore[assignment]
    residual = torch.randn(2, 5, 8)
    expected = residual + block.mixer(block.norm(residual), reverse=True)
    assert torch.equal(block(residual), expected)


@pytest.mark.parametrize("d_state", [20, 32, 64])
def test_many_tied_states(d_state: int) -> None:
    """Every 16 states the powers are computed by exp2 again."""
    torch.manual_seed(0)
    mixer = MambaMixer(9, d_state, a="tied", scan="cpu")
    norm = nn.RMSNorm(9, eps=1e-5)
    assert_block_matches_reference(mixer, torch.randn(3, 70, 9), False, norm)


def test_the_block_kernel_refuses_other_shapes_and_types() -> None:
    mixer, hidden = MambaMixer(8, scan="cpu"), torch.randn(1, 3, 8)
    weights = mixer.direction_weights()

    def call(direction: cpu.DirectionWeights) -> None:
        cpu.mamba_block_cpu(hidden, mixer.in_proj.weight, mixer.out_proj.weight, [direction])

    with pytest.raises(ValueError, match=r"x_proj: got shape \(32, 16\), expected \(33, 16\)"):
        call(weights._replace(x_proj=weights.x_proj[:-1]))
    with pytest.raises(TypeError, match=r"D: got dtype torch\.float64, expected torch\.float32"):
        call(weights._replace(D=weights.D.double()))
