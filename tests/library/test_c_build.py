"""Compiling C libraries: cache, errors and concurrent builds."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mnist_mamba import c_build
from mnist_mamba.c_build import NativeBuildError, build_library, csrc_dir

SRC = Path(c_build.__file__).resolve().parents[1]


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


def write_source(folder: Path, value: int = 7) -> Path:
    """Write answer.c, whose answer() returns a value of inc/value.h."""
    (folder / "inc").mkdir(exist_ok=True)
    (folder / "inc" / "value.h").write_text(f"#define VALUE {value}\n", encoding="utf-8")
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
    tmp_path: Path, cache: Path, compile_log: Path
) -> None:
    source = write_source(tmp_path)
    include = [tmp_path / "inc"]
    paths = [build_library("answer", [source], include)]
    source.write_text(source.read_text(encoding="utf-8") + "/* changed */\n", encoding="utf-8")
    paths.append(build_library("answer", [source], include))
    (tmp_path / "inc" / "value.h").write_text("#define VALUE 8\n", encoding="utf-8")
    paths.append(build_library("answer", [source], include))
    paths.append(build_library("answer", [source], include, ["-O1"]))
    paths.append(build_library("answer", [source], include, ["-O1", "-march=native"]))
    assert len(set(paths)) == 5
    assert builds(compile_log) == 5
    assert [answer_of(path) for path in paths] == [7, 7, 8, 8, 8]


def test_the_compiler_belongs_to_the_key(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_source(tmp_path)
    keys = set()
    for version in ("1.0", "2.0"):
        folder = tmp_path / version
        folder.mkdir()
        script = folder / "fake-cc"
        script.write_text(
            f'#!/bin/sh\n[ "$1" = --version ] && echo {version} && exit 0\nexec cc "$@"\n',
            encoding="utf-8",
        )
        script.chmod(0o755)
        monkeypatch.setenv("CC", str(script))
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
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "plain-cc"
    script.write_text(
        '#!/bin/sh\nfor flag in "$@"; do case "$flag" in\n'
        "-fopenmp|-march=native) echo unsupported >&2; exit 1;; esac; done\n"
        'exec cc "$@"\n',
        encoding="utf-8",
    )
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))
    source = write_source(tmp_path)
    library = build_library("answer", [source], [tmp_path / "inc"], ["-march=native"])
    assert answer_of(library) == 7


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


def test_the_cache_is_in_xdg_cache_home_or_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(c_build.CACHE_VARIABLE, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert build_answer(tmp_path).parent == tmp_path / "xdg" / "mnist_mamba"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert build_answer(tmp_path).parent == tmp_path / "home" / ".cache" / "mnist_mamba"


def test_a_named_cache_that_is_not_writable_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(c_build.CACHE_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(NativeBuildError, match=c_build.CACHE_VARIABLE):
        build_answer(tmp_path)


def test_without_a_home_the_cache_is_a_private_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(c_build.CACHE_VARIABLE, raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/dev/null")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = build_answer(tmp_path).parent
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)  # another user could have put a library there
    with pytest.raises(NativeBuildError, match="not a private folder"):
        build_answer(tmp_path)


def test_csrc_dir_finds_checkout_and_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (csrc_dir() / "scan" / "selective_scan.c").is_file()
    package = tmp_path / "site-packages" / "mnist_mamba"
    package.mkdir(parents=True)
    monkeypatch.setattr(c_build, "__file__", str(package / "c_build.py"))
    with pytest.raises(NativeBuildError, match="C sources not found"):
        csrc_dir()
    (package / "_csrc" / "scan").mkdir(parents=True)
    assert csrc_dir() == package / "_csrc"
