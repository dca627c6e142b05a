"""`make gate`: does this work tree's result stand beside that of another Git revision?

Reads files alone: the work tree's metrics and predictions, and the base's as Git has them.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from mnist_mamba.atomic_write import write_text
from pipeline.common import command, paths
from pipeline.common.params import (
    PARAMS_FILE,
    GateAccuracyParams,
    Params,
    load_params,
)
from pipeline.release.rules import Figures, Verdict, judge, markdown, show
from pipeline.tracking.client import flatten

logger = logging.getLogger(__name__)

PASS, REGRESSION, NO_VERDICT = 0, 1, 2
"""Exit codes of `python -m pipeline.release.gate`."""

Prediction = tuple[int, int]
"""Label and predicted class of a test image."""


class NoVerdictError(RuntimeError):
    """The two revisions cannot be compared; the message says why, and what to do."""


def git(*words: str) -> str:
    """What `git WORDS` prints.

    Raises:
        NoVerdictError: Git refused.
    """
    done = subprocess.run(["git", *words], capture_output=True, text=True)
    if done.returncode:
        raise NoVerdictError(f"git {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def resolve(base: str) -> str:
    """The commit that a revision's name stands for.

    Raises:
        NoVerdictError: there is no such commit here.
    """
    words = ["git", "rev-parse", "--verify", "--quiet", "--end-of-options", f"{base}^{{commit}}"]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise NoVerdictError(
            f"BASE={base} is no commit of this repository: expected a branch, tag or hash that is "
            "here (git fetch origin; a shallow clone lacks most: git fetch --unshallow)"
        )
    return done.stdout.strip()


Reader = Callable[[Path], str | None]
"""Text of a file by its path from the project's folder; None if it is not there."""


@contextmanager
def side(name: str) -> Iterator[None]:
    """Let what goes wrong inside say whose files they are."""
    try:
        yield
    except NoVerdictError as error:
        raise NoVerdictError(f"{name}: {error}") from error


def in_work_tree(path: Path) -> str | None:
    """A `Reader` of the files as they lie here."""
    return path.read_text() if path.is_file() else None


def in_revision(commit: str) -> Reader:
    """A `Reader` of a commit's files."""
    here = git("rev-parse", "--show-prefix").strip()

    def read(path: Path) -> str | None:
        name = f"{here}{path.as_posix()}"
        if not git("ls-tree", "--name-only", "--full-tree", commit, name):
            return None
        return git("show", f"{commit}:{name}")

    return read


def figures(read: Reader, names: Iterable[str]) -> Figures:
    """All figures of the metrics files `names`, under their file's name; those not there lack.

    Raises:
        NoVerdictError: a file is not JSON.
    """
    found: dict[str, Any] = {}
    for name in names:
        path = paths.METRICS / f"{name}.json"
        try:
            text = read(path)
            found |= flatten({name: json.loads(text)}) if text is not None else {}
        except (ValueError, RecursionError) as error:  # text, JSON, numbers of any length, depth
            raise NoVerdictError(f"{path} is not JSON: {error}") from error
    return found


def predictions(read: Reader) -> list[Prediction] | None:
    """The test images' labels and predictions in their order, or None where no file is.

    Raises:
        NoVerdictError: the file is not what evaluate writes.
    """
    try:
        text = read(paths.PREDICTIONS)
        if text is None:
            return None
        rows = csv.DictReader(io.StringIO(text))
        return [(int(row["label"]), int(row["predicted"])) for row in rows]
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise NoVerdictError(
            f"{paths.PREDICTIONS} has no columns label and predicted of whole numbers: {error!r}"
        ) from error


def judge_accuracy(
    rule: GateAccuracyParams, base: list[Prediction] | None, here: list[Prediction] | None
) -> Verdict:
    """Right answers, image by image: only those count that one of the two got wrong.

    McNemar's exact test: if the two were equally good, an image that just one of them reads would
    be as likely the one's as the other's.

    Raises:
        NoVerdictError: the two saw other test images.
    """
    accuracy = None if not here else sum(label == found for label, found in here) / len(here)
    before = None if not base else sum(label == found for label, found in base) / len(base)
    row = {"name": "accuracy", "base": show(before), "here": show(accuracy)}
    allowed = f"≥ {show(rule.floor)}, p ≥ {rule.significance:g}"
    if here is None or accuracy is None:
        problem = f"{paths.PREDICTIONS} is missing or empty: `make repro`, and commit it"
        return Verdict(**row, allowed=allowed, problem=problem)
    too_low = f"expected ≥ {show(rule.floor)}" if accuracy < rule.floor else None
    if not base:
        return Verdict(**row, allowed=allowed, problem=too_low, note="new: the base lacks it")
    if [label for label, _ in base] != [label for label, _ in here]:
        raise NoVerdictError(
            f"the labels of {paths.PREDICTIONS} are others than the base's: these are other test "
            "images, on which nothing can be compared; commit the new results and gate what "
            "follows against that commit"
        )
    lost, won, p = mcnemar(base, here)
    story = f"{lost} lost, {won} won, p = {p:.2g}"
    if too_low:
        return Verdict(**row, allowed=allowed, problem=f"{too_low}; {story}")
    failed = p < rule.significance
    return Verdict(**row, allowed=allowed, problem=story if failed else None, note=story)


