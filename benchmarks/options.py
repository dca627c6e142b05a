"""What the benchmarks' command lines share: types, common options, where the figures go."""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.tables import write_blocks
from mnist_mamba.atomic_write import write_json

logger = logging.getLogger(__name__)


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number from 1 on")
    return int(text)


def above_zero(text: str) -> float:
    """A number above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number above 0")
    return value


def some_of(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """The type of an option that takes some of the known words, with commas between."""

    def peers(text: str) -> tuple[str, ...]:
        chosen = tuple(text.split(","))
        if unknown := [word for word in chosen if word not in known]:
            raise argparse.ArgumentTypeError(
                f"got {', '.join(unknown)!r}, expected some of {', '.join(known)}"
            )
        return chosen

    return peers


def add_common(parser: argparse.ArgumentParser, known: Sequence[str], rounds: int) -> None:
    """--rounds, --peers, --quick and --output, with all known peers and the rounds by default."""
    add = parser.add_argument
    add("--rounds", type=positive, default=rounds, help="of all peers (default: %(default)s)")
    add("--peers", type=some_of(known), default=known, help="a comma between (default: all)")
    add("--quick", action="store_true", help="tiny models, few calls: does it all still run?")
    add("--output", type=Path, help="default: the committed file, and for a part of the whole none")


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
