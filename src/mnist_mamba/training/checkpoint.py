"""Checkpoints: a model's config and weights in one file that holds no code."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import torch

from mnist_mamba.atomic_write import write_bytes
from mnist_mamba.model import Classifier, ModelConfig, build_classifier

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
        "config": checkpoint.model.config.to_dict(),
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
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes raise many kinds of errors in torch's parsers
        # Not torch's own message, which advises to load the file without weights_only.
        reason = f"torch.load(weights_only=True) refuses its {len(data)} bytes"
        raise CheckpointError(f"{path} is not a checkpoint, or damaged: {reason}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of this project (format {FORMAT})")
    try:
        model = build_classifier(ModelConfig.from_dict(content["config"]), scan=scan)
        model.load_state_dict(content["model"])
        accuracy = content["val_accuracy"]
        accuracy = None if accuracy is None else float(accuracy)
        return Checkpoint(model.eval(), int(content["epoch"]), accuracy)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{path} does not hold a complete model: {error}") from error
