"""Connecting to MLflow, finding the run of a content, and turning MLflow's errors into one.

MLflow is a view of the project's files: its database can be deleted and is filled again. Runs are
found by the tag `content_key` (pipeline/common/content_key.py). live.py streams curves during a
training; run.py completes the run from files, or creates it again.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock
from urllib.parse import unquote

from pipeline.common import git
from pipeline.common.content_key import RESULT_PARAMS
from pipeline.common.locks import wait_for_lock
from pipeline.common.nested import flatten
from pipeline.common.params import Params

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger(__name__)
logging.getLogger("urllib3").setLevel(logging.ERROR)  # it says each time that it tries again
logging.getLogger("alembic").setLevel(logging.WARNING)  # it lists its plugins

# MLflow reads the first variable on import; the second prevents a progress bar for each small file,
# and the third a printed link to each run, with the password of the server's address. The others
# bound the wait for a server; MLflow's defaults add up to 20 minutes.
for _name, _value in (
    ("MLFLOW_DISABLE_TELEMETRY", "true"),
    ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"),
    ("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"),
    ("MLFLOW_HTTP_REQUEST_TIMEOUT", "20"),
    ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"),
    ("PGCONNECT_TIMEOUT", "10"),
):
    os.environ[_name] = os.environ.get(_name) or _value  # MLflow refuses an empty one

KEY_TAG = "content_key"
PROGRESS_TAG = "pipeline"
"""Tag that tells runs whose later stages have not run ("training alone") from "whole" ones."""
COMMIT_TAG = "mlflow.source.git.commit"
EXPERIMENT_TAG = "dvc.experiment"
PARENT_TAG = "mlflow.parentRunId"
SEARCH_TAG = "search"
"""Tag of the parent run of a search's trials: its name (pipeline/search.py)."""
SWEEP_TAG = "dvc.sweep"
"""Tag of the parent run of DVC's experiments: the commit from which they all started."""
VIEW = "pipeline"
"""Key of a saved view of the runs, by which a link names it; it has these columns."""
COLUMNS = (
    *("metrics.`train/val/accuracy`", "metrics.`train/val/loss`", "metrics.`eval/accuracy`"),
    *("metrics.`train/parameters`", "metrics.`wall_clock/us_per_image/engine.b1`"),
    *("params.`data.dataset`", "params.`train.epochs`", "params.`train.lr`"),
    *("params.`train.seed`", "params.`model.d_model`", "params.`model.members`"),
)
EXPERIMENT_TAGS = {
    # MLflow's pages are those of model training, not of GenAI.
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.experiment.primaryMetric.name": "train/val/accuracy",
    "mlflow.experiment.primaryMetric.greaterIsBetter": "True",
    f"mlflow.sharedViewState.{VIEW}": json.dumps({"selectedColumns": COLUMNS}),
}
PASSWORD = re.compile(r"(://)[^\s'\"]*@")
"""Name and password in an address."""
ADDRESS_PASSWORD = re.compile(r"(password=)([^&]*)")
"""Password among the parameters of a text that is one address."""
ARTIFACT_COLUMNS = (
    *("experiments.artifact_location", "runs.artifact_uri", "logged_models.artifact_location"),
    *("model_versions.source", "model_versions.storage_location"),
)
"""Columns of MLflow's database that have addresses of artifacts."""
LOCK_S = 120
"""Seconds after which a process gives up waiting for another one of this project."""
EPOCH = "epoch"
CurvePoint = Mapping[str, float | int | None]
"""Values of all learning curves at one `epoch`."""


class TrackingError(RuntimeError):
    """MLflow could not store something; the message says what to do."""


