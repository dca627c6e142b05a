"""Exponential moving average of a model's weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mnist_mamba.training.flat_parameters import FlatParameters
from mnist_mamba.training.optimizer import split_parameters

M = TypeVar("M", bound=nn.Module)


def running_statistics(model: nn.Module) -> list[Tensor]:
    """Return the running means and variances of a model's batch norms."""
    return [buffer for buffer in model.buffers() if buffer.is_floating_point()]


class Ema(Generic[M]):
    """A copy of a model whose weights and batch norm statistics are moving averages.

    The decay warms up as (1 + t) / (10 + t), so that the average of a short run does not stay near
    the initial weights.

    Args:
        model: the model to copy and follow.
        decay: decay per step after the warm-up.
    """

    def __init__(self, model: M, decay: float) -> None:
        self.model = copy.deepcopy(model).eval()
        self._averages = [FlatParameters(kind).vector for kind in split_parameters(self.model)]
        self._statistics = running_statistics(self.model)
        self.model.requires_grad_(False)
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self, weights: Sequence[Tensor], statistics: Sequence[Tensor] = ()) -> None:
        """Move the averages towards a model by one step.

        Args:
            weights: the model's parameters, one vector per kind of `split_parameters`.
            statistics: the model's `running_statistics`.
        """
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        averages = [*self._averages, *self._statistics]
        get_ema_multi_avg_fn(decay)(averages, [*weights, *statistics], self.steps)

    def state_dict(self) -> dict[str, Any]:
        """Return averages and number of steps. The tensors are the live ones, not copies."""
        return {"model": self.model.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict` of the same model's average."""
        self.model.load_state_dict(state["model"])
        self.steps = state["steps"]
