"""`make gate`: compare this work tree's results with those of another Git revision.

The gate only reads files: metrics and predictions of the work tree, and those of the base in Git.
The rules are in gate.yaml.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from mnist_mamba.atomic_write import write_text
from pipeline.common import command, paths
from pipeline.common.git import GitError, git
from pipeline.common.nested import flatten
from pipeline.release.rules import (
    GATE_FILE,
    AccuracyRule,
    GateRules,
    Metrics,
    Verdict,
    judge,
    load_rules,
    markdown,
    show,
)

logger = logging.getLogger(__name__)

Prediction = tuple[int, int]
"""Label and predicted class of a test image."""


class NoVerdictError(RuntimeError):
    """The two revisions cannot be compared; the message says why, and what to do."""


def resolve(base: str) -> str:
    """Return the hash of a revision's commit.

    Raises:
        NoVerdictError: the repository has no such commit.
    """
    words = ("rev-parse", "--verify", "--quiet", "--end-of-options", f"{base}^{{commit}}")
    try:
        return git(*words).strip()
    except GitError as error:
        raise NoVerdictError(
            f"BASE={base} is not a commit of this repository: expected a branch, tag or hash. Try "
            "`git fetch origin`, or `git fetch --unshallow` in a shallow clone"
        ) from error


Reader = Callable[[Path], str | None]
"""Function that returns the text of a file of the project, or None if there is no such file."""


@contextmanager
def naming_side(name: str) -> Iterator[None]:
    """Prefix errors with the side, work tree or base, whose files caused them."""
    try:
        yield
    except (NoVerdictError, GitError) as error:
        raise NoVerdictError(f"{name}: {error}") from error


def in_work_tree(path: Path) -> str | None:
    """Return the text of a file of the work tree."""
    return path.read_text(encoding="utf-8") if path.is_file() else None


def in_revision(commit: str) -> Reader:
    """Return a `Reader` of a commit's files."""
    here = git("rev-parse", "--show-prefix").strip()

    def read(path: Path) -> str | None:
        name = f"{here}{path.as_posix()}"
        if not git("ls-tree", "--name-only", "--full-tree", commit, name):
            return None
        return git("show", f"{commit}:{name}")

    return read


def read_metrics(read: Reader, names: Iterable[str]) -> Metrics:
    """Return all values of the metrics files `names` that exist, with the file's name in front.

    Raises:
        NoVerdictError: a file is not JSON.
    """
    found: dict[str, Any] = {}
    for name in names:
        path = paths.METRICS / f"{name}.json"
        try:
            text = read(path)
            found |= flatten({name: json.loads(text)}) if text is not None else {}
        except (ValueError, RecursionError) as error:  # encoding, syntax, length of numbers, depth
            raise NoVerdictError(f"{path} is not JSON: {error}") from error
    return found


def read_predictions(read: Reader) -> list[Prediction] | None:
    """Return labels and predictions of the test images in order, or None without a file.

    Raises:
        NoVerdictError: the file has another format.
    """
    try:
        text = read(paths.PREDICTIONS)
        if text is None:
            return None
        rows = csv.DictReader(io.StringIO(text))
        return [(int(row["label"]), int(row["predicted"])) for row in rows]
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise NoVerdictError(
            f"{paths.PREDICTIONS}: expected columns label and predicted of whole numbers, got "
            f"{error!r}"
        ) from error


def judge_accuracy(
    rule: AccuracyRule, base: list[Prediction] | None, here: list[Prediction] | None
) -> Verdict:
    """Return the verdict on accuracy, comparing the predictions image by image.

    Only images that exactly one of the two classifies correctly count (McNemar's exact test). If
    the two were equally good, each of these images would be as likely won as lost.

    Raises:
        NoVerdictError: the two were evaluated on different test images.
    """
    accuracy = None if not here else sum(label == found for label, found in here) / len(here)
    before = None if not base else sum(label == found for label, found in base) / len(base)
    row = {"name": "accuracy", "base": show(before), "here": show(accuracy)}
    allowed = f"≥ {show(rule.floor)}, p ≥ {rule.significance:g}"
    if here is None or accuracy is None:
        problem = f"{paths.PREDICTIONS} is missing or empty: run `make repro` and commit it"
        return Verdict(**row, allowed=allowed, problem=problem)
    too_low = f"expected ≥ {show(rule.floor)}" if accuracy < rule.floor else None
    if not base:
        return Verdict(**row, allowed=allowed, problem=too_low, note="new: the base lacks it")
    if [label for label, _ in base] != [label for label, _ in here]:
        raise NoVerdictError(
            f"the labels in {paths.PREDICTIONS} differ from the base's, so the test images do too: "
            "commit the new results and compare later changes with that commit"
        )
    lost, won, p = mcnemar(base, here)
    counts = f"{lost} lost, {won} won, p = {p:.2g}"
    if too_low:
        return Verdict(**row, allowed=allowed, problem=f"{too_low}; {counts}")
    failed = p < rule.significance
    return Verdict(**row, allowed=allowed, problem=counts if failed else None, note=counts)


