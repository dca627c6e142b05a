"""`make gate-speed`: compare this work tree's engine with another revision's.

Instructions, size and time depend on compiler and machine, so the base is built and run here, too.
Instructions are counted for one example with each revision's own model, times are those of all
members of the base's model. The rules are in gate.yaml.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from pipeline.common import command
from pipeline.common.nested import flatten
from pipeline.common.run_engine import BATCHES
from pipeline.release import gate
from pipeline.release.gate import NoVerdictError
from pipeline.release.rules import judge, load_rules

logger = logging.getLogger(__name__)

ENGINE = Path("build/plain/mamba")
MODEL = Path("models/mnist_mamba.bin")
ROUNDS = 15
"""Number of interleaved rounds, of which the median counts."""


def run(*words: str | Path) -> str:
    """Return what a command prints.

    Raises:
        NoVerdictError: the command is not installed or failed; the message ends with its output.
    """
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, encoding="utf-8", errors="replace"
        )
    except FileNotFoundError as error:
        raise NoVerdictError(f"{words[0]} not found: install it") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-800:]
        raise NoVerdictError(f"{' '.join(map(str, words))} failed ({done.returncode}): {said}")
    return done.stdout


def measure_once(tree: Path) -> dict[str, Any]:
    """Build the engine of a tree; return its instructions per image and its size in bytes."""
    run("make", "-s", "-C", tree, "engine")
    counted = run("make", "-s", "-C", tree, "instructions")
    instructions = {isa: int(n) for isa, n in re.findall(r"^(\w+): (\d+) ", counted, re.MULTILINE)}
    with tempfile.TemporaryDirectory() as scratch:
        stripped = Path(scratch) / "mamba"
        run("strip", "-o", stripped, tree / ENGINE)
        return {"instructions": instructions, "binary_bytes": stripped.stat().st_size}


def time_interleaved(trees: list[Path], rounds: int) -> list[dict[str, float]]:
    """Return the median time of each tree's engine over interleaved rounds (µs per image).

    All run the first tree's model: an engine whose own model has more members would look slower.
    """
    times: list[dict[str, list[float]]] = [{f"b{batch}": [] for batch in BATCHES} for _ in trees]
    for number in range(rounds):
        # Each tree runs first equally often, as the machine may get faster or slower.
        order = range(len(trees)) if number % 2 == 0 else reversed(range(len(trees)))
        for i in order:
            for batch in BATCHES:
                words = ("bench", trees[0] / MODEL, "--batch", str(batch), "--rounds", "5")
                report = json.loads(run(trees[i] / ENGINE, *words, "--json"))
                times[i][f"b{batch}"].append(report["median_us"])
    return [{name: statistics.median(us) for name, us in each.items()} for each in times]


def main(options: argparse.Namespace) -> int:
    """Build and measure both engines, judge, and print a table."""
    rules = load_rules()
    with gate.unpacked(options.base) as base_tree:
        trees = [base_tree, Path()]
        counted = [measure_once(tree) for tree in trees]
        timed = time_interleaved(trees, ROUNDS)
    base, here = (
        flatten({**once, "us_per_image": us}) for once, us in zip(counted, timed, strict=True)
    )
    verdicts = judge(rules.speed, base, here)
    return gate.publish(f"Speed against {options.base}", verdicts, options.output)


if __name__ == "__main__":
    command.run_judge(main, __doc__ or "", "pipeline.release.gate_speed")
