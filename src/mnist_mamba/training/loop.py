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
    model.to(device).train()
    ema = Ema(model, config.ema_decay)
    optimizer = make_optimizer(model, config)
    images, labels = _tensors(train_set)
    val_images, val_labels = _tensors(val_set)
    steps_per_epoch = math.ceil(len(images) / config.batch_size)
    total_steps = config.epochs * steps_per_epoch
    for epoch in range(1, config.epochs + 1):
        started = time.perf_counter()
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
        order = torch.randperm(len(images), generator=generator)
        total_loss, correct, lr = 0.0, 0, 0.0
        bar = tqdm(
            order.split(config.batch_size),
            desc=f"epoch {epoch}/{config.epochs}",
            unit="step",
            disable=not progress,
            mininterval=1.0,
            leave=False,
        )
        for i, chosen in enumerate(bar):
            step = (epoch - 1) * steps_per_epoch + i
            lr = learning_rate(step, total_steps, config)
            pixels = augment(images[chosen].float() / 255, config.augment, generator)
            batch = pixels.to(device), labels[chosen].to(device)
            loss, hits = _step(model, optimizer, batch, lr, config)
            if not math.isfinite(loss):
                raise TrainingError(
                    f"the loss is {loss} at step {step + 1} of {total_steps} (epoch {epoch}), "
                    f"learning rate {lr:.3g}: try a lower train.lr or train.clip_norm"
                )
            ema.update(model)
            total_loss += loss * len(chosen)
            correct += hits
            seen = i * config.batch_size + len(chosen)
            bar.set_postfix_str(
                f"loss {total_loss / seen:.4f}, accuracy {correct / seen:.4f}", refresh=False
            )
        images_per_s = len(images) / (time.perf_counter() - started)
        scores = score(ema.model, val_images, val_labels)
        yield EpochReport(
            epoch=epoch,
            lr=lr,
            train_loss=total_loss / len(images),
            train_accuracy=correct / len(images),
            val_loss=scores.loss,
            val_accuracy=scores.accuracy,
            images_per_s=images_per_s,
            model=ema.model,
        )


def _tensors(data: LabelledImages) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(data.images), torch.from_numpy(data.labels).long()


def _step(
    model: MambaClassifier,
    optimizer: torch.optim.Optimizer,
    batch: tuple[Tensor, Tensor],
    lr: float,
    config: TrainConfig,
) -> tuple[float, int]:
    """One optimisation step; its loss, and how many images were right before it."""
    pixels, labels = batch
    for group in optimizer.param_groups:
        group["lr"] = lr
    logits = model(pixels)
    loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if config.clip_norm:
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
    optimizer.step()
    return float(loss.detach()), int((logits.detach().argmax(dim=1) == labels).sum())
