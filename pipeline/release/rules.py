"""The rules of gate.yaml, and judging metrics by them: direction, bound, tolerance.

gate.py judges the accuracy, for which it compares predictions.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.common.params import Fraction, NonNegative, Section, parse, read_yaml

GATE_FILE = Path("gate.yaml")

Metrics = Mapping[str, Any]
"""Values by their dotted names."""


class Rule(Section):
    """How much worse a metric may be than the base's, and the worst value that it may have."""

    better: Literal["higher", "lower"]
    bound: Annotated[float, Field(allow_inf_nan=False)] | None = None
    absolute: NonNegative | None = None
    relative: NonNegative | None = None

    @model_validator(mode="after")
    def _limits_something(self) -> Rule:
        if self.bound is None and not self.compares:
            raise ValueError("expected at least one of bound, absolute and relative")
        return self

    @property
    def compares(self) -> bool:
        """Whether the metric is compared with the base's."""
        return self.absolute is not None or self.relative is not None

    @property
    def worse_sign(self) -> int:
        """1 if a larger value is worse, else -1."""
        return 1 if self.better == "lower" else -1


class AccuracyRule(Section):
    """Lowest accuracy, and the p-value below which a loss of correct predictions fails."""

    floor: Fraction
    significance: Annotated[float, Field(gt=0, lt=1)]


class GateRules(Section):
    """The content of gate.yaml."""

    data: Annotated[str, Field(min_length=1)]
    accuracy: AccuracyRule
    metrics: dict[str, Rule]
    speed: dict[str, Rule]

    def for_data(self, dataset: str | None) -> GateRules:
        """Return the rules for results on a data set: for others than `data`, without its bounds.

        Results that do not name their data set count as those of `data`.
        """
        if dataset in (None, self.data):
            return self
        metrics = {
            name: rule.model_copy(update={"bound": None}) if rule.compares else rule
            for name, rule in self.metrics.items()
        }
        accuracy = self.accuracy.model_copy(update={"floor": 0.0})
        return self.model_copy(update={"accuracy": accuracy, "metrics": metrics})


def load_rules(path: Path = GATE_FILE) -> GateRules:
    """Read and check gate.yaml of the current folder."""
    return parse(GateRules, read_yaml(path, path), str(path))


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A row of the gate's table."""

    name: str
    base: str
    here: str
    allowed: str
    problem: str | None
    """Why the metric fails; None if it passes."""
    note: str = ""
    """Remark on a row that passes."""

    @property
    def passed(self) -> bool:
        """Whether the metric passes."""
        return self.problem is None


def judge(rules: Mapping[str, Rule], base: Metrics, here: Metrics) -> list[Verdict]:
    """Return a verdict on each metric that a rule names, in the rules' order.

    A metric that is missing here fails, even if a pattern matches it only in the base. A metric
    that only the base lacks is new: it must keep its bound and is not compared.
    """
    verdicts = []
    for pattern, rule in rules.items():
        names = [name for name in {**here, **base} if _matches(name, pattern)]
        verdicts += [
            _judge_one(name, rule, base.get(name), here.get(name)) for name in names or [pattern]
        ]
    return verdicts


def _matches(name: str, pattern: str) -> bool:
    """Return whether a dotted name matches a pattern, in which * replaces one part."""
    parts, patterns = name.split("."), pattern.split(".")
    return len(parts) == len(patterns) and all(map(fnmatch.fnmatchcase, parts, patterns))


def _judge_one(name: str, rule: Rule, base: Any, here: Any) -> Verdict:
    sign = "≥" if rule.better == "higher" else "≤"
    limit, why = _limit(rule, base)
    allowed = "anything" if limit is None else f"{sign} {show(limit)} ({why})"
    problem, note = None, ""
    if here is None:
        problem = "missing: run `make repro` and commit its results"
    elif not _is_number(here):
        problem = "expected a finite number"
    elif base is not None and not _is_number(base):
        problem = "the base has no finite number"
    elif limit is not None and (here - limit) * rule.worse_sign > 0:
        problem = f"expected {allowed}"
    elif base is None:
        note = "new: the base lacks it"
    return Verdict(name, show(base), show(here), allowed, problem, note)


def _limit(rule: Rule, base: Any) -> tuple[float | None, str]:
    """Return the metric's limit and its origin, the stricter of bound and base."""
    limits = [] if rule.bound is None else [(rule.bound, "bound")]
    if _is_number(base) and rule.compares:
        tolerance = max(rule.absolute or 0.0, (rule.relative or 0.0) * abs(base))
        # Decimal fractions are not exact in binary: 0.9957 - 0.0015 must let 0.9942 pass.
        limits.append((base + rule.worse_sign * (tolerance + 1e-12 * abs(base)), "base"))
    return min(limits, key=lambda limit: limit[0] * rule.worse_sign, default=(None, ""))


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number too large for a float
        return False


def show(value: Any) -> str:
    """Return a value for people to read; a text in place of a number stays on one line."""
    if value is None:
        return "-"
    if not _is_number(value):
        return str(value)[:40].replace("|", "/").replace("\n", " ")
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.5g}"


def markdown(verdicts: Sequence[Verdict]) -> str:
    """Return the verdicts as a table, failures first."""
    lines = ["| | metric | base | here | allowed | |", "|---|---|---:|---:|---|---|"]
    for row in sorted(verdicts, key=lambda verdict: verdict.passed):
        mark = "pass" if row.passed else "**FAIL**"
        cells = (mark, f"`{row.name}`", row.base, row.here, row.allowed, row.problem or row.note)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
