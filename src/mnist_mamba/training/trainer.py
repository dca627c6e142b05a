"""What changes while a model is trained, and the step that changes it."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mnist_mamba.config import TrainConfig
from mnist_mamba.model import MambaClassifier
from mnist_mamba.training.ema import Ema
from mnist_mamba.training.optimizer import make_optimizer


class NonFiniteError(ArithmeticError):
    """A NaN or infinite loss or gradient; the weights are those from before the step."""


class Trainer:
    """A model, the average of its weights and its optimizer.

    Args:
        model: trained in place, and moved to the device.
        config: how.
        device: torch's name of it.
    """

    def __init__(self, model: MambaClassifier, config: TrainConfig, device: str = "cpu") -> None:
        self.model = model.to(device).train()
        self.ema = Ema(model, config.ema_decay)
        self.optimizer = make_optimizer(model, config)
        self.config, self.device = config, device

    def step(self, pixels: Tensor, labels: Tensor, lr: float) -> tuple[float, int]:
        """One optimisation step; its loss, and how many images were right before it.

        pixels (batch, height, width) in [0, 1], labels (batch,) int64, both on the CPU.

        Raises:
            NonFiniteError: the loss or the gradient's norm is NaN or infinite.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        labels = labels.to(self.device)
        logits = self.model(pixels.to(self.device))
        loss = F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = self._clip()
        hits = (logits.detach().argmax(dim=1) == labels).sum()
        # Before the weights move: NaN in one gradient would be NaN in every weight.
        mean_loss = _finite("loss", loss.detach())
        _finite("norm of the gradient", norm)
        self.optimizer.step()
        self.ema.update(self.model)
        return mean_loss, int(hits)

    def _clip(self) -> Tensor:
        """Scale the gradient down to the largest norm allowed; its norm before that."""
        parameters = list(self.model.parameters())
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.config.clip_norm:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.config.clip_norm, norm)
        return norm

    def state_dict(self) -> dict[str, Any]:
        """All that a later step depends on. The tensors are the live ones, not copies."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict` of the same model and config.

        Raises:
            KeyError, ValueError, RuntimeError: a state of another model.
        """
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])


def _finite(name: str, value: Tensor) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise NonFiniteError(f"the {name} is {number}")
    return number
