"""The file from which a training that was stopped goes on."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from pathlib import Path
from typing import Any

import torch

from mnist_mamba.atomic_write import write_bytes
from mnist_mamba.training.epoch import CurvePoint, TrainingState

MAGIC = b"mnist-mamba training state 1\n"
_DIGEST = hashlib.sha256


class ResumeError(ValueError):
    """A file that no training can go on from; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class SavedTraining:
    """A training's state, with what it had made by then."""

    key: str
    """Names the run: the same for the same model, data, settings and code."""
    state: TrainingState
    points: list[CurvePoint]
    """Of the learning curves, one for each epoch that has ended."""
    best_checkpoint: bytes
    """The best epoch's file; empty before the first has ended."""


def save_training(path: Path, saved: SavedTraining) -> None:
    """Write a training's state, whole or not at all."""
    # asdict would copy every tensor.
    state = {field.name: getattr(saved.state, field.name) for field in _FIELDS}
    content = {
        "key": saved.key,
        "state": state,
        "points": saved.points,
        # Not as bytes, which weights_only does not read when there are none.
        "best_checkpoint": saved.best_checkpoint.decode("latin-1"),
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    data = buffer.getvalue()
    write_bytes(path, MAGIC + _DIGEST(data).digest() + data)


def parse_training(data: bytes, name: Path) -> SavedTraining:
    """What `save_training` wrote, on the CPU; nothing in it is run. `name` is for the errors.

    Raises:
        ResumeError: something else, or damaged.
    """
    start = len(MAGIC) + _DIGEST().digest_size
    if not data.startswith(MAGIC):
        raise _error(name, f"begins with {data[: len(MAGIC)]!r}, expected {MAGIC!r}")
    digest, body = data[len(MAGIC) : start], data[start:]
    if _DIGEST(body).digest() != digest:
        raise _error(name, f"is damaged: its {len(data)} bytes do not have the SHA-256 in it")
    try:
        content = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
        return _parse(content)
    except Exception as error:  # whatever the bytes lead torch's parsers to
        raise _error(name, f"does not hold what was expected: {error!r}") from error


_FIELDS = dataclasses.fields(TrainingState)


def _parse(content: Any) -> SavedTraining:
    return SavedTraining(
        key=str(content["key"]),
        state=TrainingState(**content["state"]),
        points=list(content["points"]),
        best_checkpoint=content["best_checkpoint"].encode("latin-1"),
    )


def _error(name: Path, problem: str) -> ResumeError:
    return ResumeError(
        f"{name} {problem}; delete it or leave --resume away, and training starts anew"
    )
