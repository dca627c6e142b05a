"""The gate: planted regressions fail, noise passes, and incomparable results get no verdict."""

from __future__ import annotations

import argparse
import copy
import csv
import json
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.common import command, paths
from pipeline.release import gate, gate_speed
from pipeline.release.rules import (
    AccuracyRule,
    GateRules,
    Rule,
    Verdict,
    judge,
    load_rules,
    markdown,
)
from tests.pipeline.imports import ROOT
from tests.pipeline.project import IDENTITY, run, run_module, write_changed

FILES = (
    *("gate.yaml", "metrics/data.json", "metrics/eval.json", "metrics/train.json"),
    "plots/predictions.csv",
)


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose one commit, tagged base, holds this project's results."""
    folder = tmp_path_factory.mktemp("gate")
    for name in FILES:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "results"], ["tag", "base"]):
        done = run(folder, ["git", *words], **IDENTITY)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def tree(committed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone of the repository, as the current folder."""
    folder = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(committed), str(folder)], check=True)
    monkeypatch.chdir(folder)
    return folder


def verdicts(base: str = "base") -> list[Verdict]:
    return gate.judge_all(load_rules(), base)


def failed(verdicts: list[Verdict]) -> set[str]:
    return {verdict.name for verdict in verdicts if not verdict.passed}


def failures(base: str = "base") -> set[str]:
    return failed(verdicts(base))


def edit(name: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a metrics file."""
    path = Path(f"metrics/{name}.json")
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def put(name: str, value: Any) -> None:
    """Set a metric by its name in gate.yaml; None removes it."""
    file, *parts, last = name.split(".")

    def change(content: dict[str, Any]) -> None:
        for part in parts:
            content = content[part]
        if value is None:
            del content[last]
        else:
            content[last] = value

    edit(file, change)


def predict(change: Callable[[list[dict[str, str]]], object]) -> None:
    """Change the predictions, and the metrics that count them."""
    with paths.PREDICTIONS.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    change(rows)
    with paths.PREDICTIONS.open("w", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    correct, n = sum(row["label"] == row["predicted"] for row in rows), len(rows)
    counted = {"correct": correct, "n_test": n, "accuracy": correct / n}
    edit("eval", lambda content: content.update(counted))


def spoil_predictions(rows: list[dict[str, str]], count: int) -> None:
    right = [row for row in rows if row["label"] == row["predicted"]]
    for row in right[:count]:
        row["predicted"] = str((int(row["label"]) + 1) % 10)


def correct_predictions(rows: list[dict[str, str]], count: int) -> None:
    for row in [row for row in rows if row["label"] != row["predicted"]][:count]:
        row["predicted"] = row["label"]


PLANTED = {
    "train.val.accuracy": (0.9958, 0.9945, 0.9930),
    "eval.nll": (0.0094, 0.0120, 0.0130),
    "eval.ece": (0.0014, 0.0060, 0.0070),
    "eval.early_exit.members_asked.mean": (1.08, 1.22, 1.24),
    "eval.early_exit.predictions_changed": (0, 2, 3),
    "eval.model.parameters": (307_628, 599_000, 600_001),
    "eval.model.file_bytes": (352_608, 359_600, 359_700),
    "eval.robustness.shift.5": (0.9951, 0.9915, 0.9905),
    "eval.robustness.shift.10": (0.9934, 0.9900, 0.9880),
    "eval.robustness.rotate.10": (0.9938, 0.9900, 0.9890),
    "eval.robustness.rotate.20": (0.9880, 0.9800, 0.9780),
    "eval.robustness.rotate.30": (0.9800, 0.9720, 0.9705),
    "eval.robustness.scale.70": (0.9850, 0.9800, 0.9780),
    "eval.robustness.scale.85": (0.9920, 0.9870, 0.9850),
    "eval.robustness.scale.115": (0.9930, 0.9880, 0.9860),
    "eval.robustness.scale.130": (0.9870, 0.9820, 0.9800),
    "eval.robustness.noise.10": (0.9930, 0.9900, 0.9880),
    "eval.robustness.noise.20": (0.9930, 0.9900, 0.9880),
    "eval.robustness.noise.40": (0.9850, 0.9800, 0.9780),
    "eval.robustness.blur.2": (0.9940, 0.9910, 0.9890),
    "eval.robustness.blur.4": (0.9940, 0.9910, 0.9890),
    "eval.robustness.blur.6": (0.9880, 0.9830, 0.9810),
    "eval.parity.max_abs_logit_diff": (4.5e-6, 9e-5, 1.1e-4),
    "eval.parity.prediction_mismatches": (0, 0, 1),
    "eval.parity.members_asked_mismatches": (0, 0, 1),
}
"""Each metric in gate.yaml: the base's value, one within the tolerance, one outside."""


BOUNDS = {
    "train.val.accuracy": (0.9901, 0.9899),
    "eval.nll": (0.0299, 0.0301),
    "eval.ece": (0.0199, 0.0201),
    "eval.early_exit.members_asked.mean": (1.5, 1.501),
    "eval.early_exit.predictions_changed": (2, 3),
    "eval.model.parameters": (600_000, 600_001),
    "eval.model.file_bytes": (450_000, 450_001),
    "eval.robustness.shift.5": (0.9851, 0.9849),
    "eval.robustness.shift.10": (0.9851, 0.9849),
    "eval.robustness.rotate.10": (0.9851, 0.9849),
    "eval.robustness.rotate.20": (0.9701, 0.9699),
    "eval.robustness.scale.70": (0.9701, 0.9699),
    "eval.robustness.rotate.30": (0.9701, 0.9699),
    "eval.robustness.noise.10": (0.9851, 0.9849),
    "eval.robustness.noise.20": (0.9851, 0.9849),
    "eval.robustness.noise.40": (0.9751, 0.9749),
    "eval.robustness.blur.2": (0.9851, 0.9849),
    "eval.robustness.blur.4": (0.9851, 0.9849),
    "eval.robustness.blur.6": (0.9801, 0.9799),
    "eval.parity.max_abs_logit_diff": (1e-4, 1.01e-4),
    "eval.parity.prediction_mismatches": (0, 1),
    "eval.parity.members_asked_mismatches": (0, 1),
    "binary_bytes": (98_304, 98_305),
}
"""A value within the bound of each rule that has one, and one outside."""


def put_all(column: int) -> None:
    """Set all metrics to one column, and the parameters in metrics/train.json."""
    for name, values in PLANTED.items():
        put(name, values[column])
    put("train.parameters", PLANTED["eval.model.parameters"][column])


def test_the_same_results_pass(tree: Path) -> None:
    assert failures() == set()
    assert {verdict.name for verdict in verdicts()} == {"accuracy", *PLANTED}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_regression_fails_and_noise_passes(name: str) -> None:
    rules = load_rules(ROOT / "gate.yaml").metrics
    base = {metric: values[0] for metric, values in PLANTED.items()}
    assert failed(judge(rules, base, {**base, name: PLANTED[name][1]})) == set()
    spoilt = {
        "expected": {**base, name: PLANTED[name][2]},
        "missing": {key: value for key, value in base.items() if key != name},
    }
    for problem, here in spoilt.items():
        (verdict,) = (row for row in judge(rules, base, here) if not row.passed)
        assert verdict.name == name
        assert problem in str(verdict.problem)


@pytest.mark.parametrize("name", BOUNDS)
def test_a_bound_holds_even_if_the_base_is_as_bad(name: str) -> None:
    rules = load_rules(ROOT / "gate.yaml")
    within, outside = BOUNDS[name]
    for value, wanted in ((within, set()), (outside, {name})):
        values = {name: value}
        found = [
            row for row in judge(rules.metrics | rules.speed, values, values) if row.here != "-"
        ]
        assert failed(found) == wanted
        assert wanted == set() or "(bound)" in found[0].allowed


def test_every_limit_of_every_rule_is_tested() -> None:
    """Each rule's bound is in BOUNDS, and each rule in the tables of planted values."""
    rules = load_rules(ROOT / "gate.yaml")
    for pattern, rule in {**rules.metrics, **rules.speed}.items():
        planted = judge({pattern: rule}, {}, dict.fromkeys({**PLANTED, **SPEED}, 0))
        assert planted[0].here == "0", pattern
        bounded = judge({pattern: rule}, {}, dict.fromkeys(BOUNDS, 0))
        assert (bounded[0].here == "0") == (rule.bound is not None), pattern


def test_the_stricter_of_bound_and_base_limits_a_metric() -> None:
    higher = Rule(better="higher", bound=0.5, absolute=0.1)
    lower = Rule(better="lower", bound=5, absolute=1, relative=0.5)
    for rule, base, limit, why in (
        (higher, 0.9, "0.8", "base"),
        (higher, 0.55, "0.5", "bound"),
        (lower, 1.0, "2", "base"),  # the larger of both tolerances
        (lower, 3.0, "4.5", "base"),
        (lower, 4.9, "5", "bound"),
    ):
        (verdict,) = judge({"a": rule}, {"a": base}, {"a": base})
        sign = "≥" if rule is higher else "≤"
        assert verdict.allowed == f"{sign} {limit} ({why})"
        assert verdict.passed
    for bad in ({"better": "lower"}, {"better": "lower", "bound": None}):
        with pytest.raises(ValueError, match="at least one of bound, absolute and relative"):
            Rule(**bad)


def test_planted_regressions_fail_all_at_once(tree: Path) -> None:
    put_all(0)
    commit("base")
    put_all(1)
    assert failures("HEAD") == set()
    put_all(2)
    assert failures("HEAD") == set(PLANTED)


def test_missing_metrics_fail_all_at_once(tree: Path) -> None:
    for name in PLANTED:
        put(name, None)
    assert failures() == set(PLANTED)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, "0.99", True, [1], None])
