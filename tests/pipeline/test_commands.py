"""Figures, units and choices of the pipeline's commands, without their expensive parts."""

from __future__ import annotations

import argparse
import csv
import importlib
import io
import json
import re
import statistics
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mnist_mamba.atomic_write import write_json
from mnist_mamba.data.corruptions import CORRUPTIONS
from mnist_mamba.data.idx import read_images, write_idx
from mnist_mamba.data.splits import DataError, DataSet, LabelledImages, split
from mnist_mamba.engine.format import read_model
from mnist_mamba.model import MambaClassifier
from mnist_mamba.training.checkpoint import Checkpoint, save_checkpoint
from pipeline import (
    benchmark,
    check_params,
    demo,
    download,
    evaluate,
    export,
    prepare,
    seeds,
    study,
    track,
    train,
)
from pipeline.common import command, dvc_lock, paths, run_engine
from pipeline.common import git as git_module
from pipeline.common.content_key import content_key
from pipeline.common.nested import flatten, look_up
from pipeline.common.params import DataParams, load_params
from pipeline.common.prepared_data import (
    read_info,
    read_split,
    read_training_data,
    write_splits,
)
from pipeline.common.timings import format_ratio, format_value
from pipeline.evaluate import ParityError
from pipeline.series import engine_speed
from pipeline.series import trainings as series
from tests.library.test_version_1 import version_1
from tests.pipeline.conftest import CONFIG
from tests.pipeline.imports import ROOT
from tests.pipeline.project import SMALL, git, set_params, write_bars

Call = tuple[Any, ...]


def replace_argv(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["command", *words])


def small_model() -> MambaClassifier:
    torch.manual_seed(0)
    return MambaClassifier(CONFIG, scan="reference")


COMMANDS = (
    *("benchmark", "check_params", "demo", "download", "evaluate", "export", "prepare"),
    *("rekey", "seeds", "study", "track", "train"),
)


