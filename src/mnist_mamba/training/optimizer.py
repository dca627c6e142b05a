"""AdamW's parameter groups and the learning rate's schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from mnist_mamba.config import TrainConfig

_NO_DECAY = ("A_log", "A_b_log", "a_log", "a_b_log", "pos_embed")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices decay; A, D, norms, biases and positions do not."""
    decay: list[nn.Parameter] = []
    spare: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        spared = parameter.dim() < 2 or name.rsplit(".", 1)[-1] in _NO_DECAY
        (spare if spared else decay).append(parameter)
    return [
        {"params": decay, "weight_decay": weight_decay},
        {"params": spare, "weight_decay": 0.0},
    ]


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`, all parameters in one call."""
    groups = parameter_groups(model, config.weight_decay)
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


def learning_rate(step: int, total_steps: int, config: TrainConfig) -> float:
    """The rate of a step in 0..total_steps-1: linear warm-up, then a cosine to lr * lr_end."""
    warmup_steps = math.ceil(config.warmup * total_steps)
    if step < warmup_steps:
        return config.lr * (step + 1) / warmup_steps
    progress = (step - warmup_steps + 1) / (total_steps - warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.lr * (config.lr_end + (1 - config.lr_end) * cosine)