def test_a_value_that_is_not_a_number_fails(value: Any) -> None:
    rules = {"eval.nll": Rule(better="lower", bound=1)}
    for base, here in ((0.5, value), (value, 0.5)):
        (verdict,) = judge(rules, {"eval.nll": base}, {"eval.nll": here})
        assert verdict.passed is (base is None)  # a base without the metric is allowed


def test_a_whole_file_that_is_missing_fails(tree: Path) -> None:
    Path("metrics/train.json").unlink()
    assert failures() == {"train.val.accuracy"}


def test_missing_predictions_fail(tree: Path) -> None:
    paths.PREDICTIONS.unlink()
    assert failures() == {"accuracy"}


def test_noise_passes(tree: Path) -> None:
    """Another seed loses some images, wins about as many, and changes metrics a little."""

    def another_seed(rows: list[dict[str, str]]) -> None:
        spoil_predictions(rows, 14)
        correct_predictions(rows, 10)

    predict(another_seed)
    put("eval.robustness.shift.5", 0.9949)
    put("eval.nll", 0.0104)
    assert failures() == set()


def test_a_real_loss_fails(tree: Path) -> None:
    predict(lambda rows: spoil_predictions(rows, 7))  # all lost, none won: p = 0.008
    assert failures() == {"accuracy"}
    assert "7 lost, 0 won" in str(verdicts()[0].problem)


