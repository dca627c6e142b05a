"""The training loop."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from mnist_mamba.config import TrainConfig
from mnist_mamba.data.augment import augment
from mnist_mamba.data.splits import LabelledImages
from mnist_mamba.model import MambaClassifier
from mnist_mamba.training.ema import Ema
from mnist_mamba.training.evaluation import score
from mnist_mamba.training.optimizer import learning_rate, make_optimizer

logger = logging.getLogger(__name__)


class TrainingError(RuntimeError):
    """A training that cannot go on; the message says at which step and why."""


@dataclasses.dataclass(frozen=True)
class EpochReport:
    """One line of the learning curves, and the averaged model that it speaks of."""

    epoch: int
    """Counted from 1."""
    lr: float
    train_loss: float
    train_accuracy: float
    """On augmented images, while the weights moved."""
    val_loss: float
    val_accuracy: float
    """Of the averaged weights."""
    images_per_s: float
    model: MambaClassifier
    """The averaged model itself, which the next epoch changes."""

    def curve_point(self) -> dict[str, float | int]:
        """The figures that are the same on every run: all but those of a clock."""
        return {
            "epoch": self.epoch,
            "lr": self.lr,
            "train_loss": self.train_loss,
            "train_accuracy": self.train_accuracy,
            "val_loss": self.val_loss,
            "val_accuracy": self.val_accuracy,
        }


def train(
    model: MambaClassifier,
    train_set: LabelledImages,
    val_set: LabelledImages,
    config: TrainConfig,
    device: str = "cpu",
    progress: bool = True,
) -> Iterator[EpochReport]:
    """Train `model` in place, yielding after each epoch.

    The order of images and their augmentation depend on the seed and the epoch alone: the same
    seed, machine and thread count give the same weights, bit for bit.

    Raises:
        TrainingError: a loss that is NaN or infinite.
    """
    trainer = _Trainer(model, train_set, config, device)
    val_images, val_labels = _tensors(val_set)
    for epoch in range(1, config.epochs + 1):
        started = time.perf_counter()
        loss, accuracy, lr = trainer.run_epoch(epoch, progress)
        seconds = time.perf_counter() - started
        scores = score(trainer.ema.model, val_images, val_labels)
        yield EpochReport(
            epoch=epoch,
            lr=lr,
            train_loss=loss,
            train_accuracy=accuracy,
            val_loss=scores.loss,
            val_accuracy=scores.accuracy,
            images_per_s=len(train_set.labels) / seconds,
            model=trainer.ema.model,
        )


class _Trainer:
    """What changes while a model is trained: its weights, their average, the optimizer's state."""

    def __init__(
        self, model: MambaClassifier, data: LabelledImages, config: TrainConfig, device: str
    ) -> None:
        self.model = model.to(device).train()
        self.ema = Ema(model, config.ema_decay)
        self.optimizer = make_optimizer(model, config)
        self.images, self.labels = _tensors(data)
        self.config, self.device = config, device
        self.steps_per_epoch = math.ceil(len(data.labels) / config.batch_size)

    def run_epoch(self, epoch: int, progress: bool) -> tuple[float, float, float]:
        """One pass over the images; its mean loss, accuracy and last learning rate."""
        config = self.config
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.images), generator=generator)
        total_loss, correct, seen, lr = 0.0, 0, 0, 0.0
        title = f"epoch {epoch}/{config.epochs}"
        batches = order.split(config.batch_size)
        bar = tqdm(batches, title, unit="step", disable=not progress, mininterval=1, leave=False)
        for i, chosen in enumerate(bar):
            step = (epoch - 1) * self.steps_per_epoch + i
            lr = learning_rate(step, config.epochs * self.steps_per_epoch, config)
            pixels = augment(self.images[chosen].float() / 255, config.augment, generator)
            loss, hits = self.step(pixels, self.labels[chosen], lr)
            if not math.isfinite(loss):
                raise TrainingError(
                    f"the loss is {loss} at step {step + 1} (epoch {epoch}), learning rate "
                    f"{lr:.3g}: try a lower train.lr or train.clip_norm"
                )
            total_loss += loss * len(chosen)
            correct += hits
            seen += len(chosen)
            figures = f"loss {total_loss / seen:.4f}, accuracy {correct / seen:.4f}"
            bar.set_postfix_str(figures, refresh=False)
        return total_loss / seen, correct / seen, lr

    def step(self, pixels: Tensor, labels: Tensor, lr: float) -> tuple[float, int]:
        """One optimisation step; its loss, and how many images were right before it.

        pixels (batch, height, width) in [0, 1], labels (batch,) int64, both on the CPU.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        labels = labels.to(self.device)
        logits = self.model(pixels.to(self.device))
        loss = F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.config.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.ema.update(self.model)
        return float(loss.detach()), int((logits.detach().argmax(dim=1) == labels).sum())


def _tensors(data: LabelledImages) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(data.images), torch.from_numpy(data.labels).long()
