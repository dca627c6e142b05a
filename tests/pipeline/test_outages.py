"""Servers that refuse, hang, fail or do not exist: no training waits, and no result is lost."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import socket
import sqlite3
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import _artifact_repository_registry
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.store.tracking.rest_store import RestStore

from mnist_mamba.atomic_write import write_text
from pipeline import track
from pipeline.common import paths
from pipeline.common.content_key import content_key
from pipeline.common.params import load_params
from pipeline.release import champion
from pipeline.tracking import client as tracking
from pipeline.tracking import live
from pipeline.tracking import model as tracked_model
from pipeline.tracking import run as tracked_run
from tests.pipeline.conftest import POINTS
from tests.pipeline.project import start

SECRET = "my%40secret"


class Failing(http.server.BaseHTTPRequestHandler):
    """Answers everything with one status and body."""

    status, body = 500, ""

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(self.body.encode())

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, str]]:
    """Addresses, with a password, by what their servers do."""
    with (
        socket.create_server(("127.0.0.1", 0)) as hangs,  # the system accepts, and nobody answers
        socket.socket() as refuses,  # bound, but it does not listen
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), Failing) as fails,
    ):
        refuses.bind(("127.0.0.1", 0))
        threading.Thread(target=fails.serve_forever, daemon=True).start()
        ports = {
            "hangs": hangs.getsockname()[1],
            "refuses": refuses.getsockname()[1],
            "fails": fails.server_port,
        }
        found = {name: f"http://me:{SECRET}@127.0.0.1:{port}" for name, port in ports.items()}
        yield {**found, "does not exist": f"http://me:{SECRET}@nothing.invalid:5000"}
        fails.shutdown()


@pytest.fixture(params=["hangs", "refuses", "fails", "does not exist"])
def server(
    request: pytest.FixtureRequest,
    servers: dict[str, str],
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """The behaviour of the server that MLflow uses. Waits are shorter than a user's."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", servers[request.param])
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    return str(request.param)


def test_no_server_holds_up_a_training(
    server: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert live.WAIT_S <= 10
    monkeypatch.setattr(live, "WAIT_S", 1)
    params = load_params()
    started = time.monotonic()
    with live.live_run(params) as log_point:
        for point in 50 * POINTS:
            log_point(point)
        assert time.monotonic() - started < 1
    assert time.monotonic() - started < 3
    for thread in threading.enumerate():  # also what it says after the training's end
        if thread.name == "MLflow":
            thread.join()
    (warning,) = (one.getMessage() for one in caplog.records if one.levelname == "WARNING")
    assert "the training goes on without it, and `make track` stores all later" in warning
    assert "secret" not in caplog.text


def test_no_process_waits_for_ever_for_another_one(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "LOCK_S", 0.1)
    with (
        tracking.project_lock(),
        pytest.raises(tracking.TrackingError, match=r"\.mlflow\.lock: another process has held"),
        tracking.project_lock(),
    ):
        pass


def test_an_error_names_no_password(server: str) -> None:
    with pytest.raises(tracking.TrackingError) as error:
        tracked_run.upsert(load_params())
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("failed with error code 401 != 200", "MLFLOW_TRACKING_USERNAME"),
        ("failed with error code 403 != 200", "administrator"),
        ("experiment x is deleted", "restore it"),
        ("(sqlite3.OperationalError) database or disk is full", "free space"),
        ("[Errno 28] No space left on device: '/x'", "free space"),
        ("Detected out-of-date database schema (found version a)", "mlflow db upgrade"),
        ("Can't locate revision identified by 'abc'", "newer MLflow"),
        ("connection refused", "correct MLFLOW_TRACKING_URI"),
    ],
)
def test_the_advice_fits_the_cause(said: str, advice: str) -> None:
    with pytest.raises(tracking.TrackingError) as error, tracking.mlflow_errors():
        raise MlflowException(said)
    assert said in str(error.value)
    assert advice in str(error.value)
    assert len([1 for _, other in tracking.ADVICE if other in str(error.value)]) == 1