def test_a_loss_that_chance_explains_passes(tree: Path) -> None:
    predict(lambda rows: spoil_predictions(rows, 6))  # p = 0.016
    assert failures() == set()


def test_better_results_pass(tree: Path) -> None:
    predict(lambda rows: correct_predictions(rows, 20))
    put("eval.nll", 0.01)
    put("eval.model.file_bytes", 1000)
    assert failures() == set()


def test_the_floor_holds_whatever_the_base_has(tree: Path) -> None:
    predict(lambda rows: spoil_predictions(rows, 100))
    commit("worse")
    accuracy = verdicts("HEAD")[0]
    assert not accuracy.passed
    assert "expected ≥ 0.995" in str(accuracy.problem)


def own_data(tree: Path) -> None:
    """Commit results on 300 images of a data set of one's own, all far outside MNIST's bounds."""
    put_all(2)
    for name in PLANTED:
        if "parity" not in name:
            put(name, 0.6 if name.startswith(("train", "eval.robustness")) else 9e5)
    put("train.parameters", 9e5)
    put("eval.parity.max_abs_logit_diff", 5e-6)
    put("eval.parity.prediction_mismatches", 0)
    put("eval.parity.members_asked_mismatches", 0)
    put("data.dataset", "folder")
    names = ("cat", "dog", "a, b")
    predict(
        lambda rows: rows.__setitem__(
            slice(None),
            [
                {"index": i, "label": names[i % 3], "predicted": names[i % 7 % 3]}
                for i in range(300)
            ],
        )
    )
    commit("own data")


