"""The state of a training, and the step that changes it."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnist_mamba.config import TrainConfig
from mnist_mamba.model import Classifier, MambaClassifier
from mnist_mamba.training.cuda_graph import RecordedPasses
from mnist_mamba.training.distributed import ALONE, Processes
from mnist_mamba.training.ema import Ema, running_statistics
from mnist_mamba.training.flat_parameters import FlatParameters
from mnist_mamba.training.members import Members
from mnist_mamba.training.optimizer import Optimizers, split_parameters
from mnist_mamba.training.torch_file import check_like


class NonFiniteError(ArithmeticError):
    """A NaN or infinite loss, gradient or weight; the model is of no more use."""


class Trainer:
    """A model, the moving average of its weights, and its optimizers.

    On a GPU, forward and backward passes are recorded as CUDA graphs (`RecordedPasses`).

    Args:
        model: trained in place, and moved to the device.
        config: optimizers, loss and averaging.
        device: torch's name of the device.
        processes: the processes that train this model, each on its share of every batch.
        norm_momentum: weight of a step's images in the batch norms' running statistics.
    """

    def __init__(
        self,
        model: Classifier,
        config: TrainConfig,
        device: str = "cpu",
        processes: Processes = ALONE,
        norm_momentum: float = 0.01,
    ) -> None:
        self.model = model.to(device).train()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = norm_momentum
        self.members = Members(model)
        self.ema = Ema(model, config.ema_decay)
        self._kinds = [FlatParameters(kind) for kind in split_parameters(self.model)]
        self._weights = [kind.vector for kind in self._kinds]
        self._statistics = running_statistics(self.model)
        self.optimizers = Optimizers(self._kinds, config)
        self._passes = RecordedPasses(self._gradient_and_sums)
        self.config, self.device, self.processes = config, device, processes

    def step(
        self, pixels: Tensor, labels: Tensor, lr: float, batch: int | None = None
    ) -> tuple[float, int]:
        """Take one optimisation step.

        Args:
            pixels: n images in [0, 1], on the CPU: the whole batch or, in one of several
                processes, its share. n may then be 0.
            labels: (n,) int64, on the CPU.
            lr: learning rate of this step.
            batch: number of images in the whole batch; None if this is all of it.

        Returns:
            Mean loss of the whole batch, and how many of its images were classified correctly
            before the step.

        Raises:
            NonFiniteError: the loss or the gradient's norm is NaN or infinite.
        """
        with self.members.one_thread():
            return self._step(pixels, labels, lr, len(labels) if batch is None else batch)

    def _step(self, pixels: Tensor, labels: Tensor, lr: float, batch: int) -> tuple[float, int]:
        pixels, labels = pixels.to(self.device), labels.to(self.device)
        part = len(labels) / batch
        # DistributedDataParallel would not do: it averages over processes as if their shares were
        # equal, and needs a backward pass in each, while a share may be smaller or empty. One
        # message after the backward pass is enough: the shipped model's gradients take 1.2 MB.
        total = self.processes.sum(self._passes(pixels, labels, part))
        gradient, sums = total[:-2], total[-2:]
        self._average_statistics(part)
        norm = torch.linalg.vector_norm(gradient)
        if self.config.clip_norm:
            gradient.mul_((self.config.clip_norm / (norm + 1e-6)).clamp(max=1))
        loss, hits, norm_value = torch.cat([sums, norm[None]]).tolist()
        # Before the weights move: NaN in one gradient would be NaN in every weight.
        for name, value in (("loss", loss), ("norm of the gradient", norm_value)):
            if not math.isfinite(value):
                raise NonFiniteError(f"the {name} is {value}")
        self.optimizers.step(gradient, lr)
        self.ema.update(self._weights, self._statistics)
        return loss, int(hits)

    def check_finite(self) -> None:
        """Check all that a file would get: loss and gradients of later steps are not known yet.

        Raises:
            NonFiniteError: a weight or a statistic, or its average, is NaN or infinite.
        """
        for model in (self.model, self.ema.model):
            for name, value in model.state_dict().items():
                if not value.isfinite().all():
                    raise NonFiniteError(f"{name} holds NaN or infinity")

    def backward(self, pixels: Tensor, labels: Tensor, part: float) -> Tensor:
        """Backpropagate a share's part of the batch's mean loss.

        The n images and labels (n,) are on the device, and n may be 0; `part` is n as
        a fraction of the batch.

        Returns:
            (2,): that part of the loss, and the number of images classified correctly.
        """
        if len(labels) == 0:
            return torch.zeros(2, device=self.device)
        smoothing = self.config.label_smoothing

        # Each member has its own loss. With the loss of their mean logits, a member could rely on
        # the others.
        def backward(member: MambaClassifier) -> Tensor:
            logits: Tensor = member(pixels)
            loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
            (loss * (part / len(self.members.all))).backward()
            return logits.detach()

        logits = torch.stack(self.members.map(backward))
        targets = labels.expand(len(logits), -1).flatten()
        loss = F.cross_entropy(logits.flatten(0, 1), targets, label_smoothing=smoothing) * part
        hits = (logits.mean(dim=0).argmax(dim=1) == labels).sum()
        return torch.stack([loss, hits.to(loss.dtype)])

    def _gradient_and_sums(self, pixels: Tensor, labels: Tensor, part: float) -> Tensor:
        """Return the gradients as one vector, and after them the two sums of `backward`."""
        for kind in self._kinds:
            kind.clear_gradients()
        sums = self.backward(pixels, labels, part)
        gradients = [gradient for kind in self._kinds for gradient in kind.gradients()]
        return torch.cat([*gradients, sums])

    def _average_statistics(self, part: float) -> None:
        """Average the batch norms' statistics over the processes, weighted by their shares.

        A batch norm sees only the images of its own process.
        """
        if self.processes.size > 1:
            for statistic in self._statistics:
                self.processes.sum(statistic.mul_(part))

    def state_dict(self) -> dict[str, Any]:
        """Return all that a later step depends on. The tensors are the live ones, not copies."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizers": self.optimizers.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict` of the same model and config.

        Raises:
            ValueError: a state of another model or config.
        """
        check_like(
            state, {**self.state_dict(), "optimizers": self.optimizers.state_like()}, "trainer"
        )
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizers.load_state_dict(state["optimizers"])
