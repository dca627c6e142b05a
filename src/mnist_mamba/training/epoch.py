"""One epoch: the order of its images, its running sums, its report and its saved state."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import torch
from torch import Tensor

from mnist_mamba.config import (
    AugmentConfig,
    Checked,
    Fraction,
    NotNegative,
    TrainConfig,
    check_value,
    whole,
)
from mnist_mamba.model import Classifier
from mnist_mamba.training.evaluation import Scores
from mnist_mamba.training.optimizer import learning_rate
from mnist_mamba.training.trainer import Trainer

CurvePoint = dict[str, float | int | None]
"""Metrics of an epoch by name."""
_EPOCH = Annotated[int, whole(1, 1_000_000)]
_COUNT = Annotated[int, whole(0, 2**53)]
_CURVES: dict[str, Any] = {
    "epoch": _EPOCH,
    "lr": NotNegative,
    "train_loss": NotNegative,
    "train_accuracy": Fraction,
    "val_loss": NotNegative,
    "val_accuracy": Fraction,
}
"""Names and values of a point; without validation images, those of val_ are None."""


def check_point(point: Any, epoch: int) -> None:
    """Check the learning curves' point of an epoch.

    Raises:
        ValueError: another name, or a value that is not in its range.
    """
    if not isinstance(point, dict) or point.keys() != _CURVES.keys():
        raise ValueError(f"point {epoch} of its curves is not a dictionary of {', '.join(_CURVES)}")
    for name, hint in _CURVES.items():
        if not (name.startswith("val_") and point[name] is None):
            check_value(name, point[name], hint)
    if point["epoch"] != epoch:
        raise ValueError(f"point {epoch} of its curves belongs to epoch {point['epoch']}")


@dataclasses.dataclass(frozen=True)
class TrainingState(Checked):
    """All that the rest of a training depends on, except its model's config, data and settings.

    It does not depend on the number of processes: several can resume what one has saved.

    Raises:
        ConfigError: a value of another type, or out of range.
    """

    epoch: _EPOCH
    """The epoch under way, counted from 1."""
    steps: _COUNT
    """Steps done in this epoch; 0 is the end of the epoch before."""
    loss_sum: NotNegative
    """Sum of the loss over the images of these steps."""
    correct: _COUNT
    generator: Tensor
    """State of the random generator of the epoch's augmentation, (bytes,) uint8."""
    trainer: dict[str, Any]
    """`Trainer.state_dict()`, whose tensors the next step changes."""


@dataclasses.dataclass
class EpochSeconds:
    """Seconds per part of an epoch, since it began or was resumed in this process."""

    data: float = 0.0
    """Selecting, converting and augmenting images."""
    steps: float = 0.0
    evaluation: float = 0.0


@dataclasses.dataclass(frozen=True)
class EpochReport:
    """One line of the learning curves, and the averaged model it describes."""

    epoch: int
    """Counted from 1."""
    lr: float
    train_loss: float
    train_accuracy: float
    """On augmented images, while the weights moved."""
    val_loss: float | None
    val_accuracy: float | None
    """Scores of the averaged weights; None without validation images."""
    images_per_s: float
    """Training images per second of training, evaluation excluded."""
    seconds: EpochSeconds
    seconds_left: float
    """Until the end of the last epoch, at the pace so far."""
    model: Classifier
    """The averaged model itself, which the next epoch changes."""

    def curve_point(self) -> CurvePoint:
        """Return the metrics that are the same in every run: all but times."""
        return {name: getattr(self, name) for name in _CURVES}


class Epoch:
    """One pass over the images: their order, and the sums so far.

    Args:
        number: counted from 1.
        n_images: size of the training set.
        config: seed, batch size and schedules.
    """

    def __init__(self, number: int, n_images: int, config: TrainConfig) -> None:
        self.number, self.n_images, self.config = number, n_images, config
        self.generator = torch.Generator().manual_seed(config.seed * 1_000_003 + number)
        order = torch.randperm(n_images, generator=self.generator)
        self.images_per_step = config.images_per_step(n_images)
        self.batches = order.split(self.images_per_step)
        self.steps, self.loss_sum, self.correct = 0, 0.0, 0
        self.seconds = EpochSeconds()
        self.resumed_at = 0

    def resume(self, state: TrainingState) -> None:
        """Continue where a state of this epoch was saved."""
        self.steps, self.loss_sum, self.correct = state.steps, state.loss_sum, state.correct
        self.generator.set_state(state.generator)
        self.resumed_at = self.images_seen

    def state(self, trainer: Trainer) -> TrainingState:
        """Return all that the rest of the training depends on."""
        return TrainingState(
            epoch=self.number,
            steps=self.steps,
            loss_sum=self.loss_sum,
            correct=self.correct,
            generator=self.generator.get_state(),
            trainer=trainer.state_dict(),
        )

    @property
    def images_seen(self) -> int:
        """Number of images in the steps so far."""
        return min(self.steps * self.images_per_step, self.n_images)

    @property
    def images_seen_total(self) -> int:
        """Number of images in the steps of all epochs so far."""
        return (self.number - 1) * self.n_images + self.images_seen

    def step_number(self, i: int) -> int:
        """Return the number, from 0, of this epoch's step i among the steps of all epochs."""
        return (self.number - 1) * len(self.batches) + i

    @property
    def total_steps(self) -> int:
        """Number of steps of all epochs."""
        return self.config.epochs * len(self.batches)

    def lr(self, i: int) -> float:
        """Return the learning rate of this epoch's step i."""
        return learning_rate(self.step_number(i), self.total_steps, self.config)

    def augment(self, i: int) -> AugmentConfig:
        """Return the augmentation of this epoch's step i."""
        return self.config.augment.at(self.step_number(i) / self.total_steps)

    def add_step(self, loss: float, hits: int) -> None:
        """Add a step's mean loss and number of correct images to the sums."""
        self.loss_sum += loss * len(self.batches[self.steps])
        self.correct += hits
        self.steps += 1

    @property
    def should_save(self) -> bool:
        """Whether to save a state now; the state at the epoch's end is saved after its report."""
        every = self.config.save_every
        return bool(every) and self.steps % every == 0 and self.steps < len(self.batches)

    def report(self, scores: Scores | None, seconds_left: float, model: Classifier) -> EpochReport:
        """Return the report of an epoch that has ended."""
        busy = self.seconds.data + self.seconds.steps
        return EpochReport(
            epoch=self.number,
            lr=self.lr(self.steps - 1),
            train_loss=self.loss_sum / self.images_seen,
            train_accuracy=self.correct / self.images_seen,
            val_loss=scores.loss if scores else None,
            val_accuracy=scores.accuracy if scores else None,
            images_per_s=(self.images_seen - self.resumed_at) / busy,
            seconds=self.seconds,
            seconds_left=seconds_left,
            model=model,
        )
