"""Calls of Git, in the folder of the project unless another is named."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path


class GitError(RuntimeError):
    """Git is not installed, or it refused a command; the message says what Git said."""


def git(*words: str, folder: Path = Path()) -> str:
    """Return what `git WORDS` prints."""
    try:
        done = subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, encoding="utf-8"
        )
    except FileNotFoundError as error:
        raise GitError("git is not installed") from error
    if done.returncode:
        raise GitError(f"git {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


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
