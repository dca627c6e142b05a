"""The training loop."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Iterator

import torch
from torch import Tensor
from tqdm import tqdm

from mnist_mamba.config import TrainConfig
from mnist_mamba.data.augment import augment
from mnist_mamba.data.splits import LabelledImages
from mnist_mamba.model import MambaClassifier
from mnist_mamba.training.evaluation import score
from mnist_mamba.training.optimizer import learning_rate
from mnist_mamba.training.trainer import NonFiniteError, Trainer

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
        TrainingError: a NaN or infinite loss or gradient; the weights are those before that step.
    """
    trainer = Trainer(model, config, device)
    images, labels = _tensors(train_set)
    val_images, val_labels = _tensors(val_set)
    for epoch in range(1, config.epochs + 1):
        started = time.perf_counter()
        loss, accuracy, lr = _run_epoch(trainer, images, labels, epoch, progress)
        seconds = time.perf_counter() - started
        scores = score(trainer.ema.model, val_images, val_labels)
        yield EpochReport(
            epoch=epoch,
            lr=lr,
            train_loss=loss,
            train_accuracy=accuracy,
            val_loss=scores.loss,
            val_accuracy=scores.accuracy,
            images_per_s=len(labels) / seconds,
            model=trainer.ema.model,
        )


def _run_epoch(
    trainer: Trainer, images: Tensor, labels: Tensor, epoch: int, progress: bool
) -> tuple[float, float, float]:
    """One pass over the images; its mean loss, accuracy and last learning rate."""
    config = trainer.config
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
    order = torch.randperm(len(images), generator=generator)
    steps_per_epoch = math.ceil(len(labels) / config.batch_size)
    total_loss, correct, seen, lr = 0.0, 0, 0, 0.0
    title = f"epoch {epoch}/{config.epochs}"
    batches = order.split(config.batch_size)
    bar = tqdm(batches, title, unit="step", disable=not progress, mininterval=1, leave=False)
    for i, chosen in enumerate(bar):
        step = (epoch - 1) * steps_per_epoch + i
        lr = learning_rate(step, config.epochs * steps_per_epoch, config)
        pixels = augment(images[chosen].float() / 255, config.augment, generator)
        try:
            loss, hits = trainer.step(pixels, labels[chosen], lr)
        except NonFiniteError as error:
            raise TrainingError(
                f"{error} at step {step + 1} (epoch {epoch}), learning rate {lr:.3g}: "
                "try a lower train.lr or train.clip_norm"
            ) from error
        total_loss += loss * len(chosen)
        correct += hits
        seen += len(chosen)
        figures = f"loss {total_loss / seen:.4f}, accuracy {correct / seen:.4f}"
        bar.set_postfix_str(figures, refresh=False)
    return total_loss / seen, correct / seen, lr


def _tensors(data: LabelledImages) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(data.images), torch.from_numpy(data.labels).long()
