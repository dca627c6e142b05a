"""A search: its space, its trials whatever becomes of their trainings, and what it prints."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.common.params import ParamsError, load_params
from pipeline.series import trainings as series
from pipeline.series.space import load_space
from tests.pipeline.imports import ROOT
from tests.pipeline.project import SMALL, copy_project, run_module, set_params, start_module

optuna = pytest.importorskip("optuna", reason="optuna is not installed; `make setup` does so")

from optuna.trial import TrialState  # noqa: E402

from pipeline import search as command  # noqa: E402
from pipeline.series import trials  # noqa: E402

PARAMS = load_params(ROOT / "params.yaml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "",
            "got None, expected dotted keys with their values, e.g. train.lr: {log: [1e-3, 1e-2]}",
        ),
        ("[train.lr]", "got ['train.lr'], expected dotted keys"),
        ("data.val_fraction: {float: [0.1, 0.2]}", "expected a key of model or train"),
        ("train.rate: {float: [0.1, 0.2]}", "train.rate: unknown key"),
        ("train.lr: {log: [0, 1e-2]}", "got [0.0, 0.01], expected bounds above 0"),
        ("train.lr: {log: [1e-2, 1e-3]}", "got [0.01, 0.001], expected the smaller bound first"),
        ("train.lr: {float: [1e-2]}", "train.lr: float: "),
        (
            "train.lr: {float: [0.1, 0.2], log: [0.1, 0.2]}",
            "got 2 kinds of values, expected one of",
        ),
        ("train.lr: {}", "got 0 kinds of values, expected one of float, log, int, choice"),
        ("train.lr: {uniform: [0.1, 0.2]}", "train.lr: uniform: unknown key"),
        ("train.lr: [0.1, 0.2]", "train.lr: got [0.1, 0.2]"),
        ("train.lr: {float: [-1, 0.2]}", "train.lr = -1"),
        ("model.d_state: {int: [1.5, 3]}", "model.d_state: int"),
        ("model.d_state: {float: [2, 8]}", "model.d_state"),
        ("train.optimizer: {choice: [adamw, sgd]}", "'sgd'"),
        ("train.optimizer: {choice: [adamw, adamw]}", "expected different values"),
        ("train.on_val: {choice: [true, false]}", "leaves no validation images"),
        ("train.lr: {log: [1e-3, 1e-2}", "is not valid YAML"),
    ],
)
def test_a_wrong_space_is_refused(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ParamsError) as error:
        load_space(file, PARAMS)
    assert str(error.value).startswith(str(file))
    assert words in str(error.value)


def test_a_wrong_option_is_refused_before_anything_runs(tmp_path: Path) -> None:
    folder = copy_project(tmp_path / "project")
    (folder / "space.yaml").write_text("train.lr: {log: [1e-3, 1e-2]}", encoding="utf-8")
    for words, said in (
        (["space.yaml", "--trials", "0"], "--trials: got '0', expected a whole number of at least"),
        (["space.yaml", "--jobs", "x"], "--jobs: got 'x'"),
        (["other.yaml"], "other.yaml not found"),
        (["space.yaml", "--set", "train.on_val=true", "--set", "export.checkpoint=last"], "on_val"),
        (["space.yaml"], "info.json not found: run `python -m pipeline.prepare` first"),
    ):
        done = run_module(folder, "pipeline.search", *words)
        assert done.returncode in (1, 2), done.stderr
        assert said in done.stderr


def test_dvc_reads_the_printed_command_as_it_is_meant(tmp_path: Path) -> None:
    from dvc.utils.hydra import apply_overrides

    changes = {
        "train.lr": 0.0031234567890123456,
        "train.weight_decay": 1e-05,
        "train.optimizer": "muon",
        "train.beta2": 0.99,
        "model.patch": [2, 2],
        "model.other_members": [{"d_model": 48, "direction": "alternate"}],
        "model.local_conv": False,
        "data.resize": None,
    }
    words = shlex.split(command.experiment_command(changes))
    assert words[:3] == ["dvc", "exp", "run"]
    assert words[3::2] == ["-S"] * len(changes)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    apply_overrides(tmp_path / "params.yaml", words[4::2])
    assert load_params(tmp_path / "params.yaml") == PARAMS.changed(changes, "test")


TRAINING = """
import json, os, sys, time
folder, lr = sys.argv[1], float(sys.argv[2])
if lr == 0.5:
    sys.exit("error: the loss is nan")
points = []
for epoch in (1, 2, 3):
    if lr == 0.4 and not os.path.exists(f"{folder}/curves.json"):
        epoch = 0
    if epoch:
        points.append({"epoch": epoch, "val_loss": lr + 1 / epoch})
        with open(f"{folder}/new.json", "w") as file:
            json.dump(points, file)
        os.replace(f"{folder}/new.json", f"{folder}/curves.json")
        while os.path.exists("hold") and epoch == 1:
            time.sleep(0.01)
    else:
        os.kill(os.getpid(), 9)
