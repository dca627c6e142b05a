"""MLflow as a view of the files: complete, repeatable, and never an obstacle to a training."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache

from mnist_mamba.atomic_write import write_json
from pipeline import track
from pipeline.common import paths
from pipeline.common.content_key import content_key
from pipeline.common.params import Params, load_params
from pipeline.tracking import client as tracking
from pipeline.tracking import model as tracked_model
from pipeline.tracking import run as tracked_run
from pipeline.tracking import served
from pipeline.tracking.live import live_run
from tests.pipeline.conftest import POINTS
from tests.pipeline.imports import ROOT
from tests.pipeline.project import SMALL, git, run, set_params


def runs(params: Params) -> list[Any]:
    client, experiment = tracking.connect(params)
    return client.search_runs([experiment])


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def curve(params: Params, run_id: str, name: str) -> list[tuple[int, float]]:
    client, _ = tracking.connect(params)
    return [(m.step, m.value) for m in client.get_metric_history(run_id, f"curve/{name}")]


def artifact_names(params: Params, run_id: str) -> set[str]:
    client, _ = tracking.connect(params)
    found = set()
    waiting = [""]
    while waiting:
        for entry in client.list_artifacts(run_id, waiting.pop() or None):
            (waiting.append if entry.is_dir else found.add)(entry.path)
    return found


def test_class_names_become_names_of_metrics() -> None:
    assert tracked_run.metric_names(["0", "1"]) == ["0", "1"]
    found = tracked_run.metric_names(["T-shirt/top", "50 %", "猫", "a.b", "c" * 255])
    assert found == ["T-shirt_top", "50 _", "猫", "a_b", "c" * 100]
    assert tracked_run.metric_names(["?", "!"]) == ["class 0", "class 1"]


def test_metrics_of_classes_with_any_name_are_logged(project: Path) -> None:
    rates = {"recall": 0.5}
    names = ["T-shirt/top", "50 %", "猫", "../x", "c" * 255]
    scores = {"accuracy": 0.7, "n_test": 3, "per_class": dict.fromkeys(names, rates)}
    write_json(paths.METRICS / "eval.json", scores)
    params = load_params()
    tracked_run.upsert(params)
    (run,) = runs(params)
    recalls = [name for name in run.data.metrics if name.endswith(".recall")]
    assert len(recalls) == len(names)
    assert "eval/per_class/T-shirt_top.recall" in recalls


def test_a_run_is_whole_and_a_second_upsert_changes_nothing(project: Path) -> None:
    params = load_params()
    with live_run(params) as log_point:
        log_point(POINTS[0])
    assert [run.info.status for run in runs(params)] == ["FINISHED"]
    assert runs(params)[0].data.tags["pipeline"] == "training alone"
    ended = runs(params)[0].info.end_time
    key = tracked_run.upsert(params)
    assert tracked_run.upsert(params) == key == content_key(params)
    (run,) = runs(params)
    assert run.info.end_time == ended  # and so is the run's duration
    assert run.data.tags["content_key"] == key
    assert run.data.tags["pipeline"] == "whole"
    assert run.data.params["model.d_model"] == "16"
    assert run.data.params["train.augment.rotate"] == "0.0"
    assert run.data.metrics["eval/accuracy"] == 0.7
    assert run.data.metrics["eval/parity/max"] == 1e-6
    assert run.data.metrics["train/val/accuracy"] == 0.75
    assert curve(params, run.info.run_id, "train_loss") == [(1, 2.0), (2, 1.0)]
    assert curve(params, run.info.run_id, "val_accuracy") == [(1, 0.5), (2, 0.75)]
    inputs = {entry.dataset.name: entry.dataset.digest for entry in run.inputs.dataset_inputs}
    images = paths.images(paths.PREPARED, "test")
    assert inputs["test"] == hashlib.md5(images.read_bytes()).hexdigest()
    assert set(inputs) == {"train", "val", "test"}
    assert artifact_names(params, run.info.run_id) == {
        "params.yaml",
        "dvc.yaml",
        "dvc.lock",
        "metrics/train.json",
        "metrics/eval.json",
        "figures/predictions.png",
        "plots/curves.json",
        "plots/predictions.csv",
    }


def test_everything_is_back_after_the_database_is_deleted(project: Path) -> None:
    params = load_params()
    tracked_run.upsert(params)
    before = runs(params)[0]
    (project / "mlflow.db").rename(project / "old.db")
    # A new process would open the new file; this one needs another address.
    uri = f"sqlite:///{project}/./mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        tracked_run.upsert(params)
        (after,) = runs(params)
        assert after.info.run_id != before.info.run_id
        assert after.data.params == before.data.params
        assert after.data.metrics == before.data.metrics
        assert curve(params, after.info.run_id, "lr") == [(1, 0.1), (2, 0.2)]


def test_a_run_that_was_left_half_made_is_completed(project: Path) -> None:
    params = load_params()
    client, experiment = tracking.connect(params)
    client.create_run(experiment, tags={"content_key": content_key(params)})
    tracked_run.upsert(params)
    (run,) = runs(params)
    assert run.data.params["model.d_model"] == "16"
    assert run.info.status == "FINISHED"


def test_two_clones_that_create_a_run_at_once_share_the_older(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, create = load_params(), MlflowClient.create_run
    client, experiment = tracking.connect(params)
    key = content_key(params)

    def create_second(self: MlflowClient, *words: Any, **options: Any) -> Any:
        create(self, experiment, tags={"content_key": key}, run_name="the other clone's")
        time.sleep(0.002)  # MLflow counts milliseconds
        return create(self, *words, **options)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "create_run", create_second)
        found = tracking.find_or_create(client, experiment, params, key)
    (only,) = runs(params)
    assert only.info.run_id == found.info.run_id
    assert only.info.run_name == "the other clone's"
    # Both may have looked before the other one's was there: `track` keeps the older.
    client.create_run(experiment, tags={"content_key": key})
    tracked_run.upsert(params)
    (only,) = runs(params)
    assert only.info.run_id == found.info.run_id
    assert only.data.tags["pipeline"] == "whole"


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's searches answer with one result at a time, as with 1,000 in large experiments."""
    for name in ("search_runs", "search_logged_models", "search_model_versions"):
        search = functools.partialmethod(getattr(MlflowClient, name), max_results=1)
        monkeypatch.setattr(MlflowClient, name, search)


