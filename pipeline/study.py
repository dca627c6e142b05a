"""`make study`: trainings that differ in one choice each, compared on validation images."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mnist_mamba.engine.format import write_model
from mnist_mamba.files import write_json, write_text
from pipeline import figures, paths, series, stage
from pipeline.benchmark import BATCHES, cpu_name, engine_bench
from pipeline.documents import with_table
from pipeline.params import load_params
from pipeline.train import build_model, read_info

logger = logging.getLogger(__name__)

NAME = "study"
RESULTS = paths.METRICS / "study.json"
SPEED = paths.METRICS / "study_speed.json"
PLOT = paths.PLOTS / "study.png"
DOCUMENT = Path("docs/training.md")


def measure(training: series.Training) -> series.Record:
    """Train; what validation says of the last averaged weights."""
    metrics = series.train(training)
    return {
        "val_accuracy": metrics["val"]["accuracy"],
        "val_loss": metrics["val"]["loss"],
        "parameters": metrics["parameters"],
    }


def summary(chosen: series.Series, records: series.Records) -> dict[str, Any]:
    """metrics/study.json: each run's changes, trainings, and their mean and deviation."""
    runs = {
        name: {
            "changes": chosen.runs[name],
            "parameters": done[0]["parameters"],
            "val_accuracy": series.spread([one["val_accuracy"] for one in done]),
            "val_loss": series.spread([one["val_loss"] for one in done]),
            "trainings": done,
        }
        for name, done in records.items()
    }
    return {"params": chosen.params, "runs": runs}


def time_engine(wanted: list[series.Training]) -> dict[str, Any]:
    """Microseconds an image of each run's model in the C engine, on one thread, one by one.

    Of untrained models: what the weights are changes no time.
    """
    speed: dict[str, Any] = {}
    info = read_info()
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model.bin"
        for training in wanted:
            if training.name not in speed:
                write_model(model, build_model(training.params, info))
                rounds = training.params.benchmark.rounds
                speed[training.name] = {
                    f"b{batch}": engine_bench(batch, 1, rounds, model)["median_us"]
                    for batch in BATCHES
                }
    return speed


def table(results: Mapping[str, Any], speed: Mapping[str, Any]) -> str:
    """docs/training.md's table, the most accurate first."""
    lines = [
        "| run | changes | parameters | validation accuracy | validation loss | µs an image |",
        "|---|---|---:|---:|---:|---:|",
    ]
    runs: Mapping[str, Any] = results["runs"]
    for name in sorted(runs, key=lambda name: -runs[name]["val_accuracy"]["mean"]):
        run = runs[name]
        changes = ", ".join(f"{key}={json.dumps(value)}" for key, value in run["changes"].items())
        us = f"{speed[name]['b100']:.0f}" if name in speed else ""
        accuracy, loss = run["val_accuracy"], run["val_loss"]
        lines.append(
            f"| {name} | {changes and f'`{changes}`'} | {run['parameters']:,} "
            f"| {accuracy['mean']:.2%}{_deviation(accuracy['std'], '.2%')} "
            f"| {loss['mean']:.4f}{_deviation(loss['std'], '.4f')} | {us} |"
        )
    return "\n".join(lines) + "\n"


def _deviation(std: float | None, form: str) -> str:
    return "" if std is None else f" ± {std:{form}}"


def main() -> None:
    """Train what is missing, time the models, draw and write down what came of it."""
    parser = stage.parser(
        f"Run the trainings of the series `{NAME}` in {series.SERIES_FILE} that "
        f"{RESULTS} lacks. Validation images judge; test images are not read.",
        ["python -m pipeline.study", "python -m pipeline.study --jobs 1 --only base state16"],
    )
    series.options(parser)
    parser.add_argument("--no-timing", action="store_true", help="keep the speeds as they are")
    arguments = parser.parse_args()
    chosen = series.load_series(NAME)
    wanted = series.trainings(chosen, load_params())
    old = json.loads(RESULTS.read_text())["runs"] if RESULTS.is_file() else {}

    def write(records: series.Records) -> None:
        write_json(RESULTS, summary(chosen, records))

    records = series.complete(wanted, old, arguments, measure, write)
    write(records)
    if not arguments.no_timing:
        write_json(SPEED, {"us_per_image": time_engine(wanted), "cpu": cpu_name()})
    speed = json.loads(SPEED.read_text())["us_per_image"] if SPEED.is_file() else {}
    content = summary(chosen, records)
    figures.draw_study(PLOT, content["runs"], speed)
    write_text(DOCUMENT, with_table(DOCUMENT.read_text(), NAME, table(content, speed)))


if __name__ == "__main__":
    stage.run(main)
