"""A module that runs in a fork is like one that a new Python runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.pipeline.project import run, run_module


@pytest.mark.parametrize(
    ("last_line", "code"),
    [
        ("", 0),
        ("sys.exit(3)", 3),
        ("sys.exit()", 0),
        ("raise ValueError('a')", 1),
        ("os.kill(os.getpid(), 9)", -9),
    ],
)
def test_a_fork_is_like_a_new_python(last_line: str, code: int, tmp_path: Path) -> None:
    program = "import atexit, os, sys\natexit.register(print, 'the end')\n"
    program += (
        f"print(sys.argv, os.getcwd(), sys.path[0], os.getenv('A'), flush=True)\n{last_line}\n"
    )
    (tmp_path / "module.py").write_text(program, encoding="utf-8")
    forked = run_module(tmp_path, "module", "b", A="c")
    new = run(tmp_path, [sys.executable, "-m", "module", "b"], A="c")
    assert (forked.returncode, new.returncode) == (code, code)
    assert forked.stdout == new.stdout
    assert forked.stderr.splitlines()[-1:] == new.stderr.splitlines()[-1:]