def mcnemar(base: list[Prediction], here: list[Prediction]) -> tuple[int, int, float]:
    """Return (lost, won, p): images that only the base, or only this tree, classifies correctly.

    p is McNemar's exact one-sided p-value: the chance that two equally good ones differ that much.
    """
    from scipy.stats import binomtest

    pairs = [
        (label == old, label == new) for (label, old), (_, new) in zip(base, here, strict=True)
    ]
    lost, won = pairs.count((True, False)), pairs.count((False, True))
    p = binomtest(lost, lost + won, alternative="greater").pvalue if lost + won else 1.0
    return lost, won, float(p)


def check_consistent(read: Reader, here: list[Prediction] | None) -> None:
    """Check that the results are of one run.

    Raises:
        NoVerdictError: metrics and predictions differ, or the metrics files describe models of
            different size.
    """
    found = read_metrics(read, ["eval", "train"])
    expected = {"train.parameters": (found.get("eval.model.parameters"), "eval.model.parameters")}
    if here:
        correct = sum(label == predicted for label, predicted in here)
        counted = {"correct": correct, "n_test": len(here), "accuracy": correct / len(here)}
        for name, count in counted.items():
            expected[f"eval.{name}"] = (count, f"its value in {paths.PREDICTIONS}")
    for name, (value, source) in expected.items():
        if None not in (value, found.get(name)) and found[name] != value:
            raise NoVerdictError(
                f"{name} = {found[name]} in metrics/, but {source} = {value}: the results are of "
                "different runs; run `make repro`"
            )


def judge_all(rules: GateRules, base: str) -> list[Verdict]:
    """Return all verdicts on the work tree compared with a revision.

    Raises:
        NoVerdictError: the two cannot be compared.
    """
    read_base = in_revision(resolve(base))
    files = sorted({name.split(".")[0] for name in rules.metrics})
    with naming_side("the work tree"):
        here, here_metrics = read_predictions(in_work_tree), read_metrics(in_work_tree, files)
        check_consistent(in_work_tree, here)
    with naming_side(f"BASE={base}"):
        before, base_metrics = read_predictions(read_base), read_metrics(read_base, files)
        if not before and not base_metrics:
            raise NoVerdictError(
                f"no results: neither {paths.PREDICTIONS} nor metrics/ is in it; commit results "
                "and compare later changes with that commit"
            )
    accuracy = judge_accuracy(rules.accuracy, before, here)
    return [accuracy, *judge(rules.metrics, base_metrics, here_metrics)]


def changed_rules(rules: GateRules, read_base: Reader) -> list[str]:
    """Return the rules that differ from the base's, so that nobody relaxes one unseen."""
    try:
        # Not parsed as GateRules: the base's file may be of another version.
        before = flatten(yaml.safe_load(read_base(GATE_FILE) or ""))
    except (AttributeError, ValueError, yaml.YAMLError):
        return [f"all: the base has no {GATE_FILE}"]
    now = flatten(rules.model_dump(exclude_none=True))
    names = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    return [f"`{name}`: {before.get(name)} → {now.get(name)}" for name in names]


def render_page(title: str, verdicts: list[Verdict], remarks: list[str]) -> str:
    """Return the gate's page: a verdict, the table, remarks."""
    failed = sum(not verdict.passed for verdict in verdicts)
    outcome = f"{failed} of {len(verdicts)} metrics FAIL" if failed else "passes"
    lines = [f"## {title}: {outcome}", "", markdown(verdicts), *remarks]
    return "\n".join(lines) + ("\n" if remarks else "")


def publish_page(page: str, verdicts: list[Verdict], output: Path | None) -> int:
    """Print the page, write it to `output` if given, and return the exit code."""
    print(page)
    if output is not None:
        write_text(output, page)
    return command.PASS if all(verdict.passed for verdict in verdicts) else command.REGRESSION


def compare(base: str) -> tuple[str, list[Verdict]]:
    """Return the gate's page on this work tree compared with a revision, and its verdicts."""
    rules = load_rules()
    verdicts = judge_all(rules, base)
    changed = changed_rules(rules, in_revision(resolve(base)))
    remarks = [f"- rule changed: {rule}" for rule in changed]
    return render_page(f"Gate against {base}", verdicts, remarks), verdicts


def main(options: argparse.Namespace) -> int:
    """Judge this work tree and print a table."""
    page, verdicts = compare(options.base)
    return publish_page(page, verdicts, options.output)


if __name__ == "__main__":
    command.run_judge(main, __doc__ or "", "pipeline.release.gate")
