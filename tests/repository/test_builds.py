"""Every way to build the engine gives one that works: make, CMake, the source archive.

test_library.py has the ways in which other projects use it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "csrc" / "tests" / "golden" / "wide_panels.bin"

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The C sources and the Makefile in a folder whose name is as awkward as a user's."""
    folder = tmp_path / "my project"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "csrc", folder / "csrc", ignore=ignore)
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def test_make_variants_follow_each_other(checkout: Path) -> None:
    for target in ([], ["omp"], ["debug"], ["fast"], ["engine"]):
        run("make", "-j2", *target, cwd=checkout)
        info = json.loads(run("./mamba", "info", MODEL, "--json", cwd=checkout))
        assert info["d_model"] == 20
        linked = run("ldd", "./mamba", cwd=checkout)
        assert ("libgomp" in linked) == (target == ["omp"])
        assert ("asan" in linked) == (target == ["debug"])
    run("make", "clean", cwd=checkout)
    assert not (checkout / "mamba").exists()
    assert not (checkout / "build").exists()


@pytest.mark.parametrize("command", [("env", "CC=", "make"), ("make", "CC=")])
def test_an_empty_cc_is_cc(checkout: Path, command: tuple[str, ...]) -> None:
    run(*command, "-j2", "CFLAGS=-O0", cwd=checkout)  # compiled sooner
    assert json.loads(run("./mamba", "info", MODEL, "--json", cwd=checkout))


@pytest.fixture
def picky_compiler(tmp_path: Path) -> Path:
    """A compiler that warns of -fno-plt, like clang on riscv64, without a flag of ld."""
    path = tmp_path / "picky-cc"
    path.write_text(
        "#!/bin/sh\n"
        'case " $* " in *noseparate-code*) exit 1 ;; *" -Werror"*" -fno-plt "*) exit 1 ;; esac\n'
        'exec cc "$@"\n',
        encoding="utf-8",
    )
    path.chmod(0o755)
    return path


def test_flags_are_tried_before_they_are_used(checkout: Path, picky_compiler: Path) -> None:
    taken = run("make", "-n", "V=1", "WERROR=", cwd=checkout)
    dropped = ("-fno-plt", "-Wl,-z,noseparate-code")
    assert all(flag in taken for flag in dropped), "the compiler here has both"
    commands = run("make", "-n", "V=1", "WERROR=", f"CC={picky_compiler}", cwd=checkout)
    for flag in dropped:
        assert flag not in commands
        taken = taken.replace(f" {flag}", "")
    assert commands.replace(str(picky_compiler), "cc") == taken, "all other flags are the same"


def test_warnings_are_errors_only_on_request(checkout: Path) -> None:
    assert "-Werror" not in run("make", "-n", "V=1", "WERROR=", cwd=checkout)
    assert "-Werror" in run("make", "-n", "V=1", "WERROR=1", cwd=checkout)
    assert "-Werror" in run("make", "-n", "V=1", "WERROR=", "debug", cwd=checkout)


def test_cmake_builds_tests_and_installs_the_same_engine(checkout: Path, tmp_path: Path) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    build, prefix = tmp_path / "build", tmp_path / "prefix"
    strict = "-DCMAKE_COMPILE_WARNING_AS_ERROR=ON"
    place = f"-DCMAKE_INSTALL_PREFIX={prefix}"
    run("cmake", "-S", "csrc", "-B", build, place, strict, cwd=checkout)
    run("cmake", "--build", build, "-j2", cwd=checkout)
    run("env", "CHECK_SAMPLE=1", "ctest", "--test-dir", build, "--output-on-failure", cwd=checkout)
    run("cmake", "--install", build, cwd=checkout)
    assert json.loads(run(prefix / "bin/mnist-mamba", "info", MODEL, "--json", cwd=tmp_path))


def test_a_wheel_of_the_source_archive_carries_engine_and_kernels(tmp_path: Path) -> None:
    """The package index is needed for the build backend alone."""
    pip = (sys.executable, "-m", "pip", "-q")
    (backend,) = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["build-system"][
        "requires"
    ]
    run(*pip, "install", "--target", tmp_path / "backend", backend, cwd=tmp_path)
    python = ("env", f"PYTHONPATH={tmp_path / 'backend'}", sys.executable, "-m")
    run(*python, "hatchling", "build", "-t", "sdist", "-d", tmp_path, cwd=ROOT)
    (archive,) = tmp_path.glob("*.tar.gz")
    options = ("-q", "--no-deps", "--no-build-isolation", "-w", tmp_path)
    run(*python, "pip", "wheel", *options, archive, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*-py3-none-any.whl")
    site = tmp_path / "site"
    run(*pip, "install", "--no-deps", "--target", site, wheel, cwd=tmp_path)
    program = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "import numpy as np\n"
        "from mnist_mamba.engine import Engine\n"
        "from mnist_mamba.scan import available_backends\n"
        f"engine = Engine({str(MODEL)!r})\n"
        "images = np.zeros((3, int(engine.info['height']), int(engine.info['width'])), np.uint8)\n"
        "print(engine.logits(images).shape, 'cpu' in available_backends())\n"
        "print(Engine().class_names[7])\n"
    )
    env_free = run(sys.executable, "-I", "-c", program, cwd=tmp_path)
    assert env_free.split("\n")[:2] == ["(3, 17) True", "7"]
