"""`make gate-speed`: this work tree's engine beside another revision's, built and run here.

Instructions, size and time hang on compiler and machine, so the base is built anew in the same job,
and each engine reads the model that its own revision ships.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from pipeline.common.params import load_params
from pipeline.release import gate
from pipeline.release.gate import NoVerdictError
from pipeline.release.rules import judge
from pipeline.tracking.client import flatten

logger = logging.getLogger(__name__)

ENGINE = Path("build/plain/mamba")
MODEL = Path("models/mnist_mamba.bin")
BATCHES = (1, 100)


def run(*words: str | Path) -> str:
    """What a command prints.

    Raises:
        NoVerdictError: it is not there, or it failed; the message ends with what it said.
    """
    try:
        done = subprocess.run(list(map(str, words)), capture_output=True, text=True)
    except FileNotFoundError as error:
        raise NoVerdictError(f"{words[0]} is not there: install it") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-800:]
        raise NoVerdictError(f"{' '.join(map(str, words))} failed ({done.returncode}): {said}")
    return done.stdout


def check_out(commit: str, folder: Path) -> None:
    """A revision's files, without its history.

    Raises:
        NoVerdictError: Git refused.
    """
    # A zip, because Python before 3.11.4 unpacks a tar with no filter, and later ones ask for one.
    archive = folder / "base.zip"
    gate.git("archive", f"--output={archive}", commit)
    shutil.unpack_archive(archive, folder)
    archive.unlink()


def measure_once(tree: Path) -> dict[str, Any]:
    """Build the engine of a tree; what no clock measures: instructions, and its size."""
    run("make", "-s", "-C", tree, "engine")
    counted = run("make", "-s", "-C", tree, "instructions")
    instructions = {isa: int(n) for isa, n in re.findall(r"^(\w+): (\d+) ", counted, re.MULTILINE)}
    with tempfile.TemporaryDirectory() as scratch:
        stripped = Path(scratch) / "mamba"
        run("strip", "-o", stripped, tree / ENGINE)
        return {"instructions": instructions, "binary_bytes": stripped.stat().st_size}


def time_in_turns(trees: list[Path], rounds: int) -> list[dict[str, float]]:
    """Microseconds an image of each tree's engine: medians over rounds that take turns."""
    times: list[dict[str, list[float]]] = [{f"b{batch}": [] for batch in BATCHES} for _ in trees]
    for turn in range(rounds):
        # Each goes first as often as the other: a machine that warms up favours neither.
        order = range(len(trees)) if turn % 2 == 0 else reversed(range(len(trees)))
        for i in order:
            for batch in BATCHES:
                words = ("bench", trees[i] / MODEL, "--batch", str(batch), "--rounds", "5")
                report = json.loads(run(trees[i] / ENGINE, *words, "--json"))
                times[i][f"b{batch}"].append(report["median_us"])
    return [{name: statistics.median(us) for name, us in each.items()} for each in times]


def main(options: argparse.Namespace) -> int:
    """Build both, measure both, judge, and print a table."""
    params = load_params()
    with tempfile.TemporaryDirectory(prefix="mamba-base-") as scratch:
        trees = [Path(scratch), Path()]
        check_out(gate.resolve(options.base), trees[0])
        counted = [measure_once(tree) for tree in trees]
        timed = time_in_turns(trees, params.benchmark.rounds)
    base, here = (
        flatten({**once, "us_per_image": us}) for once, us in zip(counted, timed, strict=True)
    )
    verdicts = judge(params.gate.speed, base, here)
    page = gate.summary(f"Speed against {options.base}", verdicts, [])
    return gate.finish(page, verdicts, options.output)


if __name__ == "__main__":
    gate.run(main, __doc__ or "", "pipeline.release.gate_speed")
