"""Compiling C libraries: cache, whom it trusts, errors and concurrent builds."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from mnist_mamba import c_build
from mnist_mamba.c_build import NativeBuildError, build_library, csrc_dir

SRC = Path(c_build.__file__).resolve().parents[1]
OTHER_USER = 12345
NOBODY = 65534


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv(c_build.CACHE_VARIABLE, str(folder))
    return folder


@pytest.fixture
def compile_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set CC to a wrapper of the real compiler that logs its arguments; return the log."""
    log = tmp_path / "compile.log"
    log.touch()
    real = shutil.which(os.environ.get("CC") or "cc")
    script = tmp_path / "counting-cc"
    script.write_text(f'#!/bin/sh\necho "$@" >> "{log}"\nexec "{real}" "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))
    return log


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set HOME and TMPDIR to tmp_path/home and tmp_path/tmp; name no other cache; return HOME."""
    for name in (c_build.CACHE_VARIABLE, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "TMPDIR"):
        folder = tmp_path / {"HOME": "home", "TMPDIR": "tmp"}[name]
        folder.mkdir()
        monkeypatch.setenv(name, str(folder))
    return tmp_path / "home"


def write_compiler(path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Set CC to a shell script, in which $output is the file after -o."""
    output = 'for word in "$@"; do [ "$last" = -o ] && output=$word; last=$word; done\n'
    path.write_text(f"#!/bin/sh\n{output}{script}\n", encoding="utf-8")
    path.chmod(0o755)
    monkeypatch.setenv("CC", str(path))


def write_source(folder: Path, value: int = 7) -> Path:
    """Write answer.c, whose answer() returns a value of inc/value.h, or the flag -DVALUE=."""
    (folder / "inc").mkdir(exist_ok=True)
    header = f"#ifndef VALUE\n#define VALUE {value}\n#endif\n"
    (folder / "inc" / "value.h").write_text(header, encoding="utf-8")
    source = folder / "answer.c"
    source.write_text(
        '#include "value.h"\nint answer(void);\nint answer(void) { return VALUE; }\n',
        encoding="utf-8",
    )
    return source


def build_answer(folder: Path) -> Path:
    return build_library("answer", [write_source(folder)], [folder / "inc"])


def answer_of(library: Path) -> int:
    return int(ctypes.CDLL(str(library)).answer())


def builds(log: Path) -> int:
    """Return how often the log shows answer.c being compiled."""
    return sum("answer.c" in line for line in log.read_text(encoding="utf-8").splitlines())


def test_a_built_library_works(tmp_path: Path, cache: Path) -> None:
    library = build_library("answer", [write_source(tmp_path)], [tmp_path / "inc"], ["-O2"])
    assert library.parent == cache
    assert library.name.startswith("answer-")
    assert answer_of(library) == 7
    assert list(cache.iterdir()) == [library]  # and no temporary file


def test_a_cache_hit_does_not_compile(tmp_path: Path, cache: Path, compile_log: Path) -> None:
    source = write_source(tmp_path)
    first = build_library("answer", [source], [tmp_path / "inc"])
    stamp = first.stat().st_mtime_ns
    lines = compile_log.read_text(encoding="utf-8")
    assert builds(compile_log) == 1
    assert build_library("answer", [source], [tmp_path / "inc"]) == first
    assert first.stat().st_mtime_ns == stamp
    assert compile_log.read_text(encoding="utf-8") == lines  # not even a probe


def test_each_part_of_the_key_compiles_again(
    tmp_path: Path, cache: Path, compile_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_source(tmp_path)
    include = [tmp_path / "inc"]
    paths = [build_library("answer", [source], include)]
    source.write_text(source.read_text(encoding="utf-8") + "/* changed */\n", encoding="utf-8")
    paths.append(build_library("answer", [source], include))
    header = tmp_path / "inc" / "value.h"
    header.write_text(header.read_text(encoding="utf-8").replace("7", "8"), encoding="utf-8")
    paths.append(build_library("answer", [source], include))
    paths.append(build_library("answer", [source], include, ["-O1"]))
    paths.append(build_library("answer", [source], include, ["-O1", "-march=native"]))
    special = {"answer.c": ["-DVALUE=9"]}
    paths.append(build_library("answer", [source], include, file_cflags=special))
    monkeypatch.setattr(platform, "machine", lambda: "another")  # that shares this home
    paths.append(build_library("answer", [source], include))
    paths.append(build_library("answer", [source], include, ["-march=native"]))
    monkeypatch.setattr(c_build, "_processor", lambda: "another")
    paths.append(build_library("answer", [source], include, ["-march=native"]))
    assert len(set(paths)) == 9
    assert builds(compile_log) == 9
    assert [answer_of(path) for path in paths] == [7, 7, 8, 8, 8, 9, 8, 8, 8]


def test_the_compiler_belongs_to_the_key(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_source(tmp_path)
    keys = set()
    for version in ("1.0", "2.0"):
        script = tmp_path / "fake-cc"
        script.write_text(
            f'#!/bin/sh\n[ "$1" = --version ] && echo {version} && exit 0\nexec cc "$@"\n',
            encoding="utf-8",
        )
        script.chmod(0o755)
        monkeypatch.setenv("CC", str(script))
        c_build._compiler_version.cache_clear()  # a process does not expect an update
        keys.add(build_library("answer", [source], [tmp_path / "inc"]))
    assert len(keys) == 2


def test_a_compile_error_names_source_and_message(tmp_path: Path, cache: Path) -> None:
    source = tmp_path / "broken.c"
    source.write_text("int broken(void) { return undeclared_thing; }\n", encoding="utf-8")
    with pytest.raises(NativeBuildError) as caught:
        build_library("broken", [source])
    assert "undeclared_thing" in str(caught.value)
    assert str(source) in str(caught.value)
    assert list(cache.iterdir()) == []


def test_a_missing_compiler_is_named(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "/nonexistent/cc")
    with pytest.raises(NativeBuildError, match=r"C compiler '/nonexistent/cc' not found.*set CC"):
        build_library("answer", [write_source(tmp_path)], [tmp_path / "inc"])


def test_a_malformed_cc_is_refused(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "gcc 'unclosed")
    with pytest.raises(NativeBuildError, match="is not a command"):
        build_library("answer", [write_source(tmp_path)], [tmp_path / "inc"])


def test_flags_that_the_compiler_lacks_are_dropped(
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    lacks = tmp_path / "lacks"
    lacks.touch()
    script = (
        f'[ -e "{lacks}" ] && for flag in "$@"; do case "$flag" in\n'
        "-fopenmp|-march=native) echo unsupported >&2; exit 1;; esac; done\n"
        'exec cc "$@"'
    )
    write_compiler(tmp_path / "plain-cc", monkeypatch, script)

    def build() -> Path:
        return build_library(
            "answer", [write_source(tmp_path)], [tmp_path / "inc"], ["-march=native"]
        )

    library = build()
    assert library.name.startswith("answer-without-march=native-without-fopenmp-")
    assert answer_of(library) == 7
    assert build() == library
    for flag, effect in (("-fopenmp", "on one thread"), ("-march=native", "slower")):
        said = rf"C code will run {effect}: the compiler does not take {flag}: .* unsupported"
        assert len(re.findall(said, caplog.text)) == 1

    c_build._is_missing.cache_clear()  # another process, after the cause has gone
    lacks.unlink()
    whole = build()
    assert re.fullmatch(r"answer-\w+-\w+", whole.stem)
    lacks.touch()
    c_build._is_missing.cache_clear()
    assert build() == whole


@pytest.mark.parametrize("command", ["true", "true --flag"])
def test_a_command_that_compiles_nothing_is_named(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("CC", command)
    with pytest.raises(NativeBuildError, match=rf"^{command} succeeded .*: set CC to a C compiler"):
        build_answer(tmp_path)
    assert list(cache.iterdir()) == []


def test_a_missing_source_is_named(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(NativeBuildError, match=r"cannot read the C source .*absent\.c"):
        build_library("absent", [tmp_path / "absent.c"])


def test_concurrent_threads_share_one_library(tmp_path: Path, cache: Path) -> None:
    source = write_source(tmp_path)
    with ThreadPoolExecutor(max_workers=4) as pool:
        waiting = [
            pool.submit(build_library, "answer", [source], [tmp_path / "inc"]) for _ in range(4)
        ]
        paths = {future.result() for future in waiting}
    assert len(paths) == 1
    assert list(cache.iterdir()) == list(paths)
    assert answer_of(paths.pop()) == 7


def test_concurrent_processes_share_one_library(tmp_path: Path, cache: Path) -> None:
    source = write_source(tmp_path)
    program = (
        "import ctypes, sys; from pathlib import Path\n"
        "from mnist_mamba.c_build import build_library\n"
        "source, include = map(Path, sys.argv[1:])\n"
        "print(ctypes.CDLL(str(build_library('answer', [source], [include]))).answer())\n"
    )
    command = [sys.executable, "-c", program, str(source), str(tmp_path / "inc")]
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [process.communicate(timeout=60)[0].strip() for process in running] == ["7"] * 3
    assert len(list(cache.iterdir())) == 1


def in_home(home: Path) -> Path:
    return home / ".cache" / "mnist_mamba"


def in_tmpdir(home: Path) -> Path:
    return home.with_name("tmp") / f"mnist_mamba-{os.geteuid()}"


def test_the_cache_is_in_xdg_cache_home_or_home(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert build_answer(tmp_path).parent == in_home(home)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert build_answer(tmp_path).parent == tmp_path / "xdg" / "mnist_mamba"


@pytest.mark.parametrize("value", ["", "relative", None])
def test_unset_empty_and_relative_variables_do_not_count(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    def put(name: str) -> None:
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)

    source = write_source(tmp_path)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv(c_build.CACHE_VARIABLE, "")
    monkeypatch.setenv("CC", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "unused")
    put("XDG_CACHE_HOME")
    assert build_library("answer", [source], [tmp_path / "inc"]).parent == in_home(home)
    put("HOME")
    assert build_library("answer", [source], [tmp_path / "inc"]).parent == in_tmpdir(home)
    monkeypatch.setenv("HOME", str(home))
    put("TMPDIR")
    assert build_library("answer", [source], [tmp_path / "inc"]).parent == in_home(home)
    assert list(Path().iterdir()) == []


def test_a_named_cache_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv(c_build.CACHE_VARIABLE, ".")
    library = build_answer(tmp_path)
    assert library.parent == tmp_path / "work"  # a path without a folder would be searched for
    assert answer_of(library) == 7


@pytest.mark.parametrize("name", ["a b", "it's", 'a"b', "back\\slash", "new\nline", "*?[x]", "-o"])
def test_any_name_of_a_folder_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    monkeypatch.setenv(c_build.CACHE_VARIABLE, str(folder / "cache"))
    library = build_answer(folder)
    assert answer_of(library) == 7
    assert build_answer(folder) == library


def test_a_cache_that_is_not_a_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(c_build.CACHE_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(NativeBuildError, match=rf"{tmp_path}/file.*set {c_build.CACHE_VARIABLE}"):
        build_answer(tmp_path)


def test_without_a_home_the_cache_is_a_private_temporary_folder(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/dev/null")
    assert build_answer(tmp_path).parent == in_tmpdir(home)
    assert in_tmpdir(home).stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("changed", ["home", "home/.cache", "home/.cache/mnist_mamba"])
@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757])
def test_a_folder_that_others_can_write_to_is_not_used(
    tmp_path: Path, home: Path, changed: str, mode: int
) -> None:
    in_home(home).mkdir(parents=True)
    (tmp_path / changed).chmod(mode)
    assert build_answer(tmp_path).parent == in_tmpdir(home)
    assert list(in_home(home).iterdir()) == []


def test_parents_may_be_sticky_but_the_cache_may_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    monkeypatch.setenv(c_build.CACHE_VARIABLE, str(shared / "cache"))
    assert build_answer(tmp_path).parent == shared / "cache"
    monkeypatch.setenv(c_build.CACHE_VARIABLE, str(shared))
    with pytest.raises(NativeBuildError, match=rf"{shared} is drwxrwxrwt of user \d+"):
        build_answer(tmp_path)
    assert [path.name for path in shared.iterdir()] == ["cache"]


def test_the_cache_of_another_user_is_not_used(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.mkdir(mode=0o755)
    if os.geteuid() == 0:
        os.chown(cache, OTHER_USER, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: OTHER_USER)
    with pytest.raises(NativeBuildError, match=r"is drwxr-xr-x of user \d+"):
        build_answer(tmp_path)
    assert list(cache.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders to other users")
@pytest.mark.parametrize("given", ["home", "home/.cache", "home/.cache/mnist_mamba"])
def test_root_does_not_use_the_home_of_another_user(tmp_path: Path, home: Path, given: str) -> None:
    in_home(home).mkdir(parents=True)
    os.chown(tmp_path / given, OTHER_USER, -1)
    assert build_answer(tmp_path).parent == in_tmpdir(home)
    assert list(in_home(home).iterdir()) == []


def test_the_owner_of_the_root_folder_is_root(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.lstat
    hidden = {*tmp_path.parents}

    def lstat(path: Path) -> os.stat_result:
        """Show what a user namespace that lacks root shows: its number is that of nobody."""
        fields = list(real(path))
        fields[stat.ST_UID] = NOBODY if path in hidden else fields[stat.ST_UID]
        return os.stat_result(fields)

    monkeypatch.setattr(Path, "lstat", lstat)
    assert build_answer(tmp_path).parent == cache
    hidden.add(cache)  # nobody is also any other user outside the namespace
    with pytest.raises(NativeBuildError, match=f"{cache} is .* of user {NOBODY}"):
        build_answer(tmp_path)


@pytest.mark.parametrize("by", ["mode", "owner"])
def test_a_library_from_others_is_replaced(tmp_path: Path, cache: Path, by: str) -> None:
    if by == "owner" and os.geteuid() != 0:
        pytest.skip("only root can give files to other users")
    ours = build_answer(tmp_path)
    evil = build_library("evil", [write_source(tmp_path, 666)], [tmp_path / "inc"])
    content = hashlib.sha256(evil.read_bytes()).hexdigest()
    ours.unlink()
    planted = ours.with_stem(f"{ours.stem.rpartition('-')[0]}-{content[:24]}")
    evil.rename(planted)
    # As a file of this user it is taken for a library that this user built.
    assert build_answer(tmp_path) == planted
    if by == "owner":
        os.chown(planted, OTHER_USER, -1)
    else:
        planted.chmod(0o777)
    library = build_answer(tmp_path)
    assert library == ours
    assert answer_of(library) == 7


def test_another_process_may_create_the_cache_first(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.mkdir()
    monkeypatch.setattr(os.path, "lexists", lambda path: path != cache)
    assert build_answer(tmp_path).parent == cache


def test_links_on_the_way_to_the_cache_are_followed_once(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    cache.symlink_to(tmp_path / "real")
    assert build_answer(tmp_path).parent == tmp_path / "real"
    monkeypatch.setenv(c_build.CACHE_VARIABLE, str(cache / "below"))
    assert build_answer(tmp_path).parent == tmp_path / "real" / "below"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give links to other users")
@pytest.mark.parametrize("below", ["", "below"])
def test_links_of_another_user_are_not_followed(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    (tmp_path / "real").mkdir()
    cache.symlink_to(tmp_path / "real")
    os.chown(cache, OTHER_USER, -1, follow_symlinks=False)
    monkeypatch.setenv(c_build.CACHE_VARIABLE, str(cache / below))
    with pytest.raises(NativeBuildError, match=rf"{cache} is lrwxrwxrwx of user {OTHER_USER}"):
        build_answer(tmp_path)
    assert list((tmp_path / "real").iterdir()) == []


def test_the_umask_does_not_open_the_cache(tmp_path: Path, home: Path) -> None:
    home.rmdir()
    before = os.umask(0)
    try:
        library = build_answer(tmp_path)
    finally:
        os.umask(before)
    for folder in (home, home / ".cache", in_home(home)):
        assert stat.filemode(folder.stat().st_mode) == "drwx------"
    assert stat.filemode(library.stat().st_mode) == "-rwxr-xr-x"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere Python does not show noexec")
def test_a_noexec_cache_is_named_and_the_next_one_used(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def statvfs(path: Path) -> SimpleNamespace:
        return SimpleNamespace(f_flag=os.ST_NOEXEC if path == in_home(home) else 0)

    monkeypatch.setattr(os, "statvfs", statvfs)
    assert build_answer(tmp_path).parent == in_tmpdir(home)
    monkeypatch.setenv(c_build.CACHE_VARIABLE, str(in_home(home)))
    with pytest.raises(NativeBuildError, match=rf"{in_home(home)} .*mounted noexec"):
        build_answer(tmp_path)


def test_a_full_cache_is_left_for_the_next_one(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.write_bytes

    def write_bytes(path: Path, data: bytes) -> int:
        if home in path.parents:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real(path, data)

    source = write_source(tmp_path)
    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    assert build_library("answer", [source], [tmp_path / "inc"]).parent == in_tmpdir(home)
    assert list(in_home(home).iterdir()) == []


@pytest.mark.parametrize("during", ["-c", "-fopenmp"])
def test_a_disk_that_fills_up_during_the_build_is_left_for_the_next_one(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, during: str
) -> None:
    """The probe of -fopenmp, like the compilation, shows that the disk is full, nothing else."""
    c_build._is_missing.cache_clear()
    full = tmp_path / "full"
    script = (
        f'case "$output $*" in "{home}"/*" {during} "*) touch "{full}"; exit 1;; esac\nexec cc "$@"'
    )
    write_compiler(tmp_path / "cc", monkeypatch, script)
    real = Path.write_bytes

    def write_bytes(path: Path, data: bytes) -> int:
        if home in path.parents and full.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    library = build_answer(tmp_path)
    assert (library.parent, full.exists()) == (in_tmpdir(home), True)
    assert "without" not in library.name
    assert list(in_home(home).iterdir()) == []
    monkeypatch.setenv(c_build.CACHE_VARIABLE, str(in_home(home)))
    with pytest.raises(
        NativeBuildError, match=rf"{in_home(home)}: .*No space left on device.* with free space"
    ):
        build_answer(tmp_path)


def test_a_truncated_library_is_built_again(tmp_path: Path, cache: Path) -> None:
    library = build_answer(tmp_path)
    whole = library.read_bytes()
    library.unlink()  # this process has mapped the old file
    library.write_bytes(whole[: len(whole) // 2])
    library.chmod(0o755)
    assert build_answer(tmp_path) == library
    assert library.read_bytes() == whole


@pytest.mark.parametrize("kind", ["link", "link to nothing", "FIFO", "unreadable file"])
def test_an_entry_that_is_not_a_readable_file_is_replaced(
    tmp_path: Path, cache: Path, kind: str
) -> None:
    library = build_answer(tmp_path)
    moved = library.rename(tmp_path / "moved.so")
    moved.chmod(0o777)
    match kind:
        case "link":
            library.symlink_to(moved)
        case "link to nothing":
            library.symlink_to("nothing")
        case "FIFO":
            os.mkfifo(library, mode=0o644)
        case _:
            library.touch(mode=0o200)
    assert build_answer(tmp_path) == library
    assert stat.filemode(library.lstat().st_mode) == "-rwxr-xr-x"
    assert answer_of(library) == 7


def test_a_folder_with_the_name_of_a_library_is_named_and_the_next_cache_used(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = build_answer(tmp_path)
    library.unlink()
    library.mkdir()
    assert build_answer(tmp_path).parent == in_tmpdir(home)
    monkeypatch.setenv(c_build.CACHE_VARIABLE, str(in_home(home)))
    with pytest.raises(NativeBuildError, match=rf"Is a directory: .*{library}"):
        build_answer(tmp_path)


def test_a_library_that_cannot_be_loaded_is_named_with_its_compiler(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other folder would help."""
    compiler = tmp_path / "cc"
    write_compiler(compiler, monkeypatch, '[ -z "$output" ] || echo other > "$output"')
    for _ in range(2):  # built, and found in the cache
        with pytest.raises(NativeBuildError) as caught:
            build_answer(tmp_path)
        expected = rf"{in_home(home)}/answer-\S+ cannot be loaded: .*; check what {compiler} "
        assert re.search(expected, str(caught.value))
        assert c_build.CACHE_VARIABLE not in str(caught.value)
    assert not in_tmpdir(home).exists()


@pytest.mark.skipif(sys.platform != "linux", reason="links with GNU's options")
def test_a_library_that_lacks_another_one_is_named_with_it(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = f"{tmp_path}/libgone.so"
    script = (
        f'case "$*" in *-shared*) [ -e {library} ] || '
        f"echo 'int gone;' | cc -xc - -shared -o {library} -Wl,-soname,libgone.so\n"
        f'exec cc "$@" -L{tmp_path} -Wl,--no-as-needed -lgone;; esac\nexec cc "$@"'
    )
    write_compiler(tmp_path / "cc", monkeypatch, script)
    with pytest.raises(NativeBuildError, match=r"cannot be loaded: libgone\.so: .*check what") as e:
        build_answer(tmp_path)
    assert c_build.CACHE_VARIABLE not in str(e.value)
    assert not in_tmpdir(home).exists()


@pytest.mark.parametrize(
    "cause", ["failed to map segment from shared object", os.strerror(errno.EACCES)]
)
def test_a_folder_that_no_library_is_loaded_from_is_left_for_the_next_one(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    """For instance noexec by a security module, which statvfs does not show."""
    real = ctypes.CDLL

    def load(name: str) -> ctypes.CDLL:
        if name.startswith(str(home)):
            raise OSError(f"{name}: {cause}")
        return real(name)

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert build_answer(tmp_path).parent == in_tmpdir(home)
    monkeypatch.setenv(c_build.CACHE_VARIABLE, str(in_home(home)))
    with pytest.raises(NativeBuildError, match=rf"{cause}.*set {c_build.CACHE_VARIABLE}"):
        build_answer(tmp_path)


def test_a_killed_compiler_leaves_nothing(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        script = '[ -z "$output" ] || { echo half > "$output"; kill -9 $$; }'
        write_compiler(tmp_path / "cc", patch, script)
        with pytest.raises(NativeBuildError, match=r"\(-9\)"):
            build_answer(tmp_path)
    assert list(cache.iterdir()) == []
    assert answer_of(build_answer(tmp_path)) == 7


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_that_ends_leaves_a_running_build_alone(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, started, go_on = write_source(tmp_path), tmp_path / "started", tmp_path / "go on"
    script = (
        f'case "$*" in *answer.c*) touch "{started}"\n'
        f'while [ ! -e "{go_on}" ]; do sleep 0.02; done;; esac\nexec cc "$@"'
    )
    write_compiler(tmp_path / "cc", monkeypatch, script)
    program = (
        "import os, sys, threading, time; from pathlib import Path\n"
        "from mnist_mamba.c_build import build_library\n"
        "source, include, started, go_on = map(Path, sys.argv[1:])\n"
        "arguments = ('answer', [source], [include])\n"
        "builder = threading.Thread(target=build_library, args=arguments); builder.start()\n"
        "while not started.exists(): time.sleep(0.01)\n"
        "child = os.fork()\n"
        "if child == 0: sys.exit()\n"
        "os.waitpid(child, 0); go_on.touch(); builder.join()\n"
    )
    command = [sys.executable, "-c", program, source, tmp_path / "inc", started, go_on]
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    subprocess.run(command, env=environment, check=True, timeout=60)
    (library,) = cache.iterdir()
    assert answer_of(library) == 7


def test_the_compiler_speaks_english_and_keeps_its_files_in_the_cache(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("TMPDIR", "/nonexistent")
    script = '[ "$1" = --version ] || { echo "locale=$LC_ALL, files in $TMPDIR" >&2; exit 1; }'
    write_compiler(tmp_path / "cc", monkeypatch, script)
    with pytest.raises(NativeBuildError, match=rf"locale=C, files in {cache}/build-\w+$"):
        build_answer(tmp_path)


def test_a_library_is_on_disk_before_it_has_its_name(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []

    def fsync(file: int) -> None:
        synced.append(os.fstat(file).st_ino)
        assert not list(cache.glob("answer-*"))

    monkeypatch.setattr(os, "fsync", fsync)
    assert build_answer(tmp_path).stat().st_ino in synced


def test_the_first_compilation_is_announced(tmp_path: Path, home: Path) -> None:
    source = write_source(tmp_path)
    home.chmod(0o777)
    program = (
        "import sys; from pathlib import Path\n"
        "from mnist_mamba.c_build import build_library\n"
        "build_library('answer', [Path(sys.argv[1])], [Path(sys.argv[2])])\n"
    )
    command = [sys.executable, "-c", program, str(source), str(tmp_path / "inc")]
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    first, second = (
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        for _ in range(2)
    )
    (line,) = first.stderr.splitlines()
    assert line.startswith(
        f"compiling the C library answer, once, in a few seconds, into {in_tmpdir(home)}; "
    )
    assert f"{home} is drwxrwxrwx" in line
    assert (first.stdout, second.stdout, second.stderr) == ("", "", "")


def test_csrc_dir_finds_checkout_and_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (csrc_dir() / "scan" / "selective_scan.c").is_file()
    package = tmp_path / "site-packages" / "mnist_mamba"
    package.mkdir(parents=True)
    monkeypatch.setattr(c_build, "__file__", str(package / "c_build.py"))
    with pytest.raises(NativeBuildError, match="C sources not found"):
        csrc_dir()
    (package / "_csrc" / "scan").mkdir(parents=True)
    assert csrc_dir() == package / "_csrc"
