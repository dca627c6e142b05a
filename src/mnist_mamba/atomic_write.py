"""Write files atomically: a reader sees the old content or the new, never a part."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_ACL = "system.posix_acl_access"
_LOOKS = 100
"""Number of looks at a file, which other processes may replace meanwhile, before it is refused."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` once the body has written it.

    The old file stays if the body raises or the machine stops. Links are followed. A file that
    exists keeps its user, group, mode (without set-user-ID, set-group-ID and sticky bit) and POSIX
    access control list.

    Raises:
        OSError: the folder or the file cannot be written, the disk is full, this process may not
            give a file to the user and group of the old one, or `path` is not a regular file, is a
            deleted one, or is where stdout or stderr goes.
    """
    target, old = _target(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{_prefix(target)}{secrets.token_hex(8)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    os.close(os.open(temporary, flags, 0o600 if old else 0o666))
    try:
        yield temporary
        with temporary.open("rb+") as file:
            if old:
                _keep_access(file.fileno(), target, old)
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def _prefix(path: Path) -> str:
    """Return the start of temporary names for a file, which is short for any name of the file."""
    return f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}."


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files of killed processes that were writing `path`. Follow links.

    Nobody may be writing `path`: the temporary file of a living process would be removed too.
    """
    target = Path(os.path.realpath(path))
    for leftover in target.parent.glob(f"{_prefix(target)}*.tmp"):
        leftover.unlink()


def _target(path: Path) -> tuple[Path, os.stat_result | None]:
    """Return the file that `path` names, after all links, and its status if it exists."""
    try:
        path.lstat()
    except FileNotFoundError:
        return path, None
    for _ in range(_LOOKS):
        old = path.stat()
        target = Path(os.path.realpath(path))
        # Links in /proc can lead to files without a name: then `target` is missing or another file.
        # If another process has just replaced the file, the next look finds the same file twice.
        is_found = target.exists() and os.path.samestat(target.stat(), old)
        if is_found:
            break
    if not (is_found and stat.S_ISREG(old.st_mode)) or _is_standard_stream(old):
        raise OSError(
            f"{path}: expected a regular file other than stdout and stderr, and not a deleted one"
        )
    os.close(os.open(path, os.O_WRONLY))  # an error without permission to write
    return target, old


def _keep_access(new: int, target: Path, old: os.stat_result) -> None:
    """Let the same users read and write a new file as the old one, or raise OSError."""
    owner = (old.st_uid, old.st_gid)
    created = os.fstat(new)
    try:
        if (created.st_uid, created.st_gid) != owner:
            os.fchown(new, *owner)
        acl = _acl(target)
        if acl:
            os.setxattr(new, _ACL, acl)
        elif _acl(new):  # of the folder, for new files
            os.removexattr(new, _ACL)
    except OSError as error:
        raise OSError(
            f"{target}: cannot keep its user {owner[0]}, group {owner[1]} and access control list: "
            f"{error.strerror}; write another file, or remove this one first"
        ) from error
    with suppress(OSError):  # some file systems have no modes
        os.fchmod(new, old.st_mode & 0o777)


def _acl(file: Path | int) -> bytes:
    """Return a file's POSIX access control list; empty where there is none, as outside Linux."""
    with suppress(OSError, AttributeError):
        return os.getxattr(file, _ACL)
    return b""


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
