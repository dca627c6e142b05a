"""Stage `evaluate`: score the C engine on the test images and compare it with PyTorch."""

from __future__ import annotations

import csv
import io
import json
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.common import command, paths
from pipeline.common.options import parse_params
from pipeline.common.params import Params

PARSER = command.parser(__doc__ or "")

if __name__ == "__main__":
    command.run(lambda: parse_params(PARSER))

import numpy as np
import torch
from numpy.typing import NDArray

from mnist_mamba.atomic_write import write_json, write_text
from mnist_mamba.data.corruptions import CORRUPTIONS
from mnist_mamba.data.idx import read_images, read_labels, write_idx
from mnist_mamba.metrics import balanced_accuracy, class_rates, expected_calibration_error, macro_f1
from mnist_mamba.training.checkpoint import load_checkpoint
from mnist_mamba.training.evaluation import predict
from pipeline.common import plots
from pipeline.common.run_engine import run_engine

logger = logging.getLogger(__name__)


class ParityError(RuntimeError):
    """The C engine's results differ from PyTorch's."""


def engine_logits(images: Path, labels: Path) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """Return the logits [n, n_classes] of `mamba eval` and its report."""
    with tempfile.TemporaryDirectory() as scratch:
        logits = Path(scratch) / "logits.f32"
        report = run_engine("eval", paths.MODEL, images, labels, "--logits", logits)
        return np.fromfile(logits, dtype="<f4").reshape(report["n"], -1), report


def robustness(images: NDArray[np.uint8], label_file: Path, params: Params) -> dict[str, Any]:
    """Return the engine's accuracy on corrupted images: {"shift": {"5": 0.99, ...}, ...}."""
    table: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "images.idx"
        for name, strengths in params.evaluate.robustness.model_dump().items():
            for strength in strengths:
                write_idx(file, CORRUPTIONS[name](images, strength))
                report = run_engine("eval", paths.MODEL, file, label_file)
                table.setdefault(name, {})[str(strength)] = report["correct"] / report["n"]
    return table


def summarise(
    engine: NDArray[np.float32],
    reference: NDArray[np.float32],
    labels: NDArray[np.uint8],
    ece_bins: int,
    names: Sequence[str],
) -> dict[str, Any]:
    """Return metrics/eval.json's content from the engine's and PyTorch's logits [n, n_classes].

    Likelihood and calibration are rounded to digits that are equal for all instruction sets.
    """
    predictions = engine.argmax(axis=1)
    correct = int((predictions == labels).sum())
    log_probabilities = torch.from_numpy(engine).double().log_softmax(dim=1).numpy()
    rates = class_rates(predictions, labels, names)
    of_labels = log_probabilities[np.arange(len(labels)), labels]
    return {
        "accuracy": correct / len(labels),
        "correct": correct,
        "n_test": len(labels),
        "balanced_accuracy": balanced_accuracy(rates),
        "macro_f1": macro_f1(rates, predictions),
        "nll": round(-float(of_labels.mean()), 5),
        "ece": round(expected_calibration_error(np.exp(log_probabilities), labels, ece_bins), 5),
        "parity": {
            "max_abs_logit_diff": float(np.abs(engine - reference).max()),
            "prediction_mismatches": int((predictions != reference.argmax(axis=1)).sum()),
        },
        "per_class": rates,
    }


def table(labels: NDArray[np.uint8], predictions: NDArray[np.intp], names: Sequence[str]) -> str:
    """Return each image's class and its prediction, by their names, as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("index", "label", "predicted"))
    for i, (label, predicted) in enumerate(zip(labels, predictions, strict=True)):
        writer.writerow((i, names[label], names[predicted]))
    return text.getvalue()


def draw_figures(
    images: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    engine: NDArray[np.float32],
    metrics: dict[str, Any],
    ece_bins: int,
    names: Sequence[str],
) -> None:
    """Draw the pictures in paths.FIGURES; `engine` has the C engine's logits [n, n_classes]."""
    probabilities = torch.from_numpy(engine).double().softmax(dim=1).numpy()
    file = {path.stem: path for path in paths.FIGURES}
    plots.draw_curves(file["curves"], json.loads(paths.CURVES.read_text(encoding="utf-8")))
    plots.draw_confusion(file["confusion"], labels, engine.argmax(axis=1), names)
    plots.draw_predictions(file["predictions"], images, labels, probabilities, names)
    plots.draw_misclassified(file["misclassified"], images, labels, probabilities, names)
    plots.draw_reliability(file["reliability"], probabilities, labels, ece_bins)
    plots.draw_robustness(file["robustness"], metrics["accuracy"], metrics["robustness"])


def check(metrics: dict[str, Any], report: dict[str, Any], params: Params) -> None:
    """Check that the engine agrees with PyTorch and with its own report.

    Raises:
        ParityError: logits differ too much, predictions differ, or the report's count is wrong.
    """
    difference = metrics["parity"]["max_abs_logit_diff"]
    ceiling = params.evaluate.max_abs_logit_diff
    if not difference <= ceiling:
        raise ParityError(
            f"the C engine's logits differ from PyTorch's by up to {difference:.3g}, expected up "
            f"to {ceiling:.3g} (evaluate.max_abs_logit_diff)"
        )
    if mismatches := metrics["parity"]["prediction_mismatches"]:
        raise ParityError(
            f"{mismatches} predictions of the C engine differ from PyTorch's, expected 0"
        )
    if report["correct"] != metrics["correct"]:
        raise ParityError(
            f"mamba eval reports {report['correct']} correct predictions, expected "
            f"{metrics['correct']} by its logits"
        )


def main() -> None:
    """Score the engine, compare it with PyTorch, and write metrics, predictions and plots."""
    params = parse_params(PARSER)
    image_file = paths.images(paths.PREPARED, "test")
    label_file = paths.labels(paths.PREPARED, "test")
    engine, report = engine_logits(image_file, label_file)
    images, labels = read_images(image_file), read_labels(label_file)
    checkpoint = paths.CHECKPOINTS / f"{params.export.checkpoint}.pth"
    # The reference scan in plain PyTorch defines the correct results.
    model = load_checkpoint(checkpoint, scan="reference").model
    reference = predict(model, torch.from_numpy(images)).numpy()
    names = model.config.class_names or [str(label) for label in range(engine.shape[1])]
    metrics = summarise(engine, reference, labels, params.evaluate.ece_bins, names)
    metrics["model"] = {
        "parameters": model.n_parameters,
        "file_bytes": paths.MODEL.stat().st_size,
    }
    metrics["robustness"] = robustness(images, label_file, params)
    write_json(paths.METRICS / "eval.json", metrics)
    write_text(paths.PREDICTIONS, table(labels, engine.argmax(axis=1), names))
    draw_figures(images, labels, engine, metrics, params.evaluate.ece_bins, names)
    check(metrics, report, params)
    logger.info(
        "C engine: %d of %d correct (%.4f); logits within %.1e of PyTorch's, %d predictions differ",
        metrics["correct"],
        metrics["n_test"],
        metrics["accuracy"],
        metrics["parity"]["max_abs_logit_diff"],
        metrics["parity"]["prediction_mismatches"],
    )


if __name__ == "__main__":
    command.run(main)