def test_results_on_other_data_pass_against_themselves(tree: Path) -> None:
    own_data(tree)
    assert failures("HEAD") == set()
    assert {verdict.name for verdict in verdicts("HEAD")} == {"accuracy", *PLANTED}


def test_a_planted_loss_on_other_data_fails(tree: Path) -> None:
    own_data(tree)

    def spoil(rows: list[dict[str, str]]) -> None:
        for row in [row for row in rows if row["label"] == row["predicted"]][:7]:
            row["predicted"] = "dog" if row["label"] != "dog" else "cat"

    predict(spoil)
    assert failures("HEAD") == {"accuracy"}
    assert "7 lost, 0 won" in str(verdicts("HEAD")[0].problem)
    put("train.val.accuracy", 0.59)
    put("eval.nll", 9.1e5)
    put("eval.robustness.noise.10", 0.5)
    assert failures("HEAD") == {
        "accuracy",
        "train.val.accuracy",
        "eval.nll",
        "eval.robustness.noise.10",
    }


def test_parity_is_bounded_on_any_data(tree: Path) -> None:
    own_data(tree)
    put("eval.parity.prediction_mismatches", 1)
    put("eval.parity.max_abs_logit_diff", 2e-4)
    commit("no parity")
    assert failures("HEAD") == {
        "eval.parity.prediction_mismatches",
        "eval.parity.max_abs_logit_diff",
    }


def test_results_of_unknown_data_are_held_to_the_bounds(tree: Path) -> None:
    own_data(tree)
    Path("metrics/data.json").unlink()
    commit("unknown data")
    assert len(failures("HEAD")) > 10


def commit(message: str) -> None:
    done = run(Path(), ["git", "commit", "-qam", message], **IDENTITY)
    assert done.returncode == 0, done.stderr


def test_false_alarms_are_as_rare_as_promised() -> None:
    """At most `significance` of the pairs of equally good models fail."""
    generator = random.Random(0)
    limit, alarms, trials = 0.05, 0, 400
    for _ in range(trials):
        base, here = ([(0, int(generator.random() < 0.05)) for _ in range(500)] for _ in range(2))
        alarms += gate.mcnemar(base, here)[2] < limit
    assert alarms <= trials * limit * 1.5


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_counts_pairs(pairs: list[tuple[bool, bool]]) -> None:
    base, here = ([(1, int(pair[i])) for pair in pairs] for i in (0, 1))
    lost, won, p = gate.mcnemar(base, here)
    assert (lost, won) == (pairs.count((True, False)), pairs.count((False, True)))
    assert 0 < p <= 1
    # No alarm unless more was lost than won.
    assert p > 0.5 or lost > won


def test_a_new_metric_only_has_to_keep_its_bound() -> None:
    rules = {"a.*": Rule(better="higher", bound=0.5, absolute=0.0)}
    (good,), (bad,) = judge(rules, {}, {"a.x": 0.6}), judge(rules, {}, {"a.x": 0.4})
    assert (good.passed, bad.passed) == (True, False)
    assert "new" in good.note


def test_a_pattern_that_finds_nothing_fails() -> None:
    (verdict,) = judge({"a.*": Rule(better="higher", bound=0.5)}, {"a": 1, "a.b.c": 1}, {"a": 1})
    assert (verdict.name, verdict.passed) == ("a.*", False)


