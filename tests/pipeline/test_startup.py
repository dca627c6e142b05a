"""Commands answer `--help`, a wrong option and a wrong param before they import slow packages."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.pipeline.imports import ROOT
from tests.pipeline.project import run, set_params

ALLOWED = {
    *("mnist_mamba", "pipeline", "cython_runtime", "numpy", "ruamel", "tqdm", "yaml"),
    *("annotated_types", "pydantic", "pydantic_core", "typing_extensions", "typing_inspection"),
}
"""Packages that take less than half a second, all together."""
STAGES = ("check_params", "download", "prepare", "train", "evaluate", "benchmark", "track")

PROGRAM = """
import json, runpy, sys
before = set(sys.modules)  # a system's Python may import packages of its own
modules, words = json.loads(sys.argv[1])
answers = {}
for module in modules:
    sys.argv = [module, *words]
    code = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    packages = {name.partition(".")[0] for name in sys.modules.keys() - before}
    packages -= sys.stdlib_module_names
    answers[module] = code, sorted(name for name in packages if name[0] != "_")
print(json.dumps(answers), file=sys.stderr)
"""


def commands() -> list[str]:
    """Return all modules of pipeline/ that run as commands."""
    files = sorted((ROOT / "pipeline").rglob("*.py"))
    mark = re.compile(r"^    command\.run(_judge)?\(main", re.MULTILINE)
    return [
        ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for file in files
        if mark.search(file.read_text(encoding="utf-8"))
    ]


def answers(folder: Path, modules: list[str], *words: str) -> dict[str, tuple[int, list[str]]]:
    """Run commands in one process; return each one's exit code and the packages imported so far."""
    program = [sys.executable, "-c", PROGRAM, json.dumps([modules, words])]
    done = run(folder, program, PYTHONPATH=str(ROOT))
    found: dict[str, tuple[int, list[str]]] = json.loads(done.stderr.splitlines()[-1])
    return found


@pytest.mark.parametrize(("word", "code"), [("--help", 0), ("--frobnicate", 2)])
def test_no_command_imports_a_slow_package_to_answer_a_word(
    word: str, code: int, tmp_path: Path
) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    assert len(commands()) >= 16
    for module, (returned, packages) in answers(tmp_path, commands(), word).items():
        assert returned == code, module
        assert set(packages) <= ALLOWED, module


def test_no_stage_imports_a_slow_package_to_refuse_a_param(tmp_path: Path) -> None:
    set_params(tmp_path, {"train.epochs": -1})
    modules = [f"pipeline.{stage}" for stage in STAGES]
    for module, (returned, packages) in answers(tmp_path, modules).items():
        assert returned == 1, module
        assert set(packages) <= ALLOWED, module


def test_slow_packages_are_seen(tmp_path: Path) -> None:
    """The tests above cannot fail if no package is found."""
    _, packages = answers(tmp_path, ["sklearn.utils._testing"])["sklearn.utils._testing"]
    assert {"numpy", "scipy", "sklearn"} <= set(packages)


def test_imports_and_the_end_of_a_command_search_for_no_garbage(tmp_path: Path) -> None:
    program = """
import atexit, gc
from pipeline.common import command
atexit.register(lambda: print(gc.get_freeze_count() > 20_000))
command.run(lambda: None)
before = gc.get_stats()[0]["collections"]
objects = [[] for _ in range(20_000)]
print(gc.get_stats()[0]["collections"] - before)
"""
    done = run(tmp_path, [sys.executable, "-c", program], PYTHONPATH=str(ROOT))
    assert done.stdout == "0\nTrue\n", done.stderr
