"""Running the C engine that the stage `compile` has built."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from pipeline.common import paths

BATCHES = (1, 100)
"""Batch sizes that the engine is timed with."""


def run_engine(*words: str | Path | float) -> dict[str, Any]:
    """Run `mamba WORDS --json` and return its report.

    The engine in build/dvc is not executable, so a copy runs. DVC 3.67 cannot set up an experiment
    in a clone if dvc.lock names an executable that the clone's cache lacks.

    Raises:
        FileNotFoundError: the engine has not been built.
        RuntimeError: the engine failed; the message contains its own.
    """
    if not paths.ENGINE.is_file():
        raise FileNotFoundError(f"{paths.ENGINE} not found: run `dvc repro compile` first")
    with tempfile.TemporaryDirectory(prefix="mamba-") as scratch:
        engine = Path(scratch) / "mamba"
        shutil.copyfile(paths.ENGINE, engine)
        engine.chmod(0o700)
        command = [str(word) for word in (engine, *words, "--json")]
        done = subprocess.run(
            command, capture_output=True, text=True, encoding="utf-8", errors="replace"
        )
    if done.returncode:
        raise RuntimeError(f"mamba {words[0]} failed ({done.returncode}): {done.stderr.strip()}")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def bench_engine(
    batch: int,
    rounds: int,
    model: Path = paths.MODEL,
    threads: int = 1,
    images: Path | None = None,
    exit_margin: float | None = None,
) -> Any:
    """Return the report of `mamba bench`: median_us (µs per image), load_us and more.

    Without images, or with an exit margin of 0, all members of an ensemble are timed.
    """
    options: tuple[str | int | float, ...] = ("--batch", batch, "--threads", threads)
    options += ("--rounds", rounds)
    options += () if exit_margin is None else ("--exit-margin", exit_margin)
    return run_engine("bench", model, *([images] if images else []), *options)
