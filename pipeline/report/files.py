"""The files that the report is made of: where each stands, and which command makes it."""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from pipeline.common import paths

View = TypeVar("View")


class ReportError(ValueError):
    """A file that the report cannot be made of; the message names it and what makes it."""


@dataclass(frozen=True)
class Source:
    """A file and the command that makes it."""

    path: Path
    command: str


EVAL = Source(paths.METRICS / "eval.json", "make repro")
TRAIN = Source(paths.METRICS / "train.json", "make repro")
CURVES = Source(paths.CURVES, "make repro")
PREDICTIONS = Source(paths.PREDICTIONS, "make repro")
LOCK = Source(Path("dvc.lock"), "make repro")
MISCLASSIFIED = Source(paths.PLOTS / "misclassified.png", "make repro")
RELIABILITY = Source(paths.PLOTS / "reliability.png", "make repro")
BENCHMARK = Source(paths.METRICS / "benchmark.json", "dvc repro -sf benchmark")
BENCH_ENGINE = Source(paths.METRICS / "bench_engine.json", "make bench-engine")
BENCH_TRAIN = Source(paths.METRICS / "bench_train.json", "make bench-train")
SEEDS = Source(paths.METRICS / "seeds.json", "make seeds")
STUDY = Source(paths.METRICS / "study.json", "make study")
STUDY_SPEED = Source(paths.METRICS / "study_speed.json", "make study")

REQUIRED = (EVAL, TRAIN, CURVES, PREDICTIONS, LOCK)


def check_required() -> None:
    """Say at once all that is missing.

    Raises:
        ReportError: a file is, that there is no report without.
    """
    missing = [source for source in REQUIRED if not source.path.is_file()]
    if missing:
        lines = [f"{source.path} is missing: `{source.command}` makes it" for source in missing]
        raise ReportError("\n".join(lines))


def read(source: Source) -> Any:
    """The content of a file by its kind; None if it is not there.

    Raises:
        ReportError: it is not valid JSON, YAML, CSV.
    """
    if not source.path.is_file():
        return None
    try:
        return _READERS[source.path.suffix](source.path)
    except (ValueError, yaml.YAMLError, csv.Error) as error:
        raise ReportError(
            f"{source.path} cannot be read: {error}; `{source.command}` makes it anew"
        ) from error


def view(source: Source, build: Callable[[Any], View]) -> View | None:
    """What `build` makes of a file's content; None if the file is not there.

    Raises:
        ReportError: the file holds something else than the command writes.
    """
    content = read(source)
    if content is None:
        return None
    try:
        return build(content)
    except ReportError:
        raise
    except (LookupError, TypeError, AttributeError, ArithmeticError, ValueError) as error:
        raise ReportError(
            f"{source.path} is not as `{source.command}` writes it: {type(error).__name__}: {error}"
        ) from error


def required(source: Source, build: Callable[[Any], View]) -> View:
    """`view` of a file that `check_required` has found."""
    made = view(source, build)
    if made is None:
        raise ReportError(f"{source.path} is missing: `{source.command}` makes it")
    return made


def data_uri(png: bytes) -> str:
    """A PNG as an address that holds all of it."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def _read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def _read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _read_png(path: Path) -> str:
    return data_uri(path.read_bytes())


_READERS: dict[str, Callable[[Path], Any]] = {
    ".json": _read_json,
    ".lock": _read_yaml,
    ".csv": _read_csv,
    ".png": _read_png,
}
