"""Series of trainings: missing ones run, others are kept, and a failure stops no other."""

from __future__ import annotations

import json
import os
import re
import signal
import statistics
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.common.content_key import file_md5
from pipeline.common.params import ParamsError, load_params
from pipeline.series.trainings import load_series, spread, trainings
from tests.pipeline.imports import ROOT
from tests.pipeline.project import SMALL, copy_project, run, run_module, start_module

SMALLEST = {**SMALL, "tracking.enabled": False, "train.epochs": 1}
SERIES: dict[str, Any] = {
    "study": {
        "params": {"train.batch_size": 20},
        "seeds": [3, 4],
        "runs": {"base": {}, "tied": {"model.a": "tied"}},
    },
    "seeds": {"params": {"train.on_val": True}, "seeds": [0, 1], "runs": {"default": {}}},
    "pixels": {"params": {"model.patch": [1, 1]}, "seeds": [5], "runs": {"forward": {}}},
}
MARKED = "# Training\n\n" + "".join(
    f"<!-- {name}: make {name} -->\n<!-- end of {name} -->\n" for name in SERIES
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with small series, prepared data and an engine."""
    folder = copy_project(tmp_path_factory.mktemp("series"), {**SMALLEST, "model.a": "free"})
    (folder / "pipeline/series/series.yaml").write_text(yaml.safe_dump(SERIES), encoding="utf-8")
    (folder / "docs").mkdir()
    (folder / "docs/training.md").write_text(MARKED, encoding="utf-8")
    done = run(folder, ["make", "-s", "-f", "csrc/engine.mk", "dvc-engine", "OUT=build/dvc"])
    assert done.returncode == 0, done.stderr
    for stage in ("download", "prepare"):
        done = run_module(folder, f"pipeline.{stage}")
        assert done.returncode == 0, done.stderr
    return folder


def load(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def test_a_study_runs_missing_trainings_and_writes_its_results(project: Path) -> None:
    done = run_module(project, "pipeline.study", "--jobs", "2", "--only", "base")
    assert done.returncode == 0, done.stderr
    assert "0 of 4 trainings are done, 2 to do" in done.stderr
    content = load(project, "metrics/study.json")
    assert list(content["runs"]) == ["base"]
    assert content["params"] == SERIES["study"]["params"]
    assert content["data"] == file_md5(project / "data/prepared/test-images.idx")

    done = run_module(project, "pipeline.study")
    assert "2 of 4 trainings are done, 2 to do" in done.stderr
    runs = load(project, "metrics/study.json")["runs"]
    assert list(runs) == ["base", "tied"]
    for run_ in runs.values():
        accuracies = [one["val_accuracy"] for one in run_["trainings"]]
        assert [one["seed"] for one in run_["trainings"]] == [3, 4]
        assert run_["val_accuracy"] == spread(accuracies)
    assert runs["tied"]["parameters"] < runs["base"]["parameters"]
    for one in runs["tied"]["trainings"]:
        (folder,) = (project / "runs").glob(f"tied-{one['seed']}-{one['key'][:8]}")
        assert load(folder, "metrics.json")["val"]["accuracy"] == one["val_accuracy"]
    speed = load(project, "metrics/study_speed.json")["us_per_image"]
    assert all(speed[name][batch] > 0 for name in runs for batch in ("b1", "b100"))
    assert (project / "plots/study.png").read_bytes().startswith(b"\x89PNG")
    text = (project / "docs/training.md").read_text(encoding="utf-8")
    assert '| tied | `model.a="tied"` |' in text

    before = (project / "metrics/study.json").read_bytes()
    logs = {path: path.read_bytes() for path in project.glob("runs/*/log.txt")}
    (project / "metrics/study.json").unlink()  # the checkpoints remain
    done = run_module(project, "pipeline.study", "--no-timing")
    assert "0 of 4 trainings are done, 4 to do" in done.stderr
    assert (project / "metrics/study.json").read_bytes() == before
    assert logs == {path: path.read_bytes() for path in project.glob("runs/*/log.txt")}
    done = run_module(project, "pipeline.study", "--no-timing")
    assert "4 of 4 trainings are done, 0 to do" in done.stderr
    assert (project / "metrics/study.json").read_bytes() == before
    assert (project / "docs/training.md").read_text(encoding="utf-8") == text


def test_seeds_are_scored_by_the_engine_on_test_images(project: Path) -> None:
    done = run_module(project, "pipeline.seeds")
    assert done.returncode == 0, done.stderr
    result = load(project, "metrics/seeds.json")["runs"]["default"]
    assert len(result["test_accuracy"]) == 2
    assert all(value * 40 == round(value * 40) for value in result["test_accuracy"])
    assert {k: result[k] for k in ("mean", "std")} == spread(result["test_accuracy"])
    assert (
        result["params"]
        == load(next((project / "runs").glob("default-0-*")), "metrics.json")["parameters"]
    )
    assert all(1 <= one["members_asked"] <= 2 for one in result["trainings"])
    assert all(0 <= one["predictions_changed"] <= 40 for one in result["trainings"])
    fractions = [one["time_fraction"] for one in result["trainings"]]
    assert all(0 < fraction < 1.5 for fraction in fractions)
    assert result["time_fraction"] == round(statistics.fmean(fractions), 3)
    us = load(project, "metrics/seeds_speed.json")["us_per_image"]["default"]
    assert us["b1"] > 0
    assert (project / "plots/seeds.png").read_bytes().startswith(b"\x89PNG")
    (row,) = re.findall(
        r"\| default \|.*", (project / "docs/training.md").read_text(encoding="utf-8")
    )
    each = ", ".join(f"{100 * value:.2f}" for value in result["test_accuracy"])
    mean_us = us["b100"] * result["time_fraction"]
    assert row.endswith(f" | {each} | {mean_us:,.0f} |")
    # The other scored series has its own file.
    done = run_module(project, "pipeline.seeds", "pixels", "--no-timing")
    assert done.returncode == 0, done.stderr
    (one,) = load(project, "metrics/pixels.json")["runs"]["forward"]["trainings"]
    assert one["seed"] == 5
    assert not (project / "metrics/pixels_speed.json").exists()
    assert "| forward |" in (project / "docs/training.md").read_text(encoding="utf-8")
    assert load(project, "metrics/seeds.json")["runs"]["default"] == result
    # Changed code repeats the trainings and drops the old records.
    source = project / "src/mnist_mamba/training/loop.py"
    source.write_text(source.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    done = run_module(project, "pipeline.seeds", "--jobs", "1", "--no-timing")
    assert "0 of 2 trainings are done, 2 to do" in done.stderr
    again = load(project, "metrics/seeds.json")["runs"]["default"]
    assert again["test_accuracy"] == result["test_accuracy"]
    assert [one["key"] for one in again["trainings"]] != [one["key"] for one in result["trainings"]]


def test_a_training_that_fails_is_named_and_the_others_are_kept(
    project: Path, tmp_path: Path
) -> None:
    series = {**SERIES["study"], "seeds": [7]}
    series["runs"] = {"diverges": {"train.lr": 1e30, "train.clip_norm": 0}, "base": {}}
    (project / "pipeline/series/series.yaml").write_text(
        yaml.safe_dump({"study": series}), encoding="utf-8"
    )
    done = run_module(project, "pipeline.study", "--no-timing")
    assert done.returncode == 1
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith("error: 1 of 2 trainings failed: diverges, seed 7: error: the ")
    assert list(load(project, "metrics/study.json")["runs"]) == ["base"]
    done = run_module(project, "pipeline.study", "--only", "bass")
    assert "--only bass: not in pipeline/series/series.yaml" in done.stderr


def test_trainings_stop_with_the_series_that_started_them(project: Path) -> None:
    series = {**SERIES["study"], "seeds": [8], "runs": {"long": {"train.epochs": 10_000}}}
    (project / "pipeline/series/series.yaml").write_text(
        yaml.safe_dump({"study": series}), encoding="utf-8"
    )
    process = start_module(project, "pipeline.study", "--no-timing", stderr="study.txt")
    wait_for(project, "epoch 2/")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert "saved as" in wait_for(project, "To continue: ")


def wait_for(project: Path, text: str) -> str:
    """Return the log of the run `long` once it has this text."""
    log = ""
    while text not in log:
        time.sleep(0.05)
        for file in project.glob("runs/long-8-*/log.txt"):
            log = file.read_text(encoding="utf-8")
    return log


def test_errors_in_series_yaml_name_the_key(tmp_path: Path) -> None:
    file = tmp_path / "series.yaml"
    params = load_params(ROOT / "params.yaml")
    for content, words in (
        ("study: {}", "study: params: missing"),
        ("study: {params: {}, seeds: [], runs: {a: {}}}", r"study: seeds: got \[\]; .* at least 1"),
        ("other: {}", "study: not found"),
        ("[]", "study: not found"),
    ):
        file.write_text(content, encoding="utf-8")
        with pytest.raises(ParamsError, match=words):
            load_series("study", file)
    file.write_text("study: {params: {}, seeds: [0], runs: {a: {train.rate: 1}}}", encoding="utf-8")
    with pytest.raises(ParamsError, match=r"series\.yaml: a: train\.rate: unknown key"):
        trainings(load_series("study", file), params)


@pytest.mark.parametrize("name", ["study", "seeds", "pixels"])
def test_the_committed_series_can_be_run(name: str) -> None:
    series = load_series(name, ROOT / "pipeline/series/series.yaml")
    found = trainings(series, load_params(ROOT / "params.yaml"))
    assert len(found) == len(series.runs) * len(series.seeds)
