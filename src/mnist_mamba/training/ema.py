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
    """Means and variances that a model's batch norms collect beside what is learned."""
    return [buffer for buffer in model.buffers() if buffer.is_floating_point()]


class Ema(Generic[M]):
    """A second model that follows the trained one, also in the statistics of its batch norms.

    The decay warms up as (1 + t) / (10 + t), so that short runs are not left at the start.
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
        """Move towards a model by one step.

        Args:
            weights: the vectors of its `split_parameters`.
            statistics: its `running_statistics`.
        """
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        averages = [*self._averages, *self._statistics]
        get_ema_multi_avg_fn(decay)(averages, [*weights, *statistics], self.steps)

    def state_dict(self) -> dict[str, Any]:
        """The average and the number of its steps. The tensors are the live ones, not copies."""
        return {"model": self.model.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict` of an average of the same model."""
        self.model.load_state_dict(state["model"])
        self.steps = int(state["steps"])
