"""A stranger's program uses the engine in each way that docs/library.md shows.

PATH has nothing but the tools that a way needs. test_platforms.py does so with a wheel, and
test_onnx.py with an ONNX file.
"""

from __future__ import annotations

import functools
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.bare_path import path_of

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
MODEL = ROOT / "models" / "mnist_mamba.bin"
SYSTEM = "ar cat chmod cksum cmp cp cut echo find head install ln mkdir mv rm rmdir sed sh tr uname"
"""Tools of every Unix that make's recipes use."""
STRICT = ("-std=c11", "-Wall", "-Wextra", "-Werror")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here"),
]


def run(*command: str | Path, cwd: Path, tools: str = "", **environment: str) -> str:
    words = [str(word) for word in command]
    env = {"PATH": path_of(tools), "HOME": str(cwd), **environment}
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, env=env)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


def block(language: str) -> str:
    match = re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert match is not None
    return match[1]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A stranger's project: app.c, and a picture of a seven in black on white."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "app.c").write_text(block("c"), encoding="utf-8")
    image = np.fromfile(ROOT / "models/example_input.bin", dtype="<f4").reshape(28, 28)
    grey = np.kron(np.uint8(255 - image * 200), np.ones((3, 3), np.uint8))
    (folder / "seven.pgm").write_bytes(b"P5 84 84 255\n" + grey.tobytes())
    return folder


@pytest.fixture(scope="module")
def engine_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("build")


def cmake(*words: str | Path, cwd: Path) -> str:
    return run("cmake", *words, cwd=cwd, tools=f"cmake make {SYSTEM} ranlib")


def make(build: Path, *words: str | Path) -> str:
    tools = f"make {SYSTEM}" + (" python3" if "amalgamation" in words else "")
    command = ("make", "-s", "-f", "csrc/install.mk", f"BUILD={build}", *words)
    return run(*command, cwd=ROOT, tools=tools)


