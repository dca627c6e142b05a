"""The training loop: epochs of steps, each followed by an evaluation and a report."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from mnist_mamba.config import TrainConfig
from mnist_mamba.data.augment import augment
from mnist_mamba.data.splits import LabelledImages
from mnist_mamba.model import Classifier
from mnist_mamba.training.distributed import ALONE, Processes
from mnist_mamba.training.epoch import Epoch, EpochReport, TrainingState
from mnist_mamba.training.evaluation import Scores, score
from mnist_mamba.training.progress import Progress
from mnist_mamba.training.resume import restore
from mnist_mamba.training.trainer import NonFiniteError, Trainer

_TRY = (
    "expected a finite number; try a lower train.lr, a longer train.warmup, or a small "
    "train.clip_norm (0 turns clipping off)"
)


class TrainingError(RuntimeError):
    """A training that cannot continue; the message says at which step and why."""


class StoppedError(RuntimeError):
    """A training that ended early because `stop` said so; the message says at which step."""


def train(
    model: Classifier,
    train_set: LabelledImages,
    val_set: LabelledImages | None,
    config: TrainConfig,
    device: str = "cpu",
    progress: bool = True,
    processes: Processes = ALONE,
    state: TrainingState | None = None,
    save: Callable[[TrainingState], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[EpochReport]:
    """Train `model` in place, yielding a report after each epoch.

    The order of images and their augmentation depend only on the seed and the epoch: on the CPU,
    the same seed, machine, thread count and number of processes give the same weights, bit for bit,
    also when resumed. A GPU adds in any order, so its weights differ by rounding.

    Args:
        model: the model, the same in all processes and in a resumed training.
        train_set: (n, height, width[, channels]) uint8 images and (n,) labels.
        val_set: images to evaluate on after each epoch, or None.
        config: how to train.
        device: torch's name of the device.
        progress: whether to show a progress bar on a terminal, and elsewhere a log line every half
            minute.
        processes: the processes that train together.
        state: where to continue, as `save` received it; None starts from the beginning.
        save: receives the state every `config.save_every` steps and after the report of each
            epoch but the last. The next step changes the state's tensors.
        stop: asked before each step but the first; True, in any of the processes, saves the state
            and ends the training.

    Yields:
        The report of each epoch, with the averaged model.

    Raises:
        TrainingError: a NaN or infinite loss, gradient or weight; the reports before it are good.
        StoppedError: `stop` returned True.
        ResumeError: the state does not fit the model, the images or the config.
    """
    n_images = len(train_set.labels)
    trainer = Trainer(model, config, device, processes, config.resolved_momentum(n_images))
    if state is not None:
        restore(trainer, state, n_images)
    images, labels = _tensors(train_set)
    val_tensors = None if val_set is None else _tensors(val_set)
    first = 1 if state is None else state.epoch
    done = 0
    if state is not None:
        done = (first - 1) * n_images + state.steps * config.images_per_step(n_images)
    shown = Progress(done, config.epochs * n_images, progress)

    for number in range(first, config.epochs + 1):
        epoch = Epoch(number, n_images, config)
        if state is not None and number == first:
            epoch.resume(state)
        elif number > 1 and save is not None:
            save(epoch.state(trainer))  # checked before the report
        with trainer.members.one_thread():
            _run_epoch(epoch, trainer, images, labels, shown, save, stop)
        with _located(epoch):
            trainer.check_finite()
        started = time.perf_counter()
        scores = None if val_tensors is None else _evaluate(trainer, *val_tensors)
        epoch.seconds.evaluation = time.perf_counter() - started
        if scores is not None and not math.isfinite(scores.loss):
            raise TrainingError(
                f"the validation loss is {scores.loss} after epoch {number}: {_TRY}"
            )
        yield epoch.report(scores, shown.seconds_left(epoch), trainer.ema.model)


def _run_epoch(
    epoch: Epoch,
    trainer: Trainer,
    images: Tensor,
    labels: Tensor,
    progress: Progress,
    save: Callable[[TrainingState], None] | None,
    stop: Callable[[], bool],
) -> None:
    """Take the remaining steps of an epoch."""
    with progress.bar(epoch) as bar:
        for i in range(epoch.steps, len(epoch.batches)):
            if trainer.ema.steps and trainer.processes.any(stop(), trainer.device):
                _save(epoch, trainer, save)
                at = f"step {i} of {len(epoch.batches)} of epoch {epoch.number}"
                raise StoppedError(f"stopped after {at}")
            started = time.perf_counter()
            chosen = epoch.batches[i]
            share = trainer.processes.share(len(chosen))
            pixels = images[chosen[share]].float() / 255
            pixels = augment(pixels, epoch.augment(i), epoch.generator, share, len(chosen))
            loaded = time.perf_counter()
            with _located(epoch, i):
                result = trainer.step(pixels, labels[chosen[share]], epoch.lr(i), len(chosen))
            epoch.add_step(*result)
            epoch.seconds.data += loaded - started
            epoch.seconds.steps += time.perf_counter() - loaded
            progress.step(bar, epoch, len(chosen))
            if epoch.should_save:
                _save(epoch, trainer, save)


def _save(epoch: Epoch, trainer: Trainer, save: Callable[[TrainingState], None] | None) -> None:
    """Save the state after the steps so far, if it is finite."""
    if save is not None:
        with _located(epoch):
            trainer.check_finite()
        save(epoch.state(trainer))


@contextmanager
def _located(epoch: Epoch, step: int | None = None) -> Iterator[None]:
    """Say where numbers of the body are not finite: in a step, or else after those so far."""
    try:
        yield
    except NonFiniteError as error:
        i = max(epoch.steps - 1, 0) if step is None else step
        raise TrainingError(
            f"{error} at step {epoch.step_number(i) + 1} (epoch {epoch.number}), learning rate "
            f"{epoch.lr(i):.3g}: {_TRY}"
        ) from error


def _evaluate(trainer: Trainer, images: Tensor, labels: Tensor) -> Scores:
    """Return the averaged model's scores, summed over the processes' shares of the images."""
    share = trainer.processes.share(len(labels))
    mine, n = labels[share], len(labels)
    sums = torch.zeros(2, dtype=torch.float64, device=trainer.device)
    if len(mine):
        scores = score(trainer.ema.model, images[share], mine)
        own = [scores.accuracy * len(mine), scores.loss * (len(mine) / n)]
        sums += torch.tensor(own, dtype=torch.float64, device=trainer.device)
    correct, loss = trainer.processes.sum(sums).tolist()
    return Scores(accuracy=round(correct) / n, loss=loss)


def _tensors(data: LabelledImages) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(data.images), torch.from_numpy(data.labels).long()
