"""Types of the benchmarks' command lines."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence


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
