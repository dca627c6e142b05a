"""What changes while a model is trained, and the step that changes it."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mnist_mamba.config import TrainConfig
from mnist_mamba.model import Classifier
from mnist_mamba.training.distributed import ALONE, Processes
from mnist_mamba.training.ema import Ema, running_statistics
from mnist_mamba.training.flat_parameters import FlatParameters
from mnist_mamba.training.optimizer import Optimizers, split_parameters


class NonFiniteError(ArithmeticError):
    """A NaN or infinite loss or gradient; the weights are those from before the step."""


class Trainer:
    """A model, the average of its weights and its optimizers.

    Args:
        model: trained in place, and moved to the device.
        config: how.
        device: torch's name of it.
        processes: those that train the same model, each on its share of every batch.
    """

    def __init__(
        self,
        model: Classifier,
        config: TrainConfig,
        device: str = "cpu",
        processes: Processes = ALONE,
    ) -> None:
        self.model = model.to(device).train()
        self.ema = Ema(model, config.ema_decay)
        self._kinds = [FlatParameters(kind) for kind in split_parameters(self.model)]
        self._weights = [kind.vector for kind in self._kinds]
        self._statistics = running_statistics(self.model)
        self.optimizers = Optimizers(self._kinds, config)
        self.config, self.device, self.processes = config, device, processes

    def step(
        self, pixels: Tensor, labels: Tensor, lr: float, batch: int | None = None
    ) -> tuple[float, int]:
        """One optimisation step; its loss, and how many images were right before it.

        pixels (n, height, width) in [0, 1], labels (n,) int64, both on the CPU: all of the batch
        or, in one of several processes, its share of the `batch` images. n may then be 0; loss
        and hits are those of the whole batch.

        Raises:
            NonFiniteError: the loss or the gradient's norm is NaN or infinite.
        """
        self.optimizers.set_lr(lr)
        pixels, labels = pixels.to(self.device), labels.to(self.device)
        n = len(labels) if batch is None else batch
        for kind in self._kinds:
            kind.clear_gradients()
        gradient, figures = self._gather_gradients(self._backward(pixels, labels, len(labels) / n))
        self._gather_statistics(len(labels) / n)
        norm = self._clip(gradient)
        loss, hits, norm_value = torch.cat([figures, norm[None]]).tolist()
        # Before the weights move: NaN in one gradient would be NaN in every weight.
        for name, value in (("loss", loss), ("norm of the gradient", norm_value)):
            if not math.isfinite(value):
                raise NonFiniteError(f"the {name} is {value}")
        self.optimizers.step(gradient)
        self.ema.update(self._weights, self._statistics)
        return loss, int(hits)

    def _backward(self, pixels: Tensor, labels: Tensor, part: float) -> Tensor:
        """Gradients of these images' part of the batch's mean loss; that part, and their hits."""
        if len(labels) == 0:
            return torch.zeros(2, device=self.device)
        logits = self.model.member_logits(pixels)
        smoothing = self.config.label_smoothing
        # Each member's own loss, and their mean: that of their mean would let them lean on others.
        targets = labels.expand(len(logits), -1).flatten()
        loss = F.cross_entropy(logits.flatten(0, 1), targets, label_smoothing=smoothing) * part
        loss.backward()
        hits = (logits.detach().mean(dim=0).argmax(dim=1) == labels).sum()
        return torch.stack([loss.detach(), hits.to(loss.dtype)])

    def _gather_gradients(self, figures: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients as one vector, and `figures`, both summed over the processes.

        Not DistributedDataParallel: it averages over processes as if their shares were equal and
        wants a backward pass of each, while a share may be smaller, or empty. With gradients of
        half a megabyte, one message after the backward pass costs little.
        """
        parts = [gradient for kind in self._kinds for gradient in kind.gradients()]
        total = self.processes.sum(torch.cat([*parts, figures]))
        return total[: -len(figures)], total[-len(figures) :]

    def _gather_statistics(self, part: float) -> None:
        """Give all processes the mean of their batch norms' statistics, weighted by their shares.

        A norm sees the images of its own process alone.
        """
        if self.processes.size > 1:
            for statistic in self._statistics:
                self.processes.sum(statistic.mul_(part))

    def _clip(self, gradient: Tensor) -> Tensor:
        """Scale the gradient down to the largest norm allowed; its norm before that."""
        norm: Tensor = torch.linalg.vector_norm(gradient)
        if self.config.clip_norm:
            gradient.mul_((self.config.clip_norm / (norm + 1e-6)).clamp(max=1))
        return norm

    def state_dict(self) -> dict[str, Any]:
        """All that a later step depends on. The tensors are the live ones, not copies."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizers": self.optimizers.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict` of the same model and config.

        Raises:
            KeyError, ValueError, RuntimeError: a state of another model.
        """
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizers.load_state_dict(state["optimizers"])
