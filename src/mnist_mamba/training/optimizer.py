"""The optimizers, what they decay, and the learning rate's schedule."""

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
    """A model's parameters by how they are optimised, each kind in the model's order."""

    matrices: list[nn.Parameter]
    """Between stem and head: those that Muon takes, if it is chosen."""
    decayed: list[nn.Parameter]
    """The other matrices and filters."""
    spared: list[nn.Parameter]
    """A, D, norms, biases and positions, which do not decay."""


def split_parameters(model: nn.Module) -> ParameterKinds:
    """Each parameter in one kind; those that need no gradient in none."""
    kinds = ParameterKinds([], [], [])
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.dim() < 2 or name.rsplit(".", 1)[-1] in _NO_DECAY:
            kinds.spared.append(parameter)
        elif "layers" in name.split(".") and parameter.dim() == 2:
            kinds.matrices.append(parameter)
        else:
            kinds.decayed.append(parameter)
    return kinds


class Optimizers:
    """AdamW, or Muon and AdamW, over the kinds of `split_parameters`, each in one vector.

    Muon's updates are scaled to the size of AdamW's, so that one rate and one weight decay serve
    both (arXiv 2502.16982).

    Args:
        kinds: of the model's parameters; matrices, decayed, spared.
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
            # Views of the vector, as the model's own are.
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

    def set_lr(self, lr: float) -> None:
        """The rate of the next step."""
        for optimizer in self.all:
            for group in optimizer.param_groups:
                group["lr"] = lr

    def step(self, gradient: Tensor) -> None:
        """One step; gradient (number of elements): that of all kinds, one after the other."""
        parts = gradient.split([kind.vector.numel() for kind in self._kinds])
        for kind, part in zip(self._kinds, parts, strict=True):
            kind.vector.grad = part
        if self._matrices:
            sizes = [matrix.numel() for matrix in self._matrices]
            for matrix, part in zip(self._matrices, parts[0].split(sizes), strict=True):
                matrix.grad = part.view_as(matrix)
        for optimizer in self.all:
            optimizer.step()

    def state_dict(self) -> list[dict[str, Any]]:
        """Of each optimizer. The tensors are the live ones, not copies."""
        return [optimizer.state_dict() for optimizer in self.all]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Go on from a `state_dict` of the same kinds and config.

        Raises:
            ValueError: a state of others.
        """
        for optimizer, state in zip(self.all, states, strict=True):
            optimizer.load_state_dict(state)


def learning_rate(step: int, total_steps: int, config: TrainConfig) -> float:
    """The rate of a step in 0..total_steps-1: linear warm-up, then a cosine to lr * lr_end."""
    warmup_steps = math.ceil(config.warmup * total_steps)
    if step < warmup_steps:
        return config.lr * (step + 1) / warmup_steps
    progress = (step - warmup_steps + 1) / (total_steps - warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.lr * (config.lr_end + (1 - config.lr_end) * cosine)
