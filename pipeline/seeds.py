"""`make seeds`, `make pixels`: score final models with the C engine on the test images."""

from __future__ import annotations

import argparse
import logging
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.common import command, paths
from pipeline.series import trainings as series

SCORED = ("seeds", "pixels")
"""Names of the series; results are in metrics/NAME.json, plots/NAME.png and docs/training.md."""


def parse_arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = command.parser(
        f"Run the trainings of a series in {series.SERIES_FILE} that have no record in its metrics "
        "file. The last averaged weights are scored on the test images.",
        ["python -m pipeline.seeds", "python -m pipeline.seeds pixels --jobs 1 --only forward"],
    )
    parser.add_argument("series", nargs="?", choices=SCORED, default=SCORED[0])
    series.add_options(parser)
    return parser.parse_args()


if __name__ == "__main__":
    command.run(parse_arguments)

import numpy as np
from numpy.typing import NDArray

from pipeline.common import plots
from pipeline.common.generated_tables import TRAINING_DOC, write_table
from pipeline.common.params import load_params
from pipeline.common.run_engine import run_engine
from pipeline.export import export_model
from pipeline.series.engine_speed import Speed, mean_speed, time_fraction, time_series

logger = logging.getLogger(__name__)


def measure(training: series.Training) -> series.TrainingRecord:
    """Train and return the record: the C engine's accuracy with the last averaged weights."""
    metrics = series.train(training)
    model = training.folder / "model.bin"
    export_model(training.folder / "last.pth", model, training.params)
    report = score(model)
    record = {
        "test_accuracy": report["correct"] / report["n"],
        "params": metrics["parameters"],
    }
    if training.params.model.members > 1:
        changed = predictions(model) != predictions(model, "--exit-margin", "0")
        record["members_asked"] = report["members_asked_mean"]
        record["predictions_changed"] = int(changed.sum())
        record["time_fraction"] = time_fraction(model, paths.images(paths.PREPARED, "test"))
    return record


def score(model: Path, *options: str | Path) -> dict[str, Any]:
    """Return the engine's report on the test images."""
    test = (paths.images(paths.PREPARED, "test"), paths.labels(paths.PREPARED, "test"))
    return run_engine("eval", model, *test, *options)


def predictions(model: Path, *options: str) -> NDArray[np.intp]:
    """Return the engine's class (n,) of each test image."""
    logits = model.with_name("logits.f32")
    report = score(model, "--logits", logits, *options)
    classes: NDArray[np.intp] = np.fromfile(logits, "<f4").reshape(report["n"], -1).argmax(axis=1)
    return classes


def summary(records: series.Records) -> dict[str, Any]:
    """Return the results file's "runs": each run's accuracies in the order of the seeds."""
    runs: dict[str, Any] = {}
    for name, run in records.items():
        accuracies = [record["test_accuracy"] for record in run]
        runs[name] = {
            "params": run[0]["params"],
            "test_accuracy": accuracies,
            **series.spread(accuracies),
        }
        if fractions := [one["time_fraction"] for one in run if "time_fraction" in one]:
            runs[name]["time_fraction"] = round(statistics.fmean(fractions), 3)
        runs[name]["trainings"] = run
    return runs


def table(results: Mapping[str, Any], speed: Speed) -> str:
    """Return the table for docs/training.md."""
    lines = [
        "| run | parameters | test accuracy | of each seed, % | µs per image |",
        "|---|---:|---:|---|---:|",
    ]
    for name, run in results.items():
        each = ", ".join(f"{100 * value:.2f}" for value in run["test_accuracy"])
        us = f"{speed[name]['b100']:,.0f}" if name in speed else ""
        lines.append(
            f"| {name} | {run['params']:,} | {series.plus_minus(run, '.2%')} | {each} | {us} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the missing trainings, time the models, and write metrics, plot and table."""
    arguments = parse_arguments()
    name = arguments.series
    chosen = series.load_series(name)
    wanted = series.trainings(chosen, load_params())
    results = paths.METRICS / f"{name}.json"
    runs = series.run_missing(chosen, wanted, results, arguments, measure, summary)
    speed = mean_speed(time_series(name, wanted, arguments), runs)
    plots.draw_tradeoff(paths.PLOTS / f"{name}.png", runs, speed, "test", marked="default")
    write_table(TRAINING_DOC, name, table(runs, speed))
    for run, result in runs.items():
        accuracies = ", ".join(f"{value:.2%}" for value in result["test_accuracy"])
        logger.info("%s: %.3f%% (%s)", run, 100 * result["mean"], accuracies)


if __name__ == "__main__":
    command.run(main)
