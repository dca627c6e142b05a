"""Kernels as operators of torch.

A kernel reads memory by its address. The memory of a lazy view (a tensor whose negative bit is set)
does not hold the tensor's values, and a fake tensor has none. So each kernel is an operator that
only torch's dispatcher calls. The dispatcher resolves lazy views, and unpacks the tensors of vmap
and of subclasses. Tracers (torch.compile, torch.export, make_fx, torch.jit.trace) record the
operator, and its fake implementation tells them the shapes of its results. Derivatives that no
kernel computes, second ones and those of forward mode, are refused.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

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
            pass needs if `keep`. If `compute` is false, as for fake
            tensors, both are allocated, but not filled.
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
            _library.define(schema)
            for device in devices:
                _library.impl(operator_name, functools.partial(kernel, True), device)
            _library.impl(operator_name, functools.partial(_apply, derivative, self), "Autograd")
            fake = functools.partial(kernel, False)
            torch.library.register_fake(f"mnist_mamba::{operator_name}", fake, lib=_library)
            return getattr(torch.ops.mnist_mamba, operator_name).default

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
        tensors = arguments[: self.n_tensors]
        keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
        out: Tensor = _call(self, self.forward, _Forward, *arguments, keep)[0]
        return out


def _apply(derivative: Any, kernel: Kernel, *arguments: Any) -> Any:
    """Return `derivative.apply` without its Python part, which is slow and for torch.func only."""
    return super(torch.autograd.Function, derivative).apply(kernel, *arguments)


def _call(kernel: Kernel, operator: Any, derivative: Any, *arguments: Any) -> Any:
    """Call an operator; torch.func's transforms have to see the derivative first."""
    if torch._C._are_functorch_transforms_active():
        return derivative.apply(kernel, *arguments)
    return operator(*arguments)


class _Forward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(kernel: Kernel, *arguments: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return kernel.forward(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        kernel, *arguments, keep = inputs
        ctx.kernel, ctx.options, ctx.keep = kernel, arguments[kernel.n_tensors :], keep
        ctx.save_for_backward(output[1], *arguments[: kernel.n_tensors])
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)  # that of `kept` would be zeros of its size

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad_out is None:
            return (None,) * len(ctx.needs_input_grad)
        kernel = ctx.kernel
        kept, *tensors = ctx.saved_tensors
        arguments = (*tensors, *ctx.options)
        if not ctx.keep:  # the caller saw no need for gradients: vmap or a tracer hid it
            kept = _call(kernel, kernel.forward, _Forward, *arguments, True)[1]
        grads = _call(kernel, kernel.backward, _Backward, grad_out, kept, *arguments)
        needed = ctx.needs_input_grad[1 : 1 + len(tensors)]
        wanted = (grad if need else None for grad, need in zip(grads, needed, strict=True))
        return (None, *wanted, *(None for _ in ctx.options), None)

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Any:
        raise _refusal("forward-mode derivatives (jvp)")


class _Backward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(kernel: Kernel, *arguments: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return kernel.backward(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise _refusal("second derivatives")

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Any:
        raise _refusal("second derivatives")


def _refusal(what: str) -> RuntimeError:
    return RuntimeError(
        f"the kernels of the selective scan have no {what}: use backend='reference'"
    )
