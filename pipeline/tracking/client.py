"""MLflow while a training runs: where it is, whose run is whose, curves as they come.

MLflow is a projection of files, and only this folder imports it. Runs are found by the tag
`content_key` (pipeline/common/content_key.py). `live_run` streams while training; run.py completes
the run from files, or makes it again.
"""

from __future__ import annotations

import fcntl
import logging
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.common.content_key import SECTIONS, content_key
from pipeline.common.params import Params

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

logger = logging.getLogger(__name__)

# MLflow reads the first when it is imported; the second draws a bar for each small file.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

KEY_TAG = "content_key"
PROGRESS_TAG = "pipeline"
"""How far a run has come: a training whose later stages never ran is not whole."""
COMMIT_TAG = "mlflow.source.git.commit"
SWEEP_TAG = "dvc.sweep"
"""On the parent of DVC's experiments: the commit that they all started from."""
EPOCH = "epoch"
CurvePoint = Mapping[str, float | int | None]


class TrackingError(RuntimeError):
    """MLflow cannot be written; the message says what to do."""


@contextmanager
def reported() -> Iterator[None]:
    """MLflow's many errors as one that a person can act on.

    Raises:
        TrackingError: MLflow did not take it; the results themselves are there.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise TrackingError(
            f"MLflow did not take the run: {error}. The results are in their files; mend "
            "MLFLOW_TRACKING_URI, or set tracking.enabled to false, and `make track`"
        ) from error


def root() -> Path:
    """The project whose database is used: the parent one while DVC runs a temp copy of it."""
    return Path(os.environ.get("DVC_ROOT") or ".").resolve()


def tracking_uri() -> str:
    """Where runs go: what MLflow's own variable says, else a database in the project."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root() / 'mlflow.db'}"


def connect(params: Params) -> tuple[MlflowClient, str]:
    """A client and the id of the experiment; both are created where missing."""
    from mlflow import MlflowClient

    uri = tracking_uri()
    # The first connection creates the schema, which parallel processes must not do at once.
    with locked():
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        experiment = client.get_experiment_by_name(params.tracking.experiment)
        if experiment is not None:
            return client, experiment.experiment_id
        local = uri.startswith("sqlite:")
        location = (root() / "mlartifacts").as_uri() if local else None
        return client, client.create_experiment(params.tracking.experiment, location)


