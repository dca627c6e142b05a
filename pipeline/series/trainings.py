"""Series of trainings next to the pipeline's own; pipeline/series/series.yaml lists them.

Each training's figures are kept under the key of all that its weights come from
(pipeline/common/content_key.py), so that a series goes on where it was stopped, and what has
changed since is trained again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError
from tqdm import tqdm

from pipeline.common.content_key import training_key
from pipeline.common.params import Params, ParamsError, Section

logger = logging.getLogger(__name__)

SERIES_FILE = Path("pipeline/series/series.yaml")
FOLDER = Path("runs")
"""Checkpoints and logs, in a folder for each key; not in Git."""


class Series(Section):
    """Trainings that are compared with each other."""

    params: dict[str, Any]
    """Changes of params.yaml, by dotted keys, for all of them."""
    seeds: Annotated[list[int], Field(min_length=1)]
    runs: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    """The changes of each, by its name."""


Record = dict[str, Any]
"""What is known of one training: seed, key, and figures."""
Records = dict[str, list[Record]]
"""Those of each run, by its name, in the order of the seeds."""


@dataclasses.dataclass(frozen=True)
class Training:
    """One training of a series."""

    name: str
    seed: int
    params: Params
    changes: Mapping[str, Any]
    """What makes these params of params.yaml, by dotted keys."""

    @property
    def key(self) -> str:
        """Names what its weights come from."""
        return training_key(self.params)

    @property
    def folder(self) -> Path:
        """Where its checkpoints are."""
        return FOLDER / f"{self.name}-{self.seed}-{self.key[:8]}"


def load_series(name: str, file: Path = SERIES_FILE) -> Series:
    """A series of the file.

    Raises:
        ParamsError: there is none of this name, or it is not written as expected.
    """
    content = yaml.safe_load(file.read_text())
    if not isinstance(content, dict) or name not in content:
        raise ParamsError(f"{file}: {name}: not there, expected a series of this name")
    try:
        return Series.model_validate(content[name])
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in (name, *problem["loc"]))
        raise ParamsError(f"{file}: {key}: {problem['msg']}, got {problem['input']!r}") from error


def trainings(series: Series, params: Params) -> list[Training]:
    """All of a series, seed after seed, so that each run has a figure before any has two.

    Raises:
        ParamsError: a change that params.yaml would not take.
    """
    found = []
    for seed in series.seeds:
        for name, own in series.runs.items():
            changes = {**series.params, **own, "train.seed": seed}
            changed = params.changed(changes, f"{SERIES_FILE}: {name}")
            found.append(Training(name, seed, changed, changes))
    return found


def train(training: Training) -> dict[str, Any]:
    """Train in a process of its own, going on where an earlier one was stopped; its metrics.

    One that came to its end, but whose figures were lost, is not repeated.

    Raises:
        RuntimeError: it failed; the message ends with what it said last.
    """
    folder = training.folder
    folder.mkdir(parents=True, exist_ok=True)
    if (metrics := _finished(training)) is not None:
        return metrics
    command = [sys.executable, "-m", "pipeline.train", "--resume", "--save-dir", str(folder)]
    for key, value in training.changes.items():
        command += ["--set", f"{key}={json.dumps(value)}"]
    with (folder / "log.txt").open("a") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT)
    if done.returncode:
        last = (folder / "log.txt").read_text().splitlines()[-1:]
        raise RuntimeError(f"{training.name}, seed {training.seed}: {' '.join(last)}")
    return _metrics(folder)


def _metrics(folder: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return metrics


def _finished(training: Training) -> dict[str, Any] | None:
    """The metrics of the last epoch, which are written after its checkpoint, or None."""
    folder = training.folder
    if not ((folder / "metrics.json").is_file() and (folder / "last.pth").is_file()):
        return None
    metrics = _metrics(folder)
    return metrics if metrics["epochs"] == training.params.train.epochs else None


def options(parser: argparse.ArgumentParser) -> None:
    """The command line that series share."""
    jobs = cores()
    parser.add_argument("--jobs", type=int, default=jobs, help="trainings at a time: %(default)s")
    parser.add_argument("--only", nargs="+", metavar="RUN", help="these runs alone")
    parser.add_argument("--no-timing", action="store_true", help="keep the speeds as they are")


def complete(
    wanted: Sequence[Training],
    old: Mapping[str, Any],
    arguments: argparse.Namespace,
    measure: Callable[[Training], Record],
    write: Callable[[Records], None],
) -> Records:
    """Run the trainings whose records are missing, and write all after each.

    Args:
        wanted: all trainings of the series.
        old: the results file's runs by name, each with its records under "trainings".
        arguments: with the `options`.
        measure: runs a training; what its record holds besides name, seed and key.
        write: writes the records, each run's in the order of the seeds.

    Raises:
        RuntimeError: at the end, if trainings failed.
        ParamsError: --only names no run of the series.
    """
    only = set(arguments.only or {training.name for training in wanted})
    if unknown := sorted(only - {training.name for training in wanted}):
        raise ParamsError(f"--only {' '.join(unknown)}: no such run in {SERIES_FILE}")
    keys = {training.key: training for training in wanted}
    records: Records = {training.name: [] for training in wanted}
    for name, run in old.items():
        records[name] = [one for one in run["trainings"] if one["key"] in keys]
    done = {one["key"] for run in records.values() for one in run}
    waiting = [one for key, one in keys.items() if key not in done and one.name in only]
    logger.info("%d of %d trainings are done, %d to do", len(done), len(wanted), len(waiting))
    for training, record in _run_all(waiting, arguments.jobs, measure):
        run = records[training.name]
        run.append({"seed": training.seed, "key": training.key, **record})
        run.sort(key=lambda one: int(one["seed"]))
        write({name: run for name, run in records.items() if run})
    return {name: run for name, run in records.items() if run}


def _run_all(
    waiting: Sequence[Training], jobs: int, measure: Callable[[Training], Record]
) -> Iterator[tuple[Training, Record]]:
    """What `measure` makes of each training, as they end."""
    errors: list[Exception] = []
    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(waiting), unit=" trainings") as bar:
        futures = {pool.submit(measure, training): training for training in waiting}
        try:
            for future in as_completed(futures):
                try:
                    yield futures[future], future.result()
                except (RuntimeError, OSError, ValueError) as error:
                    logger.error("%s", error)
                    errors.append(error)
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if errors:
        raise RuntimeError(f"{len(errors)} of {len(waiting)} trainings failed: {errors[0]}")


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and standard deviation (of the sample; None of a single value)."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": std}


def plus_minus(spread: Mapping[str, Any], form: str) -> str:
    """Mean and deviation, if there is one, for people."""
    std = spread["std"]
    return f"{spread['mean']:{form}}" + ("" if std is None else f" ± {std:{form}}")
