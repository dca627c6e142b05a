"""The trials of a search: trainings whose params Optuna chooses.

Several processes can work on one study. A trial belongs to the process that holds the lock on its
file in runs/search/; its training holds it too. If both ended before the trial did, the next
process that looks takes the trial and resumes its training. Only the machine that began a trial can
go on with it, because the checkpoints are there.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, TextIO

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from pipeline.common.locks import try_lock, wait_for_lock
from pipeline.common.params import Params, ParamsError
from pipeline.series import trainings as series
from pipeline.series.space import Dimension, Space, check_validation

logger = logging.getLogger(__name__)

FOLDER = series.FOLDER / "search"
POLL_S = 0.2
"""Seconds between two looks at a training."""


def distribution(dimension: Dimension) -> BaseDistribution:
    """Return Optuna's description of a param's values."""
    if dimension.whole:
        return IntDistribution(*dimension.whole)
    if dimension.bounds:
        return FloatDistribution(*dimension.bounds, log=dimension.log is not None)
    return CategoricalDistribution(list(dimension.options))


@dataclasses.dataclass
class Search:
    """A study, and what this process needs to run its trials."""

    name: str
    study: Study
    space: Space
    params: Params
    """Params of all trials, apart from the searched ones."""
    changes: Mapping[str, Any]
    """Differences of `params` from params.yaml, by dotted keys."""
    n_trials: int
    """Number of trials in the whole study."""
    stop: Callable[[], bool]
    """Whether to interrupt the trials."""

    def __post_init__(self) -> None:
        self._failed = threading.Event()
        self._distributions = {key: distribution(value) for key, value in self.space.items()}

    def run(self, jobs: int) -> None:
        """Run trials, `jobs` at a time, until the study has enough or `stop` returns True.

        Raises:
            RuntimeError: a training was killed.
        """
        with ThreadPoolExecutor(jobs) as pool:
            for future in as_completed([pool.submit(self._work) for _ in range(jobs)]):
                future.result()

    def _work(self) -> None:
        try:
            while not self._stopped():
                claim = self._claim()
                if claim is not None:
                    trial, lock = claim
                    with lock:
                        self._run(trial, lock)
                elif any(self._lock_file(one.number).is_file() for one in self._running()):
                    time.sleep(POLL_S)  # its process may be killed, and this one can go on with it
                else:
                    return
        except BaseException:
            self._failed.set()  # the other threads stop
            raise

    def _stopped(self) -> bool:
        return self.stop() or self._failed.is_set()

    def _running(self) -> list[FrozenTrial]:
        return list(self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))

    def _lock_file(self, number: int) -> Path:
        return FOLDER / self.name / f"{number:04d}.lock"

    def _claim(self) -> tuple[Trial, TextIO] | None:
        """Return an interrupted or else a new trial, with its lock; None if there is none."""
        with wait_for_lock(FOLDER / self.name / "lock"):
            for one in self._running():
                file = self._lock_file(one.number)
                if file.is_file() and (lock := try_lock(file)):
                    # Its process may have completed it since.
                    if self.study.trials[one.number].state == TrialState.RUNNING:
                        logger.info("trial %d goes on", one.number)
                        return Trial(self.study, one._trial_id), lock
                    lock.close()
            waiting = (TrialState.WAITING,)
            begun = [t for t in self.study.get_trials(deepcopy=False) if t.state not in waiting]
            if len(begun) >= self.n_trials:
                return None
            trial = self.study.ask(self._distributions)
            new = try_lock(self._lock_file(trial.number))
            assert new is not None  # nobody else looks at this trial before
            return trial, new

    def training(self, trial: Trial | FrozenTrial) -> series.Training:
        """Return the training of a trial.

        Raises:
            ParamsError: its params do not fit together.
        """
        values = {key: self._value(key, found) for key, found in trial.params.items()}
        params = self.params.changed(values, f"trial {trial.number}")
        check_validation(params, f"trial {trial.number}")
        changes = {**self.changes, **values}
        name = f"search/{self.name}/{trial.number:04d}"
        return series.Training(name, params.train.seed, params, changes)

    def _value(self, key: str, suggested: Any) -> Any:
        options = self.space[key].options
        return options[suggested] if options else suggested

    def _run(self, trial: Trial, lock: TextIO) -> None:
        """Run a trial and store its result, or leave it for later if it is interrupted."""
        try:
            training = self.training(trial)
        except ParamsError as error:
            self._end(trial, TrialState.FAIL, str(error))
            return
        if (loss := self._known(trial)) is not None:
            self._end(trial, loss, f"validation loss {loss:.4f}, as of an equal trial")
            return
        pruned, code = False, 0
        if series.completed(training) is None:
            pruned, code = self._train(trial, training, lock)
        metrics = series.completed(training)
        if metrics is not None:
            self._report(trial, training)
            loss = metrics["val"]["loss"]
            self._end(trial, loss, f"validation loss {loss:.4f}")
        elif pruned:
            self._end(trial, TrialState.PRUNED, "pruned")
        elif code == 1:
            self._end(trial, TrialState.FAIL, series.last_line(training))
        elif not self._stopped():
            raise RuntimeError(
                f"{training.name}: the training ended with code {code}, expected 0: "
                f"{series.last_line(training)}. The same command goes on with it"
            )

    def _train(self, trial: Trial, training: series.Training, lock: TextIO) -> tuple[bool, int]:
        """Train until the end, a request to stop, or an epoch that says that others are better.

        Returns:
            Whether the trial is pruned, and the exit code of the training.
        """
        words = [*series.words(training), "--track", self.name]
        pruned = False
        with (
            series.open_log(training) as log,
            subprocess.Popen(
                words,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=series.environment(training),
                pass_fds=[lock.fileno()],
            ) as process,
        ):
            try:
                while process.poll() is None and not pruned and not self._stopped():
                    time.sleep(POLL_S)
                    pruned = self._report(trial, training)
            finally:
                process.terminate()  # it saves its state
            return pruned, process.wait()

    def _report(self, trial: Trial, training: series.Training) -> bool:
        """Pass on the validation losses of new epochs; return whether to prune the trial."""
        file = training.folder / "curves.json"
        known = self.study.trials[trial.number].intermediate_values
        points = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
        for point in points:
            if point["epoch"] not in known:
                trial.report(point["val_loss"], point["epoch"])
                if trial.should_prune():
                    return True
        return False

    def _known(self, trial: Trial) -> float | None:
        """Return the loss of a complete trial with the same params, which would be the same."""
        complete = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return next((one.value for one in complete if one.params == trial.params), None)

    def _end(self, trial: Trial, result: float | TrialState, said: str) -> None:
        if isinstance(result, TrialState):
            self.study.tell(trial, state=result)
        else:
            self.study.tell(trial, result)
        log = logger.error if result == TrialState.FAIL else logger.info
        log("trial %d: %s (%s)", trial.number, said, shown(trial.params))


def shown(values: Mapping[str, Any]) -> str:
    """Return params as one line."""
    return ", ".join(f"{key}={value}" for key, value in values.items())


def count(trials: Sequence[FrozenTrial]) -> str:
    """Return how many trials have which state, as text."""
    names = ("COMPLETE", "PRUNED", "FAIL", "RUNNING")
    states = [trial.state.name for trial in trials]
    counted = [f"{states.count(name)} {name.lower()}" for name in names if name in states]
    return ", ".join(counted) or "none"
