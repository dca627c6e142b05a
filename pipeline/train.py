"""Stage `train`: learn a model, keep its best and its last averaged weights."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import torch

from mnist_mamba.data.idx import read_images, read_labels
from mnist_mamba.data.splits import LabelledImages
from mnist_mamba.files import write_json
from mnist_mamba.model import MambaClassifier
from mnist_mamba.scan import choose
from mnist_mamba.training.checkpoint import Checkpoint, save_checkpoint
from mnist_mamba.training.loop import EpochReport, train
from pipeline import paths, stage, tracking
from pipeline.params import Params, load_params, parse_params

logger = logging.getLogger(__name__)

OVERRIDES = ("batch_size", "epochs", "learning_rate")


def parse_arguments() -> argparse.Namespace:
    """The command line; what is not given comes from params.yaml."""
    parser = stage.parser(
        "Train a model on data/prepared. Options that are not given come from params.yaml. With "
        "options of your own, metrics and curves stand beside the checkpoints, so that they are "
        "not taken for the pipeline's.",
        [
            "python -m pipeline.train",
            "python -m pipeline.train --epochs 2 --learning-rate 3e-3 --save-dir /tmp/quick",
            "dvc exp run -S train.epochs=20",
        ],
    )
    parser.add_argument("--batch-size", type=int, help="images a step (train.batch_size)")
    parser.add_argument("--epochs", type=int, help="passes over the images (train.epochs)")
    parser.add_argument("--learning-rate", type=float, help="peak learning rate (train.lr)")
    parser.add_argument(
        "--save-dir", type=Path, default=paths.CHECKPOINTS, help="default: %(default)s"
    )
    return parser.parse_args()


def with_overrides(params: Params, arguments: argparse.Namespace) -> Params:
    """Params with the command line's values, checked like the file's."""
    values = params.model_dump()
    for name in OVERRIDES:
        if (value := getattr(arguments, name)) is not None:
            values["train"][{"learning_rate": "lr"}.get(name, name)] = value
    return parse_params(values, "command line")


def load_part(part: str) -> LabelledImages:
    """A part of the prepared data."""
    return LabelledImages(
        read_images(paths.images(paths.PREPARED, part)),
        read_labels(paths.labels(paths.PREPARED, part)),
    )


def build_model(params: Params, info: dict[str, Any]) -> MambaClassifier:
    """A fresh model for the prepared data."""
    config = params.model.config(
        info["height"],
        info["width"],
        info["n_classes"],
        pixel_mean=info["pixel_mean"],
        pixel_std=info["pixel_std"],
    )
    torch.manual_seed(params.train.seed)
    return MambaClassifier(config, scan=params.train.scan)


def choose_device(name: str) -> str:
    """The device's name for torch.

    Raises:
        ValueError: a GPU was asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("train.device = cuda: PyTorch sees no GPU here; use cpu or auto")
    return "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"


class Recorder:
    """Writes what a run leaves behind, after each epoch."""

    def __init__(self, save_dir: Path, metrics: Path, curves: Path, n_parameters: int) -> None:
        self.save_dir, self.metrics, self.curves = save_dir, metrics, curves
        self.n_parameters = n_parameters
        self.points: list[dict[str, float | int]] = []
        self.best: EpochReport | None = None

    def record(self, report: EpochReport) -> None:
        """Checkpoints, curves and metrics up to this epoch."""
        self.points.append(report.curve_point())
        checkpoint = Checkpoint(report.model, report.epoch, report.val_accuracy)
        save_checkpoint(self.save_dir / "last.pth", checkpoint)
        if self.best is None or _rank(report) > _rank(self.best):
            self.best = report
            save_checkpoint(self.save_dir / "best_model.pth", checkpoint)
        write_json(self.curves, self.points)
        write_json(self.metrics, self._summary(report))

    def _summary(self, report: EpochReport) -> dict[str, Any]:
        assert self.best is not None
        return {
            "val": {
                "accuracy": report.val_accuracy,
                "loss": report.val_loss,
                "best_accuracy": self.best.val_accuracy,
                "best_epoch": self.best.epoch,
            },
            "train": {"accuracy": report.train_accuracy, "loss": report.train_loss},
            "epochs": report.epoch,
            "parameters": self.n_parameters,
        }


def _rank(report: EpochReport) -> tuple[float, float]:
    return report.val_accuracy, -report.val_loss


def main() -> None:
    """Train as params.yaml and the command line say."""
    arguments = parse_arguments()
    params = with_overrides(load_params(), arguments)
    of_the_pipeline = params == load_params() and arguments.save_dir == paths.CHECKPOINTS
    if params.train.threads:
        torch.set_num_threads(params.train.threads)
    device = choose_device(params.train.device)
    backend = choose(params.train.scan, torch.device(device))
    info = json.loads(paths.DATA_INFO.read_text())
    model = build_model(params, info)
    logger.info(
        "%d parameters, %d tokens an image, scan %s on %s, %d threads",
        model.n_parameters,
        model.config.length,
        backend,
        device,
        torch.get_num_threads(),
    )
    folder = arguments.save_dir
    recorder = Recorder(
        folder,
        paths.METRICS / "train.json" if of_the_pipeline else folder / "metrics.json",
        paths.CURVES if of_the_pipeline else folder / "curves.json",
        model.n_parameters,
    )
    with tracking.live_run(params, enabled=of_the_pipeline) as log_point:
        reports = train(model, load_part("train"), load_part("val"), params.train.config(), device)
        for report in reports:
            recorder.record(report)
            log_point(report.curve_point())
            logger.info(
                "epoch %d/%d  loss %.4f  val loss %.4f  val accuracy %.4f  %.0f images/s",
                report.epoch,
                params.train.epochs,
                report.train_loss,
                report.val_loss,
                report.val_accuracy,
                report.images_per_s,
            )


if __name__ == "__main__":
    stage.run(main)
