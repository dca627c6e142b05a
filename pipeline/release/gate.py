"""`make gate`: compare this work tree's results with those of another Git revision.

The gate only reads files: metrics and predictions of the work tree, and those of the base in Git.
The rules are in gate.yaml.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mnist_mamba.atomic_write import write_text
from pipeline.common import command, paths
from pipeline.common.git import GitError, git, unpack_revision
from pipeline.common.nested import flatten
from pipeline.common.params import ParamsError, read_yaml
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

Prediction = tuple[str, str]
"""Class and predicted class of a test image, by name."""
DATA = ("data.name", "data.dataset")
"""Metrics that name the data of the results: the user's name for it, and the kind of data set."""


class NoVerdictError(RuntimeError):
    """The two revisions cannot be compared; the message says why, and what to do."""


def resolve(base: str) -> str:
    """Return the hash of a revision's commit.

    Raises:
        NoVerdictError: the repository has no such commit.
    """
    git("rev-parse", "--git-dir")  # raises an error of its own if there is no repository
    words = ("rev-parse", "--verify", "--quiet", "--end-of-options", f"{base}^{{commit}}")
    try:
        return git(*words).strip()
    except GitError as error:
        raise NoVerdictError(
            f"BASE={base} is not a commit of this repository: expected a branch, tag or hash. Try "
            "`git fetch origin`, or `git fetch --unshallow` in a shallow clone"
        ) from error


@contextmanager
def unpacked(base: str) -> Iterator[Path]:
    """Yield a folder with the files of a revision."""
    with tempfile.TemporaryDirectory(prefix="mamba-base-") as scratch:
        unpack_revision(resolve(base), Path(scratch))
        yield Path(scratch)


@contextmanager
def naming_side(name: str) -> Iterator[None]:
    """Prefix errors with the side, work tree or base, whose files caused them."""
    try:
        yield
    except NoVerdictError as error:
        raise NoVerdictError(f"{name}: {error}") from error


def read_metrics(folder: Path, names: Iterable[str]) -> Metrics:
    """Return all values of the metrics files `names` that exist, with the file's name in front.

    Raises:
        NoVerdictError: a file is not JSON.
    """
    found: dict[str, Any] = {}
    for path in [paths.METRICS / f"{name}.json" for name in names]:
        if (folder / path).is_file():
            try:
                found |= flatten({path.stem: json.loads((folder / path).read_text("utf-8"))})
            # Encoding, syntax, length of numbers, depth.
            except (ValueError, RecursionError) as error:
                raise NoVerdictError(f"{path} is not JSON: {error}") from error
    return found


def read_predictions(folder: Path) -> list[Prediction]:
    """Return labels and predictions of the test images in order, or none without a file.

    Raises:
        NoVerdictError: the file has another format.
    """
    try:
        with (folder / paths.PREDICTIONS).open(encoding="utf-8", newline="") as file:
            found = [(row["label"], row["predicted"]) for row in csv.DictReader(file)]
    except FileNotFoundError:
        return []
    except (KeyError, ValueError, csv.Error) as error:
        raise NoVerdictError(
            f"{paths.PREDICTIONS}: expected columns label and predicted, got {error!r}"
        ) from error
    if not all(label and predicted for label, predicted in found):
        raise NoVerdictError(
            f"{paths.PREDICTIONS}: expected a label and a prediction in each line, got none in one"
        )
    return found


