"""Parts of the demo; `make demo` itself runs in CI."""

from __future__ import annotations

import json
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest

from pipeline import demo
from pipeline.common.git import GitError, check_identity
from pipeline.release import gate
from tests.pipeline.imports import ROOT
from tests.pipeline.project import run


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Git repository with one commit, of a user without an identity."""
    home = tmp_path / "home"
    home.mkdir()
    for variable in ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    git("init", "-q")
    commit("first")
    return folder


def git(*words: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@localhost")
    done = subprocess.run(["git", *identity, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit(message: str) -> str:
    git("commit", "-q", "--allow-empty", "-m", message)
    return git("rev-parse", "HEAD")


def make_experiment(head: str, value: int) -> None:
    """Store an experiment as DVC does: a commit under a ref that names its baseline."""
    Path("metrics.json").write_text(json.dumps({"value": value}), encoding="utf-8")
    git("add", "metrics.json")
    git("commit", "-q", "-m", "experiment")
    git("update-ref", f"refs/exps/{head[:2]}/{head[2:]}/{demo.NAME}", "HEAD")
    git("reset", "-q", "--hard", head)


def test_results_are_those_of_the_current_commit(repository: Path) -> None:
    for value in range(4):
        head = commit(f"state {value}")
        make_experiment(head, value)
        assert demo.result("metrics.json") == {"value": value}


def test_a_missing_experiment_is_an_error_that_says_so(repository: Path) -> None:
    with pytest.raises(RuntimeError, match=r"git show refs/exps/.*demo"):
        demo.result("metrics.json")


def test_git_gets_an_identity_only_where_it_has_none(repository: Path) -> None:
    env = demo.environment()
    assert env["GIT_AUTHOR_NAME"] == env["GIT_COMMITTER_NAME"] == demo.IDENTITY["NAME"]
    done = subprocess.run(["git", "commit", "-q", "--allow-empty", "-m", "x"], env=env)
    assert done.returncode == 0
    subprocess.run(["git", "config", "user.name", "Ada"], check=True)
    subprocess.run(["git", "config", "user.email", "ada@localhost"], check=True)
    assert "GIT_AUTHOR_NAME" not in demo.environment()


def test_a_shallow_clone_is_refused_with_the_way_out(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo.check_repository()
    commit("second")
    git("clone", "-q", "--depth", "1", repository.as_uri(), str(tmp_path / "shallow"))
    monkeypatch.chdir(tmp_path / "shallow")
    with pytest.raises(RuntimeError, match="git fetch --unshallow"):
        demo.check_repository()


def test_a_folder_without_git_and_a_repository_of_another_user_get_advice_of_their_own(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")  # Git is asked in English
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    judge = [partial(gate.resolve, "HEAD"), demo.check_repository]
    for call in judge:
        with pytest.raises(GitError, match="belongs to another user") as error:
            call()
        assert f"`git config --global --add safe.directory {repository}`" in str(error.value)
    unpacked = tmp_path / "zip"
    unpacked.mkdir()
    monkeypatch.chdir(unpacked)
    monkeypatch.delenv("GIT_TEST_ASSUME_DIFFERENT_OWNER")
    for call in judge:
        with pytest.raises(GitError, match=r"is not a Git repository: clone .* git init") as error:
            call()
        assert "unshallow" not in str(error.value)


@pytest.mark.parametrize("target", ["repro", "experiments", "track", "check-lock", "study"])
def test_make_says_the_same_before_dvc_and_the_installation(target: str, tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("engine", "flags", "install", "tests"):
        (tmp_path / "csrc").mkdir(exist_ok=True)
        shutil.copy(ROOT / f"csrc/{name}.mk", tmp_path / "csrc")
    (tmp_path / "constraints.txt").touch()
    done = run(tmp_path, ["make", "-s", target], MAKEFLAGS="")
    assert done.returncode != 0
    assert f"error: {tmp_path} is not a Git repository: clone the project" in done.stderr
    assert "git init && git add . && git commit -m start" in done.stderr


def test_an_author_is_a_setting_or_a_variable(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(GitError, match=r"run `git config --global user\.name YOURS` first"):
        check_identity()
    monkeypatch.setenv("GIT_AUTHOR_NAME", "Ada")
    with pytest.raises(GitError, match=r"run `git config --global user\.email YOURS` first"):
        check_identity()
    subprocess.run(["git", "config", "user.email", "ada@localhost"], check=True)
    check_identity()