def help_of(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> str:
    """Return the help that a command of pipeline/ prints, with single spaces."""
    replace_argv(monkeypatch, *words, "--help")
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"pipeline.{name}").main()
    assert end.value.code == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_a_command_does_and_its_examples_have_options_that_it_has(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = help_of(name, monkeypatch, capsys)
    described, _, examples = text.partition(" examples: ")
    document = " ".join(str(importlib.import_module(f"pipeline.{name}").__doc__).split())
    own_text = {
        "export": "Write the C engine's input: a model file, or one image as raw float32.",
        "rekey": "Check that this work tree trains the same weights as another revision",
        "seeds": "The last averaged weights are scored on the test images.",
        "study": "They are compared on validation images; test images are not read.",
        "train": "Options that are not given come from params.yaml.",
    }
    assert own_text.get(name, document) in described
    if name == "export":
        for what in ("model", "image", "convert"):
            described += help_of(name, monkeypatch, capsys, what)
    own = examples.split("dvc exp run")[0].replace("torchrun --standalone --nproc_per_node=2", "")
    for option in re.findall(r" (--[a-z-]+)", own):
        assert f" {option}" in described, option
    with_examples = {"download", "export", "prepare", "rekey", "seeds", "study", "track", "train"}
    assert (f"python -m pipeline.{name}" in examples) == (name in with_examples)


@pytest.mark.parametrize("module", [export, train])
def test_the_examples_in_the_help_are_accepted(
    module: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replace_argv(monkeypatch, "--help")
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        module.main()
    name = module.__name__.split(".")[-1]
    lines = re.findall(
        rf"^ +python -m pipeline.{name}\b(.*)", capsys.readouterr().out, re.MULTILINE
    )
    assert len(lines) >= 2
    for line in lines:
        replace_argv(monkeypatch, *line.split())
        module.parse_arguments()


def test_options_of_a_training_are_params(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--batch-size", "7", "--epochs", "3", "--learning-rate", "0.5")
    replace_argv(monkeypatch, *words, "--set", "train.seed=4", "--set", "model.patch=[2, 2]")
    params = load_params(ROOT / "params.yaml")
    changed = train.with_overrides(params, train.parse_arguments())
    values = {"batch_size": 7, "epochs": 3, "lr": 0.5, "seed": 4}
    wanted = {f"train.{name}": value for name, value in values.items()}
    assert changed == params.changed({**wanted, "model.patch": [2, 2]}, "test")
    replace_argv(monkeypatch)
    assert train.with_overrides(params, train.parse_arguments()) == params


def test_data_is_fetched_and_prepared_with_params_of_the_command_line(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_argv(monkeypatch, "--set", "data.dataset=digits", "--set", "model.patch=[2, 2]")
    download.main()
    assert read_images(paths.images(paths.RAW, "train")).shape == (1438, 8, 8)
    replace_argv(monkeypatch, "--set", "data.resize=[9, 12]", "--set", "data.val_fraction=0.5")
    prepare.main()
    assert read_images(paths.images(paths.PREPARED, "test")).shape == (359, 9, 12)
    assert abs(read_info()["splits"]["val"]["n"] - 1438 / 2) <= 10
    replace_argv(monkeypatch, "--set", "data.val_fraction=2")
    with pytest.raises(ValueError, match=r"command line: data.val_fraction: got 2"):
        prepare.main()


def test_the_check_covers_one_s_own_images_and_an_experiment_s_author(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_argv(monkeypatch)
    check_params.main()
    assert check_params.CHECKED.read_bytes() == b"params.yaml was checked\n"
    check_params.CHECKED.unlink()
    set_params(project, {**SMALL, "model.patch": [2, 4]})
    with pytest.raises(ValueError, match=r"patch = \[2, 4\] does not divide the image.* 9 x 12"):
        check_params.main()
    set_params(project, {**SMALL, "model.patch": [2, 4], "data.resize": [10, 8]})
    monkeypatch.setenv("DVC_EXP_NAME", "some-name")
    for variable in ("HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(variable, str(project))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    with pytest.raises(git_module.GitError, match=r"git config --global user\.name"):
        check_params.main()
    assert not check_params.CHECKED.exists()


@pytest.mark.parametrize("change", [{"train.device": "cuda"}, {"train.scan": "triton"}])
def test_a_missing_gpu_is_noticed_before_a_result_is_lost(
    change: dict[str, str], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_argv(monkeypatch)
    set_params(project, {**SMALL, **change})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ((name, value),) = change.items()
    with pytest.raises(ValueError, match=f"{name} = {value}: PyTorch finds no GPU"):
        check_params.main()
    assert not check_params.CHECKED.exists()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_params.main()


# benchmark, demo


@pytest.mark.parametrize("channels", [1, 3])
def test_pytorch_is_timed_per_image_in_microseconds(
    monkeypatch: pytest.MonkeyPatch, channels: int
) -> None:
    clock = SimpleNamespace(now=0.0)
    seconds = iter([100.0, 3.0, 1.0, 2.0])  # the first call is not timed
    sizes = []

    class Model(torch.nn.Module):
        config = SimpleNamespace(height=2, width=3, channels=channels)

        def forward(self, pixels: torch.Tensor) -> None:
            clock.now += next(seconds)
            sizes.append(tuple(pixels.shape))

    monkeypatch.setattr(benchmark, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    model: Any = Model()
    assert benchmark.pytorch_us(model, 50, 3) == pytest.approx(2.0 / 50 * 1e6)
    assert sizes == [(50, 2, 3) if channels == 1 else (50, 2, 3, 3)] * 4


def test_benchmark_writes_each_engine_s_time_under_its_batch(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_params(project, {**SMALL, "benchmark.rounds": 7, "export.checkpoint": "best_model"})
    calls: list[Call] = []

    def bench(
        batch: int, rounds: int, threads: int = 1, images: Path | None = None
    ) -> dict[str, float]:
        calls.append((batch, rounds, threads, images, torch.get_num_threads()))
        base = 10 * batch + threads + (0 if images else 0.5)
        return {
            "median_us": base,
            "p50_us": base + 2,
            "p99_us": base + 3,
            "load_us": 1000 + batch,
            "members_asked_mean": 1.25,
        }

    def load(path: Path, scan: str) -> Any:
        calls.append((path, scan))
        return SimpleNamespace(model=model)

    model = SimpleNamespace(config=SimpleNamespace(members=2))

    def pytorch(model: Any, batch: int, rounds: int) -> float:
        calls.append((model, batch, rounds))
        return batch / 8

    monkeypatch.setattr(benchmark, "bench_engine", bench)
    monkeypatch.setattr(benchmark, "load_checkpoint", load)
    monkeypatch.setattr(benchmark, "pytorch_us", pytorch)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: calls.append(("threads", n)))
    paths.ENGINE.write_bytes(b"x" * 777)
    replace_argv(monkeypatch)
    benchmark.main()
    found = json.loads((paths.METRICS / "benchmark.json").read_text(encoding="utf-8"))
    assert found.pop("cpu")
    test = paths.images(paths.PREPARED, "test")
    assert found == {
        "us_per_image": {
            "engine": {"b1": 11, "b100": 1001},
            "engine_all_members": {"b1": 11.5, "b100": 1001.5},
            "engine_all_threads": {"b1000": 10003},
            "pytorch_eager": {"b1": 0.125, "b100": 12.5},
        },
        "call_us": {"p50": 13, "p99": 14},
        "members_asked": 1.25,
        "load_us": 1001,
        "binary_bytes": 777,
        "threads": 3,
    }
    assert calls == [
        ("threads", 1),
        (paths.CHECKPOINTS / "best_model.pth", "reference"),
        *((1, 7, 1, test, 3), (100, 7, 1, test, 3)),
        *((1, 7, 1, None, 3), (100, 7, 1, None, 3)),
        (1000, 7, 3, test, 3),
        *((model, 1, 7), (model, 100, 7)),
    ]


def test_one_thread_is_not_timed_twice(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = dict.fromkeys(("median_us", "p50_us", "p99_us", "load_us", "members_asked_mean"), 1.0)
    monkeypatch.setattr(benchmark, "bench_engine", lambda *_, **__: report)
    loaded = SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(members=1)))
    monkeypatch.setattr(benchmark, "load_checkpoint", lambda *_, **__: loaded)
    monkeypatch.setattr(benchmark, "pytorch_us", lambda *_: 3.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    paths.ENGINE.write_bytes(b"x")
    replace_argv(monkeypatch)
    benchmark.main()
    found = json.loads((paths.METRICS / "benchmark.json").read_text(encoding="utf-8"))
    assert list(found["us_per_image"]) == ["engine", "pytorch_eager"]


def test_the_engine_is_timed_with_the_options_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    words: list[Call] = []
    monkeypatch.setattr(run_engine, "run_engine", lambda *given: words.append(given))
    run_engine.bench_engine(100, 9)
    run_engine.bench_engine(1, 2, Path("model.bin"), threads=4)
    run_engine.bench_engine(1, 2, images=Path("images.idx"))
    options = ("--batch", 100, "--threads", 1, "--rounds", 9)
    assert words[0] == ("bench", paths.MODEL, *options)
    assert words[1] == ("bench", Path("model.bin"), *options[:1], 1, "--threads", 4, "--rounds", 2)
    images = Path("images.idx")
    assert words[2] == ("bench", paths.MODEL, images, "--batch", 1, "--threads", 1, "--rounds", 2)


def test_an_engine_that_fails_is_quoted(project: Path) -> None:
    paths.ENGINE.write_text('#!/bin/sh\necho "$@" >&2\nexit 3\n', encoding="utf-8")
    with pytest.raises(RuntimeError, match=r"^mamba info failed \(3\): info a 7 --json$"):
        run_engine.run_engine("info", Path("a"), 7)
    paths.ENGINE.write_text('#!/bin/sh\necho "{\\"n\\": 2}"\n', encoding="utf-8")
    assert run_engine.run_engine("info") == {"n": 2}


def test_the_demo_prints_accuracy_and_times_of_its_own_results(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        "metrics/eval.json": {
            "accuracy": 0.9875,
            "n_test": 359,
            "parity": {"prediction_mismatches": 2, "max_abs_logit_diff": 3.21e-6},
        },
        "metrics/benchmark.json": {
            "us_per_image": {
                "engine": {"b1": 171.6, "b100": 1.0},
                "pytorch_eager": {"b1": 13690.4, "b100": 2.0},
            }
        },
    }
    clock = iter([100.0, 187.4])
    monkeypatch.setattr(demo, "check_repository", lambda: None)
    monkeypatch.setattr(demo, "run_experiment", lambda env: None)
    monkeypatch.setattr(demo, "result", files.__getitem__)
    monkeypatch.setattr(demo, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    replace_argv(monkeypatch)
    demo.main()
    said = capsys.readouterr().out
    for line in (
        "The C engine classifies 98.75% of 359 test digits correctly.\n",
        "PyTorch agrees: 2 predictions differ, and logits differ by at most 3.2e-06.\n",
        "One digit takes 172 us in C and 13690 us in PyTorch. The demo took 87 s.\n",
        f"exp apply {demo.NAME}\n",
    ):
        assert line in said


def test_timings_are_shown_with_three_digits() -> None:
    values = {0.1234: "0.123", 0.999: "0.999", 12.34: "12.3", 123.4: "123", 12345.6: "12,346"}
    assert {value: format_value(value) for value in values} == values
    assert format_value(0) == "0"
    times = "\N{MULTIPLICATION SIGN}"
    ratios = {0.456: "0.46", 1: "1.00", 12.34: "12.3"}
    assert {ratio: format_ratio(ratio) for ratio in ratios} == {
        ratio: text + times for ratio, text in ratios.items()
    }


# evaluate


@given(seed=st.integers(0, 1000), n=st.integers(1, 30))
def test_a_summary_counts_and_compares_each_image(seed: int, n: int) -> None:
    generator = np.random.default_rng(seed)
    engine = generator.normal(size=(n, 3)).astype(np.float32)
    reference = (engine + generator.normal(scale=0.3, size=(n, 3))).astype(np.float32)
    labels = generator.integers(0, 3, n).astype(np.uint8)
    answers = [
        evaluate.Answers(logits, np.ones(n, np.uint8), logits) for logits in (engine, reference)
    ]
    found = evaluate.summarise(*answers, labels, ece_bins=5, names=["a", "b", "c"])
    right = sum(int(row.argmax()) == label for row, label in zip(engine, labels, strict=True))
    assert (found["correct"], found["n_test"]) == (right, n)
    assert found["accuracy"] == right / n
    differing = sum(a.argmax() != b.argmax() for a, b in zip(engine, reference, strict=True))
    assert found["parity"]["prediction_mismatches"] == 2 * differing  # and of all members
    assert found["parity"]["max_abs_logit_diff"] == float(abs(engine - reference).max())
    wide = torch.from_numpy(engine).double()
    nll = torch.nn.functional.cross_entropy(wide, torch.from_numpy(labels).long())
    assert found["nll"] == pytest.approx(float(nll), abs=0.51e-5)
    assert found["nll"] == round(found["nll"], 5)
    assert found["ece"] == round(found["ece"], 5)
    assert sum(row["support"] for row in found["per_class"].values()) == n
    assert list(found["per_class"]) == ["a", "b", "c"]
    assert 0 <= found["macro_f1"] <= 1
    recalls = [row["recall"] for row in found["per_class"].values() if row["support"]]
    assert found["balanced_accuracy"] == pytest.approx(np.mean(recalls))


def test_predictions_are_written_by_name() -> None:
    names = ["cat", 'a "b", c', "é"]
    text = evaluate.table(np.array([0, 1, 2], np.uint8), np.array([0, 2, 1]), names)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [(row["index"], row["label"], row["predicted"]) for row in rows] == [
        ("0", "cat", "cat"),
        ("1", 'a "b", c', "é"),
        ("2", "é", 'a "b", c'),
    ]
    assert text.startswith("index,label,predicted\n0,cat,cat\n")


@pytest.mark.parametrize(("difference", "fine"), [(1e-4, True), (1.01e-4, False), (np.nan, False)])
def test_logits_may_differ_up_to_the_limit(difference: float, fine: bool) -> None:
    params = load_params(ROOT / "params.yaml")
    parity = {
        "max_abs_logit_diff": difference,
        "prediction_mismatches": 0,
        "members_asked_mismatches": 0,
    }
    metrics = {"correct": 9, "parity": parity}
    if fine:
        evaluate.check(metrics, {"correct": 9}, params)
    else:
        with pytest.raises(ParityError, match=r"differ .* expected up to 0.0001"):
            evaluate.check(metrics, {"correct": 9}, params)


def test_robustness_is_the_accuracy_on_images_corrupted_by_each_strength(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = load_params()
    images = np.random.default_rng(0).integers(0, 256, (6, 5, 7), dtype=np.uint8)
    seen = []

    def run(*words: str | Path) -> dict[str, int]:
        assert words[:2] == ("eval", paths.MODEL)
        assert words[3] == Path("labels")
        seen.append(read_images(Path(words[2])))
        return {"correct": len(seen), "n": 40}

    monkeypatch.setattr(evaluate, "run_engine", run)
    table = evaluate.robustness(images, Path("labels"), params)
    wanted = params.evaluate.robustness.model_dump()
    pairs = [(name, strength) for name, strengths in wanted.items() for strength in strengths]
    assert [(name, int(key)) for name, row in table.items() for key in row] == pairs
    assert [value for row in table.values() for value in row.values()] == [
        (i + 1) / 40 for i in range(len(pairs))
    ]
    for (name, strength), corrupted in zip(pairs, seen, strict=True):
        np.testing.assert_array_equal(corrupted, CORRUPTIONS[name](images, strength))


# series


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_a_spread_is_mean_and_sample_deviation(values: list[float]) -> None:
    found = series.spread(values)
    assert found["mean"] == pytest.approx(statistics.fmean(values))
    if len(values) == 1:
        assert found["std"] is None
        assert series.plus_minus(found, ".1%") == f"{values[0]:.1%}"
    else:
        assert found["std"] == pytest.approx(statistics.stdev(values))
        text = series.plus_minus(found, ".1%")
        assert text == f"{found['mean']:.1%} ± {found['std']:.1%}"


def record(seed: int, test: float, val: float, loss: float, size: int) -> series.TrainingRecord:
    """Return a record with the fields of both kinds of series."""
    scores = {"test_accuracy": test, "val_accuracy": val, "val_loss": loss}
    return {"seed": seed, "params": size, "parameters": size, **scores}


RECORDS = {
    "small": [record(0, 0.5, 0.75, 1.0, 1234), record(1, 0.75, 0.5, 2.0, 1234)],
    "large": [record(0, 1.0, 0.875, 0.5, 56789)],
}
SPEED = {"small": {"b1": 7.0, "b100": 1234.4}}


def test_a_scored_series_shows_each_seed_and_the_time_in_batches_of_100() -> None:
    content = seeds.summary(RECORDS)
    assert content["small"]["test_accuracy"] == [0.5, 0.75]
    assert (content["small"]["mean"], content["small"]["params"]) == (0.625, 1234)
    assert content["large"]["trainings"] == RECORDS["large"]
    rows = seeds.table(content, SPEED).splitlines()[2:]
    assert rows == [
        "| small | 1,234 | 62.50% ± 17.68% | 50.00, 75.00 | 1,234 |",
        "| large | 56,789 | 100.00% | 100.00 |  |",
    ]


def test_a_study_shows_the_most_accurate_run_first() -> None:
    runs: dict[str, dict[str, Any]] = {"small": {}, "large": {"model.a": "tied", "train.lr": 0.5}}
    chosen = series.Series(params={"train.epochs": 5}, seeds=[0, 1], runs=runs)
    content = study.summary(chosen, RECORDS)
    assert content["small"]["val_accuracy"] == series.spread([0.75, 0.5])
    assert content["small"]["val_loss"] == series.spread([1.0, 2.0])
    rows = study.table(content, SPEED).splitlines()[2:]
    assert rows == [
        '| large | `model.a="tied", train.lr=0.5` | 56,789 | 87.50% | 0.5000 |  |',
        "| small |  | 1,234 | 62.50% ± 17.68% | 1.5000 ± 0.7071 | 1234 |",
    ]


def test_a_study_measures_on_validation_and_a_scored_series_on_test_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both take the last averaged weights, not the best."""
    val = {"accuracy": 0.5, "loss": 1.5, "best_accuracy": 0.9, "best_epoch": 1}
    metrics = {"val": val, "parameters": 7, "epochs": 2}
    monkeypatch.setattr(series, "train", lambda training: metrics)
    params = SimpleNamespace(model=SimpleNamespace(members=1))
    training: Any = SimpleNamespace(folder=Path("runs/a"), params=params)
    assert study.measure(training) == {"val_accuracy": 0.5, "val_loss": 1.5, "parameters": 7}
    calls: list[Call] = []
    monkeypatch.setattr(seeds, "export_model", lambda *words: calls.append(words))

    def run(*words: Any) -> dict[str, int]:
        calls.append(words)
        return {"correct": 3, "n": 4}

    monkeypatch.setattr(seeds, "run_engine", run)
    assert seeds.measure(training) == {"test_accuracy": 0.75, "params": 7}
    model = Path("runs/a/model.bin")
    files = [Path(f"data/prepared/test-{kind}.idx") for kind in ("images", "labels")]
    assert calls == [(Path("runs/a/last.pth"), model, params), ("eval", model, *files)]


def make_training(monkeypatch: pytest.MonkeyPatch, seed: int = 3) -> series.Training:
    """Return a training of the current folder's params, with a key that needs no prepared data."""
    changes = {"train.epochs": 2, "model.a": "free", "train.seed": seed}
    monkeypatch.setattr(series, "training_key", lambda params: f"key-{params.train.seed}-more")
    return series.Training("name", seed, load_params().changed(changes, "test"), changes)


def test_a_training_of_a_series_runs_unless_its_last_checkpoint_is_there(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = make_training(monkeypatch)
    folder = Path("runs/name-3-key-3-mo")
    assert training.folder == folder
    commands: list[list[str]] = []
    epochs = iter([2, 1, 2])

    def run(words: list[str], **_: Any) -> SimpleNamespace:
        commands.append(words)
        write_json(folder / "metrics.json", {"epochs": next(epochs), "run": len(commands)})
        (folder / "last.pth").write_bytes(b"weights")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(series.subprocess, "run", run)
    assert series.train(training)["run"] == 1
    assert series.train(training)["run"] == 1  # completed
    (folder / "last.pth").unlink()
    assert series.train(training)["run"] == 2
    assert series.train(training)["run"] == 3  # the second ended after one of two epochs
    words = [sys.executable, "-m", "pipeline.train", "--resume", "--save-dir", str(folder)]
    for setting in ("train.epochs=2", 'model.a="free"', "train.seed=3"):
        words += ["--set", setting]
    assert commands == [words] * 3


def test_the_models_of_a_series_are_timed_once_per_run(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = json.loads(paths.DATA_INFO.read_text(encoding="utf-8"))
    write_json(paths.DATA_INFO, {**info, "pixel_mean": 0.5, "pixel_std": 0.25})
    set_params(project, {**SMALL, "model.patch": [1, 1], "benchmark.rounds": 4})
    timed: list[Call] = []

    def bench(batch: int, rounds: int, model: Path) -> dict[str, float]:
        header = read_model(model).header
        timed.append((batch, rounds, header["pixel_mean"]))
        return {"median_us": batch + 0.5, "load_us": 9.0}

    monkeypatch.setattr(engine_speed, "bench_engine", bench)
    wanted = [make_training(monkeypatch, seed) for seed in (0, 1)]
    options = argparse.Namespace(no_timing=True)
    assert engine_speed.time_series("some", wanted, options) == {}
    assert not (paths.METRICS / "some_speed.json").exists()
    speed = {"name": {"b1": 1.5, "b100": 100.5}}
    again = argparse.Namespace(no_timing=False)
    assert engine_speed.time_series("some", wanted, again) == speed
    assert timed == [(1, 4, 0.5), (100, 4, 0.5)]
    assert engine_speed.time_series("some", [], options) == speed  # the recorded times
    write_idx(paths.images(paths.PREPARED, "test"), np.zeros((1, 2, 2), np.uint8))
    assert engine_speed.time_series("some", [], options) == {}  # of another data set


def test_trainings_run_seed_by_seed(project: Path) -> None:
    chosen = series.Series(
        params={"train.lr": 0.5, "model.a": "free"},
        seeds=[4, 2],
        runs={"one": {}, "two": {"model.a": "tied"}},
    )
    found = series.trainings(chosen, load_params())
    assert [(one.name, one.seed) for one in found] == [
        *(("one", 4), ("two", 4), ("one", 2), ("two", 2))
    ]
    assert [one.params.train.seed for one in found] == [4, 4, 2, 2]
    assert [one.params.model.a for one in found] == ["free", "tied"] * 2
    assert {one.params.train.lr for one in found} == {0.5}


def test_the_records_of_a_run_are_in_the_order_of_their_seeds(project: Path) -> None:
    chosen = series.Series(params={}, seeds=[4, 3, 2, 1, 0], runs={"one": {}})
    wanted = series.trainings(chosen, load_params())
    options = argparse.Namespace(jobs=2, only=None)
    found = series.run_missing(
        chosen, wanted, project / "results.json", options, lambda _: {}, dict
    )
    assert [record["seed"] for record in found["one"]] == [0, 1, 2, 3, 4]
    assert [record["key"] for record in found["one"]] == [one.key for one in reversed(wanted)]


# download, prepare, export, track


@pytest.mark.parametrize(("mirror", "passed"), [("", None), ("/somewhere", "/somewhere")])
def test_mnist_comes_from_the_mirror_that_the_environment_names(
    monkeypatch: pytest.MonkeyPatch, mirror: str, passed: str | None
) -> None:
    monkeypatch.setenv("MNIST_MIRROR", mirror)
    monkeypatch.setenv("EMNIST_MIRROR", "/other")
    asked: list[Any] = []
    monkeypatch.setattr(download, "load_torchvision", lambda *words: asked.append(words))
    params = load_params(ROOT / "params.yaml")
    emnist = params.changed({"data.dataset": "emnist", "data.emnist_split": "letters"}, "test")
    download.fetch(params)
    download.fetch(emnist)
    monkeypatch.delenv("MNIST_MIRROR")
    download.fetch(params)
    assert asked == [
        ("mnist", passed, "balanced"),
        ("emnist", "/other", "letters"),
        ("mnist", None, "balanced"),
    ]


def test_train_and_test_images_get_the_same_channels() -> None:
    grey = LabelledImages(np.zeros((4, 2, 3), np.uint8), np.zeros(4, np.uint8))
    same = grey._replace(images=np.zeros((4, 2, 3, 3), np.uint8))
    colour = same._replace(images=np.random.default_rng(0).integers(0, 255, (4, 2, 3, 3), np.uint8))

    def shapes(train: LabelledImages, test: LabelledImages, channels: Any) -> set[tuple[int, ...]]:
        found = download.convert(DataSet(train, test, ("a", "b")), channels)
        assert found.class_names == ("a", "b")
        return {found.train.images.shape, found.test.images.shape}

    for one, other in ((grey, colour), (colour, same), (same, colour)):
        assert shapes(one, other, "auto") == {(4, 2, 3, 3)}
        assert shapes(one, other, 1) == {(4, 2, 3)}
        assert shapes(one, other, 3) == {(4, 2, 3, 3)}
    assert shapes(same, grey, "auto") == {(4, 2, 3)}


def test_download_compares_the_model_with_the_resized_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bars(tmp_path / "data/idx")  # of 9 x 12 pixels
    set_params(tmp_path, {**SMALL, "data.resize": None, "model.patch": [2, 4]})
    monkeypatch.chdir(tmp_path)
    replace_argv(monkeypatch)
    with pytest.raises(ValueError, match="9 x 12 pixels"):
        download.main()
    set_params(tmp_path, {**SMALL, "data.resize": [8, 16], "model.patch": [2, 4]})
    download.main()
    assert read_images(tmp_path / "data/raw/train-images.idx").shape == (200, 9, 12)


def test_prepare_resamples_all_images_and_holds_out_training_images_only() -> None:
    generator = np.random.default_rng(0)
    train, test = (
        LabelledImages(
            generator.integers(0, 256, (n, 4, 6), dtype=np.uint8), (np.arange(n) % 3).astype("u1")
        )
        for n in (30, 9)
    )
    settings = {"dataset": "idx", "idx_dir": "x", "val_fraction": 0.2}
    same = prepare.prepare(train, test, DataParams(**settings, resize=None, split_seed=5))
    rest, val = split(train, 0.2, 5)
    for found, wanted in zip(same, (rest, val, test), strict=True):
        np.testing.assert_array_equal(found.images, wanted.images)
        np.testing.assert_array_equal(found.labels, wanted.labels)
    resized = prepare.prepare(train, test, DataParams(**settings, resize=(5, 3)))
    assert [part.images.shape for part in resized] == [(24, 5, 3), (6, 5, 3), (9, 5, 3)]


def test_a_prepare_that_fails_leaves_no_description_of_earlier_data(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """info.json marks whole data, so that it must not stand next to a part of other data."""
    for part in ("train", "test"):
        images = np.arange(12 * 4, dtype=np.uint8).reshape(12, 2, 2)
        write_idx(paths.images(paths.RAW, part), images)
        write_idx(paths.labels(paths.RAW, part), (np.arange(12) % 2).astype(np.uint8))
    write_json(paths.CLASS_NAMES, [])

    def full(*_: Any) -> None:
        raise OSError("disk full")

    replace_argv(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "write_splits", full)
        assert paths.DATA_INFO.is_file()
        with pytest.raises(OSError, match="disk full"):
            prepare.main()
    assert not paths.DATA_INFO.exists()
    prepare.main()
    assert paths.DATA_INFO.is_file()


def test_onnx_names_the_packages_that_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    output = tmp_path / "model.onnx"
    for images, missing in (
        (None, "onnx, onnxscript"),
        (tmp_path, "onnx, onnxscript, onnxruntime"),
    ):
        with pytest.raises(RuntimeError, match=f"^{missing} not found: run `pip install"):
            export.export_onnx(ROOT / "models/mnist_mamba.bin", output, None, images, 1e-4)
    assert not output.exists()


def test_export_writes_the_checkpoint_that_the_params_name(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = small_model()
    for name, value in (("last", 1.0), ("best_model", 2.0)):
        torch.nn.init.constant_(model.head.bias, value)
        save_checkpoint(paths.CHECKPOINTS / f"{name}.pth", Checkpoint(model, 5, 0.5))

    def exported(*words: str) -> float:
        replace_argv(monkeypatch, "model", "--output", "out.bin", *words)
        export.main()
        return float(read_model(Path("out.bin")).tensors["head.bias"][0])

    assert exported() == 1
    assert exported("--checkpoint", "checkpoints/best_model.pth") == 2
    set_params(project, {**SMALL, "export.checkpoint": "best_model"})
    assert exported() == 2
    assert caplog.text == ""
    (paths.CHECKPOINTS / paths.TRAINING_STATE).write_bytes(b"")
    assert exported() == 2
    assert "the training has not ended: checkpoints/best_model.pth is from epoch 5" in caplog.text


def test_export_converts_a_file_of_version_1(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    today = (Path(__file__).parents[2] / "csrc/tests/golden/rows_odd_dims.bin").read_bytes()
    Path("old.bin").write_bytes(version_1(today))
    replace_argv(monkeypatch, "convert", "old.bin", "new.bin")
    export.main()
    assert Path("new.bin").read_bytes() == today
    assert "with the preparation resize" in caplog.text
    assert "convert it with --preparation mnist" in caplog.text
    caplog.clear()
    words = ("--preparation", "mnist", "--classes", "red,green,deep blue")
    replace_argv(monkeypatch, "convert", "old.bin", "new.bin", *words)
    export.main()
    file = read_model(Path("new.bin"))
    assert file.class_names == ("red", "green", "deep blue")
    assert file.header["preparation"] == 1
    assert "with the preparation mnist" in caplog.text
    assert "convert it" not in caplog.text


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_export_writes_an_image_of_a_split_in_0_to_1(
    project: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    file = paths.images(paths.PREPARED, part)
    images = read_images(file)
    images[2] = [[0, 51], [102, 255]]
    write_idx(file, images)
    replace_argv(monkeypatch, "image", "--index", "2", "--split", part, "--output", "out.bin")
    export.main()
    np.testing.assert_allclose(np.fromfile("out.bin", "<f4"), [0, 0.2, 0.4, 1], rtol=1e-6)
    for index in ("-1", "3"):
        replace_argv(monkeypatch, "image", "--index", index, "--split", part)
        with pytest.raises(ValueError, match=rf"--index {index}: expected 0 to 2, .* split {part}"):
            export.main()


@pytest.mark.parametrize("enabled", [True, False])
def test_track_writes_the_key_for_git_and_for_this_database(
    project: Path, monkeypatch: pytest.MonkeyPatch, enabled: bool
) -> None:
    set_params(project, {**SMALL, "tracking.enabled": enabled})
    sent = []

    def upsert(params: Any, key: str) -> str:
        sent.append(params)
        return key

    monkeypatch.setattr(track.run, "upsert", upsert)
    replace_argv(monkeypatch)
    track.main()
    key = content_key(load_params()) + "\n"
    for file in ("artifacts/tracking_key.txt", "mlartifacts/tracking_key.txt"):
        assert Path(file).read_text(encoding="utf-8") == key
    assert sent == [load_params()] * enabled


# shared parts


def test_prepared_data_names_the_file_that_is_missing_or_does_not_fit(project: Path) -> None:
    for part in ("train", "val", "test"):
        for path in (paths.images(paths.PREPARED, part), paths.labels(paths.PREPARED, part)):
            content = path.read_bytes()
            path.unlink()
            words = rf"^{path} not found: run `python -m pipeline\.prepare` first$"
            with pytest.raises(FileNotFoundError, match=words):
                read_split(paths.PREPARED, part, "prepare")
            path.write_bytes(content)
        labels = paths.labels(paths.PREPARED, part)
        write_idx(labels, np.zeros(4, np.uint8))
        words = rf"{part}-images.idx has 3 images, but {labels} has 4 labels: .*pipeline\.download"
        with pytest.raises(DataError, match=words):
            read_split(paths.PREPARED, part, "download")
    paths.DATA_INFO.unlink()
    with pytest.raises(FileNotFoundError, match=rf"^{paths.DATA_INFO} not found: run `python -m"):
        read_info()


def test_training_data_is_the_training_split_with_the_validation_split_if_asked_for(
    project: Path,
) -> None:
    train_set, val_set = read_training_data(on_val=False)
    assert val_set is not None
    assert (train_set.images.max(), val_set.images.max()) == (0, 1)
    joined, nothing = read_training_data(on_val=True)
    assert nothing is None
    np.testing.assert_array_equal(joined.images[:, 0, 0], [0, 0, 0, 1, 1, 1])
    assert joined.labels.tolist() == [0, 0, 1, 0, 0, 1]


def test_splits_that_cannot_be_written_leave_no_old_ones_to_mix_with(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = {name: read_split(paths.PREPARED, name, "prepare") for name in ("train", "val")}

    def full(path: Path, _: Any) -> None:
        raise OSError(f"{path}: disk full")

    monkeypatch.setattr("pipeline.common.prepared_data.write_idx", full)
    with pytest.raises(OSError, match="disk full"):
        write_splits(paths.PREPARED, splits)
    left = {path.name for path in paths.PREPARED.glob("*.idx")}
    assert left == {"test-images.idx", "test-labels.idx"}


def test_git_says_what_it_refused_and_unpacks_a_revision(
    project: Path, home: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert git_module.head(project) is None
    git(project, home, "init", "-q")
    git(project, home, "add", "gate.yaml", "pipeline/demo.py")
    git(project, home, "commit", "-qm", "start")
    assert git_module.head(project) == git_module.git("rev-parse", "HEAD").strip()
    (project / "gate.yaml").write_text("changed", encoding="utf-8")
    folder = tmp_path_factory.mktemp("unpacked")
    git_module.unpack_revision("HEAD", folder)
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {"gate.yaml", "pipeline/demo.py"}
    assert (folder / "gate.yaml").read_bytes() == (ROOT / "gate.yaml").read_bytes()
    with pytest.raises(git_module.GitError, match=r"^git show nowhere: .*nowhere"):
        git_module.git("show", "nowhere")


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (ValueError("a: got 1"), 1, "error: a: got 1\n"),
        (OSError("no such file"), 1, "error: no such file\n"),
        (RuntimeError("failed"), 1, "error: failed\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_a_command_ends_with_one_line_and_a_code(
    raised: BaseException,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def main() -> None:
        raise raised

    monkeypatch.delenv("MNIST_MAMBA_TRACEBACK", raising=False)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with pytest.raises(SystemExit) as end:
        command.run(main)
    assert (end.value.code, capsys.readouterr().err) == (code, said)
    if code == 1:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
        monkeypatch.setenv("RANK", "3")
        with pytest.raises(SystemExit):
            command.run(main)
        assert capsys.readouterr().err == said.replace("error: ", "error: process 3: ")
        monkeypatch.setenv("MNIST_MAMBA_TRACEBACK", "1")
        with pytest.raises(type(raised)):
            command.run(main)


def test_mistakes_in_the_code_keep_their_traceback() -> None:
    def main() -> None:
        raise TypeError("a mistake")

    with pytest.raises(TypeError, match="a mistake"):
        command.run(main)


@pytest.mark.parametrize(
    "raised", [ValueError("a"), ZeroDivisionError("a"), KeyError("a"), OSError("a")]
)
def test_a_judge_without_a_verdict_replaces_its_page(
    raised: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text("## gate: passes\n", encoding="utf-8")

    def main(options: argparse.Namespace) -> int:
        if options.base == "main":
            raise raised
        return command.REGRESSION

    def judge(*words: str) -> Any:
        replace_argv(monkeypatch, *words, "--output", str(page))
        with pytest.raises(SystemExit) as end:
            command.run_judge(main, "Judge.", "pipeline.release.gate")
        return end.value.code

    assert judge() == command.REGRESSION  # against origin/main
    assert page.read_text(encoding="utf-8") == "## gate: passes\n"
    assert judge("--base", "main") == command.NO_VERDICT
    assert page.read_text(encoding="utf-8") == f"## gate against main: no verdict\n\n{raised}\n"


def test_nested_values_have_dotted_keys() -> None:
    values = {"a": {"b": {"c": 1}, "d": [2]}, "e": None}
    assert flatten(values) == {"a.b.c": 1, "a.d": [2], "e": None}
    assert flatten(values, "x/") == {"x/a.b.c": 1, "x/a.d": [2], "x/e": None}
    assert look_up(values, "a.b") == {"c": 1}
    assert look_up(values, "a.b.c") == 1
    for key in ("a.c", "a.d.0", "e.f", "f"):
        with pytest.raises(KeyError):
            look_up(values, key)


def test_a_lock_s_outputs_and_params_are_those_of_all_stages(tmp_path: Path) -> None:
    stages = {
        "one": {"outs": [{"path": "a", "md5": "1", "size": 2}, {"path": "no md5"}]},
        "two": {"params": {"params.yaml": {"train.lr": 1, "data": {"x": 2}}}},
        "three": {"outs": [{"path": "b", "md5": "3"}], "params": {"params.yaml": {"model": 4}}},
    }
    lock = tmp_path / "dvc.lock"
    write_json(lock, {"schema": "2.0", "stages": stages})
    content = dvc_lock.read_lock(lock)
    assert {path: out["md5"] for path, out in dvc_lock.outputs(content).items()} == {
        "a": "1",
        "b": "3",
    }
    assert dvc_lock.locked_params(content) == {"train.lr": 1, "data": {"x": 2}, "model": 4}
