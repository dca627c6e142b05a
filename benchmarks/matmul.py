"""The matrix products of one training step alone: a lower bound for steps that use torch's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mnist_mamba.config import ModelConfig


def products(config: ModelConfig, batch: int) -> list[tuple[int, int, int]]:
    """Return (rows, inputs, outputs) of each linear layer: stem, four per mixer, head."""
    tokens, inner, rank = batch * config.length, config.d_inner, config.resolved_dt_rank
    mixer = [
        (tokens, config.d_model, 2 * inner),
        (tokens, inner, rank + 2 * config.d_state),
        (tokens, rank, inner),
        (tokens, inner, config.d_model),
    ]
    stem = (tokens, config.patch[0] * config.patch[1], config.d_model)
    return [stem, *mixer * config.n_layers, (batch, config.d_model, config.n_classes)]


def matmul_step(config: ModelConfig, batch: int) -> Callable[[], None]:
    """Return a function that runs the products of a forward and a backward pass, nothing else.

    Every layer has its own operands and results, as in the model. The stem's input are pixels,
    which get no gradient.
    """
    forward = [
        _Product(*shape, input_gradient=i > 0) for i, shape in enumerate(products(config, batch))
    ]

    def step() -> None:
        for product in forward:
            product.forward()
        for product in reversed(forward):
            product.backward()

    return step


class _Product:
    """A linear layer without bias: y = x W', dx = dy W, dW = dy' x."""

    def __init__(self, rows: int, inputs: int, outputs: int, input_gradient: bool) -> None:
        self.x, self.weight = torch.rand(rows, inputs), torch.rand(outputs, inputs)
        self.y, self.grad_y = torch.empty(rows, outputs), torch.rand(rows, outputs)
        self.grad_x: Tensor | None = torch.empty(rows, inputs) if input_gradient else None
        self.grad_weight = torch.empty(outputs, inputs)

    def forward(self) -> None:
        torch.mm(self.x, self.weight.t(), out=self.y)

    def backward(self) -> None:
        if self.grad_x is not None:
            torch.mm(self.grad_y, self.weight, out=self.grad_x)
        torch.mm(self.grad_y.t(), self.x, out=self.grad_weight)
