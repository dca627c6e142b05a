"""AdamW, what it decays, and the learning rate's schedule."""

from __future__ import annotations

import math

import torch
from torch import nn

from mnist_mamba.config import TrainConfig

_NO_DECAY = ("A_log", "A_b_log", "a_log", "a_b_log", "pos_embed")


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The matrices, which decay, and A, D, norms, biases and positions, which do not.

    Each in the model's order; parameters that need no gradient are in neither.
    """
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            spare = parameter.dim() < 2 or name.rsplit(".", 1)[-1] in _NO_DECAY
            (spared if spare else decayed).append(parameter)
    return decayed, spared


def make_optimizer(
    decayed: nn.Parameter, spared: nn.Parameter, config: TrainConfig
) -> torch.optim.AdamW:
    """AdamW over the two kinds of `split_parameters`, each as one vector."""
    groups = [
        {"params": [decayed], "weight_decay": config.weight_decay},
        {"params": [spared], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


def learning_rate(step: int, total_steps: int, config: TrainConfig) -> float:
    """The rate of a step in 0..total_steps-1: linear warm-up, then a cosine to lr * lr_end."""
    warmup_steps = math.ceil(config.warmup * total_steps)
    if step < warmup_steps:
        return config.lr * (step + 1) / warmup_steps
    progress = (step - warmup_steps + 1) / (total_steps - warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.lr * (config.lr_end + (1 - config.lr_end) * cosine)