def test_a_tolerance_is_met_exactly() -> None:
    rules = {"a": Rule(better="higher", absolute=0.0015)}
    assert judge(rules, {"a": 0.9957}, {"a": 0.9942})[0].passed
    assert not judge(rules, {"a": 0.9957}, {"a": 0.99419})[0].passed


def test_the_table_shows_failures_first_and_keeps_to_its_cells() -> None:
    rules = {"a": Rule(better="lower", bound=1), "b": Rule(better="lower", bound=1)}
    table = markdown(judge(rules, {}, {"a": 0, "b": "|x\n|"})).splitlines()
    assert "`b`" in table[2]
    assert "**FAIL**" in table[2]
    assert {line.count("|") for line in table} == {7}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda: Path("metrics/eval.json").write_text("{", encoding="utf-8"),
            "metrics/eval.json is not JSON",
        ),
        (lambda: put("eval.correct", 9000), "eval.correct = 9000 .*of different runs"),
        (lambda: put("eval.accuracy", 0.9999), "eval.accuracy = 0.9999 .*of different runs"),
        (lambda: put("eval.n_test", 9999), "eval.n_test = 9999 .*of different runs"),
        (lambda: put("train.parameters", 7), "train.parameters = 7 .*of different runs"),
        (
            lambda: paths.PREDICTIONS.write_text("a,b\n1,2\n", encoding="utf-8"),
            "expected columns label",
        ),
        (lambda: paths.PREDICTIONS.write_bytes(b"\xff\xfe"), "work tree: plots/predictions.csv"),
        (
            lambda: paths.PREDICTIONS.write_text("label\n" + "1" * 140_000, encoding="utf-8"),
            "work tree: plots/pred",
        ),
        (lambda: Path("metrics/eval.json").write_bytes(b"\xff"), "work tree: metrics/eval.json is"),
        (
            lambda: Path("metrics/eval.json").write_text(
                '{"nll": ' + "9" * 5000 + "}", encoding="utf-8"
            ),
            "work tree: metrics/eval.json is not JSON",
        ),
        (
            lambda: predict(lambda rows: rows[0].update(label="1", predicted="1")),
            "test images do too",
        ),
        (lambda: predict(lambda rows: rows.pop()), "test images do too"),
        (lambda: put("data.dataset", "folder"), r"of MNIST \(folder\), those of .* \(mnist\)"),
        (lambda: put("data.name", "cats"), r"of cats \(mnist\), those of BASE=base of MNIST"),
        (
            lambda: paths.PREDICTIONS.write_text("label,predicted\n1\n", encoding="utf-8"),
            "a prediction in each line",
        ),
    ],
)
def test_results_that_cannot_be_compared_get_no_verdict(
    tree: Path, spoil: Callable[[], object], words: str
) -> None:
    spoil()
    with pytest.raises(gate.NoVerdictError, match=words):
        verdicts()


def test_a_base_whose_files_are_broken_is_no_verdict(tree: Path) -> None:
    good = Path("metrics/eval.json").read_bytes()
    Path("metrics/eval.json").write_bytes(b"\xff{")
    commit("broken")
    Path("metrics/eval.json").write_bytes(good)
    with pytest.raises(gate.NoVerdictError, match=r"^BASE=HEAD: metrics/eval.json is not JSON"):
        verdicts("HEAD")


def test_another_folder_of_the_same_classes_is_not_compared(tree: Path) -> None:
    own_data(tree)
    assert failures("HEAD") == set()
    put("data.name", "other pictures")
    with pytest.raises(gate.NoVerdictError, match=r"^the results are of other pictures \(folder\)"):
        verdicts("HEAD")
    edit("data", lambda content: content.pop("name"))
    commit("without a name, as from an earlier version")
    put("data.name", "other pictures")
    assert failures("HEAD") == set()


def test_a_base_without_results_is_no_verdict(tree: Path) -> None:
    saved = {name: Path(name).read_bytes() for name in FILES[1:]}
    for name in saved:
        Path(name).unlink()
    commit("no results")
    for name, content in saved.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(content)
    with pytest.raises(gate.NoVerdictError, match=r"^BASE=HEAD: no results"):
        verdicts("HEAD")


