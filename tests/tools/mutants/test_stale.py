"""Each mutant of mutants.toml can be applied: the code still has the lines that it changes."""

from __future__ import annotations

from pathlib import Path

from tests.tools.mutants.mutant import load_mutants

ROOT = Path(__file__).parents[3]


def test_no_mutant_is_stale() -> None:
    stale = [mutant.name for mutant in load_mutants() if mutant.is_stale(ROOT)]
    assert stale == [], f"lines to change not found exactly once: {stale}; see mutants.toml"


def test_each_mutant_has_a_name_of_its_own_and_changes_something() -> None:
    mutants = load_mutants()
    assert len({mutant.name for mutant in mutants}) == len(mutants)
    assert all(mutant.before != mutant.after for mutant in mutants)