ADVICE = (
    (
        "error code 401|UNAUTHENTICATED",
        "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to your account's",
    ),
    (
        "error code 403|PERMISSION_DENIED",
        "ask the server's administrator for permission to edit the experiment",
    ),
    ("is deleted", "restore it, or name another as tracking.experiment"),
    ("disk is full|No space left|quota", "free space where MLflow stores runs"),
    (
        "out-of-date database schema",
        "let the database's owner back it up and upgrade it (`mlflow db upgrade URI`)",
    ),
    ("locate revision", "the database was made by a newer MLflow: install that version"),
    ("", "correct MLFLOW_TRACKING_URI, or set tracking.enabled to false"),
)
"""Advice by a part of an error's text; the first that is found holds."""


@contextmanager
def mlflow_errors(again: str = "make track") -> Iterator[None]:
    """Turn MLflow's many errors into one that tells the user what to do.

    A store or a plugin of MLflow may raise errors of any class. Call `check_files` first, because
    a missing result is not MLflow's fault.

    Args:
        again: the command to run once the cause is removed.

    Raises:
        TrackingError: MLflow failed; the results' files are complete.
    """
    try:
        yield
    except TrackingError:
        raise
    except Exception as error:
        advice = next(advice for text, advice in ADVICE if re.search(text, str(error)))
        raise TrackingError(
            f"MLflow failed: {one_line(error)}. The results' files are complete: {advice}, then "
            f"run `{again}`"
        ) from error


def check_files(files: Iterable[Path]) -> None:
    """Check that files of the results exist.

    Raises:
        FileNotFoundError: one is missing.
    """
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} not found: run `make repro`")


def one_line(error: BaseException) -> str:
    """Return an error's first line, without the password of an address in it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return without_password(lines[0])


def without_password(text: str) -> str:
    """Return a text without the names and passwords of the addresses in it.

    Those of MLFLOW_TRACKING_URI are cut wherever they stand, whatever characters they have.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    before, _, _ = uri.partition("://")[2].rpartition("@")
    name, _, password = before.partition(":")
    if uri:
        text = text.replace(uri, public_address(uri))
    for secret in (password, *(found for _, found in ADDRESS_PASSWORD.findall(uri))):
        for form in filter(None, (secret, unquote(secret))):
            text = text.replace(form, "***")
    for form in filter(None, (name, unquote(name))):
        text = re.sub(rf"(?<!\w){re.escape(form)}(?!\w)", "***", text)
    return re.sub(r"password=[^&\s]*", "password=***", PASSWORD.sub(r"\1", text))


def public_address(uri: str) -> str:
    """Return an address without name and password; these may have any characters, also a slash."""
    scheme, separator, rest = uri.partition("://")
    return ADDRESS_PASSWORD.sub(r"\1***", f"{scheme}{separator}{rest.rpartition('@')[2]}")


def database_root() -> Path:
    """Return the project that holds the database: the original while DVC runs a temp copy of it."""
    return Path(os.environ.get("DVC_ROOT") or ".").resolve()


def tracking_uri() -> str:
    """Return where runs are stored: MLFLOW_TRACKING_URI, or else a database in the project."""
    from sqlalchemy import URL

    # The library quotes what has a meaning in an address, such as a question mark.
    database = URL.create("sqlite", database=str(database_root() / "mlflow.db"))
    return os.environ.get("MLFLOW_TRACKING_URI") or database.render_as_string()


def _remove_stray(uri: str) -> None:
    """Remove the empty folder that MLflow makes where it takes a quoted address for a path."""
    folder = Path(uri.removeprefix("sqlite:///")).parent
    if folder != database_root():
        with suppress(OSError):  # not empty, or not there
            os.removedirs(folder)


def _follow_move(old: str, new: str) -> None:
    """Replace the folder in which MLflow's database notes that artifacts are.

    The database has the folder's absolute address and travels with the project. A moved project
    would write its artifacts to the old place, and a copy into the original.
    """
    with closing(sqlite3.connect(database_root() / "mlflow.db")) as database, database:
        for place in ARTIFACT_COLUMNS:
            table, column = place.split(".")
            database.execute(
                f"update {table} set {column} = :new || substr({column}, length(:old) + 1) "
                f"where {column} = :old or substr({column}, 1, length(:old) + 1) = :old || '/'",
                {"old": old, "new": new},
            )
    logger.info("the project was moved or copied: MLflow's artifacts are in %s", new)


