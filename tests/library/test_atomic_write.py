"""Files are replaced whole, durably, through links, and never instead of another kind of file."""

from __future__ import annotations

import math
import os
import stat
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from mnist_mamba import atomic_write
from mnist_mamba.atomic_write import replacing, write_bytes, write_json, write_text

OTHER_USER = 65534
OTHER_GROUP = 2000
READERS = struct.pack(
    "<I" + 5 * "HHI",
    *(2, *(1, 6, 2**32 - 1), *(2, 4, OTHER_USER), *(4, 0, 2**32 - 1)),
    *(*(16, 4, 2**32 - 1), *(32, 0, 2**32 - 1)),
)
"""An access control list of Linux: rw- for the owner, r-- for OTHER_USER, nothing for others."""
NEW, OLD = b"new", b"old"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def in_child(action: Callable[[], None]) -> int:
    """Return the exit code of a forked process that runs `action`: 0, or 1 if it raises."""
    child = os.fork()
    if child == 0:
        try:
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_file_and_its_folder_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    events: list[tuple[str, bytes]] = []

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            assert os.path.samestat(os.fstat(descriptor), tmp_path.stat())
            events.append(("folder", path.read_bytes()))
        else:
            events.append(("file", os.pread(descriptor, 10, 0)))

    monkeypatch.setattr(os, "fsync", fsync)
    path.write_bytes(OLD)
    write_bytes(path, NEW)
    assert events == [("file", NEW), ("folder", NEW)]


def test_a_new_file_has_the_mode_of_the_umask_and_an_old_one_keeps_its_own(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "file"
    before = os.umask(0o027)
    try:
        write_bytes(path, NEW)
        assert mode(path) == 0o640
        for kept in (0o600, 0o666, 0o755):
            path.chmod(kept)
            with replacing(path) as temporary:
                assert mode(temporary) == 0o600  # it may become a secret
                temporary.write_bytes(NEW)
            assert mode(path) == kept
    finally:
        os.umask(before)


only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")


@only_root
@pytest.mark.parametrize("kept", [0o640, 0o6755, 0o1644])
def test_a_file_keeps_its_user_and_group(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    os.chown(path, OTHER_USER, OTHER_GROUP)
    path.chmod(kept)
    write_bytes(path, NEW)
    found = path.stat()
    assert (found.st_uid, found.st_gid, mode(path)) == (OTHER_USER, OTHER_GROUP, kept & 0o777)


@only_root
@pytest.mark.parametrize("user", [0, OTHER_USER])
def test_a_file_whose_user_or_group_cannot_be_kept_is_refused(user: int) -> None:
    with tempfile.TemporaryDirectory() as name:  # another user may not search tmp_path's parents
        path = Path(name, "file")
        path.parent.chmod(0o777)
        path.write_bytes(OLD)
        os.chown(path, user, OTHER_GROUP)
        path.chmod(0o666)

        def write() -> None:
            os.setgroups([])
            os.setgid(OTHER_USER)
            os.setuid(OTHER_USER)
            with pytest.raises(OSError, match=rf"{path}: cannot keep its user {user}, group 2000"):
                write_bytes(path, NEW)

        assert in_child(write) == 0
        assert (list(path.parent.iterdir()), path.read_bytes()) == ([path], OLD)


@pytest.mark.skipif(not hasattr(os, "setxattr"), reason="access control lists of Linux")
@pytest.mark.parametrize("kept", [READERS, b""], ids=["kept", "not inherited"])
def test_a_file_keeps_its_access_control_list(tmp_path: Path, kept: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    path.chmod(0o640)
    try:
        if kept:
            os.setxattr(path, "system.posix_acl_access", kept)
        else:
            os.setxattr(tmp_path, "system.posix_acl_default", READERS)
    except OSError:
        pytest.skip("a file system without access control lists")
    write_bytes(path, NEW)
    assert (atomic_write._acl(path), mode(path)) == (kept, 0o640)


def test_links_are_followed(tmp_path: Path) -> None:
    target, near, far = tmp_path / "folder" / "file", tmp_path / "folder" / "link", tmp_path / "far"
    target.parent.mkdir()
    near.symlink_to("file")
    far.symlink_to("folder/link")
    with pytest.raises(FileNotFoundError, match="file"):
        write_bytes(far, NEW)
    assert not target.exists()
    target.write_bytes(OLD)
    with replacing(far) as temporary:
        assert temporary.parent == target.parent
        temporary.write_bytes(NEW)
    assert (far.is_symlink(), near.is_symlink(), target.read_bytes()) == (True, True, NEW)


def test_other_kinds_of_files_are_refused(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (fifo, tmp_path, Path("/dev/null")):
        with pytest.raises(OSError, match=f"^{path}: expected a regular file"):
            write_bytes(path, NEW)
    reader, writer = os.pipe()
    try:
        with pytest.raises(OSError, match="expected a regular file"):
            write_bytes(Path(f"/dev/fd/{writer}"), NEW)
    finally:
        os.close(reader)
        os.close(writer)
    assert Path("/dev/null").is_char_device()
    assert list(tmp_path.iterdir()) == [fifo]


def test_a_file_that_others_replace_meanwhile_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = tmp_path / "file", tmp_path / "other"
    path.write_bytes(OLD)
    real, looks = os.path.realpath, []

    def realpath(name: Path) -> str:
        looks.append(name)
        if len(looks) < 20:
            other.write_bytes(b"of another process")
            other.replace(path)
        return real(name)

    monkeypatch.setattr(os.path, "realpath", realpath)
    write_bytes(path, NEW)
    assert (looks, path.read_bytes()) == ([path] * 20, NEW)


@pytest.mark.parametrize("descriptor", [1, 2])
def test_the_file_of_a_standard_stream_is_refused(tmp_path: Path, descriptor: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)

    def write() -> None:
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), descriptor)
        with pytest.raises(OSError, match="other than stdout and stderr"):
            write_bytes(path, NEW)

    assert in_child(write) == 0
    assert path.read_bytes() == OLD


def test_a_closed_standard_stream_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)

    def write() -> None:
        os.closerange(0, 3)
        write_bytes(path, NEW)

    assert in_child(write) == 0
    assert path.read_bytes() == NEW


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="/proc names deleted files")
@pytest.mark.parametrize("is_linked", [False, True])
def test_a_deleted_file_is_refused(tmp_path: Path, is_linked: bool) -> None:
    path, namesake, link = (tmp_path / name for name in ("file", "file (deleted)", "link"))
    path.write_bytes(OLD)
    if is_linked:
        link.hardlink_to(path)
    with path.open("rb") as file:
        path.unlink()
        named = Path(f"/proc/self/fd/{file.fileno()}")
        for exists in (False, True):
            with pytest.raises(OSError, match=rf"^{named}: expected .* not a deleted one"):
                write_bytes(named, NEW)
            assert namesake.exists() == exists
            namesake.write_bytes(OLD)
        assert (namesake.read_bytes(), file.read()) == (OLD, OLD)


