"""The small faults of mutants.toml, and applying one to a tree."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILE = Path(__file__).with_name("mutants.toml")


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One fault: a few lines of a file, and what replaces them."""

    name: str
    path: str
    """The file, relative to the root of the project."""
    kind: str
    """The kind of mistake in one word: comparison, check, unit, reset, ..."""
    before: str
    after: str

    def is_stale(self, root: Path) -> bool:
        """Whether `before` does not occur exactly once in the file."""
        file = root / self.path
        return not file.is_file() or file.read_text(encoding="utf-8").count(self.before) != 1

    @contextmanager
    def applied(self, root: Path) -> Iterator[None]:
        """Change the file while the body runs."""
        file = root / self.path
        text = file.read_text(encoding="utf-8")
        file.write_text(text.replace(self.before, self.after), encoding="utf-8")
        try:
            yield
        finally:
            file.write_text(text, encoding="utf-8")


def load_mutants(file: Path = FILE) -> list[Mutant]:
    """Return all mutants in the order of the file."""
    tables = tomllib.loads(file.read_text(encoding="utf-8"))["mutant"]
    return [Mutant(**table) for table in tables]