def process_default() -> Any:
    """Return a context in which functions of MLflow that take no client use our database."""
    return mock.patch.dict(os.environ, MLFLOW_TRACKING_URI=tracking_uri())


def is_local() -> bool:
    """Return whether runs are stored in a file of this machine, not by a server."""
    return tracking_uri().startswith("sqlite:")


def connect(params: Params) -> tuple[MlflowClient, str]:
    """Return a client and the experiment's id; create database and experiment if missing."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    uri = tracking_uri()
    # The first connection creates the schema, which parallel processes must not do at once.
    with project_lock():
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        known = client.get_experiment_by_name(params.tracking.experiment)
        location = (database_root() / "mlartifacts").as_uri() if is_local() else None
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            _remove_stray(uri)
            if known and location and known.artifact_location != location:
                _follow_move(known.artifact_location, location)
        if known is None:
            experiment = client.create_experiment(params.tracking.experiment, location)
        elif known.lifecycle_stage != "active":
            raise MlflowException(
                f"experiment {known.name} is deleted (`mlflow experiments restore --experiment-id "
                f"{known.experiment_id}`)"
            )
        else:
            experiment = known.experiment_id
        for tag, value in EXPERIMENT_TAGS.items():
            if known is None or known.tags.get(tag) != value:
                client.set_experiment_tag(experiment, tag, value)
        return client, experiment


@contextmanager
def project_lock() -> Iterator[None]:
    """Let one process of this project in at a time, DVC's parallel experiments included.

    Not reentrant.

    Raises:
        TrackingError: another process has waited too long for MLflow while it was in.
    """
    try:
        file = wait_for_lock(database_root() / ".mlflow.lock", LOCK_S)
    except TimeoutError as error:
        raise TrackingError(f"{error}; does MLflow answer it? Try again later") from None
    with file:
        yield


def all_pages(search: Callable[..., Any], *words: Any, **options: Any) -> Iterator[Any]:
    """Yield all that a search of MLflow's client finds. MLflow answers in pages."""
    page = search(*words, **options)
    yield from page
    while page.token:
        page = search(*words, **options, page_token=page.token)
        yield from page


def find(client: MlflowClient, experiment: str, value: str, tag: str = KEY_TAG) -> Run | None:
    """Return the oldest run with this content key, or with this value of another tag, or None."""
    return next(find_all(client, experiment, value, tag), None)


def find_all(
    client: MlflowClient, experiment: str, value: str, tag: str = KEY_TAG
) -> Iterator[Run]:
    """Yield the runs with this value of a tag, the oldest first: everybody sees the same order."""
    same = f"tags.`{tag}` = '{value}'"
    return all_pages(client.search_runs, [experiment], same, order_by=["attributes.start_time ASC"])


def find_or_create(
    client: MlflowClient, experiment: str, params: Params, key: str, search: str | None = None
) -> Run:
    """Return the run with a content key; create the run and log its params if missing.

    A trial of a search gets the search's run as its parent, unless it has one.
    """
    from mlflow.entities import Param

    with project_lock():
        run = find(client, experiment, key)
        if run is None:
            name = os.environ.get("DVC_EXP_NAME") or f"{params.data.dataset}-{key[:8]}"
            run = _create_once(client, experiment, name, KEY_TAG, {KEY_TAG: key, **_origin()})
            baseline = run.data.tags.get(COMMIT_TAG)
            if EXPERIMENT_TAG in run.data.tags and baseline:
                _join_sweep(client, experiment, baseline)
        if search is not None and PARENT_TAG not in run.data.tags:
            note = "The trials of a search: `python -m pipeline.search` prints the best."
            parent = _parent(client, experiment, f"search {search}", SEARCH_TAG, search, note)
            client.set_tag(run.info.run_id, PARENT_TAG, parent.info.run_id)
    # Params of the other sections may differ between two runs of the same content.
    values = params.model_dump(mode="json", include=set(RESULT_PARAMS))
    missing = {k: v for k, v in flatten(values).items() if k not in run.data.params}
    if missing:
        client.log_batch(run.info.run_id, params=[Param(k, str(v)) for k, v in missing.items()])
    return run


