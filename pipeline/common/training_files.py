"""The files of a training: checkpoints, curves, metrics, and the state that it resumes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mnist_mamba.atomic_write import remove_leftovers, write_bytes, write_json
from mnist_mamba.training.checkpoint import Checkpoint, save_checkpoint
from mnist_mamba.training.epoch import CurvePoint, EpochReport, TrainingState
from mnist_mamba.training.resume import SavedTraining, save_training
from pipeline.common import paths


class TrainingFiles:
    """Writer of one training's files, which no other process writes at the same time.

    Args:
        folder: for the checkpoints and, while the training runs, its state.
        metrics: path of the metrics file.
        curves: path of the learning curves.
        key: identifies the training in its saved state.
        n_parameters: size of the model, for the metrics.
    """

    def __init__(
        self, folder: Path, metrics: Path, curves: Path, key: str, n_parameters: int
    ) -> None:
        self.last, self.best = folder / "last.pth", folder / "best_model.pth"
        self.state = folder / paths.TRAINING_STATE
        self.metrics, self.curves = metrics, curves
        self.key, self.n_parameters = key, n_parameters
        self.points: list[CurvePoint] = []
        self.best_checkpoint = b""

    def start(self, saved: SavedTraining | None) -> None:
        """Continue from a saved state, or remove the checkpoints of an earlier training."""
        if saved is None:
            self.last.unlink(missing_ok=True)
            self.best.unlink(missing_ok=True)
            return
        self.points, self.best_checkpoint = saved.points, saved.best_checkpoint
        if self.best_checkpoint:  # DVC has deleted the file
            write_bytes(self.best, self.best_checkpoint)

    def write_epoch(self, report: EpochReport) -> None:
        """Write the checkpoints, and curves and metrics up to this epoch."""
        self.points.append(report.curve_point())
        checkpoint = Checkpoint(report.model, report.epoch, report.val_accuracy)
        save_checkpoint(self.last, checkpoint)
        if _best(self.points) is self.points[-1]:
            self.best_checkpoint = save_checkpoint(self.best, checkpoint)
        write_json(self.curves, self.points)
        write_json(self.metrics, self._summary())

    def save_state(self, state: TrainingState) -> None:
        """Write the state from which the training can be resumed."""
        saved = SavedTraining(self.key, state, self.points, self.best_checkpoint)
        save_training(self.state, saved)

    def finish(self) -> None:
        """Remove the state of the completed training and temporary files of killed ones."""
        for path in (self.state, self.last, self.best, self.curves, self.metrics):
            remove_leftovers(path)
        self.state.unlink(missing_ok=True)

    def _summary(self) -> dict[str, Any]:
        last, best = self.points[-1], _best(self.points)
        val = {
            "accuracy": last["val_accuracy"],
            "loss": last["val_loss"],
            "best_accuracy": best["val_accuracy"],
            "best_epoch": best["epoch"],
        }
        return {
            **({} if last["val_loss"] is None else {"val": val}),
            "train": {"accuracy": last["train_accuracy"], "loss": last["train_loss"]},
            "epochs": last["epoch"],
            "parameters": self.n_parameters,
        }


def _best(points: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the first of the best epochs on validation; without validation, the last epoch."""
    if points[-1]["val_loss"] is None:
        return points[-1]
    return max(points, key=lambda point: (point["val_accuracy"], -point["val_loss"]))
