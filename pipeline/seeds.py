"""`make seeds`: the final figures, several seeds each: the C engine on the test images."""

from __future__ import annotations

import json
import logging
from typing import Any

from mnist_mamba.files import write_json
from pipeline import paths, series, stage
from pipeline.engine import run_engine
from pipeline.export import export_model
from pipeline.params import load_params

logger = logging.getLogger(__name__)

NAME = "seeds"
RESULTS = paths.METRICS / "seeds.json"


def measure(training: series.Training) -> series.Record:
    """Train; the engine's accuracy with the last averaged weights."""
    metrics = series.train(training)
    model = training.folder / "model.bin"
    export_model(training.folder / "last.pth", model)
    test = (paths.images(paths.PREPARED, "test"), paths.labels(paths.PREPARED, "test"))
    report = run_engine("eval", model, *test)
    return {
        "test_accuracy": report["correct"] / report["n"],
        "params": metrics["parameters"],
    }


def summary(records: series.Records) -> dict[str, Any]:
    """metrics/seeds.json: each run's accuracies in the order of the seeds."""
    content = {}
    for name, done in records.items():
        accuracies = [one["test_accuracy"] for one in done]
        content[name] = {
            "params": done[0]["params"],
            "test_accuracy": accuracies,
            **series.spread(accuracies),
            "trainings": done,
        }
    return content


def main() -> None:
    """Train what is missing, and write down what the engine makes of it."""
    parser = stage.parser(
        f"Run the trainings of the series `{NAME}` in {series.SERIES_FILE} that {RESULTS} lacks. "
        "The last averaged weights are scored; nothing is chosen.",
        ["python -m pipeline.seeds", "python -m pipeline.seeds --jobs 1 --only default"],
    )
    series.options(parser)
    arguments = parser.parse_args()
    wanted = series.trainings(series.load_series(NAME), load_params())
    old = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}

    def write(records: series.Records) -> None:
        write_json(RESULTS, summary(records))

    records = series.complete(wanted, old, arguments, measure, write)
    write(records)
    for name, run in summary(records).items():
        accuracies = ", ".join(f"{value:.2%}" for value in run["test_accuracy"])
        logger.info("%s: %.3f%% (%s)", name, 100 * run["mean"], accuracies)


if __name__ == "__main__":
    stage.run(main)