def test_changed_rules_are_shown_even_if_the_base_has_another_version_of_them(tree: Path) -> None:
    text = Path("gate.yaml").read_text(encoding="utf-8")
    other = text.replace("floor: 0.995", "floor: 0.9") + "\nnew: {a: 1}\n"
    Path("gate.yaml").write_text(other, encoding="utf-8")
    commit("another version")
    Path("gate.yaml").write_text(text, encoding="utf-8")
    changed = gate.changed_rules(load_rules(), "HEAD")
    assert changed == ["`accuracy.floor`: 0.9 → 0.995", "`new.a`: 1 → None"]


def test_each_deleted_or_relaxed_rule_is_remarked_on_the_page(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    everything = yaml.safe_load(Path("gate.yaml").read_text(encoding="utf-8"))
    deleted = []
    for section in ("metrics", "speed"):
        for name, limits in everything[section].items():
            content = copy.deepcopy(everything)
            del content[section][name]
            changed = gate.changed_rules(GateRules.model_validate(content), "HEAD")
            wanted = [f"`{section}.{name}.{key}`: {old} → None" for key, old in limits.items()]
            assert sorted(changed) == sorted(wanted)
            deleted.append(name)
    assert len(deleted) == len(everything["metrics"]) + len(everything["speed"]) > 15
    del content["metrics"]["eval.nll"]["absolute"]
    Path("gate.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    assert gate.main(argparse.Namespace(base="HEAD", output=None)) == command.PASS
    page = capsys.readouterr().out
    assert "- rule changed: `metrics.eval.nll.absolute`: 0.003 → None\n" in page
    assert f"- rule changed: `speed.{name}.better`: lower → None\n" in page


def test_a_project_in_a_folder_of_its_repository_is_compared_with_itself(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tree / "inner"
    for name in FILES:
        (inner / name).parent.mkdir(exist_ok=True, parents=True)
        shutil.copy(tree / name, inner / name)
    put("eval.nll", 0.0299)  # of the outer project alone
    assert run(tree, ["git", "add", "-A"]).returncode == 0
    commit("two projects")
    monkeypatch.chdir(inner)
    put("eval.nll", 0.0200)
    assert failures("HEAD") == {"eval.nll"}


def test_a_base_with_predictions_alone_is_compared_by_them(tree: Path) -> None:
    saved = {name: Path(name).read_bytes() for name in ("metrics/eval.json", "metrics/train.json")}
    for name in saved:
        Path(name).unlink()
    commit("predictions alone")
    for name, content in saved.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(content)
    found = verdicts("HEAD")
    assert failed(found) == set()
    assert "0 lost, 0 won" in found[0].note
    assert all(row.note.startswith("new") for row in found[1:])


def test_an_accuracy_at_the_floor_passes_and_one_below_names_the_losses() -> None:
    rule = AccuracyRule(floor=0.75, significance=0.01)
    base, here = ([(1, 1)] * (4 - wrong) + [(1, 0)] * wrong for wrong in (0, 1))
    assert gate.judge_accuracy(rule, base, here).passed
    assert gate.judge_accuracy(rule, [], here).note == "new: the base lacks it"
    worse = [(1, 1)] * 2 + [(1, 0)] * 2
    assert gate.judge_accuracy(rule, base, worse).problem == (
        "expected ≥ 0.75; 2 lost, 0 won, p = 0.25"
    )


def test_a_base_without_rules_is_judged_by_those_of_the_work_tree(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = Path("gate.yaml").read_text(encoding="utf-8")
    Path("gate.yaml").unlink()
    commit("rules elsewhere")
    Path("gate.yaml").write_text(text, encoding="utf-8")
    assert gate.main(argparse.Namespace(base="HEAD", output=None)) == command.PASS
    assert "- rule changed: all" in capsys.readouterr().out


@pytest.mark.parametrize("base", ["nowhere", "", "--help", "base:gate.yaml"])
def test_an_unknown_base_is_no_verdict(tree: Path, base: str) -> None:
    with pytest.raises(gate.NoVerdictError, match="is not a commit"):
        verdicts(base)


def test_the_command_s_codes_and_table(tree: Path) -> None:
    """The exit codes are 0, 1 and 2, also in a clone without DVC's files."""
    for name in ("pipeline", "src"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    words = ("pipeline.release.gate", "--output", "out/gate.md", "--base")
    done = run_module(tree, *words, "base")
    assert done.returncode == command.PASS, done.stderr
    assert Path("out/gate.md").read_text(encoding="utf-8") in done.stdout
    write_changed("gate.yaml", tree, {"accuracy.floor": 0.9999})
    done = run_module(tree, *words, "origin/HEAD")
    assert done.returncode == command.REGRESSION, done.stderr
    assert "1 of" in done.stdout.splitlines()[0]
    assert "`accuracy.floor`: 0.995 → 0.9999" in done.stdout
    done = run_module(tree, *words, "nowhere")
    assert (done.returncode, done.stdout) == (command.NO_VERDICT, "")
    assert "error: BASE=nowhere" in done.stderr
    page = Path("out/gate.md").read_text(encoding="utf-8")  # no longer the last verdict
    assert page.startswith("## gate against nowhere: no verdict\n\nBASE=nowhere is not a commit")
    assert "Traceback" not in done.stderr
    done = run_module(tree, "pipeline.release.gate", "--base", "base", "--output", "/dev/null")
    assert done.returncode == command.NO_VERDICT
    assert "error: /dev/null: expected a regular file" in done.stderr
    assert "Traceback" not in done.stderr


SPEED = {
    "instructions.avx2": (2_700_000, 2_750_000, 2_760_000),
    "instructions.scalar": (14_700_000, 14_990_000, 15_000_000),
    "us_per_image.b1": (240.0, 262.0, 266.0),
    "us_per_image.b100": (230.0, 252.0, 255.0),
    "binary_bytes": (64_008, 65_200, 65_400),
}
"""Each speed metric: the base's value, one within the tolerance, one outside."""


@pytest.mark.parametrize("name", SPEED)
def test_a_slower_or_larger_engine_fails_by_its_own_rule(name: str) -> None:
    rules = load_rules(ROOT / "gate.yaml").speed
    base = {metric: values[0] for metric, values in SPEED.items()}
    assert failed(judge(rules, base, base)) == set()
    assert {verdict.name for verdict in judge(rules, base, base)} == set(SPEED)
    assert failed(judge(rules, base, {**base, name: SPEED[name][1]})) == set()
    assert failed(judge(rules, base, {**base, name: SPEED[name][2]})) == {name}


def test_a_command_of_more_than_96_kib_fails_whatever_the_base_has() -> None:
    rules = load_rules(ROOT / "gate.yaml").speed
    base = {**{metric: values[0] for metric, values in SPEED.items()}, "binary_bytes": 100_000}
    assert failed(judge(rules, base, {**base, "binary_bytes": 98_305})) == {"binary_bytes"}


class Tools:
    """Commands of two trees as `gate_speed` calls them; trees of other revisions are slower."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []
        self.times = {True: iter([240.0, 9.0, 250.0, 8.0, 260.0, 7.0] * 9)}
        self.times[False] = iter([340.0, 19.0, 350.0, 18.0, 360.0, 17.0] * 9)

    def run(self, *words: str | Path) -> str:
        call = tuple(map(str, words))
        self.calls.append(call)
        match call:
            case ("make", "-s", "-C", tree, "instructions"):
                n = 2_000_000 if tree == "." else 1_990_000
                return f"avx2: {n} instructions\nscalar: {7 * n} instructions\n"
            case ("strip", "-o", stripped, engine):
                size = 60_000 if engine == "build/plain/mamba" else 59_000
                Path(stripped).write_bytes(b"x" * size)
            case (engine, "bench", model, "--batch", _, "--rounds", "5", "--json"):
                assert Path(model).parts[-2:] == ("models", "mnist_mamba.bin")
                assert len(Path(model).parts) > 2  # not this tree's
                return json.dumps({"median_us": next(self.times[engine == "build/plain/mamba"])})
        return ""


def test_the_speed_gate_measures_both_trees_alternately_and_compares_medians(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tools = Tools()
    monkeypatch.setattr(gate_speed, "run", tools.run)
    monkeypatch.setattr(gate_speed, "ROUNDS", 3)
    options = argparse.Namespace(base="base", output=None)
    assert gate_speed.main(options) == command.PASS
    page = capsys.readouterr().out
    for row in (
        "| pass | `instructions.avx2` | 1,990,000 | 2,000,000 |",
        "| pass | `instructions.scalar` | 13,930,000 | 14,000,000 |",
        "| pass | `us_per_image.b1` | 350 | 250 |",
        "| pass | `us_per_image.b100` | 18 | 8 |",
        "| pass | `binary_bytes` | 59,000 | 60,000 |",
    ):
        assert row in page
    timed = [call[0] == "build/plain/mamba" for call in tools.calls if "bench" in call]
    assert timed == [False] * 2 + [True] * 4 + [False] * 4 + [True] * 2
    built = [call[3] for call in tools.calls if call[-1] == "engine"]
    assert built[1:] == ["."]
    assert not Path(built[0]).exists()


def test_a_tool_that_fails_or_is_missing_is_no_verdict() -> None:
    with pytest.raises(gate.NoVerdictError, match=r"^no-such-tool not found: install it$"):
        gate_speed.run("no-such-tool")
    with pytest.raises(gate.NoVerdictError, match=r"^sh -c .*exit 3 failed \(3\): broken$"):
        gate_speed.run("sh", "-c", "echo broken >&2; exit 3")
    assert gate_speed.run("echo", Path("a b")) == "a b\n"


SLOWER = {
    "CFLAGS := -Os": "CFLAGS := -O0",
    "ENGINE_HOT := -O2": "ENGINE_HOT := -O0",
    "ENGINE_SCALAR := -O3": "ENGINE_SCALAR := -O0",
}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="needs valgrind")
def test_a_slower_engine_fails_the_speed_gate(tmp_path: Path) -> None:
    for name in ("pipeline", "src", "csrc", "models"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "params.yaml", "gate.yaml", ".gitignore", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    speed = tmp_path / "pipeline/release/gate_speed.py"
    text = speed.read_text(encoding="utf-8")
    speed.write_text(text.replace("ROUNDS = 15", "ROUNDS = 2"), encoding="utf-8")
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "base"]):
        assert run(tmp_path, ["git", *words], **IDENTITY).returncode == 0
    flags = tmp_path / "csrc/engine.mk"
    text = flags.read_text(encoding="utf-8")
    for old, new in SLOWER.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    flags.write_text(text, encoding="utf-8")
    done = run_module(tmp_path, "pipeline.release.gate_speed", "--base", "HEAD")
    assert done.returncode == command.REGRESSION, done.stderr
    slower = {line.split("`")[1] for line in done.stdout.splitlines() if "**FAIL**" in line}
    assert slower >= {
        "instructions.avx2",
        "instructions.scalar",
        "us_per_image.b1",
        "us_per_image.b100",
        "binary_bytes",
    }
    assert run(tmp_path, ["git", "status", "--porcelain"]).stdout.strip() == "M csrc/engine.mk"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="needs valgrind")
def test_an_engine_that_does_not_build_is_no_verdict(tmp_path: Path) -> None:
    assert run(tmp_path, ["git", "init", "-q"]).returncode == 0
    for name in ("pipeline", "src"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("params.yaml", "gate.yaml"):
        shutil.copy(ROOT / name, tmp_path)
        assert run(tmp_path, ["git", "add", name]).returncode == 0
    assert run(tmp_path, ["git", "commit", "-qm", "no engine"], **IDENTITY).returncode == 0
    done = run_module(tmp_path, "pipeline.release.gate_speed", "--base", "HEAD")
    assert done.returncode == command.NO_VERDICT
    assert "error: make" in done.stderr
    assert "failed" in done.stderr
