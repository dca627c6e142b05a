"""Commands in unusual environments: variables that are set but empty, and an ASCII locale."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipeline import demo
from pipeline.common import run_engine
from tests.pipeline.imports import ROOT
from tests.pipeline.project import SMALL, copy_project, run, run_module

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
"""Variables with which Python reads and writes nothing but ASCII."""
EMPTY = dict.fromkeys(
    (
        *("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"),
        *("MLFLOW_TRACKING_URI", "MNIST_MIRROR", "MNIST_MAMBA_TRACEBACK", "TORCHELASTIC_RUN_ID"),
        *("DVC_ROOT", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "THP_MEM_ALLOC_ENABLE"),
    ),
    "",
)
"""Variables that the project sets or reads, apart from those of compilers and libraries."""


def test_an_empty_variable_counts_as_unset(tmp_path: Path) -> None:
    folder = copy_project(tmp_path, {**SMALL, "train.epochs": 1})
    for stage in ("download", "prepare", "train"):
        done = run_module(folder, f"pipeline.{stage}", **EMPTY, **ASCII)
        assert done.returncode == 0, done.stderr
    assert (folder / "mlflow.db").is_file()
    done = run_module(folder, "pipeline.train", "--set", "no.key=1", **EMPTY)
    assert done.stderr == "error: command line: no.key: unknown key, got 1\n"


def test_the_demo_has_an_author_if_git_s_variables_are_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_AUTHOR_NAME", "")
    monkeypatch.setenv("GIT_COMMITTER_NAME", "someone")
    env = demo.environment()
    assert env["GIT_AUTHOR_NAME"] == demo.IDENTITY["NAME"]
    assert env["GIT_COMMITTER_NAME"] == "someone"


@pytest.mark.parametrize("judges", [False, True])
def test_a_locale_without_a_character_is_no_error(judges: bool) -> None:
    call = "run_judge(lambda _: main(), '', 'a.b')" if judges else "run(main)"
    program = (
        f"from pipeline.common.command import *\nmain = lambda: print('p \\u2265 1') or 0\n{call}"
    )
    done = run(ROOT, [sys.executable, "-c", program], **ASCII)
    assert (done.returncode, done.stdout, done.stderr) == (0, "p \\u2265 1\n", "")


def test_an_engine_s_error_may_hold_any_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tmp_path / "engine"
    engine.write_text("#!/bin/sh\nprintf 'a \\377 b' >&2\nexit 3\n", encoding="utf-8")
    monkeypatch.setattr(run_engine.paths, "ENGINE", engine)
    with pytest.raises(RuntimeError, match=r"mamba info failed \(3\): a \ufffd b"):
        run_engine.run_engine("info")
