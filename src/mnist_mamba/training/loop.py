"""The training loop: epochs of steps, each followed by an evaluation and a report."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mnist_mamba.config import TrainConfig
from mnist_mamba.data.augment import augment
from mnist_mamba.data.splits import LabelledImages
from mnist_mamba.model import Classifier
from mnist_mamba.training.distributed import ALONE, Processes
from mnist_mamba.training.epoch import Epoch, EpochReport, TrainingState
from mnist_mamba.training.evaluation import Scores, score
from mnist_mamba.training.resume import restore
from mnist_mamba.training.trainer import NonFiniteError, Trainer

_TRY = (
    "expected a finite number; try a lower train.lr, a longer train.warmup, or a small "
    "train.clip_norm (0 turns clipping off)"
)


class TrainingError(RuntimeError):
    """A training that cannot continue; the message says at which step and why."""


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
) -> Iterator[EpochReport]:
    """Train `model` in place, yielding a report after each epoch.

    The order of images and their augmentation depend only on the seed and the epoch: the same
    seed, machine, thread count and number of processes give the same weights, bit for bit, also
    when resumed.

    Args:
        model: the model, the same in all processes and in a resumed training.
        train_set: (n, height, width) uint8 images and (n,) labels.
        val_set: images to evaluate on after each epoch, or None.
        config: how to train.
        device: torch's name of the device.
        progress: whether to show a progress bar if there is a terminal.
        processes: the processes that train together.
        state: where to continue, as `save` received it; None starts from the beginning.
        save: receives the state every `config.save_every` steps and after the report of each
            epoch but the last. The next step changes the state's tensors.

    Yields:
        The report of each epoch, with the averaged model.

    Raises:
        TrainingError: a NaN or infinite loss or gradient; the weights are those before that step.
        ResumeError: the state does not fit the model, the images or the config.
    """
    trainer = Trainer(model, config, device, processes)
    if state is not None:
        restore(trainer, state, len(train_set.labels))
    images, labels = _tensors(train_set)
    val_tensors = None if val_set is None else _tensors(val_set)
    first = 1 if state is None else state.epoch
    began = time.perf_counter()
    done = 0 if state is None else (first - 1) * len(labels) + state.steps * config.batch_size

    def seconds_left(epoch: Epoch) -> float:
        """Estimate the time left from the pace since this process began."""
        seen = epoch.images_seen_total
        return (time.perf_counter() - began) / (seen - done) * (config.epochs * len(labels) - seen)

    for number in range(first, config.epochs + 1):
        epoch = Epoch(number, len(labels), config)
        if state is not None and number == first:
            epoch.resume(state)
        elif number > 1 and save is not None:
            save(epoch.state(trainer))
        _run_epoch(epoch, trainer, images, labels, seconds_left, progress, save)
        started = time.perf_counter()
        scores = None if val_tensors is None else _evaluate(trainer, *val_tensors)
        epoch.seconds.evaluation = time.perf_counter() - started
        if scores is not None and not math.isfinite(scores.loss):
            raise TrainingError(
                f"the validation loss is {scores.loss} after epoch {number}: {_TRY}"
            )
        yield epoch.report(scores, seconds_left(epoch), trainer.ema.model)


def _run_epoch(
    epoch: Epoch,
    trainer: Trainer,
    images: Tensor,
    labels: Tensor,
    seconds_left: Callable[[Epoch], float],
    progress: bool,
    save: Callable[[TrainingState], None] | None,
) -> None:
    """Take the remaining steps of an epoch."""
    with _bar(epoch, progress) as bar:
        for i in range(epoch.steps, len(epoch.batches)):
            started = time.perf_counter()
            chosen = epoch.batches[i]
            share = trainer.processes.share(len(chosen))
            pixels = images[chosen[share]].float() / 255
            pixels = augment(pixels, epoch.augment(i), epoch.generator, share, len(chosen))
            loaded = time.perf_counter()
            try:
                result = trainer.step(pixels, labels[chosen[share]], epoch.lr(i), len(chosen))
            except NonFiniteError as error:
                raise TrainingError(
                    f"{error} at step {epoch.step_number(i) + 1} (epoch {epoch.number}), learning "
                    f"rate {epoch.lr(i):.3g}: {_TRY}"
                ) from error
            epoch.add_step(*result)
            epoch.seconds.data += loaded - started
            epoch.seconds.steps += time.perf_counter() - loaded
            seen, left = epoch.images_seen, tqdm.format_interval(seconds_left(epoch))
            scores = f"loss {epoch.loss_sum / seen:.4f}, accuracy {epoch.correct / seen:.4f}"
            bar.set_postfix_str(f"{scores}, all epochs in {left}", refresh=False)
            bar.update(len(chosen))
            if save is not None and epoch.should_save:
                save(epoch.state(trainer))


def _bar(epoch: Epoch, progress: bool) -> tqdm[Any]:
    """Return a progress bar over images, drawn only on a terminal."""
    return tqdm(
        desc=f"epoch {epoch.number}/{epoch.config.epochs}",
        total=epoch.n_images,
        initial=epoch.images_seen,
        unit=" images",
        disable=None if progress else True,
        mininterval=1,
        leave=False,
    )


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
