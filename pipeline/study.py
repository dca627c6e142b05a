"""`make study`: compare trainings that differ in one choice each, on validation images."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from pipeline.common import command, paths
from pipeline.series import trainings as series

NAME = "study"
RESULTS = paths.METRICS / "study.json"
PLOT = paths.PLOTS / "study.png"


def parse_arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = command.parser(
        f"Run the trainings of the series `{NAME}` in {series.SERIES_FILE} that have no record in "
        f"{RESULTS}. They are compared on validation images; test images are not read.",
        ["python -m pipeline.study", "python -m pipeline.study --jobs 1 --only base state16"],
    )
    series.add_options(parser)
    return parser.parse_args()


if __name__ == "__main__":
    command.run(parse_arguments)

from pipeline.common import plots
from pipeline.common.generated_tables import TRAINING_DOC, write_table
from pipeline.common.params import load_params
from pipeline.series.engine_speed import Speed, time_series


def measure(training: series.Training) -> series.TrainingRecord:
    """Train and return the record: the last averaged weights on the validation images."""
    metrics = series.train(training)
    return {
        "val_accuracy": metrics["val"]["accuracy"],
        "val_loss": metrics["val"]["loss"],
        "parameters": metrics["parameters"],
    }


def summary(chosen: series.Series, records: series.Records) -> dict[str, Any]:
    """Return the "runs" of metrics/study.json: changes, records, their mean and deviation."""
    return {
        name: {
            "changes": chosen.runs[name],
            "parameters": run[0]["parameters"],
            "val_accuracy": series.spread([record["val_accuracy"] for record in run]),
            "val_loss": series.spread([record["val_loss"] for record in run]),
            "trainings": run,
        }
        for name, run in records.items()
    }


def table(runs: Mapping[str, Any], speed: Speed) -> str:
    """Return the table for docs/training.md, most accurate run first."""
    lines = [
        "| run | changes | parameters | validation accuracy | validation loss | µs per image |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for name in sorted(runs, key=lambda name: -runs[name]["val_accuracy"]["mean"]):
        run = runs[name]
        changes = ", ".join(f"{key}={json.dumps(value)}" for key, value in run["changes"].items())
        us = f"{speed[name]['b100']:.0f}" if name in speed else ""
        accuracy = series.plus_minus(run["val_accuracy"], ".2%")
        loss = series.plus_minus(run["val_loss"], ".4f")
        lines.append(
            f"| {name} | {changes and f'`{changes}`'} | {run['parameters']:,} "
            f"| {accuracy} | {loss} | {us} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the missing trainings, time the models, and write metrics, plot and table."""
    arguments = parse_arguments()
    chosen = series.load_series(NAME)
    wanted = series.trainings(chosen, load_params())
    runs = series.run_missing(
        chosen, wanted, RESULTS, arguments, measure, lambda records: summary(chosen, records)
    )
    speed = time_series(NAME, wanted, arguments)
    accuracies = {name: run["val_accuracy"] for name, run in runs.items()}
    plots.draw_tradeoff(PLOT, accuracies, speed, "validation", marked="base")
    write_table(TRAINING_DOC, NAME, table(runs, speed))


if __name__ == "__main__":
    command.run(main)
