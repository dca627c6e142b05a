"""MLflow as a projection of files: the only module that imports mlflow.

Runs are found by the tag `content_key` (pipeline/content_key.py). `live_run` streams curves while
training; `upsert` completes the run from files, or makes it anew if the database is gone.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import paths
from pipeline.content_key import SECTIONS, content_key, file_md5
from pipeline.params import Params

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

KEY_TAG = "content_key"
PROGRESS_TAG = "pipeline"
"""How far a run has come: a training whose later stages never ran is not whole."""
EPOCH = "epoch"
CurvePoint = Mapping[str, float | int | None]


class TrackingError(RuntimeError):
    """MLflow cannot be written; the message says what to do."""


def root() -> Path:
    """The project whose database is used: the parent one while DVC runs a temp copy of it."""
    return Path(os.environ.get("DVC_ROOT") or ".").resolve()


def _client(params: Params) -> tuple[MlflowClient, str]:
    """A client and the id of the experiment; both are created where missing."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root() / 'mlflow.db'}"
    # The first connection creates the schema, which parallel processes must not do at once.
    with _locked(root() / ".mlflow.lock"):
        client = MlflowClient(tracking_uri=uri)
        experiment = client.get_experiment_by_name(params.tracking.experiment)
        if experiment is not None:
            return client, experiment.experiment_id
        local = uri.startswith("sqlite:")
        location = (root() / "mlartifacts").as_uri() if local else None
        return client, client.create_experiment(params.tracking.experiment, location)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _find(client: MlflowClient, experiment: str, key: str) -> Run | None:
    found = client.search_runs([experiment], f"tags.{KEY_TAG} = '{key}'", max_results=1)
    return found[0] if found else None


def _find_or_create(client: MlflowClient, experiment: str, params: Params, key: str) -> Run:
    """The content's run, with its params; a run that was left half-made is completed."""
    from mlflow.entities import Param

    run = _find(client, experiment, key)
    if run is None:
        name = os.environ.get("DVC_EXP_NAME") or f"{params.data.dataset}-{key[:8]}"
        run = client.create_run(experiment, run_name=name, tags={KEY_TAG: key, **_origin()})
    # The other params may differ between two runs of the same content.
    values = params.model_dump(mode="json", include=set(SECTIONS))
    missing = {k: v for k, v in _flatten(values).items() if k not in run.data.params}
    if missing:
        client.log_batch(run.info.run_id, params=[Param(k, str(v)) for k, v in missing.items()])
    return run


def _origin() -> dict[str, str]:
    """Tags that say which experiment of DVC's a run is."""
    names = {"dvc.experiment": "DVC_EXP_NAME", "dvc.baseline": "DVC_EXP_BASELINE_REV"}
    return {tag: os.environ[name] for tag, name in names.items() if os.environ.get(name)}


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values under dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _log_points(client: MlflowClient, run_id: str, points: list[CurvePoint]) -> None:
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
    """Stream curves while training; a tracking failure only warns.

    Yields a function that takes one point of the curves, with its `epoch`.
    """
    log_point: Callable[[CurvePoint], None] = lambda point: None  # noqa: E731
    finish: Callable[[str], None] = lambda status: None  # noqa: E731
    if enabled and params.tracking.enabled:
        try:
            client, experiment = _client(params)
            run_id = _find_or_create(client, experiment, params, content_key(params)).info.run_id
            client.update_run(run_id, status="RUNNING")
            client.set_tag(run_id, PROGRESS_TAG, "training alone")

            def log_live(point: CurvePoint) -> None:
                try:
                    _log_points(client, run_id, [point])
                except Exception as error:
                    logger.warning("MLflow did not take epoch %s: %s", point[EPOCH], error)

            def finish_live(status: str) -> None:
                try:
                    client.set_terminated(run_id, status)
                except Exception as error:
                    logger.warning("MLflow did not take the end of the run: %s", error)

            log_point, finish = log_live, finish_live
        except Exception as error:
            logger.warning("training goes on without MLflow: %s", error)
    try:
        yield log_point
    except BaseException:
        finish("FAILED")
        raise
    finish("FINISHED")


def upsert(params: Params) -> str:
    """Bring this content's run up to date with the files, creating it where it is missing.

    Returns:
        The content key, which is the same whenever the content is.

    Raises:
        TrackingError: MLflow did not take it; the results themselves are there.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    key = content_key(params)
    try:
        _upsert(params, key)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise TrackingError(
            f"MLflow did not take the run: {error}. The results are in their files; mend "
            "MLFLOW_TRACKING_URI, or set tracking.enabled to false, and `make track`"
        ) from error
    return key


def _upsert(params: Params, key: str) -> None:
    client, experiment = _client(params)
    run = _find_or_create(client, experiment, params, key)
    run_id = run.info.run_id
    _log_points(client, run_id, json.loads(paths.CURVES.read_text()))
    _log_metrics(client, run_id)
    _log_datasets(client, run_id)
    for folder, files in artifacts().items():
        for file in files:
            client.log_artifact(run_id, str(file), folder)
    client.set_tag(run_id, PROGRESS_TAG, "whole")
    client.set_terminated(run_id, "FINISHED")
    logger.info("MLflow: run %s of %s", run.info.run_name, params.tracking.experiment)


def artifacts() -> dict[str, list[Path]]:
    """Files of a run, by their folder in MLflow; those that are not there are left out."""
    wanted = {
        "": [Path("params.yaml"), Path("dvc.lock"), Path("dvc.yaml")],
        "metrics": sorted(paths.METRICS.glob("*.json")),
        "figures": sorted(paths.PLOTS.glob("*.png")),
        "plots": [paths.CURVES, paths.PREDICTIONS],
        "model": [paths.MODEL],
    }
    return {folder: [file for file in files if file.is_file()] for folder, files in wanted.items()}


def _log_metrics(client: MlflowClient, run_id: str) -> None:
    """The figures of every metrics file, under the file's name; logged again only if changed."""
    known = client.get_run(run_id).data.metrics
    for file in sorted(paths.METRICS.glob("*.json")):
        for name, value in _flatten(json.loads(file.read_text()), f"{file.stem}/").items():
            name = name.replace(".", "/")
            numeric = isinstance(value, int | float) and not isinstance(value, bool)
            if numeric and known.get(name) != float(value):
                client.log_metric(run_id, name, float(value))


def _log_datasets(client: MlflowClient, run_id: str) -> None:
    """The prepared splits as MLflow data sets; their digest is DVC's MD5 of the images."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = client.get_run(run_id).inputs
    entries = inputs.dataset_inputs if inputs else []
    known = {(entry.dataset.name, entry.dataset.digest) for entry in entries}
    info = json.loads(paths.DATA_INFO.read_text())
    new = []
    for part, counts in info["splits"].items():
        file = paths.images(paths.PREPARED, part)
        digest = file_md5(file)
        if (part, digest) in known:
            continue
        dataset = Dataset(
            name=part,
            digest=digest,
            source_type="local",
            source=json.dumps({"uri": str(file)}),
            profile=json.dumps(
                {
                    "num_rows": counts["n"],
                    "per_class": counts["per_class"],
                    "labels_md5": file_md5(paths.labels(paths.PREPARED, part)),
                }
            ),
        )
        new.append(DatasetInput(dataset, [InputTag("mlflow.data.context", part)]))
    if new:
        client.log_inputs(run_id, new)