def _create_once(
    client: MlflowClient, experiment: str, name: str, tag: str, tags: Mapping[str, str]
) -> Run:
    """Create a run; if another clone creates one with the same tag, return the older one."""
    created = client.create_run(experiment, run_name=name, tags=dict(tags))
    run = find(client, experiment, tags[tag], tag) or created
    if run.info.run_id != created.info.run_id:
        client.delete_run(created.info.run_id)
    return run


def _parent(
    client: MlflowClient, experiment: str, name: str, tag: str, value: str, note: str, **more: str
) -> Run:
    """Return the parent run with this value of a tag; create it if missing."""
    parent = find(client, experiment, value, tag)
    if parent is None:
        tags = {tag: value, **more, "mlflow.note.content": note}
        parent = _create_once(client, experiment, name, tag, tags)
        client.set_terminated(parent.info.run_id)
    return parent


def _origin() -> dict[str, str]:
    """Return tags that name the commit and the DVC experiment of a new run."""
    name, baseline = (os.environ.get(f"DVC_EXP_{field}") for field in ("NAME", "BASELINE_REV"))
    tags = {EXPERIMENT_TAG: name, COMMIT_TAG: baseline or git.head(database_root())}
    return {tag: value for tag, value in tags.items() if value}


def _join_sweep(client: MlflowClient, experiment: str, baseline: str) -> None:
    """Give DVC's experiments that started from a commit one parent run, if there are several."""
    of_commit = f"tags.`{COMMIT_TAG}` = '{baseline}' and tags.`{EXPERIMENT_TAG}` LIKE '%'"
    children = [*all_pages(client.search_runs, [experiment], of_commit)]
    if len(children) < 2:
        return
    note = (
        f"The experiments that `dvc exp run` started from commit {baseline[:7]}: one child run for "
        "each content. `make experiments` prints the same table."
    )
    name, more = f"from {baseline[:7]}", {COMMIT_TAG: baseline}
    parent = _parent(client, experiment, name, SWEEP_TAG, baseline, note, **more)
    for child in children:
        if PARENT_TAG not in child.data.tags:
            client.set_tag(child.info.run_id, PARENT_TAG, parent.info.run_id)


def log_points(client: MlflowClient, run_id: str, points: Sequence[CurvePoint]) -> None:
    """Log the points of the curves that the run lacks or has with another value."""
    from mlflow.entities import Metric

    wanted = {
        (f"curve/{name}", int(point[EPOCH] or 0)): float(value)
        for point in points
        for name, value in point.items()
        if name != EPOCH and value is not None
    }
    known = {
        (metric.key, metric.step): metric.value
        for name in {name for name, _ in wanted}
        for metric in client.get_metric_history(run_id, name)
    }
    now = int(time.time() * 1000)
    metrics = [
        Metric(name, value, now, epoch)
        for (name, epoch), value in wanted.items()
        if known.get((name, epoch)) != value
    ]
    if metrics:
        client.log_batch(run_id, metrics=metrics)


def log_metrics(client: MlflowClient, run_id: str, metrics: Iterable[tuple[str, float]]) -> None:
    """Log the metrics that are new or have changed."""
    from mlflow.entities import Metric

    known = client.get_run(run_id).data.metrics
    now = int(time.time() * 1000)
    new = [Metric(name, value, now, 0) for name, value in metrics if known.get(name) != value]
    if new:
        client.log_batch(run_id, metrics=new)


def metrics_of(content: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    """Yield each number of a metrics file as `prefix/section/name`.

    MLflow makes a section of all before the last /.
    """
    for name, value in flatten(content, f"{prefix}/").items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield name.replace(".", "/", 1), float(value)