@pytest.mark.parametrize(
    ("status", "body", "advice"),
    [
        (401, "You are not authenticated.", "MLFLOW_TRACKING_USERNAME"),
        (401, '{"error_code": "UNAUTHENTICATED", "message": "no"}', "MLFLOW_TRACKING_USERNAME"),
        (403, "Permission denied", "administrator"),
        (403, '{"error_code": "PERMISSION_DENIED", "message": "no"}', "administrator"),
        (404, "<html>another service</html>", "correct MLFLOW_TRACKING_URI"),
    ],
)
def test_a_server_that_refuses_says_what_it_needs(
    servers: dict[str, str],
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    body: str,
    advice: str,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", servers["fails"])
    monkeypatch.setattr(Failing, "status", status)
    monkeypatch.setattr(Failing, "body", body)
    with pytest.raises(tracking.TrackingError, match=advice):
        tracked_run.upsert(load_params())


def test_each_command_names_itself_as_the_one_to_run_again(
    servers: dict[str, str], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = load_params()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", servers["fails"])
    with pytest.raises(tracking.TrackingError, match="run `make track`"):
        tracked_run.upsert(params)
    with pytest.raises(tracking.TrackingError, match="run `make ui`"):
        track.serve(params, port=0)
    with pytest.raises(tracking.TrackingError, match="run `make promote`"):
        tracked_model.register(params, "digits", "champion")


def test_a_deleted_experiment_is_named_with_the_command_that_restores_it(project: Path) -> None:
    params = load_params()
    client, experiment = tracking.connect(params)
    client.delete_experiment(experiment)
    with pytest.raises(tracking.TrackingError, match=rf"is deleted .*restore.* {experiment}`\)"):
        tracked_run.upsert(params)
    client.restore_experiment(experiment)
    tracked_run.upsert(params)


@pytest.mark.parametrize("found", ["0000", "a newer one"])
def test_a_database_of_another_mlflow_is_named(project: Path, found: str) -> None:
    """An old schema is upgraded by its owner, a new one needs a newer MLflow."""
    with contextlib.closing(sqlite3.connect("mlflow.db")) as database, database:
        database.execute("update alembic_version set version_num = ?", [found])
    with pytest.raises(tracking.TrackingError, match=r"newer MLflow|mlflow db upgrade"):
        tracked_run.upsert(load_params())


def test_a_run_that_mlflow_did_not_store_is_marked(
    server: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The stage ends well: DVC throws an experiment away whose last stage fails."""
    key = content_key(load_params())
    monkeypatch.setattr("sys.argv", ["track"])
    track.main()
    assert paths.TRACKING_KEY.read_text(encoding="utf-8") == f"{key} untracked\n"
    assert "The results' files are complete: " in caplog.text
    monkeypatch.setattr("sys.argv", ["track", "--missing"])
    with pytest.raises(tracking.TrackingError, match="not in MLflow yet"):
        track.main()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.setattr("sys.argv", ["track"])
    track.main()
    assert paths.TRACKING_KEY.read_text(encoding="utf-8") == f"{key}\n"


class OddError(Exception):
    """An error of a class that MLflow does not know, like those of botocore and psycopg2."""


class OddStore(LocalArtifactRepository):  # type: ignore[misc]
    """An artifact store of a plugin, which fails in its own way."""

    fails: type[Exception] | None = None

    def __init__(self, uri: str, *words: object, **options: object) -> None:
        super().__init__(uri.removeprefix("odd:"))

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        if self.fails:
            raise self.fails("the odd store is full")
        super().log_artifact(local_file, artifact_path)


@pytest.mark.parametrize("error", [OddError, FileNotFoundError])
def test_an_odd_error_of_a_store_s_plugin_loses_no_result(
    error: type[Exception],
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(_artifact_repository_registry._registry, "odd", OddStore)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/mlflow.db")
    params = load_params()
    MlflowClient().create_experiment(params.tracking.experiment, f"odd:{project}/odd")
    monkeypatch.setattr("sys.argv", ["track"])
    monkeypatch.setattr(OddStore, "fails", error)
    track.main()
    key = content_key(params)
    assert paths.TRACKING_KEY.read_text(encoding="utf-8") == f"{key} untracked\n"
    assert "the odd store is full" in caplog.text
    monkeypatch.setattr(OddStore, "fails", None)
    track.main()
    assert paths.TRACKING_KEY.read_text(encoding="utf-8") == f"{key}\n"
    assert list((project / "odd").rglob("curves.json"))


@pytest.mark.parametrize(
    "missing",
    [
        *(paths.CURVES, paths.METRICS / "train.json", paths.METRICS / "eval.json"),
        *(paths.DATA_INFO, paths.MODEL, paths.ENGINE_LIBRARY),
        *(paths.images(paths.PREPARED, "test"), paths.labels(paths.PREPARED, "val")),
    ],
)
def test_results_that_are_not_there_are_an_error_of_their_own(missing: Path, project: Path) -> None:
    """MLflow is not asked, and the key is not marked: these results are not complete."""
    missing.unlink()
    with pytest.raises(FileNotFoundError, match=f"^{missing} not found: run"):
        track.track(load_params(), None)
    assert not paths.TRACKING_KEY.exists()


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://me:secret@host/db refused",
        "postgresql+psycopg2://me:se/cret@secret@host/db refused",
        "no 'http://secret:@host:1/a' and http://me:secret@other",
        "postgresql://host/db?user=a&password=secret&sslmode=require refused",
    ],
)
def test_passwords_of_all_kinds_are_cut(text: str) -> None:
    assert "secret" not in tracking.without_password(text)
    assert "host" in tracking.without_password(text)


@pytest.mark.parametrize("password", ["'secret", '"secret', " secret", "/?#secret", "%27secret"])
@pytest.mark.parametrize("address", ["http://user:{}@host:5", "postgresql://host/db?password={}"])
def test_the_known_password_is_cut_whatever_characters_it_has(
    address: str, password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = address.format(password)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for text in (f"host: no {uri} here", f"host: bad {password!r} of 'user'", f"host: {uri!r}"):
        found = tracking.without_password(text)
        assert "secret" not in found
        assert "user" not in found or "user:" not in uri
        assert "host" in found
    plain = unquote(password)
    assert "secret" not in tracking.without_password(f"bad {plain}")
    assert tracking.public_address("http://me:a'b c/@me.example/x") == "http://me.example/x"


def test_the_end_of_a_run_prints_no_password(
    servers: dict[str, str],
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """MLflow would print a link to the run."""
    run = {"info": {"run_id": "1", "experiment_id": "7", "run_name": "x"}, "data": {}}
    monkeypatch.setattr(Failing, "status", 200)
    monkeypatch.setattr(Failing, "body", json.dumps({"run": run}))
    monkeypatch.setattr(RestStore, "update_run_info", lambda *_, **__: None)
    client = MlflowClient(tracking_uri=servers["fails"])
    client.set_terminated("1")
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "false")
    client.set_terminated("1")
    assert "secret" in capsys.readouterr().out  # so this test would notice


@pytest.fixture
def real_server(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[str, Callable[[], None]]]:
    """MLflow's own server, as in docs/team.md with other stores: its address, and its death."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    stores = ["--backend-store-uri", "sqlite:///runs.db", "--artifacts-destination", "artifacts"]
    words = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", *stores]
    process = start(folder, ["mlflow", *words])

    def kill() -> None:
        with contextlib.suppress(ProcessLookupError):  # its workers are processes, too
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 300
    while True:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5).close()
            break
        except OSError:
            assert process.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.2)
    yield address, kill
    kill()


@pytest.mark.slow
def test_a_run_and_its_champion_on_a_real_server_and_after_its_death(
    real_server: tuple[str, Callable[[], None]], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, kill = real_server
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setattr(live, "WAIT_S", 300)  # the machine may be busy
    params = load_params()
    with live.live_run(params) as log_point:
        log_point(POINTS[0])
    tracked_run.upsert(params)
    model = tracked_model.logged_model(params)
    tracked_run.upsert(params)
    assert tracked_model.logged_model(params).model_id == model.model_id
    _, checksums = tracked_model.register(params, "digits", "champion")
    write_text(Path("list"), checksums)
    champion.fetch("models:/digits@champion", Path("list"), Path("build/champion"))
    client, experiment = tracking.connect(params)
    (run,) = client.search_runs([experiment])
    assert (run.info.status, run.data.tags["pipeline"]) == ("FINISHED", "whole")
    assert run.data.metrics["curve/lr"] == 0.2
    monkeypatch.setattr(live, "WAIT_S", 1)
    started = time.monotonic()
    with live.live_run(params) as log_point:
        kill()
        log_point(POINTS[1])
    assert time.monotonic() - started < 5
    with pytest.raises(tracking.TrackingError, match="correct MLFLOW_TRACKING_URI"):
        tracked_run.upsert(params)
    with pytest.raises(tracking.TrackingError, match="correct MLFLOW_TRACKING_URI"):
        champion.fetch("models:/digits@champion", Path("list"), Path("build/champion"))