with open(f"{folder}/last.pth", "w") as file:
    pass
with open(f"{folder}/metrics.json", "w") as file:
    json.dump({"epochs": 3, "val": {"loss": points[-1]["val_loss"]}}, file)
"""
"""Stands for a training of 3 epochs whose losses are given by the learning rate.

0.5 fails; 0.4 is killed if it is the first attempt; others wait after the first epoch while the
file `hold` exists.
"""


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., trials.Search]:
    """Return a function that makes a search of given learning rates, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trials, "POLL_S", 0.01)
    monkeypatch.setattr(series, "training_key", lambda params: f"{params.train.lr:<8}")

    def words(training: series.Training) -> list[str]:
        lr = str(training.params.train.lr)
        return [sys.executable, "-S", "-c", TRAINING, str(training.folder), lr]

    monkeypatch.setattr(series, "words", words)
    Path("space.yaml").write_text("train.lr: {log: [1e-3, 1]}", encoding="utf-8")
    params = PARAMS.changed({"train.epochs": 3}, "test")
    space = load_space(Path("space.yaml"), params)
    study = optuna.create_study(pruner=optuna.pruners.MedianPruner(n_startup_trials=1))
    Path("runs/search/test").mkdir(parents=True)

    def made(*rates: float, stop: Callable[[], bool] = lambda: False) -> trials.Search:
        for lr in rates:
            study.enqueue_trial({"train.lr": lr})
        n = len(study.trials)
        return trials.Search("test", study, space, params, {"train.epochs": 3}, n, stop)

    return made


def states(search: trials.Search) -> list[str]:
    return [trial.state.name for trial in search.study.trials]


