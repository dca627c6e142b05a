"""Optimizers, weight decay, and the learning rate schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mnist_mamba.config import TrainConfig
from mnist_mamba.training.flat_parameters import FlatParameters

_NO_DECAY = ("A_log", "A_b_log", "a_log", "a_b_log", "pos_embed")


class ParameterKinds(NamedTuple):
    """A model's parameters by kind of optimisation, each kind in the model's order."""

    matrices: list[nn.Parameter]
    """Matrices between stem and head, which Muon optimises if it is chosen."""
    decayed: list[nn.Parameter]
    """The other matrices and filters."""
    no_decay: list[nn.Parameter]
    """A, D, norms, biases and positions."""


def split_parameters(model: nn.Module) -> ParameterKinds:
    """Return the parameters that need a gradient, by kind."""
    kinds = ParameterKinds([], [], [])
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.dim() < 2 or name.rsplit(".", 1)[-1] in _NO_DECAY:
            kinds.no_decay.append(parameter)
        elif "layers" in name.split(".") and parameter.dim() == 2:
            kinds.matrices.append(parameter)
        else:
            kinds.decayed.append(parameter)
    return kinds


class Optimizers:
    """AdamW, or Muon and AdamW, each kind of parameters in one vector.

    Muon's updates are scaled to the size of AdamW's, so that one rate and one weight decay serve
    both (arXiv 2502.16982).

    Args:
        kinds: matrices, decayed and no_decay of `split_parameters`.
        config: which optimizers, and their settings.
    """

    def __init__(self, kinds: Sequence[FlatParameters], config: TrainConfig) -> None:
        self._kinds = kinds
        decays = (config.weight_decay, config.weight_decay, 0.0)
        groups = [
            {"params": [kind.vector], "weight_decay": decay}
            for kind, decay in zip(kinds, decays, strict=True)
        ]
        self._matrices: list[nn.Parameter] = []
        self.all: list[torch.optim.Optimizer] = []
        if config.optimizer == "muon":
            # Views of the vector, like the model's own parameters.
            self._matrices = [nn.Parameter(matrix.detach()) for matrix in kinds[0].parameters]
            muon = torch.optim.Muon(
                self._matrices,
                lr=config.lr,
                weight_decay=config.weight_decay,
                momentum=config.momentum,
                adjust_lr_fn="match_rms_adamw",
            )
            self.all, groups = [muon], groups[1:]
        betas = (config.beta1, config.beta2)
        self.all.append(torch.optim.AdamW(groups, lr=config.lr, betas=betas, fused=True))

    def step(self, gradient: Tensor, lr: float) -> None:
        """Take one step; gradient (number of elements) holds the kinds' gradients in order."""
        parts = gradient.split([kind.vector.numel() for kind in self._kinds])
        for kind, part in zip(self._kinds, parts, strict=True):
            kind.vector.grad = part
        if self._matrices:
            sizes = [matrix.numel() for matrix in self._matrices]
            for matrix, part in zip(self._matrices, parts[0].split(sizes), strict=True):
                matrix.grad = part.view_as(matrix)
        for optimizer in self.all:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()

    def state_dict(self) -> list[dict[int, Any]]:
        """Return each optimizer's state, without its settings. The tensors are the live ones."""
        return [optimizer.state_dict()["state"] for optimizer in self.all]

    def state_like(self) -> list[dict[int, dict[str, Tensor]]]:
        """Return tensors of the names and shapes of `state_dict` after any step."""

        def of(optimizer: torch.optim.Optimizer, vector: Tensor) -> dict[str, Tensor]:
            if isinstance(optimizer, torch.optim.Muon):
                return {"momentum_buffer": vector}
            return {"step": torch.zeros(()), "exp_avg": vector, "exp_avg_sq": vector}

        vectors = [[v for g in one.param_groups for v in g["params"]] for one in self.all]
        return [
            {i: of(one, vector) for i, vector in enumerate(some)}
            for one, some in zip(self.all, vectors, strict=True)
        ]

    def load_state_dict(self, states: list[dict[int, Any]]) -> None:
        """Continue from a `state_dict` that is like `state_like`."""
        for optimizer, state in zip(self.all, states, strict=True):
            own = optimizer.state_dict()
            optimizer.load_state_dict({**own, "state": state})


def learning_rate(step: int, total_steps: int, config: TrainConfig) -> float:
    """Return the rate of a step in 0..total_steps-1.

    It rises linearly to lr during the warm-up, then falls along a cosine to lr * lr_end.
    """
    warmup_steps = math.ceil(config.warmup * total_steps)
    if step < warmup_steps:
        return config.lr * (step + 1) / warmup_steps
    progress = (step - warmup_steps + 1) / (total_steps - warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.lr * (config.lr_end + (1 - config.lr_end) * cosine)
