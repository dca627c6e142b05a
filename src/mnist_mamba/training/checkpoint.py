"""Checkpoints: a model's config and weights in one file that holds no code."""

from __future__ import annotations

import dataclasses
import io
import math
import sys
from pathlib import Path
from typing import Annotated, Any

import torch

from mnist_mamba.atomic_write import write_bytes
from mnist_mamba.config import Fraction, check_value, whole
from mnist_mamba.model import Classifier, ModelConfig, build_classifier
from mnist_mamba.scan.c_library import weight_shapes
from mnist_mamba.training.torch_file import (
    TorchFileError,
    check_like,
    load_plain,
    one_line,
    room,
    taken,
)

FORMAT = 1


class CheckpointError(ValueError):
    """A file that is not a usable checkpoint; the message says why."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model after some epoch, with its validation accuracy."""

    model: Classifier
    epoch: int
    val_accuracy: float | None


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> bytes:
    """Write a checkpoint, whole or not at all.

    Returns:
        The file's bytes, the same for the same content.
    """
    content = {
        "format": FORMAT,
        "config": _interned(checkpoint.model.config.to_dict()),
        # Clones, because torch.save writes all of the memory that a view belongs to.
        "model": {k: v.cpu().clone() for k, v in checkpoint.model.state_dict().items()},
        "epoch": checkpoint.epoch,
        "val_accuracy": checkpoint.val_accuracy,
    }
    # Not straight to the file: torch.save would store the temporary file's name in it.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())
    return buffer.getvalue()


def _interned(value: Any) -> Any:
    """Return a plain value with equal texts as one object, on which pickle's bytes depend."""
    if isinstance(value, dict):
        return {_interned(key): _interned(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_interned(one) for one in value]
    return sys.intern(value) if isinstance(value, str) else value


def load_checkpoint(path: Path, scan: str = "auto") -> Checkpoint:
    """Read a checkpoint without running any code in it.

    Args:
        path: the file.
        scan: backend of the scan, as in `MambaClassifier`.

    Returns:
        The checkpoint, its model in evaluation mode on the CPU.

    Raises:
        CheckpointError: missing, damaged, or not a checkpoint of this project.
        OSError: the file cannot be read.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} not found: run `python -m pipeline.train` first")
    data = path.read_bytes()
    try:
        content = load_plain(data)
    except TorchFileError as error:
        raise CheckpointError(f"{path} is not a checkpoint, or damaged: {error}") from error
    number = content.get("format") if isinstance(content, dict) else None
    if not isinstance(number, int) or number != FORMAT:  # a tensor is not equal to anything
        raise CheckpointError(f"{path} is not a checkpoint of this project (format {FORMAT})")
    try:
        return _checkpoint(content, len(data), scan)
    except ValueError as error:
        raise CheckpointError(
            f"{path} does not hold a complete model: {one_line(error)}"
        ) from error


def _checkpoint(content: dict[Any, Any], size: int, scan: str) -> Checkpoint:
    """Return the checkpoint that plain values describe; size is the file's, in bytes."""
    if missing := {"config", "model", "epoch", "val_accuracy"} - content.keys():
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    values, epoch, accuracy = content["config"], content["epoch"], content["val_accuracy"]
    if not isinstance(values, dict) or any(map(torch.is_tensor, values.values())):
        raise ValueError("its config is not a dictionary of numbers and text")
    config = ModelConfig.from_dict(values)
    if (described := weight_bytes(config)) > room(size):
        raise ValueError(f"its config describes {described} bytes of weights, got {size}")
    model = build_classifier(config, scan=scan)
    check_like(content["model"], model.state_dict(), "model")
    model.load_state_dict(content["model"])
    check_value("epoch", epoch, Annotated[int, whole(0, 10**9)])
    check_value("val_accuracy", 0 if accuracy is None else accuracy, Fraction)
    return Checkpoint(model.eval(), epoch, accuracy)


def weight_bytes(config: ModelConfig) -> int:
    """Return what a model's tensors take, without allocating them."""
    return sum(map(_member_bytes, config.member_configs))


def _member_bytes(config: ModelConfig) -> int:
    """Return what one classifier's tensors take."""
    width, norm = config.d_model, config.stem_norm == "batch"
    outer: list[tuple[int, ...]] = [(width,), (config.n_classes, width), (config.n_classes,)]
    outer += [(config.length, width)] * config.pos_embed
    if config.stem == "patch":
        outer += [(width, math.prod(config.patch), config.channels), (width,)]
    for inputs, outputs, _ in config.stem_convs:
        outer += [(outputs, inputs, 9), *(_norm_shapes(outputs) if norm else [(outputs,)])]
    directions = 2 if config.direction == "bidirectional" else 1
    layer = list(
        weight_shapes(
            width,
            config.d_inner,
            config.d_state,
            config.resolved_dt_rank,
            config.d_conv,
            config.a == "tied",
            directions,
        )
    )
    layer += [(width, 9), *_norm_shapes(width)] * config.local_conv
    shapes = [*outer, *config.n_layers * layer]
    return sum(taken(shape, torch.float32.itemsize) for shape in shapes)


def _norm_shapes(channels: int) -> list[tuple[int, ...]]:
    """Return the shapes of a batch norm: weight, bias, mean, variance, number of batches."""
    return [(channels,)] * 4 + [()]