def test_a_trial_is_complete_or_pruned_or_failed(
    make: Callable[..., trials.Search],
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level("INFO")
    search = make(0.01, 0.5, 0.01)
    search.run(jobs=1)
    assert states(search) == ["COMPLETE", "FAIL", "COMPLETE"]
    assert "trial 1: error: the loss is nan (train.lr=0.5)" in caplog.text
    assert "trial 2: validation loss 0.3433, as of an equal trial" in caplog.text
    assert not list(Path("runs/search/test").glob("0002-*"))
    Path("hold").touch()  # a pruned training is stopped after its first epoch
    search = make(0.02)
    search.run(jobs=1)
    Path("hold").unlink()
    assert states(search)[3:] == ["PRUNED"]
    assert search.study.trials[3].intermediate_values == {1: 1.02}
    search = make(0.005)
    search.run(jobs=1)
    assert search.study.trials[4].intermediate_values == {1: 1.005, 2: 0.505, 3: 0.005 + 1 / 3}
    assert search.study.best_trial.number == 4
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    command.show(search)
    assert capsys.readouterr().out == "dvc exp run -S train.epochs=3 -S train.lr=0.005\n"
    assert "5 trials (3 complete, 1 pruned, 1 fail)" in caplog.text


def test_a_search_of_failed_trials_alone_is_an_error(make: Callable[..., trials.Search]) -> None:
    search = make(0.5)
    search.run(jobs=1)
    with pytest.raises(RuntimeError, match="no trial is complete"):
        command.show(search)


def test_a_stopped_search_goes_on_with_its_trials(
    make: Callable[..., trials.Search], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    Path("hold").touch()

    def both_have_begun() -> bool:
        return len(list(Path("runs").rglob("curves.json"))) == 2

    search = make(0.01, 0.02, stop=both_have_begun)
    search.run(jobs=2)
    assert states(search) == ["RUNNING", "RUNNING"]
    Path("hold").unlink()
    search = make()
    search.run(jobs=2)
    assert states(search)[0] == "COMPLETE"
    assert TrialState.RUNNING not in {trial.state for trial in search.study.trials}
    assert len(search.study.trials) == 2
    assert "trial 0 goes on" in caplog.text
    assert list(search.study.trials[0].intermediate_values) == [1, 2, 3]


def test_a_killed_training_stops_the_search_which_can_go_on(
    make: Callable[..., trials.Search],
) -> None:
    search = make(0.4, 0.01)
    with pytest.raises(RuntimeError, match=r"0000: the training ended with code -9"):
        search.run(jobs=1)
    assert states(search) == ["RUNNING", "WAITING"]
    (folder,) = Path("runs/search/test").glob("0000-*")
    (folder / "curves.json").write_text("[]", encoding="utf-8")  # the first attempt is over
    search = make()
    search.run(jobs=1)
    assert states(search) == ["COMPLETE", "COMPLETE"]


def test_a_trial_of_another_process_is_left_alone_until_its_end(
    make: Callable[..., trials.Search],
) -> None:
    search = make(0.01)
    trial = search.study.ask(search._distributions)
    lock = trials.try_lock(Path("runs/search/test/0000.lock"))
    assert lock is not None
    assert trials.try_lock(Path("runs/search/test/0000.lock")) is None
    other = threading.Thread(target=search.run, args=(1,))
    other.start()
    time.sleep(0.3)
    assert other.is_alive()
    assert not list(Path("runs/search/test").glob("0000-*"))
    lock.close()  # as if that process had been killed
    other.join()
    assert search.study.trials[trial.number].state == TrialState.COMPLETE


def test_a_trial_of_another_machine_is_not_waited_for(
    make: Callable[..., trials.Search], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    search = make(0.01, 0.02)
    search.study.ask(search._distributions)
    search.run(jobs=1)
    assert states(search) == ["RUNNING", "COMPLETE"]
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    command.show(search)
    assert "not finished: 0. The same command" in caplog.text


def test_a_study_is_named_by_all_that_its_trials_depend_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copy_project(tmp_path / "project"))
    prepared = Path("data/prepared")
    prepared.mkdir()
    for name in ("train-images", "train-labels", "val-images", "val-labels"):
        (prepared / f"{name}.idx").write_bytes(b"data")
    (prepared / "info.json").write_text("{}")
    space = tmp_path / "my space.yaml"

    def name(text: str, **changes: Any) -> str:
        space.write_text(text, encoding="utf-8")
        params = load_params().changed(changes, "test") if changes else load_params()
        return command.study_name(space, load_space(space, params), params)

    wide, narrow = "train.lr: {log: [1e-3, 1e-1]}", "train.lr: {log: [1e-3, 1e-2]}"
    first = name(wide)
    assert re.fullmatch(r"my-space-[0-9a-f]{8}", first)
    assert name(wide, **{"train.lr": 0.003}) == first  # it is searched
    others = [name(narrow), name(wide, **{"train.epochs": 9}), first]
    (prepared / "val-labels.idx").write_bytes(b"other")
    assert len({name(wide), *others}) == 4


def test_a_database_that_cannot_be_used_is_one_line_without_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    Path("space.yaml").write_text("train.lr: {log: [1e-3, 1e-2]}", encoding="utf-8")
    monkeypatch.setattr(command, "study_name", lambda *_: "name")
    monkeypatch.setattr(command, "read_info", dict)
    for url in ("sqlite:////nowhere/x.db", "nonsense", "nodb://me:secret@host/x"):
        monkeypatch.setattr(sys, "argv", ["search", "space.yaml", "--storage", url])
        with pytest.raises(RuntimeError) as error:
            command.main()
        assert "secret" not in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_killed_search_goes_on_and_its_best_trial_is_reproduced(tmp_path: Path) -> None:
    """With real trainings; the tracking server dies in between."""
    from dvc.utils.hydra import apply_overrides

    small = {**SMALL, "train.epochs": 12, "train.save_every": 3, "tracking.system_metrics": 0}
    folder = copy_project(tmp_path / "project", small)
    for stage in ("download", "prepare"):
        assert run_module(folder, f"pipeline.{stage}").returncode == 0
    (folder / "space.yaml").write_text(
        "train.lr: {log: [5e-3, 5e-2]}\ntrain.beta2: {choice: [0.99, 0.999]}\n", encoding="utf-8"
    )
    words = ["space.yaml", "--trials", "2", "--jobs", "1", "--pruner", "none"]
    process = start_module(folder, "pipeline.search", *words)
    while not list(folder.glob("runs/search/*/*/training_state.pth")):
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)  # not its training, which ends by itself
    assert process.wait() == -signal.SIGKILL
    dead = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    done = run_module(folder, "pipeline.search", *words, **dead)
    assert done.returncode == 0, done.stderr
    assert "trial 0 goes on" in done.stderr
    assert "2 trials (2 complete)" in done.stderr
    (log,) = folder.glob("runs/search/*/0000-*/log.txt")
    assert "resuming in epoch" in log.read_text(encoding="utf-8")
    with sqlite3.connect(folder / "mlflow.db") as database:
        query = "select value from tags where key = 'mlflow.parentRunId'"
        assert len(database.execute(query).fetchall()) == 1  # before the server died
    found = re.search(r"validation loss ([\d.e-]+)\. To reproduce", done.stderr)
    assert found is not None
    # With enough trials, the same command only prints the best.
    assert run_module(folder, "pipeline.search", *words).stdout == done.stdout
    chosen = shlex.split(done.stdout)
    assert chosen[:3] == ["dvc", "exp", "run"]
    set_params(folder, small)
    apply_overrides(folder / "params.yaml", chosen[4::2])
    assert run_module(folder, "pipeline.train").returncode == 0
    loss = json.loads((folder / "metrics/train.json").read_text(encoding="utf-8"))["val"]["loss"]
    with sqlite3.connect(folder / "runs/search/studies.db") as database:
        losses = [value for (value,) in database.execute("select value from trial_values")]
    assert loss == min(losses)
    assert f"{loss:.6g}" == found[1]
