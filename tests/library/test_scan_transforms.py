"""Lazy views, transforms and tracers of torch in front of the kernels of the scan and the block."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, func
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing._internal.two_tensor import TwoTensor

from mnist_mamba.model import MambaClassifier, MambaMixer, ModelConfig
from mnist_mamba.scan import cpu, selective_scan
from mnist_mamba.scan.checks import checked_kept
from mnist_mamba.scan.cpu import mamba_block_cpu
from tests.library.scan_cases import lazy, make_inputs

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
INPUTS = make_inputs(2, 5, 3, 70)
VALUES = tuple(INPUTS[name] for name in NAMES)
WEIGHT = torch.randn(2, 5, 70, generator=torch.Generator().manual_seed(1))

Function = Callable[..., Any]


def scan(backend: str) -> Function:
    def run(*tensors: Tensor) -> Tensor:
        return selective_scan(*tensors, delta_softplus=True, backend=backend)

    return run


def loss(backend: str) -> Function:
    return lambda *tensors: (scan(backend)(*tensors) * WEIGHT).sum()


def make_block(seed: int = 0) -> list[Tensor]:
    """Return hidden, norm and the weights of a mixer, with gradients."""
    torch.manual_seed(seed)
    mixer = MambaMixer(8, d_state=4)
    weights = [mixer.in_proj.weight, mixer.out_proj.weight, *mixer.direction_weights()]
    tensors = [torch.randn(2, 5, 8), 1 + 0.1 * torch.randn(8), *weights]
    return [tensor.detach().requires_grad_() for tensor in tensors]


def block(*tensors: Tensor) -> Tensor:
    hidden, norm, in_proj, out_proj, *direction = tensors
    directions = [cpu.DirectionWeights(*direction)]
    return mamba_block_cpu(hidden, in_proj, out_proj, directions, norm=norm, norm_eps=1e-5)


def assert_same(got: Any, expected: Any) -> None:
    """Compare two tensors or tuples of tensors, to rounding."""
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


# Lazy views


def gradients(function: Function, tensors: list[Tensor], grad: Tensor) -> list[Tensor]:
    out = function(*tensors)
    return [out.detach(), *torch.autograd.grad(out, tensors, grad)]


@pytest.mark.parametrize("name", [*NAMES, "grad_out"])
def test_the_scan_reads_the_values_of_a_lazy_view(name: str) -> None:
    values = [value.requires_grad_() for value in make_inputs(2, 5, 3, 9).values()]
    weight = torch.randn(2, 5, 9)
    expected = gradients(scan("cpu"), values, weight)
    if name == "grad_out":
        weight = lazy(weight)
    else:
        values[NAMES.index(name)] = lazy(values[NAMES.index(name)].detach()).requires_grad_()
    got = gradients(scan("cpu"), values, weight)
    assert all(map(torch.equal, got, expected))


@pytest.mark.parametrize("index", range(12))
def test_the_block_reads_the_values_of_a_lazy_view(index: int) -> None:
    """The view is its input, one of its weights or the gradient of its output."""
    tensors = make_block()
    weight = torch.randn(2, 5, 8)
    expected = gradients(block, tensors, weight)
    if index == len(tensors):
        weight = lazy(weight)
    else:
        tensors[index] = lazy(tensors[index].detach()).requires_grad_()
    got = gradients(block, tensors, weight)
    assert len(tensors) == 11
    assert all(map(torch.equal, got, expected))


def test_the_gradient_of_a_conjugate_has_the_right_sign() -> None:
    """The user of the output makes its gradient a lazy view, without knowing."""
    found = []
    for backend in ("cpu", "reference"):
        u = INPUTS["u"].clone().requires_grad_()
        y = scan(backend)(u, *VALUES[1:])
        (torch.complex(torch.zeros_like(y), y).conj() * (1 + 2j)).real.sum().backward()
        found.append(u.grad)
    assert_same(*found)


# Tensors without memory of their own


def test_fake_tensors_have_the_shapes_and_strides_of_the_results() -> None:
    transposed = list(make_inputs(2, 5, 3, 9, transposed=True).values())
    for function, tensors in ((scan("cpu"), transposed), (block, make_block())):
        real = [t.detach().requires_grad_() for t in tensors]
        results = gradients(function, real, torch.ones(function(*real).shape))
        with FakeTensorMode() as mode:
            fake = [mode.from_tensor(t) for t in real]
            shown = gradients(function, fake, torch.ones(function(*fake).shape))
        for got, expected in zip(shown, results, strict=True):
            assert (got.shape, got.stride()) == (expected.shape, expected.stride())


class Tagged(Tensor):
    """A tensor with a name of its own."""


def test_subclasses() -> None:
    expected = scan("cpu")(*VALUES)
    out = scan("cpu")(VALUES[0].as_subclass(Tagged), *VALUES[1:])
    assert isinstance(out, Tagged)
    assert torch.equal(out.as_subclass(Tensor), expected)
    pair = scan("cpu")(*(TwoTensor(value, value) for value in VALUES))
    assert isinstance(pair, TwoTensor)
    assert torch.equal(pair.a, expected)


# torch.func


def test_torch_func_has_the_derivatives_of_the_reference() -> None:
    every = tuple(range(len(VALUES)))
    assert_same(
        func.grad(loss("cpu"), every)(*VALUES), func.grad(loss("reference"), every)(*VALUES)
    )
    pulled = (func.vjp(scan(backend), *VALUES)[1](WEIGHT) for backend in ("cpu", "reference"))
    assert_same(*pulled)


def test_vmap_inside_and_outside_of_grad() -> None:
    every = tuple(range(len(VALUES)))
    stacked = tuple(torch.stack([value, 0.9 * value]) for value in VALUES)

    def results(backend: str) -> list[Any]:
        def total(*tensors: Tensor) -> Tensor:
            losses: Tensor = torch.vmap(loss(backend))(*tensors)
            return losses.sum()

        return [
            torch.vmap(scan(backend))(*stacked),
            torch.vmap(scan(backend), (0, *(None,) * 7))(stacked[0], *VALUES[1:]),
            torch.vmap(func.grad(loss(backend), every))(*stacked),
            func.grad(total, every)(*stacked),
        ]

    assert_same(results("cpu"), results("reference"))


def test_gradients_of_each_sample() -> None:
    torch.manual_seed(0)
    model = MambaClassifier(ModelConfig(height=8, width=8, n_classes=3, d_model=8, n_layers=2))
    pixels = torch.rand(3, 8, 8)
    parameters = dict(model.named_parameters())

    def score(weights: dict[str, Tensor], image: Tensor) -> Tensor:
        logits: Tensor = func.functional_call(model, weights, (image[None],))
        return logits.square().sum()

    got = torch.vmap(func.grad(score), (None, 0))(parameters, pixels)
    for i, image in enumerate(pixels):
        model.zero_grad()
        score(parameters, image).backward()
        assert_same({k: v[i] for k, v in got.items()}, {k: p.grad for k, p in parameters.items()})


@pytest.mark.parametrize("transform", [func.jacfwd, func.hessian])
def test_forward_mode_is_refused(transform: Function) -> None:
    with pytest.raises(RuntimeError, match=r"no forward-mode derivatives.*backend='reference'"):
        transform(lambda u: loss("cpu")(u, *VALUES[1:]))(VALUES[0])


def test_second_derivatives_of_torch_func_are_refused() -> None:
    def twice(u: Tensor) -> Tensor:
        (slope,) = torch.autograd.grad(loss("cpu")(u, *VALUES[1:]), u, create_graph=True)
        return slope.sum()

    with pytest.raises(RuntimeError, match=r"no second derivatives.*backend='reference'"):
        func.jacrev(func.grad(lambda u: loss("cpu")(u, *VALUES[1:])))(VALUES[0])
    with pytest.raises(RuntimeError, match="no second derivatives"):
        twice(VALUES[0].clone().requires_grad_()).backward()  # type: ignore[no-untyped-call]


def test_forward_mode_without_torch_func_is_refused() -> None:
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(VALUES[0], VALUES[0])
        with pytest.raises(RuntimeError, match="no forward-mode derivatives"):
            scan("cpu")(dual, *VALUES[1:])
        with torch.no_grad(), pytest.raises(RuntimeError, match="no forward-mode derivatives"):
            scan("cpu")(dual, *VALUES[1:])


@pytest.mark.parametrize("where", ["inside", "outside"])
def test_vmap_over_no_items(where: str) -> None:
    def mapped(backend: str) -> Function:
        function = loss(backend)
        if where == "outside":
            return torch.vmap(func.grad(function), (0, *(None,) * 7))
        return func.grad(lambda u, *others: torch.vmap(lambda v: function(v, *others))(u).sum())

    got, expected = (mapped(b)(VALUES[0][None][:0], *VALUES[1:]) for b in ("cpu", "reference"))
    assert got.shape == (0, 2, 5, 70)
    assert_same(got, expected)


def of_the_first(backend: str) -> Function:
    return lambda u: scan(backend)(u, *VALUES[1:])


NESTED: dict[str, Callable[[Function], Function]] = {
    "the result of a vjp": lambda f: func.grad(lambda u: func.vjp(f, u)[0].square().sum()),
    "the outer variable": lambda f: func.grad(
        lambda u: func.grad(lambda w: (f(u) * w).sum())(WEIGHT).square().sum()
    ),
    "both variables": lambda f: func.grad(
        lambda u: f(u).sum() + func.grad(lambda w: (f(u) * w * w).sum())(WEIGHT).sum()
    ),
    "without a gradient inside": lambda f: func.grad(lambda u: (u * torch.no_grad()(f)(u)).sum()),
    "without a gradient outside": lambda f: torch.no_grad()(func.grad(lambda u: f(u).sum())),
    "another variable's tangent": lambda f: (
        lambda u: func.jvp(lambda w: (f(u) * w).sum(), (WEIGHT,), (WEIGHT,))
    ),
}


@pytest.mark.parametrize("name", NESTED)
def test_nested_transforms_have_the_first_derivatives_of_the_reference(name: str) -> None:
    got, expected = (
        NESTED[name](of_the_first(backend))(VALUES[0]) for backend in ("cpu", "reference")
    )
    assert_same(got, expected)


REFUSED: dict[str, Callable[[Function], Function]] = {
    "grad of grad": lambda f: func.grad(
        lambda u: func.grad(lambda v: f(v).square().sum())(u).sum()
    ),
    "grad of vjp": lambda f: func.grad(lambda u: func.vjp(f, u)[1](WEIGHT)[0].sum()),
    "grad of vjp by its cotangent": lambda f: (
        lambda u: func.grad(lambda w: func.vjp(f, u)[1](w)[0].square().sum())(WEIGHT)
    ),
    "jvp of grad": lambda f: (
        lambda u: func.jvp(func.grad(lambda v: f(v).square().sum()), (u,), (u,))
    ),
    "jvp of grad by its cotangent": lambda f: (
        lambda u: func.jvp(lambda w: func.grad(lambda v: (f(v) * w).sum())(u), (WEIGHT,), (WEIGHT,))
    ),
    "grad of jvp": lambda f: func.grad(lambda u: func.jvp(f, (u,), (u,))[1].sum()),
    "vmap of jvp": lambda f: lambda u: torch.vmap(lambda t: func.jvp(f, (u,), (t,))[1])(u[None]),
    "hessian": lambda f: lambda u: func.hessian(lambda x: f(u * x).sum())(torch.ones(())),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_derivative_that_no_kernel_computes_is_refused(name: str) -> None:
    with pytest.raises(RuntimeError, match=r"no (second|forward-mode) derivatives.*'reference'"):
        REFUSED[name](of_the_first("cpu"))(VALUES[0])


# Tracers


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_a_traced_graph_computes_with_the_tensors_it_is_given(mode: str) -> None:
    graph = make_fx(scan("cpu"), tracing_mode=mode)(*VALUES)
    others = [0.9 * value for value in VALUES]
    assert torch.equal(graph(*others), scan("cpu")(*others))
    leaf = others[0].clone().requires_grad_()  # the trace saw none that needed a gradient
    (got,) = torch.autograd.grad((graph(leaf, *others[1:]) * WEIGHT).sum(), leaf)
    expected = func.grad(loss("reference"))(*others)
    assert_same(got, expected)
    assert_same(func.grad(lambda *tensors: (graph(*tensors) * WEIGHT).sum())(*others), expected)


def test_torch_func_takes_the_operator_itself() -> None:
    operator = torch.ops.mnist_mamba.selective_scan_cpu

    def total(*tensors: Tensor) -> Tensor:
        return (operator(*tensors, True, False)[0] * WEIGHT).sum()

    expected = func.grad(loss("reference"))(*VALUES)
    assert_same(func.grad(total)(*VALUES), expected)
    mapped = torch.vmap(func.grad(total), (0, *(None,) * 7))(VALUES[0][None], *VALUES[1:])
    assert_same(mapped, expected[None])


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("with_gradients", [False, True])
def test_jit_trace_records_the_same_graph_with_and_without_gradients(with_gradients: bool) -> None:
    """Its own check traces once more, without gradients."""
    leaves = [value.clone().requires_grad_(with_gradients) for value in VALUES]
    traced: Any = torch.jit.trace(scan("cpu"), tuple(leaves))  # type: ignore[no-untyped-call]
    leaf = VALUES[0].clone().requires_grad_()
    (got,) = torch.autograd.grad((traced(leaf, *VALUES[1:]) * WEIGHT).sum(), leaf)
    assert_same(got, func.grad(loss("reference"))(*VALUES))


@pytest.mark.parametrize("transform", [func.grad, torch.vmap, func.jacrev])
def test_torch_compile_sees_one_graph_of_a_transform(transform: Function) -> None:
    function = transform(lambda u: loss("cpu")(u, *VALUES[1:]))
    given = VALUES[0][None] if transform is torch.vmap else VALUES[0]
    torch._dynamo.reset()
    assert_same(
        torch.compile(function, backend="aot_eager", fullgraph=True)(given), function(given)
    )


def test_torch_compile_says_which_derivatives_there_are_not() -> None:
    tangent = torch.compile(lambda u: func.jvp(of_the_first("cpu"), (u,), (u,)), backend="eager")
    with pytest.raises(RuntimeError, match=r"no forward-mode derivatives.*backend='reference'"):
        tangent(VALUES[0])


def test_a_traced_graph_refuses_other_shapes() -> None:
    graph = make_fx(scan("cpu"))(*VALUES)
    with pytest.raises(ValueError, match=r"delta: got shape .*, expected .* = \(2, 5, 70\)"):
        graph(VALUES[0], VALUES[1][:, :, :3], *VALUES[2:])


def small_model() -> tuple[MambaClassifier, Tensor]:
    torch.manual_seed(0)
    config = ModelConfig(height=8, width=8, n_classes=3, d_model=8, n_layers=2)
    return MambaClassifier(config), torch.rand(5, 8, 8)


def test_torch_compile_sees_one_graph_for_any_batch() -> None:
    model, pixels = small_model()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
    for images in (pixels, pixels[:3]):
        found = []
        for network in (compiled, model):
            logits = network(images)
            found.append((logits, torch.autograd.grad(logits.sum(), list(model.parameters()))))
        assert_same(*found)


@pytest.mark.parametrize("strict", [False, True])
def test_torch_export_keeps_the_operator(strict: bool) -> None:
    model, pixels = small_model()
    batch = torch.export.Dim("batch")
    exported = torch.export.export(model, (pixels,), dynamic_shapes=({0: batch},), strict=strict)
    assert "mnist_mamba.mamba_block_cpu" in str(exported)
    assert_same(exported.module()(pixels[:3]), model(pixels[:3]))


@pytest.mark.parametrize("without", [(), ("D", "z", "delta_bias")], ids=str)
def test_torch_checks_the_scan_as_an_operator(without: tuple[str, ...]) -> None:
    given = make_inputs(2, 5, 3, 9, without=without)
    tensors = [given[name].requires_grad_() if name in given else None for name in NAMES]
    check_operators(cpu._scan, [*tensors, True])


def test_torch_checks_the_block_as_an_operator() -> None:
    check_operators(cpu._block, [*make_block(), *[None] * 7, False, 1e-5])


def check_operators(kernel: Any, arguments: list[Any]) -> None:
    for keep in (False, True):
        torch.library.opcheck(kernel.forward, (*arguments, keep))
    plain = [a.detach() if isinstance(a, Tensor) else a for a in arguments]
    out, kept = kernel.forward(*plain, True)
    torch.library.opcheck(kernel.backward, (torch.ones_like(out), kept, *plain))


def test_a_backward_pass_refuses_what_another_forward_pass_kept() -> None:
    out, kept = cpu._scan.forward(*VALUES, True, True)
    other = make_inputs(2, 5, 3, 200).values()
    with pytest.raises(ValueError, match=r"kept: got shape \(2, .*\), .*, expected \(2, .*\)"):
        cpu._scan.backward(torch.ones(2, 5, 200), kept, *other, True)
    with pytest.raises(ValueError, match=r"grad_out: got .*\(2, 5, 3\).*expected .*\(2, 5, 70\)"):
        cpu._scan.backward(out[:, :, :3], kept, *VALUES, True)


def test_a_backward_pass_reads_what_a_hook_has_transposed() -> None:
    for function, given in ((scan("cpu"), VALUES), (block, make_block())):
        tensors = [tensor.detach().requires_grad_() for tensor in given]
        weight = torch.randn(function(*tensors).shape)
        expected = gradients(function, tensors, weight)
        seen = []

        def unpack(saved: Tensor) -> Tensor:
            if saved.dtype != torch.uint8:
                return saved
            seen.append(saved.numel())  # noqa: B023
            return saved.t().contiguous().t()

        with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, unpack):
            got = gradients(function, tensors, weight)
        assert len(seen) == 1
        assert seen[0] > 0
        assert all(map(torch.equal, got, expected))


def test_a_kept_state_begins_where_a_number_can() -> None:
    moved = torch.arange(17, dtype=torch.uint8)[1:].view(2, 8)
    checked = checked_kept(moved, (2, 8), torch.uint8, moved)
    assert torch.equal(checked, moved)
    assert checked.data_ptr() % 8 == 0


@pytest.mark.parametrize("other", [torch.float64, torch.int8], ids=str)
def test_a_backward_pass_refuses_kept_states_of_another_type(other: torch.dtype) -> None:
    out, kept = cpu._scan.forward(*VALUES, True, True)
    with pytest.raises(ValueError, match=rf"kept: got .*{other} on cpu, expected .*uint8 on cpu"):
        cpu._scan.backward(out, kept.to(other), *VALUES, True)
    _, kept = cpu._block.forward(*make_block(), *[None] * 7, False, 1e-5, True)
    with pytest.raises(ValueError, match=rf"kept: got .*{other} on cpu, expected .*uint8 on cpu"):
        cpu._block.backward(
            torch.ones(2, 5, 8), kept.to(other), *make_block(), *[None] * 7, False, 1e-5
        )


def test_an_import_does_not_load_torch_s_compiler() -> None:
    code = "import sys, mnist_mamba.model; assert 'torch._dynamo' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
