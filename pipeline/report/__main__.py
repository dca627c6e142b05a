"""`make report`: write one self-contained HTML page of the last run's results."""

from __future__ import annotations

import argparse
import functools
import logging
from pathlib import Path
from typing import Any

from pipeline.common import command

OUTPUT = Path("build/report.html")


def parse_arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = command.parser(
        "Write one HTML page of the last run's results: mistakes, learning curves, timings, and "
        "where they come from. The page needs no network, no other file and no JavaScript.",
        ["python -m pipeline.report", "python -m pipeline.report --output report.html"],
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, help="default: %(default)s")
    return parser.parse_args()


if __name__ == "__main__":
    command.run(parse_arguments)

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template, UndefinedError

from mnist_mamba.atomic_write import write_text
from pipeline.common import timings
from pipeline.common.params import Params, load_params
from pipeline.release import published
from pipeline.report import lineage, results
from pipeline.report.files import SOURCES, ReportError, read_all
from pipeline.report.results import TemplateContext

logger = logging.getLogger(__name__)


def make_page(params: Params) -> str:
    """Return the page as HTML, from the files in SOURCES.

    Raises:
        ReportError: a required file is missing, or a file is malformed.
    """
    try:
        return _template().render(_context(params, read_all())).lstrip()
    except ReportError:
        raise
    except (
        *(LookupError, TypeError, AttributeError, ArithmeticError, ValueError),
        UndefinedError,
    ) as error:
        raise ReportError(
            "a metrics file does not have the expected structure: "
            f"{type(error).__name__}: {error}; run its command again"
        ) from error


def _context(params: Params, files: dict[str, Any]) -> TemplateContext:
    scores, seeds, study = files["eval"], files["seeds"], files["study"]
    epochs = results.curves(files["curves"])
    return {
        "files": SOURCES,
        "data": files,
        "dataset": params.data.title,
        "weight_type": params.export.weight_type,
        "interval": published.interval(scores["correct"], scores["n_test"]),
        "confidence": published.CONFIDENCE,
        "confusion": results.confusion(files["predictions"], scores),
        "epochs": results.html(epochs.map("{:.4g}".format), "epoch"),
        "robustness": results.robustness(scores["robustness"]),
        "seeds": results.seeds(seeds["runs"]) if seeds else None,
        "seeds_progress": results.progress("seeds", seeds["runs"] if seeds else {}),
        "study": results.study(study["runs"], files["study_speed"]) if study else None,
        "study_progress": results.progress("study", study["runs"] if study else {}),
        "lineage": lineage.lineage(files["lock"], params),
        "label_smoothing": params.train.label_smoothing,
    }


@functools.cache
def _template() -> Template:
    environment = Environment(
        autoescape=True,
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": results.percent,
        "count": "{:,}".format,
        "value": timings.format_value,
    }
    environment.globals |= {"compared": results.compared, "by_load": results.by_load}
    return environment.get_template("page.html.j2")


def main() -> None:
    """Read the files, make the page, write it."""
    arguments = parse_arguments()
    page = make_page(load_params())
    write_text(arguments.output, page)
    logger.info("%s: %d kB", arguments.output, len(page.encode()) / 1e3)


if __name__ == "__main__":
    command.run(main)
