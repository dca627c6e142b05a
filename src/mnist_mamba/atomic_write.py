"""Write files atomically: a reader sees the old content or the new, never a part."""

from __future__ import annotations

import json
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` once the body has written it.

    The old file stays if the body raises or the machine stops. Links are followed. A file that
    exists keeps its mode.

    Raises:
        OSError: the folder or the file cannot be written, the disk is full, or `path` is not a
            regular file, is a deleted one, or is where stdout or stderr goes.
    """
    target, old = _target(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    os.close(os.open(temporary, flags, 0o600 if old else 0o666))
    try:
        yield temporary
        with temporary.open("rb+") as file:
            if old:
                with suppress(OSError):  # some file systems have no modes
                    os.fchmod(file.fileno(), old.st_mode & 0o777)
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def _target(path: Path) -> tuple[Path, os.stat_result | None]:
    """Return the file that `path` names, after all links, and its status if it exists."""
    try:
        path.lstat()
    except FileNotFoundError:
        return path, None
    old = path.stat()
    target = Path(os.path.realpath(path))
    # Links in /proc can lead to files without a name: then `target` is missing or another file.
    is_found = target.exists() and os.path.samestat(target.stat(), old)
    if not (is_found and stat.S_ISREG(old.st_mode)) or _is_standard_stream(old):
        raise OSError(
            f"{path}: expected a regular file other than stdout and stderr, and not a deleted one"
        )
    os.close(os.open(path, os.O_WRONLY))  # an error without permission to write
    return target, old


def _is_standard_stream(file: os.stat_result) -> bool:
    """Return whether stdout or stderr goes to a file, as after `--output /dev/stdout > file`."""
    for descriptor in (1, 2):
        with suppress(OSError):  # it is closed
            if os.path.samestat(os.fstat(descriptor), file):
                return True
    return False


def _sync_folder(folder: Path) -> None:
    """Make a rename in a folder survive a power cut, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with a final newline, whole or not at all.

    Raises:
        ValueError: NaN or infinity, which JSON does not have.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
