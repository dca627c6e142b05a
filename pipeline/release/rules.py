"""Judging figures by the rules of params.yaml's `gate`: direction, bound, tolerance."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.common.params import Rule

Figures = Mapping[str, Any]
"""Values by their dotted names."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One row of the gate's table."""

    name: str
    base: str
    here: str
    allowed: str
    problem: str | None
    """Why it fails; None if it passes."""
    note: str = ""
    """What else is to be said of a row that passes."""

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong with it."""
        return self.problem is None


def judge(rules: Mapping[str, Rule], base: Figures, here: Figures) -> list[Verdict]:
    """A verdict on each figure that a rule names, in the rules' order.

    A figure that is not here fails, also if a pattern finds it in the base alone. One that only the
    base lacks is new: its bound holds, and there is nothing to compare it with.
    """
    verdicts = []
    for pattern, rule in rules.items():
        names = [name for name in {**here, **base} if _matches(name, pattern)]
        verdicts += [
            _judge_one(name, rule, base.get(name), here.get(name)) for name in names or [pattern]
        ]
    return verdicts


def _matches(name: str, pattern: str) -> bool:
    """Whether a dotted name is of a pattern, whose * stands for any one part."""
    parts, patterns = name.split("."), pattern.split(".")
    return len(parts) == len(patterns) and all(map(fnmatch.fnmatchcase, parts, patterns))


def _judge_one(name: str, rule: Rule, base: Any, here: Any) -> Verdict:
    sign, worse = ("≥", -1) if rule.better == "higher" else ("≤", 1)
    limit, why = _limit(rule, worse, base)
    allowed = "anything" if limit is None else f"{sign} {show(limit)} ({why})"
    problem, note = None, ""
    if here is None:
        problem = "missing: `make repro`, and commit what it makes"
    elif not _is_number(here):
        problem = "expected a finite number"
    elif base is not None and not _is_number(base):
        problem = "the base has no finite number"
    elif limit is not None and (here - limit) * worse > 0:
        problem = f"expected {allowed}"
    elif base is None:
        note = "new: the base lacks it"
    return Verdict(name, show(base), show(here), allowed, problem, note)


def _limit(rule: Rule, worse: int, base: Any) -> tuple[float | None, str]:
    """What the figure is held to, and what that comes from: the stricter of bound and base."""
    limits = [] if rule.bound is None else [(rule.bound, "bound")]
    if _is_number(base) and not rule.absolute is rule.relative is None:
        tolerance = max(rule.absolute or 0.0, (rule.relative or 0.0) * abs(base))
        # Decimal fractions are no binary ones: 0.9957 less 0.0015 must let 0.9942 pass.
        limits.append((base + worse * (tolerance + 1e-12 * abs(base)), "base"))
    return min(limits, key=lambda limit: limit[0] * worse, default=(None, ""))


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False


def show(value: Any) -> str:
    """A figure as people read it; text that a file holds in a number's place stays on one line."""
    if value is None:
        return "-"
    if not _is_number(value):
        return str(value)[:40].replace("|", "/").replace("\n", " ")
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.5g}"


def markdown(verdicts: Sequence[Verdict]) -> str:
    """The verdicts as a table, those that fail first."""
    lines = ["| | figure | base | here | allowed | |", "|---|---|---:|---:|---|---|"]
    for one in sorted(verdicts, key=lambda verdict: verdict.passed):
        mark = "pass" if one.passed else "**FAIL**"
        remark = one.problem or one.note
        lines.append(
            f"| {mark} | `{one.name}` | {one.base} | {one.here} | {one.allowed} | {remark} |"
        )
    return "\n".join(lines) + "\n"
