"""Running the trainings of a series (pipeline/series/series.yaml) that have no record yet.

A training's record in metrics/ has a key of everything that its weights depend on
(pipeline/common/content_key.py). So an interrupted series continues, and a training whose params,
code or data have changed runs again.
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
from typing import Annotated, Any, TextIO

from pydantic import Field
from tqdm import tqdm

from mnist_mamba.atomic_write import write_json
from pipeline.common import command, paths
from pipeline.common.content_key import file_md5, training_key
from pipeline.common.dvc_lock import outputs
from pipeline.common.machine import usable_cores
from pipeline.common.params import Params, ParamsError, Section, parse, read_yaml

logger = logging.getLogger(__name__)

SERIES_FILE = Path("pipeline/series/series.yaml")
FOLDER = Path("runs")
"""Checkpoints and logs of the trainings, a folder for each; not in Git."""


class Series(Section):
    """Trainings that are compared with each other."""

    params: dict[str, Any]
    """Changes of params.yaml for all runs, by dotted keys."""
    seeds: Annotated[list[int], Field(min_length=1)]
    runs: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    """Further changes of each run, by its name."""


TrainingRecord = dict[str, Any]
"""Seed, key and metrics of one training."""
Records = dict[str, list[TrainingRecord]]
"""The records of each run by its name, in the order of the seeds."""


@dataclasses.dataclass(frozen=True)
class Training:
    """One training of a series."""

    name: str
    seed: int
    params: Params
    changes: Mapping[str, Any]
    """Differences of `params` from params.yaml, by dotted keys."""

    @property
    def key(self) -> str:
        """The key of everything that the weights depend on."""
        return training_key(self.params)

    @property
    def folder(self) -> Path:
        """The folder of its checkpoints."""
        return FOLDER / f"{self.name}-{self.seed}-{self.key[:8]}"


def data_md5() -> str:
    """Return the MD5 of the test images, which names the data set in the results of a series."""
    return file_md5(paths.images(paths.PREPARED, "test"))


def is_of(content: Mapping[str, Any], lock: Mapping[str, Any]) -> bool:
    """Return whether a metrics file names the data set of dvc.lock as its own, or names none."""
    test = outputs(lock).get(str(paths.images(paths.PREPARED, "test")), {}).get("md5")
    return bool(content.get("data", test) == test)


def load_series(name: str, file: Path = SERIES_FILE) -> Series:
    """Return a series of the file.

    Raises:
        ParamsError: no such series, or one with missing, unknown or unsuitable values.
    """
    content = read_yaml(file, file)
    if not isinstance(content, dict) or name not in content:
        raise ParamsError(f"{file}: {name}: not found, expected a series of this name")
    return parse(Series, content[name], f"{file}: {name}")


def trainings(series: Series, params: Params) -> list[Training]:
    """Return all trainings of a series: each run with the first seed, then with the second, ..."""
    found = []
    for seed in series.seeds:
        for name, own in series.runs.items():
            changes = {**series.params, **own, "train.seed": seed}
            changed = params.changed(changes, f"{SERIES_FILE}: {name}")
            found.append(Training(name, seed, changed, changes))
    return found


def train(training: Training) -> dict[str, Any]:
    """Train in a separate process, or resume an interrupted training, and return its metrics.

    A completed training is not repeated, even if its record was lost.

    Raises:
        RuntimeError: the training failed; the message ends with the last line of its log.
    """
    metrics = completed(training)
    if metrics is None:
        with open_log(training) as log:
            done = subprocess.run(
                words(training), stdout=log, stderr=subprocess.STDOUT, env=environment(training)
            )
        if done.returncode:
            raise RuntimeError(f"{training.name}, seed {training.seed}: {last_line(training)}")
        metrics = _metrics(training.folder)
    return metrics


def completed(training: Training) -> dict[str, Any] | None:
    """Return the metrics of a training if its last epoch has ended."""
    metrics = _metrics(training.folder)
    return metrics if metrics.get("epochs") == training.params.train.epochs else None


def words(training: Training) -> list[str]:
    """Return the command that starts a training or resumes it."""
    folder = str(training.folder)
    found = [sys.executable, "-m", "pipeline.train", "--resume", "--save-dir", folder]
    for key, value in training.changes.items():
        found += ["--set", f"{key}={json.dumps(value)}"]
    return found


def environment(training: Training) -> dict[str, str]:
    """Return the environment of this command, which stops when this process ends.

    Another process of the series could train in the same folder then.
    """
    return {**os.environ, "MNIST_MAMBA_SERIES": training.name}


def open_log(training: Training) -> TextIO:
    """Return the log of a training, to which its output is added; create its folder."""
    training.folder.mkdir(parents=True, exist_ok=True)
    return (training.folder / "log.txt").open("a", encoding="utf-8")


def last_line(training: Training) -> str:
    """Return the last line of a training's log: the error if it failed."""
    log = (training.folder / "log.txt").read_text(encoding="utf-8", errors="replace")
    return " ".join(log.splitlines()[-1:])


