"""Running the engine that the stage `compile` has built."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from pipeline.common import paths


def run_engine(*words: str | Path | int) -> dict[str, Any]:
    """Run `mamba WORDS --json` and return its report.

    DVC keeps the engine without its executable bit: DVC 3.67 cannot set up an experiment in a
    clone whose lock names an executable that the clone's cache does not have. So a copy runs.

    Raises:
        FileNotFoundError: the engine has not been built.
        RuntimeError: the engine refused; its message is passed on.
    """
    if not paths.ENGINE.is_file():
        raise FileNotFoundError(f"{paths.ENGINE} is not there: run 'dvc repro compile' first")
    with tempfile.TemporaryDirectory(prefix="mamba-") as scratch:
        engine = Path(scratch) / "mamba"
        shutil.copyfile(paths.ENGINE, engine)
        engine.chmod(0o700)
        command = [str(word) for word in (engine, *words, "--json")]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"mamba {words[0]} failed ({done.returncode}): {done.stderr.strip()}")
    report: dict[str, Any] = json.loads(done.stdout)
    return report
