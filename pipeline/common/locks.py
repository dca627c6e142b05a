"""Locks between processes, held as long as a file is open: also by children that inherit it."""

from __future__ import annotations

import fcntl
import time
from pathlib import Path
from typing import TextIO

POLL_S = 0.05
"""Seconds between two looks at a lock that is held."""


def try_lock(path: Path) -> TextIO | None:
    """Return the open file, locked; None if another process holds the lock."""
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def wait_for_lock(path: Path, wait_s: float | None = None) -> TextIO:
    """Return the open file, locked; wait while another process holds the lock. Create its folder.

    Raises:
        TimeoutError: it is still held after `wait_s` seconds; None waits for ever.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    while (file := try_lock(path)) is None:
        if wait_s is not None and time.monotonic() - begin > wait_s:
            raise TimeoutError(f"{path}: another process has held this lock for {wait_s:g} s")
        time.sleep(POLL_S)
    return file