def _metrics(folder: Path) -> dict[str, Any]:
    """Return the metrics of the epochs so far, written after each checkpoint, or nothing."""
    file, metrics = folder / "metrics.json", {}
    if file.is_file() and (folder / "last.pth").is_file():
        metrics = json.loads(file.read_text(encoding="utf-8"))
    return metrics


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that all series share."""
    parser.add_argument(
        "--jobs",
        type=command.positive,
        default=usable_cores(),
        help="parallel trainings; default: %(default)s",
    )
    parser.add_argument("--only", nargs="+", metavar="RUN", help="only these runs")
    parser.add_argument("--no-timing", action="store_true", help="do not time the engine again")


def run_missing(
    series: Series,
    wanted: Sequence[Training],
    results: Path,
    arguments: argparse.Namespace,
    measure: Callable[[Training], TrainingRecord],
    summary: Callable[[Records], dict[str, Any]],
) -> dict[str, Any]:
    """Run the trainings whose records are missing, and write the results file after each.

    Args:
        series: the series, whose `params` the results file repeats.
        wanted: all trainings of the series.
        results: a JSON file with "data", "params" and "runs"; a run has its records in "trainings".
        arguments: the command line, with the options of `add_options`.
        measure: runs a training and returns its record without seed and key.
        summary: returns "runs", given the records of all runs that have any.

    Returns:
        The results file's "runs".

    Raises:
        RuntimeError: some trainings failed; the others have been run.
        ParamsError: --only names a run that the series does not have.
    """
    names = list(dict.fromkeys(training.name for training in wanted))
    only = set(arguments.only or names)
    if unknown := sorted(only - set(names)):
        raise ParamsError(
            f"--only {' '.join(unknown)}: not in {SERIES_FILE}, expected any of {', '.join(names)}"
        )
    keys = {training.key: training for training in wanted}
    records: Records = {name: [] for name in names}
    old = json.loads(results.read_text(encoding="utf-8")) if results.is_file() else {}
    for name, run in old.get("runs", {}).items():
        records[name] = [record for record in run["trainings"] if record["key"] in keys]
    recorded = {record["key"] for run in records.values() for record in run}
    missing = [
        training for key, training in keys.items() if key not in recorded and training.name in only
    ]
    logger.info("%d of %d trainings are done, %d to do", len(recorded), len(wanted), len(missing))

    def write() -> dict[str, Any]:
        runs = summary({name: run for name, run in records.items() if run})
        write_json(results, {"data": data_md5(), "params": series.params, "runs": runs})
        return runs

    for training, measured in _run_all(missing, arguments.jobs, measure):
        run = records[training.name]
        run.append({"seed": training.seed, "key": training.key, **measured})
        run.sort(key=lambda record: int(record["seed"]))
        write()
    return write()


def _run_all(
    missing: Sequence[Training], jobs: int, measure: Callable[[Training], TrainingRecord]
) -> Iterator[tuple[Training, TrainingRecord]]:
    """Yield each training with its measured record, in the order in which they end."""
    errors: list[Exception] = []
    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(missing), unit=" trainings") as bar:
        futures = {pool.submit(measure, training): training for training in missing}
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
        raise RuntimeError(f"{len(errors)} of {len(missing)} trainings failed: {errors[0]}")


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Return mean and sample standard deviation (None for a single value)."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": std}


def plus_minus(spread: Mapping[str, Any], form: str) -> str:
    """Return mean ± standard deviation as text; `form` is the format of a number."""
    std = spread["std"]
    return f"{spread['mean']:{form}}" + ("" if std is None else f" ± {std:{form}}")
