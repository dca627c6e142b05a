"""Stage `evaluate`: score the C engine on the test images and compare it with PyTorch."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
from mnist_mamba.early_exit import changed_predictions, members_asked
from mnist_mamba.engine.format import WEIGHT_TYPES, encode, read_model
from mnist_mamba.export import load_model
from mnist_mamba.metrics import balanced_accuracy, class_rates, macro_f1, quality
from mnist_mamba.model import Classifier, MambaEnsemble
from mnist_mamba.training import evaluation
from mnist_mamba.training.checkpoint import load_checkpoint
from pipeline.common import plots
from pipeline.common.run_engine import run_engine

logger = logging.getLogger(__name__)


class ParityError(RuntimeError):
    """The C engine's results differ from PyTorch's."""


class Answers(NamedTuple):
    """Answers of the engine or of PyTorch to the test images."""

    logits: NDArray[np.float32]
    """[n, n_classes] of the members asked."""
    asked: NDArray[np.integer[Any]]
    """[n] members asked."""
    whole: NDArray[np.float32]
    """[n, n_classes] of all members."""


def engine_answers(images: Path, labels: Path) -> tuple[Answers, dict[str, Any]]:
    """Return the answers of `mamba eval`, and its report."""
    with tempfile.TemporaryDirectory() as scratch:
        files = [Path(scratch) / name for name in ("logits", "asked", "whole")]
        evaluated = ("eval", paths.MODEL, images, labels)
        report = run_engine(*evaluated, "--logits", files[0], "--asked", files[1])
        run_engine(*evaluated, "--logits", files[2], "--exit-margin", 0)
        logits, whole = (
            np.fromfile(file, dtype="<f4").reshape(report["n"], -1) for file in (files[0], files[2])
        )
        return Answers(logits, np.fromfile(files[1], dtype=np.uint8), whole), report


def pytorch_answers(model: Classifier, images: NDArray[np.uint8], exit_margin: float) -> Answers:
    """Return the answers of a model with this exit margin."""
    pixels = torch.from_numpy(images)
    if not isinstance(model, MambaEnsemble):
        logits = evaluation.predict(model, pixels).numpy()
        return Answers(logits, np.ones(len(logits), dtype=np.uint8), logits)
    model.exit_margin = 0.0
    whole = evaluation.predict(model, pixels).numpy()
    model.exit_margin = exit_margin
    answers, asked = evaluation.answers(model, pixels)
    return Answers(answers.numpy(), asked.numpy(), whole)


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
    engine: Answers,
    reference: Answers,
    labels: NDArray[np.uint8],
    ece_bins: int,
    names: Sequence[str],
) -> dict[str, Any]:
    """Return metrics/eval.json's content from the engine's and PyTorch's answers."""
    predictions = engine.logits.argmax(axis=1)
    rates = class_rates(predictions, labels, names)
    return {
        **quality(engine.logits, labels, ece_bins),
        "correct": int((predictions == labels).sum()),
        "n_test": len(labels),
        "balanced_accuracy": balanced_accuracy(rates),
        "macro_f1": macro_f1(rates, predictions),
        "parity": parity(engine, reference),
        "per_class": rates,
    }


def parity(engine: Answers, reference: Answers) -> dict[str, Any]:
    """Return how far the engine's answers are from PyTorch's, with early exits and without."""
    pairs = ((engine.logits, reference.logits), (engine.whole, reference.whole))
    return {
        "max_abs_logit_diff": max(float(np.abs(ours - theirs).max()) for ours, theirs in pairs),
        "prediction_mismatches": sum(
            int((ours.argmax(axis=1) != theirs.argmax(axis=1)).sum()) for ours, theirs in pairs
        ),
        "members_asked_mismatches": int((engine.asked != reference.asked).sum()),
    }


def early_exit(
    engine: Answers, members: int, labels: NDArray[np.uint8], ece_bins: int
) -> dict[str, Any]:
    """Return how many members the engine asked, and how its answers differ from all members'."""
    logits, asked, whole = (torch.from_numpy(values) for values in engine)
    return {
        "members_asked": members_asked(asked, members),
        "predictions_changed": changed_predictions(logits, whole),
        "all_members": quality(engine.whole, labels, ece_bins),
    }


def rounding(engine: Answers, unrounded: Answers, labels: NDArray[np.uint8]) -> dict[str, Any]:
    """Return what int8 weights changed: the engine's answers against those of the checkpoint.

    Likelihood, accuracy and bytes are those that the float32 file has.
    """
    file = read_model(paths.MODEL)
    header = file.header | {"weight_type": WEIGHT_TYPES.index("float32")}
    before = quality(unrounded.logits, labels, bins=1)
    return {
        "max_abs_logit_diff": float(np.abs(engine.logits - unrounded.logits).max()),
        "prediction_mismatches": int(
            (engine.logits.argmax(axis=1) != unrounded.logits.argmax(axis=1)).sum()
        ),
        "float32_accuracy": before["accuracy"],
        "float32_nll": before["nll"],
        "float32_file_bytes": len(encode(dataclasses.replace(file, header=header))),
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
    for what in ("prediction", "members_asked"):
        if mismatches := metrics["parity"][f"{what}_mismatches"]:
            named = "numbers of members asked" if what == "members_asked" else "predictions"
            raise ParityError(
                f"{mismatches} {named} of the C engine differ from PyTorch's, expected 0"
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
    engine, report = engine_answers(image_file, label_file)
    images, labels = read_images(image_file), read_labels(label_file)
    checkpoint = paths.CHECKPOINTS / f"{params.export.checkpoint}.pth"
    # The reference scan in plain PyTorch defines the correct results.
    model = load_checkpoint(checkpoint, scan="reference").model
    margin = read_model(paths.MODEL).header["exit_margin"]
    trained = reference = pytorch_answers(model, images, margin)
    is_int8 = params.export.weight_type == "int8"
    if is_int8:  # the same rounded weights as the engine's
        reference = pytorch_answers(load_model(paths.MODEL, scan="reference"), images, margin)
    names = model.config.resolved_class_names
    metrics = summarise(engine, reference, labels, params.evaluate.ece_bins, names)
    metrics["model"] = {
        "parameters": model.n_parameters,
        "file_bytes": paths.MODEL.stat().st_size,
    }
    metrics["early_exit"] = early_exit(
        engine, model.config.members, labels, params.evaluate.ece_bins
    )
    if is_int8:
        metrics["rounding"] = rounding(engine, trained, labels)
    metrics["robustness"] = robustness(images, label_file, params)
    write_json(paths.METRICS / "eval.json", metrics)
    write_text(paths.PREDICTIONS, table(labels, engine.logits.argmax(axis=1), names))
    draw_figures(images, labels, engine.logits, metrics, params.evaluate.ece_bins, names)
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