@pytest.mark.parametrize("become", [os.setuid, os.seteuid])
def test_a_file_without_permission_to_write_is_refused(become: Callable[[int], None]) -> None:
    with tempfile.TemporaryDirectory() as name:  # another user may not search tmp_path's parents
        path, new = Path(name, "file"), Path(name, "new")
        path.write_bytes(OLD)
        path.chmod(0o444)
        path.parent.chmod(0o777)

        def write() -> None:
            if os.geteuid() == 0:
                become(OTHER_USER)
            write_bytes(new, NEW)
            with pytest.raises(PermissionError, match=str(path)):
                write_bytes(path, NEW)

        assert in_child(write) == 0
        assert path.read_bytes() == OLD


def test_temporary_files_of_others_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    with replacing(path) as first, replacing(path) as second:
        assert first != second
    monkeypatch.setattr(atomic_write.secrets, "token_hex", lambda _: "0" * 8)
    taken = tmp_path / first.with_name(f"{first.name[:18]}00000000.tmp").name
    taken.write_bytes(b"of another process")
    with pytest.raises(FileExistsError):
        write_bytes(path, NEW)
    assert taken.read_bytes() == b"of another process"


@pytest.mark.parametrize("function", ["fsync", "replace", "body"])
def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    written = []

    def fail(*arguments: object) -> None:
        written.extend(file.read_bytes() for file in tmp_path.iterdir() if file != path)
        raise OSError("failed here")

    def write() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(NEW)
            if function == "body":
                fail()

    if function != "body":
        monkeypatch.setattr(os if function == "fsync" else Path, function, fail)
    with pytest.raises(OSError, match="failed here"):
        write()
    assert written == [NEW]
    assert (list(tmp_path.iterdir()), path.read_bytes()) == ([path], OLD)


def test_a_name_may_have_any_length_and_leftovers_are_found(tmp_path: Path) -> None:
    path, other = tmp_path / ("x" * 255), tmp_path / "other"
    write_bytes(path, NEW)
    assert path.read_bytes() == NEW
    with replacing(other) as kept, replacing(path) as killed:
        atomic_write.remove_leftovers(path)
        assert (kept.exists(), killed.exists()) == (True, False)
        killed.touch()


def test_leftovers_are_found_where_a_link_leads(tmp_path: Path) -> None:
    target, link = tmp_path / "folder" / "file", tmp_path / "link"
    target.parent.mkdir()
    target.write_bytes(OLD)
    link.symlink_to(target)
    with replacing(link) as killed:
        atomic_write.remove_leftovers(link)
        assert not killed.exists()
        killed.touch()


def test_json_and_text_are_utf_8_and_finite(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "≥ 1\n")
    assert path.read_bytes() == b"\xe2\x89\xa5 1\n"
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"loss": math.nan})
    write_json(path, {"loss": 0.5})
    assert path.read_bytes() == b'{\n  "loss": 0.5\n}\n'