def mcnemar(base: list[Prediction], here: list[Prediction]) -> tuple[int, int, float]:
    """Images that only the base read, that only we read, and how likely chance loses as many."""
    from scipy.stats import binomtest

    pairs = [
        (label == old, label == new) for (label, old), (_, new) in zip(base, here, strict=True)
    ]
    lost, won = pairs.count((True, False)), pairs.count((False, True))
    p = binomtest(lost, lost + won, alternative="greater").pvalue if lost + won else 1.0
    return lost, won, float(p)


def check_consistent(read: Reader, here: list[Prediction] | None) -> None:
    """Whether files are of one run.

    Raises:
        NoVerdictError: a figure is another in the metrics than in the predictions, or the two
            metrics files speak of models of different size.
    """
    found = figures(read, ["eval", "train"])
    pairs = [("train.parameters", found.get("train.parameters"), "eval.model.parameters")]
    expected = {"eval.model.parameters": found.get("eval.model.parameters")}
    if here:
        correct = sum(label == predicted for label, predicted in here)
        counted = {"correct": correct, "n_test": len(here), "accuracy": correct / len(here)}
        expected |= {f"{paths.PREDICTIONS} ({name})": value for name, value in counted.items()}
        pairs += [
            (f"eval.{name}", found.get(f"eval.{name}"), f"{paths.PREDICTIONS} ({name})")
            for name in counted
        ]
    for name, value, other in pairs:
        if value is not None and expected[other] is not None and value != expected[other]:
            raise NoVerdictError(
                f"metrics/ has {name} = {value} and {other} {expected[other]}: they are not of "
                "one run; `make repro`"
            )


def run_gate(params: Params, base: str) -> list[Verdict]:
    """All verdicts on the work tree beside a revision.

    Raises:
        NoVerdictError: it cannot be judged.
    """
    read_base = in_revision(resolve(base))
    rules = params.gate.metrics
    files = sorted({name.split(".")[0] for name in rules})
    with side("the work tree"):
        here, here_figures = predictions(in_work_tree), figures(in_work_tree, files)
        check_consistent(in_work_tree, here)
    with side(f"BASE={base}"):
        before, base_figures = predictions(read_base), figures(read_base, files)
        if not before and not base_figures:
            raise NoVerdictError(
                f"no results: neither {paths.PREDICTIONS} nor metrics/ are in it; commit them, and "
                "gate what follows against that commit"
            )
    accuracy = judge_accuracy(params.gate.accuracy, before, here)
    return [accuracy, *judge(rules, base_figures, here_figures)]


def changed_rules(params: Params, read_base: Reader) -> list[str]:
    """Which of the gate's own rules differ from the base's, so that nobody moves a bar unseen."""
    try:
        # The section alone, and as it stands: the base's other params may be of another version.
        old = yaml.safe_load(read_base(PARAMS_FILE) or "")["gate"]
    except (KeyError, TypeError, ValueError, yaml.YAMLError):
        return ["all: the base has none"]
    dumped = params.gate.model_dump(exclude_none=True)
    before, now = (flatten({"gate": rules}) for rules in (old, dumped))
    names = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    return [f"`{name}`: {before.get(name)} → {now.get(name)}" for name in names]


def summary(title: str, verdicts: list[Verdict], remarks: list[str]) -> str:
    """The gate's page: a verdict, the table, remarks."""
    failed = sum(not one.passed for one in verdicts)
    verdict = f"{failed} of {len(verdicts)} figures FAIL" if failed else "passes"
    lines = [f"## {title}: {verdict}", "", markdown(verdicts)]
    return "\n".join(lines + remarks) + ("\n" if remarks else "")


def finish(page: str, verdicts: list[Verdict], output: Path | None) -> int:
    """Print the page, keep it if asked to; the exit code."""
    print(page)
    if output is not None:
        write_text(output, page)
    return PASS if all(one.passed for one in verdicts) else REGRESSION


def arguments(description: str, module: str) -> argparse.Namespace:
    """The command line that the gates share."""
    parser = command.parser(description, [f"python -m {module} --base origin/main"])
    parser.add_argument(
        "--base",
        default="origin/main",
        metavar="REVISION",
        help="what to compare with: %(default)s",
    )
    parser.add_argument("--output", type=Path, metavar="FILE.md", help="write the table there, too")
    return parser.parse_args()


def run(main: Callable[[argparse.Namespace], int], description: str, module: str) -> None:
    """Exit with the gate's code; what keeps it from a verdict is one message and code 2.

    It also takes the page's place: what stands there would be an earlier verdict on something else.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    options = arguments(description, module)
    try:
        code = main(options)
    except (ValueError, ArithmeticError, LookupError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        code = NO_VERDICT
        if options.output is not None:
            page = f"## {module.rsplit('.', 1)[-1]} against {options.base}: no verdict\n\n{error}\n"
            write_text(options.output, page)
    sys.exit(code)


def judged_page(params: Params, base: str) -> tuple[str, list[Verdict]]:
    """The gate's page, and the verdicts in it."""
    verdicts = run_gate(params, base)
    changed = changed_rules(params, in_revision(resolve(base)))
    remarks = [f"- rule changed: {rule}" for rule in changed]
    return summary(f"Gate against {base}", verdicts, remarks), verdicts


def main(options: argparse.Namespace) -> int:
    """Judge, and print a table."""
    page, verdicts = judged_page(load_params(), options.base)
    return finish(page, verdicts, options.output)


if __name__ == "__main__":
    run(main, __doc__ or "", "pipeline.release.gate")
