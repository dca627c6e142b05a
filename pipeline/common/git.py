"""Calls of Git, in the folder of the project unless another is named."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path


class GitError(RuntimeError):
    """Git is not installed, or it refused a command; the message says what Git said."""


def git(*words: str, folder: Path = Path()) -> str:
    """Return what `git WORDS` prints."""
    env = {**os.environ, "LC_ALL": "C"}  # _explain knows Git's messages in English
    try:
        done = subprocess.run(
            ["git", *words], cwd=folder, env=env, capture_output=True, text=True, encoding="utf-8"
        )
    except FileNotFoundError as error:
        raise GitError("git is not installed") from error
    if done.returncode:
        said = done.stderr.strip()
        raise GitError(_explain(said) or f"git {' '.join(words)}: {said}")
    return done.stdout


def _explain(said: str) -> str | None:
    """Return what to do about a repository that Git cannot use at all; None for other errors."""
    if "not a git repository" in said:
        return (
            f"{Path.cwd()} is not a Git repository: clone the project, or make one of an unpacked "
            "ZIP, without the history: git init && git add . && git commit -m start"
        )
    if "dubious ownership" in said:
        return (
            "the repository belongs to another user, so Git does not read it: if you trust its "
            f"files, run `{said.splitlines()[-1].strip()}`"
        )
    return None


def check_identity() -> None:
    """Check that Git knows an author for a commit.

    Raises:
        GitError: it lacks a name or an address.
    """
    for field in ("name", "email"):
        try:
            known = os.environ.get(f"GIT_AUTHOR_{field.upper()}") or git("config", f"user.{field}")
        except GitError:
            known = ""
        if not known.strip():
            raise GitError(
                f"an experiment is a commit, and Git's user.{field} is not set: run "
                f"`git config --global user.{field} YOURS` first"
            )


def head(folder: Path = Path()) -> str | None:
    """Return the hash of the current commit; None without Git or without a commit."""
    try:
        return git("rev-parse", "--verify", "--quiet", "HEAD", folder=folder).strip()
    except GitError:
        return None


def unpack_revision(revision: str, folder: Path) -> None:
    """Write the files of a revision, without its history, to an existing folder."""
    # A zip: Python before 3.11.4 unpacks a tar without a filter, and later versions ask for one.
    archive = folder / "revision.zip"
    git("archive", f"--output={archive.resolve()}", revision)
    shutil.unpack_archive(archive, folder)
    archive.unlink()