def judge_accuracy(rule: AccuracyRule, base: list[Prediction], here: list[Prediction]) -> Verdict:
    """Return the verdict on accuracy, comparing the predictions image by image.

    Only images that exactly one of the two classifies correctly count (McNemar's exact test). If
    the two were equally good, each of these images would be as likely won as lost.

    Raises:
        NoVerdictError: the two were evaluated on different test images.
    """
    accuracy = None if not here else sum(label == found for label, found in here) / len(here)
    before = None if not base else sum(label == found for label, found in base) / len(base)
    problem, note = None, "new: the base lacks it"
    if accuracy is None:
        problem = f"{paths.PREDICTIONS} is missing or empty: run `make repro` and commit it"
    elif accuracy < rule.floor:
        problem = f"expected ≥ {show(rule.floor)}"
    if base and here:
        if [label for label, _ in base] != [label for label, _ in here]:
            raise NoVerdictError(
                f"the labels in {paths.PREDICTIONS} differ from the base's, so the test images do "
                "too: commit the new results and compare later changes with that commit"
            )
        lost, won, p = mcnemar(base, here)
        note = f"{lost} lost, {won} won, p = {p:.2g}"
        if problem:
            problem += f"; {note}"
        elif p < rule.significance:
            problem = note
    allowed = f"≥ {show(rule.floor)}, p ≥ {rule.significance:g}"
    return Verdict("accuracy", show(before), show(accuracy), allowed, problem, note)


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


def check_consistent(folder: Path, here: list[Prediction]) -> None:
    """Check that the results are of one run.

    Raises:
        NoVerdictError: metrics and predictions differ, or the metrics files describe models of
            different size.
    """
    found = read_metrics(folder, ["eval", "train"])
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
    """Return all verdicts on the work tree compared with a revision."""
    files, here = sorted({name.split(".")[0] for name in (*DATA, *rules.metrics)}), Path()
    with naming_side("the work tree"):
        predictions, metrics = read_predictions(here), read_metrics(here, files)
        check_consistent(here, predictions)
    with unpacked(base) as folder, naming_side(f"BASE={base}"):
        before, base_metrics = read_predictions(folder), read_metrics(folder, files)
        if not before and not base_metrics:
            raise NoVerdictError(
                f"no results: neither {paths.PREDICTIONS} nor metrics/ is in it; commit results "
                "and compare later changes with that commit"
            )
    name, dataset = (metrics.get(key) for key in DATA)
    base_name, base_dataset = (base_metrics.get(key, metrics.get(key)) for key in DATA)
    if (name, dataset) != (base_name, base_dataset):
        raise NoVerdictError(
            f"the results are of {name} ({dataset}), those of BASE={base} of {base_name} "
            f"({base_dataset}): commit the new results and compare later changes with that commit"
        )
    rules = rules.for_data(dataset)
    accuracy = judge_accuracy(rules.accuracy, before, predictions)
    return [accuracy, *judge(rules.metrics, base_metrics, metrics)]


def changed_rules(rules: GateRules, base: str) -> list[str]:
    """Return the rules that differ from the base's, so that nobody relaxes one unseen."""
    try:
        # Not parsed as GateRules: the base's file may be of another version.
        with unpacked(base) as folder:
            before = flatten(read_yaml(folder / GATE_FILE, GATE_FILE))
    except (AttributeError, ParamsError):
        return [f"all: the base has no {GATE_FILE}"]
    now = flatten(rules.model_dump(exclude_none=True))
    names = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    return [f"`{name}`: {before.get(name)} → {now.get(name)}" for name in names]


def publish(
    title: str, verdicts: list[Verdict], output: Path | None, remarks: Iterable[str] = ()
) -> int:
    """Print the page: outcome, table, remarks. Write it to `output` if given.

    Returns:
        The exit code.
    """
    failed = sum(not verdict.passed for verdict in verdicts)
    outcome = f"{failed} of {len(verdicts)} metrics FAIL" if failed else "passes"
    page = "\n".join([f"## {title}: {outcome}", "", markdown(verdicts), *remarks]).rstrip() + "\n"
    print(page)
    if output is not None:
        write_text(output, page)
    return command.REGRESSION if failed else command.PASS


def main(options: argparse.Namespace) -> int:
    """Judge this work tree and print a table."""
    rules = load_rules()
    verdicts = judge_all(rules, options.base)
    remarks = [f"- rule changed: {rule}" for rule in changed_rules(rules, options.base)]
    return publish(f"Gate against {options.base}", verdicts, options.output, remarks)


if __name__ == "__main__":
    command.run_judge(main, __doc__ or "", "pipeline.release.gate")