def test_a_search_reads_all_pages(
    project: Path, small_pages: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = load_params()
    client, experiment = tracking.connect(params)
    key = content_key(params)
    ids = []
    for _ in range(3):
        ids.append(client.create_run(experiment, tags={"content_key": key}).info.run_id)
        time.sleep(0.002)  # MLflow counts milliseconds
    tracked_run.upsert(params)
    assert [run.info.run_id for run in tracking.find_all(client, experiment, key)] == ids[:1]
    model = tracked_model.logged_model(params)
    for _ in range(2):  # newer ones, which are passed over
        client.create_logged_model(experiment, name="other", source_run_id=ids[0])
    assert tracked_model.logged_model(params).model_id == model.model_id
    for _ in range(2):
        version, _ = tracked_model.register(params, "digits", "champion")
        assert version == "1"
        client.create_model_version("digits", source=model.artifact_location)
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "0" * 40)
    names = ("first", "second", "third")
    for name in names:
        monkeypatch.setenv("DVC_EXP_NAME", name)
        children = [tracking.find_or_create(client, experiment, params, name) for _ in range(2)]
    parents = [
        client.get_run(child.info.run_id).data.tags[tracking.PARENT_TAG] for child in children
    ]
    assert len({*parents}) == 1


def test_a_clone_gives_up_its_run_for_an_older_one(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would delete the other's, if each kept its own."""
    params = load_params()
    client, experiment = tracking.connect(params)
    key = content_key(params)
    older = client.create_run(experiment, tags={"content_key": key})
    time.sleep(0.002)  # MLflow counts milliseconds
    younger = client.create_run(experiment, tags={"content_key": key})
    found, true = iter([younger]), tracking.find_or_create
    monkeypatch.setattr(
        tracking, "find_or_create", lambda *words: next(found, None) or true(*words)
    )
    tracked_run.upsert(params)
    (only,) = runs(params)
    assert only.info.run_id == older.info.run_id
    assert (only.info.status, only.data.tags["pipeline"]) == ("FINISHED", "whole")


def test_curves_of_a_retraining_with_other_bits_are_corrected(project: Path) -> None:
    params = load_params()
    tracked_run.upsert(params)
    write_json(paths.CURVES, [POINTS[0], {**POINTS[1], "train_loss": 1.5}])
    tracked_run.upsert(params)
    (run,) = runs(params)
    assert curve(params, run.info.run_id, "train_loss") == [(1, 2.0), (2, 1.0), (2, 1.5)]
    assert run.data.metrics["curve/train_loss"] == 1.5


def test_a_second_upsert_logs_what_has_changed_and_nothing_else(project: Path) -> None:
    params = load_params()
    write_json(paths.CURVES, [{**POINTS[0], "val_accuracy": None, "val_loss": None}, POINTS[1]])
    tracked_run.upsert(params)
    (first,) = runs(params)
    scores = {"accuracy": 0.9, "n_test": 3, "parity": {"max": 1e-6}, "new": 2, "flag": True}
    write_json(paths.METRICS / "eval.json", {**scores, "text": "words"})
    images = paths.images(paths.PREPARED, "val")
    images.write_bytes(images.read_bytes()[:-1] + b"\7")
    tracked_run.upsert(params)
    tracked_run.upsert(params)
    (run,) = runs(params)
    assert run.info.end_time == first.info.end_time
    client, _ = tracking.connect(params)

    def history(name: str) -> list[float]:
        return [metric.value for metric in client.get_metric_history(run.info.run_id, name)]

    assert history("eval/accuracy") == [0.7, 0.9]
    assert history("eval/parity/max") == [1e-6]
    assert history("train/epochs") == [2]
    assert {name for name in run.data.metrics if name.startswith("eval/")} == {
        *("eval/accuracy", "eval/n_test", "eval/parity/max", "eval/new")
    }
    assert curve(params, run.info.run_id, "val_accuracy") == [(2, 0.75)]
    assert history("curve/val_loss") == []
    assert {name.split(".")[0] for name in run.data.params} == {
        *("data", "model", "train", "export", "evaluate")
    }
    names = [entry.dataset.name for entry in run.inputs.dataset_inputs]
    assert sorted(names) == ["test", "train", "val", "val"]
    for entry in run.inputs.dataset_inputs:
        profile = json.loads(entry.dataset.profile)
        labels = paths.labels(paths.PREPARED, entry.dataset.name)
        assert profile["labels_md5"] == hashlib.md5(labels.read_bytes()).hexdigest()
        assert (profile["num_rows"], profile["per_class"]) == (3, {"0": 2, "1": 1, "2": 0})
        tags = {tag.key: tag.value for tag in entry.tags}
        assert tags["mlflow.data.context"] == entry.dataset.name


def test_a_run_is_named_by_data_and_key_and_has_the_project_s_commit(
    project: Path, home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(project, home, "init", "-q")
    git(project, home, "commit", "-q", "--allow-empty", "-m", "start")
    head = run(project, ["git", "rev-parse", "HEAD"]).stdout.strip()
    params = load_params()
    key = tracked_run.upsert(params)
    (found,) = runs(params)
    assert found.info.run_name == f"idx-{key[:8]}"
    assert found.data.tags["mlflow.source.git.commit"] == head
    note = found.data.tags["mlflow.note.content"]
    train = params.train
    for words in (
        f"{params.model.n_layers} layers of width {params.model.d_model}, ",
        f"{params.model.d_state} states, stem {params.model.stem}, ",
        f"2 epochs of {train.optimizer}, peak learning rate {train.lr:g}, seed {train.seed}.",
        f"`git checkout {head[:12]}`",
    ):
        assert words in note
    assert "dvc exp apply" not in note
    monkeypatch.setenv("DVC_EXP_NAME", "wavy-hare")
    set_params(project, {**SMALL, "train.lr": 0.5})
    tracked_run.upsert(load_params())
    assert {one.info.run_name for one in runs(params)} == {f"idx-{key[:8]}", "wavy-hare"}


def test_one_process_at_a_time_holds_the_project_s_lock(project: Path) -> None:
    def take() -> None:
        with Path(".mlflow.lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    with tracking.project_lock(), pytest.raises(BlockingIOError):
        take()
    take()


def test_track_says_in_one_line_where_mlflow_cannot_be_written(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////dev/null/mlflow.db")
    with pytest.raises(tracking.TrackingError, match="`make track`"):
        tracked_run.upsert(load_params())


def test_other_content_is_another_run(project: Path) -> None:
    params = load_params()
    key = tracked_run.upsert(params)
    set_params(project, {**SMALL, "train.lr": 0.1})
    assert tracked_run.upsert(load_params()) != key
    assert len(runs(params)) == 2
    source = project / "src/mnist_mamba/model/mixer.py"
    source.write_text(source.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    set_params(project, SMALL)
    assert content_key(load_params()) != key


def test_each_section_and_source_that_results_depend_on_is_part_of_the_key(project: Path) -> None:
    key = content_key(load_params())
    for setting in (
        {"data.val_fraction": 0.3},
        {"model.d_state": 5},
        {"train.seed": 9},
        {"export.checkpoint": "best_model"},
        {"evaluate.ece_bins": 7},
    ):
        set_params(project, {**SMALL, **setting})
        assert content_key(load_params()) != key, setting
    set_params(project, SMALL)
    for name in (
        "pipeline/prepare.py",
        "pipeline/export.py",
        "pipeline/evaluate.py",
        "src/mnist_mamba/export.py",
        "src/mnist_mamba/data/corruptions.py",
        "csrc/engine/forward.c",
    ):
        text = (project / name).read_bytes()
        (project / name).write_bytes(text + b"\n")
        assert content_key(load_params()) != key, name
        (project / name).write_bytes(text)
    assert content_key(load_params()) == key


def test_changes_that_keep_the_results_keep_the_key(project: Path) -> None:
    key = content_key(load_params())
    set_params(project, {**SMALL, "benchmark.rounds": 3, "tracking.experiment": "other"})
    (project / "pipeline/benchmark.py").write_text("# another way to measure\n", encoding="utf-8")
    compiled = project / "src/mnist_mamba/scan/__pycache__/other.pyc"
    compiled.parent.mkdir(parents=True, exist_ok=True)
    compiled.write_bytes(b"compiled")
    assert content_key(load_params()) == key


def test_the_user_s_own_data_is_part_of_the_key(project: Path) -> None:
    key = content_key(load_params())
    images = project / "data/idx/train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-1] + b"\7")
    assert content_key(load_params()) != key


def test_training_goes_on_where_mlflow_cannot(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////dev/null/mlflow.db")
    with live_run(load_params()) as log_point:
        log_point(POINTS[0])
    assert "the training goes on without it, and `make track` stores all later" in caplog.text


def test_training_goes_on_where_mlflow_fails_later(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    params, fails = load_params(), {"log_batch": True, "set_terminated": True}

    def failing(name: str) -> Callable[..., Any]:
        real = getattr(MlflowClient, name)

        def call(*arguments: Any, **options: Any) -> Any:
            if fails[name]:
                raise MlflowException(f"no {name}")
            return real(*arguments, **options)

        return call

    with live_run(params) as log_point:
        wait_for(lambda: len(runs(params)) == 1 and "pipeline" in runs(params)[0].data.tags)
        (run,) = runs(params)
        assert (run.info.status, run.data.tags["pipeline"]) == ("RUNNING", "training alone")
        for name in fails:
            monkeypatch.setattr(MlflowClient, name, failing(name))
        log_point(POINTS[0])
        wait_for(lambda: "no log_batch" in caplog.text)
        fails["log_batch"] = False
        log_point(POINTS[1])
    (warning,) = (one for one in caplog.messages if "`make track`" in one)  # once, of two failures
    assert warning.startswith("MLflow: no log_batch; the training goes on without it")
    assert curve(params, run.info.run_id, "lr") == [(2, 0.2)]


def test_a_training_that_is_not_the_pipeline_s_makes_no_run(project: Path) -> None:
    with live_run(load_params(), enabled=False) as log_point:
        log_point(POINTS[0])
    assert runs(load_params()) == []


def test_a_training_that_fails_is_shown_as_failed(project: Path) -> None:
    params = load_params()

    def diverge() -> None:
        with live_run(params) as log_point:
            log_point(POINTS[0])
            raise RuntimeError("diverged")

    with pytest.raises(RuntimeError, match="diverged"):
        diverge()
    (run,) = runs(params)
    assert run.info.status == "FAILED"
    # A completed training of the same content completes that run.
    with live_run(params) as log_point:
        for point in POINTS:
            log_point(point)
    (again,) = runs(params)
    assert again.info.run_id == run.info.run_id
    assert again.info.status == "FINISHED"
    assert curve(params, run.info.run_id, "lr") == [(1, 0.1), (2, 0.2)]


def test_disabled_tracking_makes_no_database(project: Path) -> None:
    (project / "mlflow.db").unlink()
    set_params(project, {**SMALL, "tracking.enabled": False})
    with live_run(load_params()) as log_point:
        log_point(POINTS[0])
    assert not (project / "mlflow.db").exists()


def test_experiments_in_temp_copies_share_the_parent_s_database(
    project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "mlflow.db").unlink()
    parent = tmp_path_factory.mktemp("parent")
    monkeypatch.setenv("DVC_ROOT", str(parent))
    monkeypatch.setenv("DVC_EXP_NAME", "wavy-hare")
    tracked_run.upsert(load_params())
    assert (parent / "mlflow.db").exists()
    assert not (project / "mlflow.db").exists()
    (run,) = runs(load_params())
    assert run.info.run_name == "wavy-hare"
    assert run.info.artifact_uri.startswith((parent / "mlartifacts").as_uri())
    assert json.loads(
        next((parent / "mlartifacts").rglob("eval.json")).read_text(encoding="utf-8")
    )["accuracy"]


NAMES = (
    *("with space", "r%20s", "r%2Fs", "r?s", "r#s", "100%", "ü猫", "a'b", 'a"b', "a&b=c"),
    *("[x]", "a:b"),
)


def forget_places() -> None:
    """Empty MLflow's memory of the runs' folders, as a new process would."""
    _artifact_repos_cache.clear()


def test_a_project_that_moves_takes_its_runs_along(
    project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From one awkward folder to the next: one run, one model, and files in one place only."""
    params, parent, models = load_params(), tmp_path_factory.mktemp("places"), set()
    here = project
    for name in NAMES:
        here = here.rename(parent / name)
        monkeypatch.chdir(here)
        forget_places()
        tracked_run.upsert(params)
        (only,) = runs(params)
        assert only.info.artifact_uri.startswith((here / "mlartifacts").as_uri())
        assert list((here / "mlartifacts").rglob("eval.json"))
        assert (here / "mlflow.db").is_file()
        assert [path.name for path in parent.iterdir()] == [name]  # nothing was left elsewhere
        models.add(tracked_model.logged_model(params).model_id)
    assert len(models) == 1


def test_a_copy_of_a_project_leaves_the_original_alone(
    project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = load_params()
    tracked_run.upsert(params)
    before = served.checksums(project / "mlartifacts")
    copy = shutil.copytree(project, tmp_path_factory.mktemp("copy") / "project")
    monkeypatch.chdir(copy)
    forget_places()
    scores = {"accuracy": 0.1, "n_test": 3}
    write_json(paths.METRICS / "eval.json", scores)
    tracked_run.upsert(params)
    assert served.checksums(project / "mlartifacts") == before
    assert '"accuracy": 0.1' in next((copy / "mlartifacts").rglob("eval.json")).read_text()


def test_experiments_of_a_commit_have_one_parent(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = (("a", "wavy-hare"), ("a", "bold-fox"), ("b", "x"), ("a", "third"))
    for rate, (baseline, name) in enumerate(started, start=1):
        monkeypatch.setenv("DVC_EXP_BASELINE_REV", baseline * 40)
        monkeypatch.setenv("DVC_EXP_NAME", name)
        set_params(project, {**SMALL, "train.lr": rate / 10})
        tracked_run.upsert(load_params())
    named = {run.info.run_name: run for run in runs(load_params())}
    # An experiment that is alone has no parent: it would be hidden under a run without metrics.
    assert set(named) == {"wavy-hare", "bold-fox", "third", "x", "from aaaaaaa"}
    parent = named["from aaaaaaa"].info
    assert parent.status == "FINISHED"
    assert {name: run.data.tags.get("mlflow.parentRunId") for name, run in named.items()} == {
        **dict.fromkeys(("wavy-hare", "bold-fox", "third"), parent.run_id),
        **dict.fromkeys(("x", "from aaaaaaa")),
    }


def test_a_description_has_the_results_and_how_to_reproduce_them(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "a" * 40)
    monkeypatch.setenv("DVC_EXP_NAME", "wavy-hare")
    tracked_run.upsert(load_params())
    (run,) = (run for run in runs(load_params()) if run.info.run_name == "wavy-hare")
    note = run.data.tags["mlflow.note.content"]
    for words in (
        "**70.00%** of 3 test images (your own images in idx)",
        "75.00% on validation",
        "1,234 parameters",
    ):
        assert words in note
    assert "`git checkout aaaaaaaaaaaa`" in note
    assert "`dvc exp apply wavy-hare`" in note


@pytest.mark.parametrize("seconds", [0, 0.05])
def test_the_machine_is_measured_while_training_if_asked_for(project: Path, seconds: float) -> None:
    set_params(project, {**SMALL, "tracking.system_metrics": seconds})
    params = load_params()

    def measured() -> set[str]:
        return {
            name for run in runs(params) for name in run.data.metrics if name.startswith("system/")
        }

    with live_run(params) as log_point:
        log_point(POINTS[0])
        deadline = time.monotonic() + (60 if seconds else 1)
        while not measured() and time.monotonic() < deadline:
            time.sleep(0.1)
    wanted = {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"}
    assert measured() >= wanted if seconds else not measured()


def test_training_goes_on_where_the_machine_cannot_be_measured(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("mlflow.system_metrics.system_metrics_monitor.CPUMonitor", lambda: 1 / 0)
    params = load_params()
    with live_run(params) as log_point:
        log_point(POINTS[0])
    assert "no system metrics: division by zero" in caplog.text
    (run,) = runs(params)
    assert run.info.status == "FINISHED"
    assert curve(params, run.info.run_id, "lr") == [(1, 0.1)]


def test_metrics_and_pictures_of_series_are_not_logged(project: Path) -> None:
    (paths.PLOTS / "seeds.png").write_bytes(b"of another data set")
    tracked_run.upsert(load_params())
    (run,) = runs(load_params())
    assert not [name for name in run.data.metrics if name.startswith("study/")]
    figures = {name for name in artifact_names(load_params(), run.info.run_id) if "png" in name}
    assert figures == {"figures/predictions.png"}


def test_mlflow_sorts_curves_first_and_timings_last_in_few_sections(project: Path) -> None:
    for name in tracked_run.RESULTS:
        shutil.copy(ROOT / f"metrics/{name}.json", paths.METRICS)
    tracked_run.upsert(load_params())
    (run,) = runs(load_params())
    sections = list(dict.fromkeys(name.rpartition("/")[0] for name in sorted(run.data.metrics)))
    # The page sorts metrics and makes a section of those with the same text before the last slash.
    firsts = list(dict.fromkeys(section.split("/")[0] for section in sections))
    assert firsts == ["curve", "eval", "train", "wall_clock"]
    assert len(sections) <= 14
    assert run.data.metrics["eval/per_class/9.f1"] > 0.9
    metrics = {f"metrics.`{name}`" for name in run.data.metrics}
    params = {f"params.`{name}`" for name in run.data.params}
    assert set(tracking.COLUMNS) <= metrics | params


def test_the_ui_opens_the_runs_with_the_main_columns(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    client, _ = tracking.connect(load_params())
    # A database of an older version lacks the tags.
    client.delete_experiment_tag("1", "mlflow.experimentKind")
    started: list[list[str]] = []
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", "another")
    monkeypatch.setattr(track.os, "execvp", lambda name, words: started.append(words))
    monkeypatch.setattr("sys.argv", ["track", "--serve", "5077"])
    track.main()
    (words,) = started
    assert words[:4] == ["mlflow", "ui", "--workers", "1"]
    assert words[-2:] == ["--port", "5077"]
    assert os.environ["MLFLOW_BACKEND_STORE_URI"] == tracking.tracking_uri()
    link = urlsplit(capsys.readouterr().out.split()[-1])
    assert link.netloc == "127.0.0.1:5077"
    route, _, query = link.fragment.partition("?")
    experiment = client.get_experiment(route.split("/")[2])
    assert (experiment.name, route.split("/")[3]) == ("mnist-mamba", "runs")
    asked = dict(parse_qsl(query))
    assert asked["workflowType"] == "machine_learning"
    view = json.loads(experiment.tags[f"mlflow.sharedViewState.{asked['viewStateShareKey']}"])
    assert view == {"selectedColumns": list(tracking.COLUMNS)}
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_the_ui_of_a_server_only_prints_the_link(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@mlflow.example/")
    monkeypatch.setattr(tracking, "connect", lambda params: (None, "7"))
    monkeypatch.setattr("sys.argv", ["track", "--serve"])
    track.main()
    assert "https://mlflow.example/#/experiments/7/runs?" in capsys.readouterr().out