@contextmanager
def locked() -> Iterator[None]:
    """One process of this project at a time, also among DVC's parallel experiments; not nested."""
    with (root() / ".mlflow.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def find(client: MlflowClient, experiment: str, key: str) -> Run | None:
    """The run of a content, if MLflow has one."""
    return _find_by_tag(client, experiment, KEY_TAG, key)


def _find_by_tag(client: MlflowClient, experiment: str, tag: str, value: str) -> Run | None:
    found = client.search_runs([experiment], f"tags.`{tag}` = '{value}'", max_results=1)
    return found[0] if found else None


def find_or_create(client: MlflowClient, experiment: str, params: Params, key: str) -> Run:
    """The content's run, with its params; a run that was left half-made is completed."""
    from mlflow.entities import Param

    with locked():
        run = find(client, experiment, key)
        if run is None:
            name = os.environ.get("DVC_EXP_NAME") or f"{params.data.dataset}-{key[:8]}"
            tags = {KEY_TAG: key, **_origin(client, experiment)}
            run = client.create_run(experiment, run_name=name, tags=tags)
    # The other params may differ between two runs of the same content.
    values = params.model_dump(mode="json", include=set(SECTIONS))
    missing = {k: v for k, v in flatten(values).items() if k not in run.data.params}
    if missing:
        client.log_batch(run.info.run_id, params=[Param(k, str(v)) for k, v in missing.items()])
    return run


def _origin(client: MlflowClient, experiment: str) -> dict[str, str]:
    """Tags that say which commit, and which experiment of DVC's, a run comes from."""
    name, baseline = (os.environ.get(f"DVC_EXP_{what}") for what in ("NAME", "BASELINE_REV"))
    tags = {"dvc.experiment": name, COMMIT_TAG: baseline or _head()}
    if name and baseline:
        tags["mlflow.parentRunId"] = _sweep(client, experiment, baseline)
    return {tag: value for tag, value in tags.items() if value}


def _sweep(client: MlflowClient, experiment: str, baseline: str) -> str:
    """The id of the run whose children are all experiments from a commit."""
    run = _find_by_tag(client, experiment, SWEEP_TAG, baseline)
    if run is None:
        note = (
            f"The experiments that `dvc exp run` started from commit {baseline[:7]}, one run below "
            "this for each content. `dvc exp show` has the same table."
        )
        tags = {SWEEP_TAG: baseline, COMMIT_TAG: baseline, "mlflow.note.content": note}
        run = client.create_run(experiment, run_name=f"from {baseline[:7]}", tags=tags)
        client.set_terminated(run.info.run_id)
    run_id: str = run.info.run_id
    return run_id


def _head() -> str | None:
    """Git's commit, where there is one."""
    command = ["git", "rev-parse", "--verify", "-q", "HEAD"]
    try:
        done = subprocess.run(command, cwd=root(), capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values under dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def log_points(client: MlflowClient, run_id: str, points: list[CurvePoint]) -> None:
    """Add the points of the curves that the run does not have, or has with another value."""
    from mlflow.entities import Metric

    names = {name for point in points for name in point if name != EPOCH}
    known = {
        (metric.key, metric.step): metric.value
        for name in names
        for metric in client.get_metric_history(run_id, f"curve/{name}")
    }
    now = int(time.time() * 1000)
    metrics = [
        Metric(f"curve/{name}", float(value), now, int(point[EPOCH] or 0))
        for point in points
        for name, value in point.items()
        if name != EPOCH
        and value is not None
        and known.get((f"curve/{name}", int(point[EPOCH] or 0))) != float(value)
    ]
    if metrics:
        client.log_batch(run_id, metrics=metrics)


@contextmanager
def live_run(params: Params, enabled: bool = True) -> Iterator[Callable[[CurvePoint], None]]:
    """Stream curves, and the machine's load, while training; a tracking failure only warns.

    Yields a function that takes one point of the curves, with its `epoch`.
    """
    live = _open(params) if enabled and params.tracking.enabled else None
    try:
        yield live.log_point if live else lambda point: None
    except BaseException:
        if live:
            live.finish("FAILED")
        raise
    if live:
        live.finish("FINISHED")


def _open(params: Params) -> _Live | None:
    try:
        return _Live(params)
    except Exception as error:
        logger.warning("training goes on without MLflow: %s", error)
        return None


class _Live:
    """The run of a training that is under way; once it is open, failures only warn."""

    def __init__(self, params: Params) -> None:
        self._client, experiment = connect(params)
        run = find_or_create(self._client, experiment, params, content_key(params))
        self._run_id = run.info.run_id
        self._client.update_run(self._run_id, status="RUNNING")
        self._client.set_tag(self._run_id, PROGRESS_TAG, "training alone")
        self._monitor = _start_monitor(self._run_id, params.tracking.system_metrics)

    def log_point(self, point: CurvePoint) -> None:
        try:
            log_points(self._client, self._run_id, [point])
        except Exception as error:
            logger.warning("MLflow did not take epoch %s: %s", point[EPOCH], error)

    def finish(self, status: str) -> None:
        try:
            if self._monitor:
                self._monitor.finish()
            self._client.set_terminated(self._run_id, status)
        except Exception as error:
            logger.warning("MLflow did not take the end of the run: %s", error)


def _start_monitor(run_id: str, seconds: float) -> SystemMetricsMonitor | None:
    """MLflow's own thread that measures the machine every so many seconds; 0 starts none."""
    if not seconds:
        return None
    try:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        # It tells of its start, its end and of every GPU that is not there.
        logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)
        monitor = SystemMetricsMonitor(
            run_id, sampling_interval=seconds, resume_logging=True, tracking_uri=tracking_uri()
        )
        monitor.start()
        return monitor
    except Exception as error:
        logger.warning("MLflow gets no CPU and memory figures: %s", error)
        return None
