"""`make report`: one self-contained HTML page of what the last run gave."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mnist_mamba.atomic_write import write_text
from pipeline.common import command, dvc_lock, paths
from pipeline.common.content_key import file_md5
from pipeline.common.params import Params, load_params
from pipeline.report import files, lineage, results
from pipeline.series.trainings import SERIES_FILE, Series, load_series

logger = logging.getLogger(__name__)

OUTPUT = Path("build/report.html")
DATASETS = {"mnist": "MNIST", "digits": "scikit-learn's digits", "idx": "your own images"}


def content(params: Params) -> dict[str, Any]:
    """Everything that the page shows.

    Raises:
        ReportError: a file is missing that there is no report without, or one is not as expected.
    """
    files.check_required()
    scores = files.read(files.EVAL)
    rows = files.read(files.PREDICTIONS)
    headline = files.required(files.EVAL, results.headline)
    outputs = files.required(files.LOCK, dvc_lock.outputs)
    test_md5 = outputs.get(str(paths.images(paths.PREPARED, "test")), {}).get("md5", "")
    wrong = files.required(files.PREDICTIONS, lambda rows: results.wrong_predictions(rows, scores))
    return {
        "dataset": DATASETS[params.data.dataset],
        "headline": headline,
        "tiles": results.tiles(wrong, test_md5),
        "misclassified_png": files.read(files.MISCLASSIFIED),
        "confusion": results.confusion(rows, list(scores["per_class"])),
        "classes": files.required(files.EVAL, results.per_class),
        "curves": files.required(files.CURVES, results.curves),
        "training": files.required(files.TRAIN, results.training),
        "robustness": files.required(files.EVAL, results.robustness),
        "reliability_png": files.read(files.RELIABILITY),
        "seeds": files.view(files.SEEDS, lambda runs: results.seeds(runs, _series("seeds"))),
        "study": files.view(
            files.STUDY,
            lambda runs: results.study(runs, files.read(files.STUDY_SPEED), _series("study")),
        ),
        "benchmark": files.view(files.BENCHMARK, results.benchmark),
        "bench_engine": files.view(files.BENCH_ENGINE, results.bench_engine),
        "bench_train": files.view(files.BENCH_TRAIN, results.bench_train),
        "lineage": files.required(files.LOCK, lambda lock: lineage.lineage(lock, params)),
        "label_smoothing": params.train.label_smoothing,
        "data_info": _data_info(outputs),
        "files": files,
    }


def _series(name: str) -> Series | None:
    return load_series(name) if SERIES_FILE.is_file() else None


def _data_info(outputs: dict[str, dict[str, Any]]) -> Any:
    """Sizes of images and parts; None if the prepared data is not here, or is not the lock's."""
    path = paths.DATA_INFO
    known = path.is_file() and outputs.get(str(path), {}).get("md5") == file_md5(path)
    return json.loads(path.read_text()) if known else None


def render(page: dict[str, Any]) -> str:
    """The page as HTML; every text is escaped."""
    environment = Environment(
        autoescape=True,
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(page).lstrip()


def main() -> None:
    """Read, render, write."""
    parser = command.parser(
        "Write one HTML page of what the last run gave: results, mistakes, curves, timings, and "
        "where they come from. It needs no network, no other file and no JavaScript.",
        ["python -m pipeline.report", "python -m pipeline.report --output report.html"],
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, help="%(default)s by default")
    arguments = parser.parse_args()
    page = render(content(load_params()))
    write_text(arguments.output, page)
    logger.info("%s: %d kB", arguments.output, len(page.encode()) / 1e3)


if __name__ == "__main__":
    command.run(main)
