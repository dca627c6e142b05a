"""The benchmarks' shared command-line options, and where their metrics go."""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.tables import write_blocks
from mnist_mamba.atomic_write import write_json
from pipeline.common import command

logger = logging.getLogger(__name__)


def above_zero(text: str) -> float:
    """Parse a finite number above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number above 0")
    return value


def some_of(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Return a parser of comma-separated words, which must all be known."""

    def peers(text: str) -> tuple[str, ...]:
        chosen = tuple(text.split(","))
        if unknown := [word for word in chosen if word not in known]:
            raise argparse.ArgumentTypeError(
                f"got {', '.join(unknown)!r}, expected some of {', '.join(known)}"
            )
        return chosen

    return peers


def add_common(parser: argparse.ArgumentParser, known: Sequence[str], rounds: int) -> None:
    """Add --rounds, --peers, --quick and --output; the default is all known peers."""
    add = parser.add_argument
    add(
        "--rounds",
        type=command.positive,
        default=rounds,
        help="rounds of all peers (default: %(default)s)",
    )
    add("--peers", type=some_of(known), default=known, help="comma-separated (default: all)")
    add(
        "--quick",
        action="store_true",
        help="tiny models, few calls: only check that everything runs",
    )
    add("--output", type=Path, help="default: the committed file, none for a part of the benchmark")


def parse_inference(
    parser: argparse.ArgumentParser,
    peers: Sequence[str],
    seconds: float,
    argv: Sequence[str] | None,
) -> argparse.Namespace:
    """Parse the command line of a benchmark of inference; `seconds` is the default per load."""
    add_common(parser, peers, rounds=3)
    add = parser.add_argument
    add("--seconds", type=above_zero, default=seconds, help="timed per load (default: %(default)g)")
    options = parser.parse_args(argv)
    if options.quick:
        options.rounds, options.seconds = 1, 1e-9
    return options


def store(result: Mapping[str, Any], asked: Path | None, committed: Path, whole: bool) -> None:
    """Write the metrics where asked, else the committed file and the documents' tables.

    A part of the benchmark (`whole` is false) never changes committed files.
    """
    output = asked or (committed if whole else None)
    if output is not None:
        write_json(output, result)
        logger.info("written to %s", output)
    if output == committed:
        write_blocks()
