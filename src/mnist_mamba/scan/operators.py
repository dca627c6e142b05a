"""Kernels as operators of torch.

A kernel reads memory by its address. The memory of a lazy view (a tensor whose negative bit is set)
does not hold the tensor's values, and a fake tensor has none. So each kernel is an operator that
only torch's dispatcher calls. The dispatcher resolves lazy views, and unpacks the tensors of
torch.func and of subclasses. Tracers (torch.compile, torch.export, make_fx, torch.jit.trace) record
the operator, and its fake implementation tells them the shapes of its results. `_record` decides
whether the forward pass keeps anything, at each level of torch.func's transforms; the caller does
not know. Derivatives that no kernel computes, second ones and those of forward mode, are refused.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad

_library = torch.library.Library("mnist_mamba", "DEF")


class Kernel:
    """A differentiable kernel, which is called with its tensors and options and returns `out`.

    The operators are `torch.ops.mnist_mamba.<name>` and `<name>_backward`.

    Args:
        name: the operator's name.
        devices: dispatch keys of the devices on which the kernel runs, like "CPU".
        tensors: names of the tensors; the kernel decides which may be None. `out` has the shape and
            dtype of the first one.
        options: the arguments after them in torch's notation, like "bool reverse".
        forward: (compute, *tensors, *options, keep) -> (out, kept). `kept` is what the backward
            pass needs if `keep`. If `compute` is false, as for fake tensors, both are allocated,
            but not filled.
        backward: (compute, grad_out, kept, *tensors, *options) -> a gradient for each tensor, None
            where the tensor is None.
    """

    def __init__(
        self,
        name: str,
        devices: Sequence[str],
        tensors: Sequence[str],
        options: Sequence[str],
        forward: Callable[..., tuple[Tensor, Tensor]],
        backward: Callable[..., Sequence[Tensor | None]],
    ) -> None:
        def gradients(
            compute: bool, grad_out: Tensor, kept: Tensor, like: Tensor, *others: Any
        ) -> tuple[Tensor, ...]:
            if (grad_out.shape, grad_out.dtype) != (like.shape, like.dtype):
                raise ValueError(
                    f"grad_out: got {grad_out.dtype} {tuple(grad_out.shape)}, "
                    f"expected {like.dtype} {tuple(like.shape)}, as the output has"
                )
            found = backward(compute, grad_out, kept, like, *others)
            return tuple(grad_out.new_empty(0) if grad is None else grad for grad in found)

        def operator(schema: str, kernel: Callable[..., Any], derivative: Any) -> Any:
            operator_name = schema.partition("(")[0]
            qualified_name = f"mnist_mamba::{operator_name}"
            _library.define(schema)
            defined = getattr(torch.ops.mnist_mamba, operator_name).default
            for device in devices:
                _library.impl(operator_name, functools.partial(kernel, True), device)
            record = functools.partial(_record, derivative, self, defined)
            _library.impl(operator_name, record, "Autograd")
            fake = functools.partial(kernel, False)
            torch.library.register_fake(qualified_name, fake, lib=_library)
            mapped = functools.partial(_map_items, defined, fake)
            torch.library.register_vmap(qualified_name, mapped, lib=_library)
            return defined

        given = ", ".join([*(f"Tensor? {tensor}" for tensor in tensors), *options])
        returned = ", ".join(["Tensor"] * len(tensors))
        self.n_tensors = len(tensors)
        self.forward = operator(
            f"{name}({given}, bool keep) -> (Tensor, Tensor)", forward, _Forward
        )
        self.backward = operator(
            f"{name}_backward(Tensor grad_out, Tensor kept, {given}) -> ({returned})",
            gradients,
            _Backward,
        )

    def __call__(self, *arguments: Any) -> Tensor:
        out: Tensor = self.forward(*arguments, False)[0]
        return out


def _map_items(
    operator: Any, fake: Any, info: Any, in_dims: tuple[int | None, ...], *arguments: Any
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Run an operator on each item of the dimension that vmap hides, and stack the results."""
    pairs = list(zip(arguments, in_dims, strict=True))
    if info.batch_size:
        columns = [itertools.repeat(a) if dim is None else a.unbind(dim) for a, dim in pairs]
        items = [operator(*item) for item in zip(*columns, strict=False)]
        stacked = tuple(map(torch.stack, zip(*items, strict=True)))
    else:  # an item would have a shape, but has no values
        item = (a if dim is None else a.new_empty(a.movedim(dim, 0).shape[1:]) for a, dim in pairs)
        stacked = tuple(result.new_empty(0, *result.shape) for result in fake(*item))
    return stacked, (0,) * len(stacked)


def _record(derivative: Any, kernel: Kernel, operator: Any, *arguments: Any) -> Any:
    """Call an operator below autograd, and record the call where a gradient may be asked for."""
    if forward_ad._current_level >= 0 and any(map(_has_tangent, arguments)):
        raise refusal("forward-mode derivatives (jvp)")
    if not (torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments)):
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*arguments)
    # The Python part of `apply` would start again with the outermost transform of torch.func.
    with enable_single_level_autograd_function():
        return super(torch.autograd.Function, derivative).apply(kernel, *arguments)


def _has_tangent(argument: Any) -> bool:
    return isinstance(argument, Tensor) and forward_ad.unpack_dual(argument).tangent is not None


@contextlib.contextmanager
def _outer_transforms() -> Iterator[None]:
    """Let the outer transforms of torch.func record what one of them has recorded."""
    below = torch._C._AutoDispatchBelowAutograd()
    with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True), below:
        yield


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(kernel: Kernel, *arguments: Any) -> Any:
        with _outer_transforms():
            return kernel.forward(*arguments[:-1], True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        kernel, *arguments, _ = inputs
        ctx.kernel, ctx.options = kernel, arguments[kernel.n_tensors :]
        ctx.save_for_backward(output[1], *arguments[: kernel.n_tensors])
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)  # that of `kept` would be zeros of its size

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad_out is None:
            return (None,) * len(ctx.needs_input_grad)
        kept, *tensors = ctx.saved_tensors
        grads = ctx.kernel.backward(grad_out, kept, *tensors, *ctx.options)
        needed = ctx.needs_input_grad[1 : 1 + len(tensors)]
        wanted = (grad if need else None for grad, need in zip(grads, needed, strict=True))
        return (None, *wanted, *(None for _ in ctx.options), None)


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(kernel: Kernel, *arguments: Any) -> Any:
        with _outer_transforms():
            return kernel.backward(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise refusal("second derivatives")


def refusal(what: str) -> RuntimeError:
    """Return the error for a derivative that no kernel computes."""
    return RuntimeError(
        f"the kernels of the selective scan have no {what}: use backend='reference'"
    )