@pytest.fixture(scope="module")
def prefix(engine_build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A staged installation, moved to a folder with a space in its name."""
    stage = tmp_path_factory.mktemp("stage")
    make(engine_build, "-j2", "install", "PREFIX=/usr", f"DESTDIR={stage}")
    return (stage / "usr").rename(stage / "installed here")


def files(prefix: Path) -> dict[str, str | None]:
    """Return all files below a folder, and what each link leads to."""
    found = (path for path in prefix.rglob("*") if path.is_symlink() or path.is_file())
    return {
        str(path.relative_to(prefix)): str(path.readlink()) if path.is_symlink() else None
        for path in found
    }


def reads_a_seven(project: Path, app: str | Path = "./app", **environment: str) -> bool:
    return run(app, MODEL, "seven.pgm", cwd=project, **environment) == "7\n"


def test_a_plain_compiler_finds_the_installed_library(project: Path, prefix: Path) -> None:
    """As if PREFIX were a folder that compiler and loader search by themselves."""
    lib = str(prefix / "lib")
    system = {"CPATH": str(prefix / "include"), "LIBRARY_PATH": lib, "LD_LIBRARY_PATH": lib}
    run("cc", *STRICT, "app.c", "-lmnist_mamba", "-o", "app", cwd=project, **system)
    assert reads_a_seven(project, **system)
    soname = re.search(
        r"libmnist_mamba\.so\S*", run("ldd", "app", cwd=project, tools="ldd bash cat", **system)
    )
    assert soname is not None
    assert soname[0] == "libmnist_mamba.so.0"
    assert "class 7" in run(
        prefix / "bin/mnist-mamba", MODEL, ROOT / "models/example_input.bin", cwd=project
    )


def test_the_library_exports_its_header_and_nothing_else(prefix: Path) -> None:
    library = prefix / "lib/libmnist_mamba.so"
    listed = run("nm", "-D", "--defined-only", library, cwd=ROOT, tools="nm")
    exported = re.findall(r" T (\w+)@@MNIST_MAMBA_0$", listed, re.MULTILINE)
    header = (prefix / "include/mnist_mamba/mamba.h").read_text("utf-8")
    assert sorted(exported) == sorted(re.findall(r"^MAMBA_API [^(]*?(\w+)\(", header, re.MULTILINE))
    assert len(exported) == len(listed.splitlines()) - 1, "and the version's own symbol"


@pytest.mark.parametrize("define", ["MAMBA_DLL_EXPORT", "MAMBA_DLL_IMPORT", "NEITHER"])
def test_on_windows_the_build_of_the_dll_alone_exports(define: str, tmp_path: Path) -> None:
    header = ROOT / "csrc/include/mamba.h"
    text = run("cc", "-E", "-D_WIN32", f"-D{define}", header, cwd=tmp_path)
    found = set(re.findall(r"__declspec\((\w+)\)", text))
    assert found == {"MAMBA_DLL_EXPORT": {"dllexport"}, "MAMBA_DLL_IMPORT": {"dllimport"}}.get(
        define, set()
    )
    assert "mamba_version(void)" in text


def test_pkg_config_finds_both_libraries(project: Path, prefix: Path) -> None:
    ask = functools.partial(
        run, "pkg-config", "--cflags", "--libs", "mnist_mamba", cwd=project, tools="pkg-config"
    )
    place = {"PKG_CONFIG_PATH": str(prefix / "lib/pkgconfig")}
    flags = shlex.split(ask(**place))
    run("cc", *STRICT, "app.c", *flags, "-o", "app", cwd=project)
    assert reads_a_seven(project, LD_LIBRARY_PATH=str(prefix / "lib"))
    flags = shlex.split(ask("--static", **place))
    run("cc", *STRICT, "-static", "app.c", *flags, "-o", "app", cwd=project)
    assert reads_a_seven(project)


def test_cmake_finds_both_libraries(project: Path, prefix: Path) -> None:
    lists = block("cmake")
    lists += "add_executable(static app.c)\ntarget_link_libraries(static mnist_mamba::static)\n"
    (project / "CMakeLists.txt").write_text(lists, encoding="utf-8")
    cmake("-S", ".", "-B", "build", f"-DCMAKE_PREFIX_PATH={prefix}", cwd=project)
    cmake("--build", "build", cwd=project)
    assert reads_a_seven(project, "build/app")
    assert reads_a_seven(project, "build/static")
    newer = lists.replace("mnist_mamba 0.1", "mnist_mamba 1.0")
    (project / "CMakeLists.txt").write_text(newer, encoding="utf-8")
    with pytest.raises(AssertionError, match="compatible with requested version"):
        cmake("-S", ".", "-B", "new", f"-DCMAKE_PREFIX_PATH={prefix}", cwd=project)


def test_uninstall_leaves_nothing(engine_build: Path, tmp_path: Path) -> None:
    place = (f"PREFIX={tmp_path}/usr", "LIBDIR=lib/x86_64-linux-gnu")
    make(engine_build, "install", *place)
    text = (tmp_path / "usr/lib/x86_64-linux-gnu/pkgconfig/mnist_mamba.pc").read_text("utf-8")
    assert text.startswith("prefix=${pcfiledir}/../../..\n")
    make(engine_build, "uninstall", *place)
    assert files(tmp_path) == {}


def test_cmake_installs_what_make_installs(project: Path, prefix: Path, tmp_path: Path) -> None:
    """A project that takes the sources in gets the same targets, too."""
    lists = block("cmake").replace(
        "find_package(mnist_mamba 0.1 REQUIRED)", f"add_subdirectory({ROOT}/csrc engine)"
    )
    (project / "CMakeLists.txt").write_text(lists, encoding="utf-8")
    build, other = project / "build", tmp_path / "other"
    options = (
        f"-DCMAKE_INSTALL_PREFIX={other}",
        "-DCMAKE_INSTALL_LIBDIR=lib",
        "-DMAMBA_INSTALL=ON",
    )
    optimisation = ("-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_COMPILE_WARNING_AS_ERROR=ON")
    cmake("-S", ".", "-B", build, *options, *optimisation, cwd=project)
    cmake("--build", build, "-j2", cwd=project)
    assert reads_a_seven(project, build / "app")
    cmake("--install", build, cwd=project)
    assert files(other) == files(prefix)
    for name in ("lib/pkgconfig/mnist_mamba.pc", "lib/cmake/mnist_mamba/mnist_mamba-config.cmake"):
        assert (other / name).read_text("utf-8") == (prefix / name).read_text("utf-8")


def test_two_files_are_enough(project: Path, engine_build: Path) -> None:
    """No flag but those that make a compiler stricter; make test-amalgamation tests the rest."""
    make(engine_build, "amalgamation")
    for file in (engine_build / "amalgamation").glob("mamba.[ch]"):
        shutil.copy(file, project)
    program = block("c").replace("<mnist_mamba/mamba.h>", '"mamba.h"')
    (project / "app.c").write_text(program, encoding="utf-8")
    run("cc", *STRICT, "-Wpedantic", "-c", "app.c", "mamba.c", cwd=project)
    run("cc", "app.o", "mamba.o", "-lm", "-o", "app", cwd=project)
    assert reads_a_seven(project)
    for name in re.findall(r" [TDBRC] (\w+)", run("nm", "mamba.o", cwd=project, tools="nm")):
        assert name.startswith("mamba_"), "not a name that a program may have"
    with pytest.raises(AssertionError, match="without -ffast-math"):
        run("cc", "-Ofast", "-c", "mamba.c", cwd=project)


def test_a_program_carries_its_model(project: Path, prefix: Path) -> None:
    """The array opens where it lies. C++ takes it and the header, too."""
    array = run(prefix / "bin/mnist-mamba", "embed", MODEL, cwd=project)
    (project / "model.h").write_text(array, encoding="utf-8")
    opened = "mamba_model_open(&model, argv[1], &error)"
    assert opened in block("c")
    line = re.search(r"mamba_model_from_bytes\(.*\)", PAGE)
    assert line is not None
    program = '#include "model.h"\n' + block("c").replace(opened, line[0])
    (project / "app.c").write_text(program, encoding="utf-8")
    place = (f"-I{prefix}/include", f"{prefix}/lib/libmnist_mamba.a", "-lm")
    run("cc", *STRICT, "app.c", *place, "-o", "app", cwd=project)
    assert run("./app", "no file", "seven.pgm", cwd=project) == "7\n"
    if shutil.which("c++"):
        both = '#include <mnist_mamba/mamba.h>\n#include "model.h"\n'
        (project / "app.cpp").write_text(both, encoding="utf-8")
        run("c++", "-std=c++11", "-fsyntax-only", "app.cpp", place[0], cwd=project, tools="c++")
