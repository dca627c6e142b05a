"""The files that the report reads, and the command that writes each."""

from __future__ import annotations

import base64
import csv
import functools
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.common import paths
from pipeline.series.trainings import is_of


class ReportError(ValueError):
    """A file that is missing or malformed."""


@dataclass(frozen=True)
class Source:
    """A file and the command that writes it."""

    path: Path
    command: str = "make repro"
    required: bool = False


SOURCES = {
    "eval": Source(paths.METRICS / "eval.json", required=True),
    "train": Source(paths.METRICS / "train.json", required=True),
    "curves": Source(paths.CURVES, required=True),
    "predictions": Source(paths.PREDICTIONS, required=True),
    "lock": Source(Path("dvc.lock"), required=True),
    "data": Source(paths.METRICS / "data.json"),
    "examples": Source(paths.EXAMPLES),
    "augmentation": Source(paths.AUGMENTATION),
    "curves_plot": Source(paths.PLOTS / "curves.png"),
    "misclassified": Source(paths.PLOTS / "misclassified.png"),
    "reliability": Source(paths.PLOTS / "reliability.png"),
    "robustness": Source(paths.PLOTS / "robustness.png"),
    "benchmark": Source(paths.METRICS / "benchmark.json", "dvc repro -sf benchmark"),
    "bench_engine": Source(paths.METRICS / "bench_engine.json", "make bench-engine"),
    "bench_train": Source(paths.METRICS / "bench_train.json", "make bench-train"),
    "seeds": Source(paths.METRICS / "seeds.json", "make seeds"),
    "seeds_plot": Source(paths.PLOTS / "seeds.png", "make seeds"),
    "study": Source(paths.METRICS / "study.json", "make study"),
    "study_speed": Source(paths.METRICS / "study_speed.json", "make study"),
    "study_plot": Source(paths.PLOTS / "study.png", "make study"),
}
SERIES = {"seeds": ("seeds_plot",), "study": ("study_speed", "study_plot")}
"""Results of the series, with the other files that each series writes."""


class Metrics(dict[str, Any]):
    """A JSON object of a file; a missing key is an error that names the file."""

    def __init__(self, source: Source, content: dict[str, Any]) -> None:
        super().__init__(content)
        self.source = source

    def __missing__(self, key: str) -> Any:
        raise ReportError(
            f"{self.source.path} has no {key!r}: run `{self.source.command}` to write it again"
        )


def read_all() -> dict[str, Any]:
    """Return the content of each file by its name in SOURCES; None for an optional one missing.

    The files of a series on another data set count as missing.

    Raises:
        ReportError: required files are missing, or a file is malformed.
    """
    missing = [
        f"{source.path} not found: run `{source.command}` first"
        for source in SOURCES.values()
        if source.required and not source.path.is_file()
    ]
    if missing:
        raise ReportError("\n".join(missing))
    found: dict[str, Any] = {
        name: _read(source) if source.path.is_file() else None for name, source in SOURCES.items()
    }
    for series, others in SERIES.items():
        if found[series] is not None and not is_of(found[series], found["lock"]):
            found |= dict.fromkeys((series, *others))
    return found


def _read(source: Source) -> Any:
    if source.path.suffix == ".png":
        return "data:image/png;base64," + base64.b64encode(source.path.read_bytes()).decode()
    text = source.path.read_text(encoding="utf-8")
    try:
        if source.path.suffix == ".csv":
            return list(csv.DictReader(io.StringIO(text, newline="")))
        if source.path.suffix == ".lock":
            return yaml.load(text, Loader=yaml.CSafeLoader)  # seven times as fast as SafeLoader
        return json.loads(text, object_hook=functools.partial(Metrics, source))
    except (ValueError, yaml.YAMLError) as error:
        raise ReportError(
            f"{source.path} cannot be read: {error}; run `{source.command}` to write it again"
        ) from error
