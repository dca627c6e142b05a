"""One epoch: its order of images, its sums, and what is reported and saved of it."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import torch
from torch import Tensor

from mnist_mamba.config import AugmentConfig, TrainConfig
from mnist_mamba.model import Classifier
from mnist_mamba.training.evaluation import Scores
from mnist_mamba.training.optimizer import learning_rate
from mnist_mamba.training.trainer import Trainer

CurvePoint = dict[str, float | int | None]
"""Figures of an epoch by their names."""


@dataclasses.dataclass(frozen=True)
class TrainingState:
    """All that the rest of a training depends on, besides its model's config, data and settings.

    It says nothing of processes: what one has saved, several can resume.
    """

    epoch: int
    """The one under way, counted from 1."""
    steps: int
    """Done in this epoch; 0 is the end of the one before."""
    loss_sum: float
    """Over the images of these steps."""
    correct: int
    generator: Tensor
    """State of the random numbers that the epoch's augmentation draws, (bytes,) uint8."""
    trainer: dict[str, Any]
    """`Trainer.state_dict()`, whose tensors the next step changes."""


@dataclasses.dataclass
class EpochSeconds:
    """Where an epoch's time went, since it was begun or resumed in this process."""

    data: float = 0.0
    """Choosing, converting and augmenting images."""
    steps: float = 0.0
    evaluation: float = 0.0


@dataclasses.dataclass(frozen=True)
class EpochReport:
    """One line of the learning curves, and the averaged model that it speaks of."""

    epoch: int
    """Counted from 1."""
    lr: float
    train_loss: float
    train_accuracy: float
    """On augmented images, while the weights moved."""
    val_loss: float | None
    val_accuracy: float | None
    """Of the averaged weights; None where there are no validation images."""
    images_per_s: float
    """Trained on; evaluation does not count."""
    seconds: EpochSeconds
    seconds_left: float
    """Until the end of the last epoch, at the pace so far."""
    model: Classifier
    """The averaged model itself, which the next epoch changes."""

    def curve_point(self) -> CurvePoint:
        """The figures that are the same on every run: all but those of a clock."""
        return {
            "epoch": self.epoch,
            "lr": self.lr,
            "train_loss": self.train_loss,
            "train_accuracy": self.train_accuracy,
            "val_loss": self.val_loss,
            "val_accuracy": self.val_accuracy,
        }


class Pace:
    """Guesses the time that is left from the images done since this process began.

    Args:
        n_images: of all epochs together.
        done: of these, before this process.
    """

    def __init__(self, n_images: int, done: int) -> None:
        self.n_images, self.done_before = n_images, done
        self.started = time.perf_counter()

    def seconds_left(self, done: int) -> float:
        """With `done` images behind, more than before."""
        seconds = time.perf_counter() - self.started
        return seconds / (done - self.done_before) * (self.n_images - done)


class Epoch:
    """One pass over the images: their order, and the sums so far."""

    def __init__(self, number: int, n_images: int, config: TrainConfig) -> None:
        self.number, self.n_images, self.config = number, n_images, config
        self.generator = torch.Generator().manual_seed(config.seed * 1_000_003 + number)
        order = torch.randperm(n_images, generator=self.generator)
        self.batches = order.split(config.batch_size)
        self.steps, self.loss_sum, self.correct = 0, 0.0, 0
        self.seconds = EpochSeconds()
        self.resumed_at = 0

    def resume(self, state: TrainingState) -> None:
        """Go to where a state of this epoch was saved."""
        self.steps, self.loss_sum, self.correct = state.steps, state.loss_sum, state.correct
        self.generator.set_state(state.generator)
        self.resumed_at = self.seen

    def state(self, trainer: Trainer) -> TrainingState:
        """All that the rest of the training depends on."""
        return TrainingState(
            epoch=self.number,
            steps=self.steps,
            loss_sum=self.loss_sum,
            correct=self.correct,
            generator=self.generator.get_state(),
            trainer=trainer.state_dict(),
        )

    @property
    def seen(self) -> int:
        """Images of the steps so far."""
        return min(self.steps * self.config.batch_size, self.n_images)

    @property
    def seen_in_all(self) -> int:
        """Images of all epochs so far, each as often as it was seen."""
        return (self.number - 1) * self.n_images + self.seen

    def step_number(self, i: int) -> int:
        """Step i of this epoch among those of all epochs, from 0."""
        return (self.number - 1) * len(self.batches) + i

    @property
    def total_steps(self) -> int:
        """Steps of all epochs."""
        return self.config.epochs * len(self.batches)

    def lr(self, i: int) -> float:
        """Learning rate of step i of this epoch."""
        return learning_rate(self.step_number(i), self.total_steps, self.config)

    def augment(self, i: int) -> AugmentConfig:
        """How the images of step i of this epoch are changed."""
        return self.config.augment.at(self.step_number(i) / self.total_steps)

    def add(self, loss: float, hits: int) -> None:
        """Count a step."""
        self.loss_sum += loss * len(self.batches[self.steps])
        self.correct += hits
        self.steps += 1

    @property
    def due(self) -> bool:
        """Whether a state is to be saved here; at the epoch's end it is, once it was reported."""
        every = self.config.save_every
        return bool(every) and self.steps % every == 0 and self.steps < len(self.batches)

    def report(self, scores: Scores | None, pace: Pace, model: Classifier) -> EpochReport:
        """The figures of an epoch that has ended."""
        busy = self.seconds.data + self.seconds.steps
        return EpochReport(
            epoch=self.number,
            lr=self.lr(self.steps - 1),
            train_loss=self.loss_sum / self.seen,
            train_accuracy=self.correct / self.seen,
            val_loss=scores.loss if scores else None,
            val_accuracy=scores.accuracy if scores else None,
            images_per_s=(self.seen - self.resumed_at) / busy,
            seconds=self.seconds,
            seconds_left=pace.seconds_left(self.seen_in_all),
            model=model,
        )
