"""The file from which an interrupted training resumes."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from pathlib import Path

import torch

from mnist_mamba.atomic_write import write_bytes
from mnist_mamba.training.epoch import CurvePoint, TrainingState
from mnist_mamba.training.torch_file import load_plain

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
        # As text, because weights_only cannot read empty bytes.
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
        content = load_plain(body)
        points = content["points"]
        if not isinstance(points, list):
            raise TypeError(f"its points are a {type(points).__name__}, expected a list")
        return SavedTraining(
            key=str(content["key"]),
            state=TrainingState(**content["state"]),
            points=points,
            best_checkpoint=content["best_checkpoint"].encode("latin-1"),
        )
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise _error(name, f"does not hold a training's state: {error!r}") from error


def _error(name: Path, problem: str) -> ResumeError:
    return ResumeError(f"{name} {problem}; delete it, or omit --resume to start from scratch")
