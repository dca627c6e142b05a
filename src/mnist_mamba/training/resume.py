"""The file from which an interrupted training resumes."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import math
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from mnist_mamba.atomic_write import write_bytes
from mnist_mamba.config import check_value, whole
from mnist_mamba.training.epoch import CurvePoint, TrainingState, check_point
from mnist_mamba.training.torch_file import check_like, load_plain, one_line
from mnist_mamba.training.trainer import Trainer

MAGIC = b"mnist-mamba training state 1\n"
_DIGEST = hashlib.sha256


class ResumeError(ValueError):
    """A file from which no training can resume; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class SavedTraining:
    """A training's state, with the results so far."""

    key: str
    """Key of the run: the same for the same model, data, settings and code."""
    state: TrainingState
    points: list[CurvePoint]
    """Points of the learning curves, one per finished epoch."""
    best_checkpoint: bytes
    """Bytes of the best epoch's checkpoint; empty before the first epoch's end."""


def save_training(path: Path, saved: SavedTraining) -> None:
    """Write a training's state, whole or not at all."""
    content = {
        "key": saved.key,
        "state": vars(saved.state),  # asdict would copy every tensor
        "points": saved.points,
        # As text, because load_plain refuses bytes.
        "best_checkpoint": saved.best_checkpoint.decode("latin-1"),
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    data = buffer.getvalue()
    write_bytes(path, MAGIC + _DIGEST(data).digest() + data)


def parse_training(data: bytes, name: Path) -> SavedTraining:
    """Parse what `save_training` wrote, on the CPU, without running any code in it.

    Args:
        data: the file's bytes.
        name: the file's path, for error messages.

    Raises:
        ResumeError: not such a file, or damaged.
    """
    start = len(MAGIC) + _DIGEST().digest_size
    if not data.startswith(MAGIC):
        raise _error(name, f"begins with {data[: len(MAGIC)]!r}, expected {MAGIC!r}")
    digest, body = data[len(MAGIC) : start], data[start:]
    if _DIGEST(body).digest() != digest:
        raise _error(name, f"is damaged: its {len(data)} bytes do not match their SHA-256")
    try:
        return _parse(load_plain(body))
    except ValueError as error:
        raise _error(name, f"does not hold a training's state: {one_line(error)}") from error


def restore(trainer: Trainer, state: TrainingState, n_images: int) -> None:
    """Set a trainer to a saved state of its training.

    Args:
        trainer: of the same model and config.
        state: the state.
        n_images: size of the training set.

    Raises:
        ResumeError: the state belongs to another model, config or training set.
    """
    config = trainer.config
    batch_size = config.images_per_step(n_images)
    per_epoch = math.ceil(n_images / batch_size)
    seen = min(state.steps * batch_size, n_images)
    steps = (state.epoch - 1) * per_epoch + state.steps
    try:
        check_value("epoch", state.epoch, Annotated[int, whole(1, config.epochs)])
        check_value("steps", state.steps, Annotated[int, whole(0, per_epoch - 1)])
        check_value("correct", state.correct, Annotated[int, whole(0, seen)])
        check_like(state.generator, torch.Generator().get_state(), "generator")
        _check_generator(state.generator)
        trainer.load_state_dict(state.trainer)
        if trainer.ema.steps != steps:
            raise ValueError(f"its average has {trainer.ema.steps} steps, expected {steps}")
    except (ValueError, RuntimeError) as error:
        raise _error("the saved state", f"does not fit this training: {one_line(error)}") from error


def _check_generator(state: Tensor) -> None:
    """Check the position of a Mersenne Twister: torch reads numbers there without a check."""
    left, place = int(state[8:12].view(torch.int32)), int(state[16:24].view(torch.int64))
    if (left, place) != (1, 0) and not (1 <= left <= 624 and left + place == 625):
        raise ValueError(f"generator: it has {left} of its 624 numbers left at place {place}")
    torch.Generator().set_state(state)


def _parse(content: Any) -> SavedTraining:
    """Return the training that plain values describe."""
    _check_names(content, SavedTraining)
    _check_names(content["state"], TrainingState)
    for name, kind in (("key", str), ("points", list), ("best_checkpoint", str)):
        check_value(name, content[name], kind)
    state, points = TrainingState(**content["state"]), content["points"]
    if len(points) != state.epoch - 1:
        raise ValueError(f"it has {len(points)} points of curves in epoch {state.epoch}")
    for i, point in enumerate(points, start=1):
        check_point(point, i)
    return SavedTraining(
        content["key"], state, points, content["best_checkpoint"].encode("latin-1")
    )


def _check_names(values: Any, kind: type[Any]) -> None:
    names = [field.name for field in dataclasses.fields(kind)]
    if not isinstance(values, dict) or values.keys() != set(names):
        raise ValueError(f"expected a dictionary of {', '.join(names)}")


def _error(name: Path | str, problem: str) -> ResumeError:
    return ResumeError(f"{name} {problem}; delete it, or omit --resume to start from scratch")
