"""`make mutants`: apply small faults one at a time, and report which the fast tests notice.

Each fault of mutants.toml is applied to a copy of the tree. The tests that are likely to notice it
run first (RELATED), then all other fast tests, up to the first failure.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from tests.tools.mutants.mutant import Mutant, load_mutants

ROOT = Path(__file__).parents[3]
BAR = 0.9
"""Fraction of the mutants that the fast tests must notice."""
SLOWER = 10
"""How many times longer than without a mutant, and a minute more, a command may take."""
NOTHING_COLLECTED = 5
"""Exit code of pytest if all chosen tests are slow ones."""

Command = tuple[str, ...]


def make(*targets: str) -> Command:
    """Return the command that runs targets of the C tests."""
    return ("make", "-s", "-f", "csrc/tests.mk", *targets)


def pytest(*words: str) -> Command:
    """Return the command that runs fast Python tests up to the first failure."""
    # test_stale.py would notice every mutant.
    quiet = ("-x", "-q", "-p", "no:cacheprovider", "--ignore=tests/tools/mutants", "-m", "not slow")
    return (sys.executable, "-m", "pytest", *quiet, *words)


def test_files(folder: str, *patterns: str) -> Command:
    """Return the command that runs files of tests/FOLDER, named test_PATTERN.py."""
    found = [f for p in patterns for f in sorted((ROOT / "tests" / folder).glob(f"test_{p}.py"))]
    return pytest(*(str(file.relative_to(ROOT)) for file in found or [ROOT / "tests" / folder]))


def library(*patterns: str) -> Command:
    """Return the command that runs files of tests/library."""
    return test_files("library", *patterns)


def pipeline(*patterns: str) -> Command:
    """Return the command that runs files of tests/pipeline."""
    return test_files("pipeline", *patterns)


SHORT = "ENGINE_TESTS=test_idx test_commands test_golden test_forward test_model test_allocation"
ENGINE = [
    make("test-c-plain", SHORT),
    make("test-c-plain", "test-c-scalar"),
    make("test-c-debug"),
    library("differential"),
]
"""Tests of the C engine, those of less than a second first."""

RELATED: list[tuple[str, list[Command]]] = [
    ("csrc/engine/", ENGINE),
    (
        "csrc/scan/",
        [
            make("test-scan-omp", "test-scan-debug"),
            library("scan_reference", "scan_block", "scan_backends"),
        ],
    ),
    (
        "src/mnist_mamba/atomic_write.py",
        [library("atomic_write", "data*", "training*"), pipeline("stages")],
    ),
    ("src/mnist_mamba/c_build.py", [library("c_build*")]),
    ("src/mnist_mamba/classify.py", [library("server"), pipeline("tracked_model")]),
    ("src/mnist_mamba/server.py", [library("server")]),
    ("src/mnist_mamba/config.py", [library("config", "training*"), pipeline("params")]),
    ("src/mnist_mamba/data/corruptions.py", [library("corruptions")]),
    ("src/mnist_mamba/data/", [library("data*")]),
    (
        "src/mnist_mamba/engine/binding.py",
        [library("binding", "fork"), pytest("tests/parity/test_engine.py")],
    ),
    ("src/mnist_mamba/engine/format.py", [library("format", "differential")]),
    ("src/mnist_mamba/export.py", [library("format"), pytest("tests/parity")]),
    ("src/mnist_mamba/model/", [library("model", "format"), pytest("tests/parity")]),
    (
        "src/mnist_mamba/scan/",
        [library("scan_backends"), library("scan_*", "operators")],
    ),
    (
        "src/mnist_mamba/training/",
        [library("training*", "loading"), library("distributed", "allocator")],
    ),
    ("web/page/", [pytest("tests/web/test_page.py")]),
    ("web/", [pytest("tests/web/test_engine.py"), pytest("tests/web/test_page.py")]),
    ("pipeline/release/", [pipeline("gate*", "published"), pipeline("promote*", "report")]),
    ("pipeline/tracking/", [pipeline("tracked_model"), pipeline("tracking", "serving*")]),
    ("pipeline/report/", [pipeline("report*")]),
    ("pipeline/series/", [pipeline("commands"), pipeline("series*", "report*")]),
    ("pipeline/common/plots.py", [pipeline("plots"), pipeline("series*", "stages")]),
    (
        "pipeline/common/content_key.py",
        [pipeline("dependencies", "content_key*"), pipeline("tracking", "trainings", "series")],
    ),
    ("pipeline/common/command.py", [pipeline("command*", "gate*"), pipeline("trainings")]),
    ("pipeline/train.py", [pipeline("train*")]),
    ("pipeline/common/training_files.py", [pipeline("train*")]),
    ("pipeline/", [pipeline("commands"), pipeline("stages")]),
]
"""The tests to run first, by the beginning of the mutant's path; the first match counts."""

ALL_C: list[Command] = [make("test-c")]
ALL_PYTHON: list[Command] = [pytest("-n", "2")]


def related(mutant: Mutant) -> list[Command]:
    """Return the commands that are likely to notice a mutant."""
    return next(commands for prefix, commands in RELATED if mutant.path.startswith(prefix))


def commands_of(mutant: Mutant, quick: bool) -> list[Command]:
    """Return the commands that may notice a mutant, in the order in which to run them."""
    everything = [*(ALL_C if mutant.path.startswith("csrc/") else []), *ALL_PYTHON]
    return related(mutant) + ([] if quick else everything)


class Copy:
    """A copy of the tree as a Git repository, with compile caches of its own.

    Args:
        folder: an empty folder for it.
        limits: seconds after which each command counts as hanging; shared by all copies.
    """

    def __init__(self, folder: Path, limits: dict[Command, float]) -> None:
        self.limits = limits
        self.tree, scratch = folder / "tree", folder / "tmp"
        scratch.mkdir()
        words = ("ls-files", "-z", "--cached", "--others", "--exclude-standard")
        listed = subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True)
        for name in filter(None, listed.stdout.decode().split("\0")):
            if (ROOT / name).is_file():
                (self.tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.tree / name, follow_symlinks=False)
        identity = ("-c", "user.name=mutants", "-c", "user.email=mutants@localhost")
        for call in (("init", "-q"), ("add", "-A"), (*identity, "commit", "-q", "-m", "tree")):
            subprocess.run(["git", *call], cwd=self.tree, check=True)
        self._environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": f"{self.tree / 'src'}{os.pathsep}{self.tree}",
            "PYTHONDONTWRITEBYTECODE": "1",  # two mutants of a file may have one time and size
            "MNIST_MAMBA_CACHE": str(folder / "cache"),
            "TMPDIR": str(scratch),
            "MAKEFLAGS": "",
            "DVC_NO_ANALYTICS": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }

    def fails(self, command: Command) -> str | None:
        """Return the first test of a command that fails, or None if all pass.

        The first call of each command sets the time limit of the others.
        """
        started = time.monotonic()
        process = subprocess.Popen(
            command,
            cwd=self.tree,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=self.limits.get(command))
        except subprocess.TimeoutExpired:
            return f"a hang: {command[-1]}"
        finally:
            _end_group(process)
        seconds = time.monotonic() - started
        self.limits.setdefault(command, SLOWER * seconds + 60)
        passed = (0, NOTHING_COLLECTED) if command[0] != "make" else (0,)
        return (
            None
            if process.returncode in passed
            else _first_failure(command, output.decode(errors="replace"))
        )


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End a command and all that it has left running."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _first_failure(command: Command, output: str) -> str:
    """Return what failed first, by the output of a command that failed."""
    if command[0] != "make":
        found = re.findall(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
        return found[0] if found else f"pytest: {output[-2000:]}"
    if found := re.findall(r"^\S+:\d+:\d+: error: .*", output, re.MULTILINE):
        return f"the compiler: {found[0]}"
    # Each C test is announced by `== NAME`.
    found = re.findall(r"^== (.*)", output, re.MULTILINE)
    return found[-1] if found else f"make: {output[-2000:]}"


@dataclasses.dataclass(frozen=True)
class Result:
    """Outcome of one mutant."""

    mutant: Mutant
    failure: str | None
    """The test that noticed it, or None."""
    seconds: float

    def line(self) -> str:
        """Return a row of the table."""
        verdict = "SURVIVED" if self.failure is None else "killed"
        by = "" if self.failure is None else f" by {self.failure}"
        where = f"{self.mutant.name} ({self.mutant.kind}, {self.mutant.path})"
        return f"{verdict:9}{where}{by}  {self.seconds:.0f} s"


def try_mutant(copy: Copy, mutant: Mutant, quick: bool) -> Result:
    """Apply a mutant to a copy and run its commands up to the first that fails."""
    started = time.monotonic()
    with mutant.applied(copy.tree):
        failures = (copy.fails(command) for command in commands_of(mutant, quick))
        failure = next((failure for failure in failures if failure), None)
    return Result(mutant, failure, time.monotonic() - started)


def check_baseline(copy: Copy, mutants: Sequence[Mutant], quick: bool) -> None:
    """Check that all commands pass without a mutant, even if every file has one more line.

    A test that any edit breaks would notice every mutant.

    Raises:
        SystemExit: one of them fails.
    """
    originals = {path: (copy.tree / path).read_text() for path in {m.path for m in mutants}}
    for path, text in originals.items():
        (copy.tree / path).write_text(f"{text}\n")
    for command in dict.fromkeys(c for m in mutants for c in commands_of(m, quick)):
        if failure := copy.fails(command):
            sys.exit(f"error: without a mutant, expected no failure, got {failure}")
    for path, text in originals.items():
        (copy.tree / path).write_text(text)


def chosen(words: Sequence[str]) -> list[Mutant]:
    """Return the mutants whose name or path begins with one of the words; all without words.

    Raises:
        SystemExit: a word fits none, or a mutant is stale.
    """
    mutants = load_mutants()
    for word in words:
        if not any(m.name.startswith(word) or m.path.startswith(word) for m in mutants):
            sys.exit(f"error: {word}: expected the beginning of a mutant's name or path")
    found = [m for m in mutants if not words or m.name.startswith(tuple(words))]
    found += [m for m in mutants if words and m.path.startswith(tuple(words)) and m not in found]
    if stale := [m.name for m in found if m.is_stale(ROOT)]:
        sys.exit(f"error: stale, correct their `before` in mutants.toml: {', '.join(stale)}")
    return found


def main() -> None:
    """Try the mutants, print the table, and exit with 1 below the bar."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", help="beginnings of names or paths; default: all")
    parser.add_argument("--jobs", type=int, default=1, help="copies to work on at a time")
    parser.add_argument("--quick", action="store_true", help="only the tests that run first")
    arguments = parser.parse_args()
    mutants = chosen(arguments.only)
    with tempfile.TemporaryDirectory(prefix="mutants-", ignore_cleanup_errors=True) as scratch:
        copies: SimpleQueue[Copy] = SimpleQueue()
        limits: dict[Command, float] = {}
        for i in range(min(arguments.jobs, len(mutants))):
            folder = Path(scratch) / str(i)
            folder.mkdir()
            copies.put(Copy(folder, limits))

        def run(mutant: Mutant) -> Result:
            copy = copies.get()
            result = try_mutant(copy, mutant, arguments.quick)
            copies.put(copy)
            print(result.line(), flush=True)
            return result

        first = copies.get()
        check_baseline(first, mutants, arguments.quick)
        copies.put(first)
        with ThreadPoolExecutor(arguments.jobs) as pool:
            results = list(pool.map(run, mutants))
    killed = sum(result.failure is not None for result in results)
    print(f"{killed} of {len(results)} killed ({killed / len(results):.0%}); bar {BAR:.0%}")
    sys.exit(killed < BAR * len(results))


if __name__ == "__main__":
    main()
