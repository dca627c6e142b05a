"""Trainings from the command line: interrupted, resumed, distributed, failed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.train
from mnist_mamba.atomic_write import _prefix
from mnist_mamba.model import MambaClassifier
from mnist_mamba.training.checkpoint import load_checkpoint
from mnist_mamba.training.distributed import Processes
from mnist_mamba.training.epoch import EpochReport, EpochSeconds, TrainingState
from mnist_mamba.training.loop import TrainingError
from mnist_mamba.training.resume import SavedTraining, parse_training, save_training
from pipeline.common import stop
from pipeline.common.content_key import training_key
from pipeline.common.params import load_params
from pipeline.common.stop import StopRequest
from pipeline.common.training_files import TrainingFiles
from pipeline.train import choose_device, set_threads, warn_of_gap, write_epochs
from tests.models import ARCHITECTURES
from tests.pipeline.fork_server import Fork
from tests.pipeline.project import (
    SMALL,
    copy_project,
    run_module,
    run_torchrun,
    set_params,
    start,
    start_module,
)

LONG = {
    **SMALL,
    "model.n_layers": 1,
    "train.batch_size": 2,
    "train.min_steps": 1,
    "train.lr": 0.005,
    "train.epochs": 4,
    "train.save_every": 7,
}
"""80 steps per epoch, so that a training can be killed in the middle of one."""
UNTRACKED = {**LONG, "tracking.enabled": False}
RESULTS = (
    "checkpoints/last.pth",
    "checkpoints/best_model.pth",
    "plots/curves.json",
    "metrics/train.json",
)
TRAIN = [sys.executable, "-m", "pipeline.train"]
STATE = Path("checkpoints/training_state.pth")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with prepared data."""
    folder = copy_project(tmp_path_factory.mktemp("prepared"), UNTRACKED)
    for stage in ("download", "prepare"):
        done = run_module(folder, f"pipeline.{stage}")
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def project(prepared: Path, tmp_path: Path) -> Path:
    """A fresh copy of the project."""
    return shutil.copytree(prepared, tmp_path / "project")


@pytest.fixture(scope="module")
def uninterrupted(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a completed training."""
    folder = shutil.copytree(prepared, tmp_path_factory.mktemp("whole") / "project")
    train(folder)
    return folder


def train(folder: Path, *arguments: str) -> str:
    """Train and return the log."""
    done = run_module(folder, "pipeline.train", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stderr


def saved_state(folder: Path) -> TrainingState | None:
    file = folder / STATE
    return parse_training(file.read_bytes(), file).state if file.is_file() else None


def kill_in_the_middle(folder: Path, process: Fork | subprocess.Popen[bytes]) -> TrainingState:
    """Kill a training in the middle of its second or a later epoch; return its last state.

    The signal goes to all processes of the group, as if the machine lost power.
    """
    for _ in range(6000):
        time.sleep(0.01)
        assert process.poll() is None, "the training ended before it could be killed"
        if not in_the_middle(saved_state(folder)):
            continue
        # The training continues while this process looks, so it is stopped first.
        os.killpg(process.pid, signal.SIGSTOP)
        time.sleep(0.05)
        if in_the_middle(saved_state(folder)):
            break
        os.killpg(process.pid, signal.SIGCONT)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    state = saved_state(folder)
    assert state is not None
    assert in_the_middle(state)
    return state


def in_the_middle(state: TrainingState | None) -> bool:
    return state is not None and state.epoch >= 2 and state.steps > 0


def check_that_files_are_whole(folder: Path) -> None:
    """Check that each file that a later run reads is complete."""
    for name in ("last", "best_model"):
        load_checkpoint(folder / f"checkpoints/{name}.pth")
    for name in ("plots/curves.json", "metrics/train.json"):
        json.loads((folder / name).read_text(encoding="utf-8"))
    others = {path.name for path in (folder / "checkpoints").iterdir()}
    others -= {"last.pth", "best_model.pth", STATE.name}
    assert all(name.startswith(".") and name.endswith(".tmp") for name in others)


def remove_outputs(folder: Path) -> None:
    """Delete the outputs, as DVC does before it runs a stage again."""
    for name in RESULTS:
        (folder / name).unlink()


@pytest.mark.slow
def test_killed_and_resumed_training_leaves_the_same_bytes(
    project: Path, uninterrupted: Path
) -> None:
    set_params(project, LONG)  # with MLflow
    state = kill_in_the_middle(project, start_module(project, "pipeline.train", "--resume"))
    check_that_files_are_whole(project)
    last = project / "checkpoints/last.pth"
    last.with_name(f"{_prefix(last)}a1b2c3d4.tmp").write_bytes(b"half a checkp")
    remove_outputs(project)
    assert f"resuming in epoch {state.epoch} after step {state.steps}" in train(project, "--resume")
    for name in RESULTS:
        assert (project / name).read_bytes() == (uninterrupted / name).read_bytes(), name
    kept = {path.name for path in (project / "checkpoints").iterdir()}
    assert kept == {"last.pth", "best_model.pth"}
    check_that_mlflow_has_the_curve_once(project)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_the_state_and_says_how_to_go_on(
    number: signal.Signals, project: Path, uninterrupted: Path
) -> None:
    """In the first epoch, in whose first steps no state has been saved yet."""
    log_file = project / "log"
    process = start_module(project, "pipeline.train", stderr="log")
    while "parameters" not in (log_file.read_text() if log_file.is_file() else ""):
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.2)
    os.kill(process.pid, number)
    assert process.wait() == 128 + number
    log = log_file.read_text()
    assert f"{number.name}: stopping after this step" in log
    found = re.search(r"stopped after step \d+ of 80 of epoch 1, saved as (\S+)\.", log)
    assert found is not None, log
    assert Path(found[1]) == STATE
    assert "To continue: python -m pipeline.train --resume\n" in log
    assert "resuming in epoch 1" in train(project, "--resume")
    for name in RESULTS:
        assert (project / name).read_bytes() == (uninterrupted / name).read_bytes(), name


@pytest.mark.slow
def test_a_training_ends_with_the_dvc_that_started_it(project: Path) -> None:
    code = "import subprocess, sys, time; subprocess.Popen(sys.argv[1:]); time.sleep(600)"
    set_params(project, {**UNTRACKED, "train.save_every": 0})
    parent = start(project, [sys.executable, "-c", code, *TRAIN], DVC_STAGE="train")
    while saved_state(project) is None:
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    seen: list[bytes] = []
    while len(seen) < 2 or seen[-1] != seen[-2]:
        time.sleep(2)
        seen.append((project / STATE).read_bytes())  # a completed training would have removed it
    state = saved_state(project)
    assert state is not None
    assert state.steps > 0  # saved on request, not at the end of an epoch


@pytest.fixture
def stop_request(monkeypatch: pytest.MonkeyPatch) -> Iterator[StopRequest]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the shell may ignore it
    monkeypatch.delenv("DVC_STAGE", raising=False)
    yield StopRequest()
    for number, handler in before.items():
        signal.signal(number, handler)


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_asks_for_a_stop_and_a_second_one_ends_at_once(
    number: signal.Signals, stop_request: StopRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not stop_request()
    signal.raise_signal(number)
    signal.raise_signal(number)  # torchrun passes the terminal's Ctrl-C on
    assert stop_request()
    assert stop_request.exit_code == 128 + number
    if number == signal.SIGINT:
        now = time.monotonic()
        monkeypatch.setattr(stop.time, "monotonic", lambda: now + 5)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    others = {number: signal.getsignal(number) for number in SIGNALS[:2]}
    try:
        request = StopRequest()
        signal.raise_signal(signal.SIGHUP)
        assert not request()
    finally:
        for number, handler in {**others, signal.SIGHUP: before}.items():
            signal.signal(number, handler)


@pytest.mark.parametrize(
    ("environment", "words", "expected"),
    [
        ({}, ["--epochs", "2"], "python -m pipeline.train --epochs 2 --resume"),
        ({}, ["--resume", "--set", "a=b c"], "python -m pipeline.train --resume --set 'a=b c'"),
        ({"DVC_STAGE": "train"}, ["--resume"], "the same dvc command"),
        ({"TORCHELASTIC_RUN_ID": "none"}, [], "torchrun as before, with --resume"),
    ],
)
def test_the_command_that_goes_on_has_the_same_options(
    environment: dict[str, str],
    words: list[str],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("DVC_STAGE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    assert stop.command_to_continue().startswith(expected)


@pytest.mark.parametrize(
    ("trained", "validated", "warned"),
    [(0.99, 0.93, True), (0.99, 0.95, False), (0.93, 0.99, False), (0.99, None, False)],
)
def test_a_validation_far_below_training_is_remarked(
    trained: float, validated: float | None, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_gap({"train_accuracy": trained, "val_accuracy": validated})
    assert ("far below" in caplog.text) == warned


def curves(folder: Path) -> list[dict[str, float]]:
    points: list[dict[str, float]] = json.loads(
        (folder / "plots/curves.json").read_text(encoding="utf-8")
    )
    return points


def check_that_mlflow_has_the_curve_once(folder: Path) -> None:
    with sqlite3.connect(folder / "mlflow.db") as database:
        query = "select step, value from metrics where key = 'curve/train_loss' order by step"
        tracked = database.execute(query).fetchall()
        assert database.execute("select status from runs").fetchall() == [("FINISHED",)]
    assert tracked == [(point["epoch"], point["train_loss"]) for point in curves(folder)]


def check_curves_to_rounding(folder: Path, single: Path) -> None:
    """Compare up to the order of fp32 sums, whose noise of 6e-8 grows a little in 320 steps."""
    points = curves(folder)
    assert [point["epoch"] for point in points] == [1, 2, 3, 4]
    for one, two in zip(curves(single), points, strict=True):
        assert two == pytest.approx(one, rel=1e-5)


@pytest.mark.slow
def test_two_processes_leave_what_one_does_and_leave_it_once(
    project: Path, uninterrupted: Path
) -> None:
    set_params(project, {**LONG, "train.threads": 0})
    done = run_torchrun(project, 2, "pipeline.train", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    assert f"on cpu, {threads} threads, 2 process(es)" in done.stderr
    assert done.stderr.count("epoch 1/4") == done.stderr.count("scan cpu on cpu") == 1
    check_curves_to_rounding(project, uninterrupted)
    check_that_mlflow_has_the_curve_once(project)
    kept = {path.name for path in (project / "checkpoints").iterdir()}
    assert kept == {"last.pth", "best_model.pth"}
    a, b = (load_checkpoint(folder / RESULTS[0]).model for folder in (project, uninterrupted))
    difference = max(float((v - b.state_dict()[k]).abs().max()) for k, v in a.state_dict().items())
    # tests/library/test_distributed.py says why weights differ more than the loss.
    assert difference < 1e-4


@pytest.mark.slow
def test_two_processes_resume_what_one_has_saved(project: Path, uninterrupted: Path) -> None:
    state = kill_in_the_middle(project, start_module(project, "pipeline.train"))
    done = run_torchrun(project, 2, "pipeline.train", "--resume")
    assert done.returncode == 0, done.stderr
    where = f"resuming in epoch {state.epoch} after step {state.steps}"
    assert done.stderr.count(where) == 1
    check_curves_to_rounding(project, uninterrupted)
    before = state.epoch - 1
    assert curves(project)[:before] == curves(uninterrupted)[:before]


@pytest.mark.slow
def test_an_error_of_several_processes_says_whose_it_is(project: Path) -> None:
    (project / "checkpoints").mkdir()
    (project / STATE).write_bytes(b"no state")
    done = run_torchrun(project, 2, "pipeline.train", "--resume")
    assert done.returncode != 0
    assert f"error: process 0: {STATE} begins with" in done.stderr


def start_hosts(*hosts: tuple[Path, list[str]]) -> list[subprocess.Popen[bytes]]:
    """Start `pipeline.train` with arguments in a project for each host, without torchrun.

    torchrun would end the processes that this test wants to see end by themselves. Their stderr is
    the file log0, log1, ... of the first project.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(len(hosts)),
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "TORCHELASTIC_RUN_ID": "test",
    }
    return [
        start(folder, [*TRAIN, *words], stderr=hosts[0][0] / f"log{i}", RANK=str(i), **shared)
        for i, (folder, words) in enumerate(hosts)
    ]


@pytest.mark.slow
def test_processes_refuse_to_train_different_things(project: Path, tmp_path: Path) -> None:
    other = shutil.copytree(project, tmp_path / "other")
    for name in ("data/prepared/val-labels.idx", "src/mnist_mamba/model/mixer.py"):
        (other / name).write_bytes((other / name).read_bytes() + b"\n")
    hosts = start_hosts((project, []), (other, ["--learning-rate", "0.5", "--resume"]))
    assert [host.wait() for host in hosts] == [1, 1]
    for i in range(2):
        error = (project / f"log{i}").read_text(encoding="utf-8").strip().splitlines()[-1]
        assert error.startswith(f"error: process {i}: the processes differ in what they train: ")
        name = f"process 1 on {socket.gethostname()}"
        assert f"train.lr is 0.5 in {name}, 0.005 in process 0" in error
        assert f"--resume is True in {name}, False in process 0" in error
        for file in ("data/prepared/val-labels.idx", "src/mnist_mamba/model/mixer.py"):
            assert f"the MD5 of {file} is '" in error
    assert not (project / STATE).exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "victim"), [(signal.SIGKILL, 0), (signal.SIGKILL, 1), (signal.SIGSTOP, 1)]
)
def test_a_lost_process_ends_the_others_and_the_training_can_go_on(
    number: signal.Signals, victim: int, project: Path, uninterrupted: Path
) -> None:
    """A stopped process is like one whose link is lost."""
    file = project / "src/mnist_mamba/training/distributed.py"
    text = file.read_text(encoding="utf-8")
    assert text.count("STEP_WAIT = dt.timedelta(seconds=40)") == 1
    file.write_text(text.replace("seconds=40", "seconds=3"), encoding="utf-8")
    hosts = start_hosts((project, []), (project, []))
    while not in_the_middle(saved_state(project)):
        assert [host.poll() for host in hosts] == [None, None]
        time.sleep(0.01)
    hosts[victim].send_signal(number)
    started = time.monotonic()
    assert hosts[1 - victim].wait(60) == 1
    assert time.monotonic() - started < 30
    hosts[victim].kill()
    log = (project / f"log{1 - victim}").read_text(encoding="utf-8")
    error = log.strip().splitlines()[-1]
    assert error.startswith(f"error: process {1 - victim}: another process of this training has en")
    assert error.endswith(
        "to continue from the last saved state: torchrun as before, with --resume"
    )
    state = saved_state(project)
    assert state is not None
    assert f"resuming in epoch {state.epoch} after step" in train(project, "--resume")
    check_curves_to_rounding(project, uninterrupted)


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        ([], None),
        (["--set", "train.seed=0", "--epochs", "1", "--save-dir", "checkpoints"], None),
        (["--save-dir", "PROJECT/checkpoints"], None),
        (["--set", "train.seed=1"], "checkpoints"),
        (["--save-dir", "mine"], "mine"),
    ],
)
def test_only_a_training_with_the_params_own_values_is_the_pipeline_s(
    project: Path,
    empty_database: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    folder: str | None,
) -> None:
    """Others write next to their checkpoints and do not reach MLflow.

    Options with the values of params.yaml change nothing.
    """
    set_params(project, {**SMALL, "train.epochs": 1, "tracking.system_metrics": 0})
    shutil.copy(empty_database, project / "mlflow.db")
    monkeypatch.chdir(project)
    monkeypatch.setattr(
        sys, "argv", ["train", *(w.replace("PROJECT", str(project)) for w in words)]
    )
    for variable in ("DVC_ROOT", "MLFLOW_TRACKING_URI", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("pipeline.train.prepare_memory", lambda: None)  # this process goes on
    pipeline.train.main()
    with sqlite3.connect(project / "mlflow.db") as database:
        n_runs = database.execute("select count(*) from runs").fetchone()[0]
        points = database.execute("select key from metrics where step = 1").fetchall()
    assert (n_runs, ("curve/train_loss",) in points) == (folder is None, folder is None)
    results = {Path("metrics/train.json"), Path("plots/curves.json")}
    if folder is not None:
        results = {Path(folder) / name for name in ("metrics.json", "curves.json")}
    written = set(Path().rglob("*metrics.json")) | set(Path().rglob("curves.json"))
    written |= set(Path().rglob("train.json"))
    assert written == results
    assert Path(folder or "checkpoints", "best_model.pth").is_file()


EPOCHS = st.lists(
    st.tuples(st.sampled_from([0.5, 0.75]), st.sampled_from([1.0, 2.0])), min_size=1, max_size=5
)


@settings(max_examples=25, deadline=None)
@given(scores=EPOCHS, interrupted=st.integers(0, 4))
def test_the_best_checkpoint_is_the_first_of_the_most_accurate_with_the_lowest_loss(
    tmp_path_factory: pytest.TempPathFactory, scores: list[tuple[float, float]], interrupted: int
) -> None:
    """Also if the training was interrupted, and its checkpoints deleted, after any epoch."""
    folder = tmp_path_factory.mktemp("files")
    model = MambaClassifier(ARCHITECTURES["patch_tied"], scan="reference")
    files = TrainingFiles(folder, folder / "metrics.json", folder / "curves.json", "key", 7)
    files.start(None)
    for i, (accuracy, loss) in enumerate(scores):
        if i == interrupted:
            files.save_state(TrainingState(i + 1, 0, 0.0, 0, torch.zeros(1), {}))
            saved = parse_training(files.state.read_bytes(), files.state)
            for path in (files.last, files.best):
                path.unlink(missing_ok=True)
            files = TrainingFiles(folder, files.metrics, files.curves, "key", 7)
            files.start(saved)
            assert files.best.is_file() == (i > 0)
        losses = (0.1 * i, 0.01 * i)
        report = EpochReport(i + 1, 0.1, *losses, loss, accuracy, 9.0, EpochSeconds(), 0.0, model)
        files.write_epoch(report)
    best = sorted(range(len(scores)), key=lambda i: (-scores[i][0], scores[i][1], i))[0]
    checkpoint = load_checkpoint(files.best)
    assert (checkpoint.epoch, checkpoint.val_accuracy) == (best + 1, scores[best][0])
    last = load_checkpoint(files.last)
    assert (last.epoch, last.val_accuracy) == (len(scores), scores[-1][0])
    assert json.loads(files.metrics.read_text(encoding="utf-8")) == {
        "val": {
            "accuracy": scores[-1][0],
            "loss": scores[-1][1],
            "best_accuracy": scores[best][0],
            "best_epoch": best + 1,
        },
        "train": {"accuracy": 0.01 * i, "loss": 0.1 * i},
        "epochs": len(scores),
        "parameters": 7,
    }
    points = json.loads(files.curves.read_text(encoding="utf-8"))
    assert [(point["val_accuracy"], point["val_loss"]) for point in points] == scores
    files.finish()
    assert {path.name for path in folder.iterdir()} == {
        *("last.pth", "best_model.pth", "metrics.json", "curves.json")
    }


def test_a_training_from_the_beginning_removes_the_checkpoints_of_an_earlier_one(
    tmp_path: Path,
) -> None:
    for name in ("last.pth", "best_model.pth"):
        (tmp_path / name).write_bytes(b"of an earlier training")
    TrainingFiles(tmp_path, tmp_path / "m", tmp_path / "c", "key", 1).start(None)
    assert list(tmp_path.iterdir()) == []


def test_a_state_that_is_a_link_leaves_no_temporary_files_where_it_leads(tmp_path: Path) -> None:
    kept = tmp_path / "folder" / "state"
    kept.parent.mkdir()
    kept.write_bytes(b"")
    kept.with_name(f"{_prefix(kept)}a1b2c3d4.tmp").write_bytes(b"half a state")
    files = TrainingFiles(tmp_path, tmp_path / "m", tmp_path / "c", "key", 1)
    files.state.symlink_to(kept)
    files.finish()
    assert (list(tmp_path.iterdir()), list(kept.parent.iterdir())) == ([kept.parent], [kept])


def test_a_state_that_is_not_there_or_of_another_run(project: Path) -> None:
    words = ("--resume", "--epochs", "1", "--batch-size", "50")
    log = train(project, *words)
    assert f"{STATE} not found" in log
    assert not (project / STATE).exists()
    first = (project / "checkpoints/last.pth").read_bytes()
    state = TrainingState(1, 2, 9.0, 9, torch.Generator().get_state(), {})
    save_training(project / STATE, SavedTraining("another key", state, [], b""))
    log = train(project, *words)
    assert f"{STATE} belongs to another training" in log
    assert (project / "checkpoints/last.pth").read_bytes() == first
    assert not (project / STATE).exists()


def test_a_damaged_state_is_an_error_with_the_way_out(project: Path) -> None:
    (project / "checkpoints").mkdir()
    (project / STATE).write_bytes(b"no state")
    done = run_module(project, "pipeline.train", "--resume")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith(f"error: {STATE} begins with b'no sta")
    assert "delete it, or omit --resume" in done.stderr


def test_a_training_is_named_by_what_its_weights_come_from(
    prepared: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    key = training_key(load_params())
    set_params(project, {**UNTRACKED, "train.save_every": 3, "evaluate.ece_bins": 5})
    (project / "csrc/engine/forward.c").write_text("/* another engine */\n", encoding="utf-8")
    with (project / "pipeline/common/params.py").open("a", encoding="utf-8") as file:
        file.write("# a params section of another stage\n")
    assert training_key(load_params()) == key
    for setting in ({"train.lr": 0.5}, {"model.d_state": 5}, {"train.threads": 2}):
        set_params(project, {**UNTRACKED, **setting})
        assert training_key(load_params()) != key, setting
    set_params(project, UNTRACKED)
    cache = project / "src/mnist_mamba/model/__pycache__"
    cache.mkdir()
    (cache / "mixer.pyc").write_bytes(b"compiled")
    source = project / "csrc/scan/dispatch.c"
    assert training_key(load_params()) == key
    source.rename(source.with_name("other.c"))
    assert training_key(load_params()) != key
    source.with_name("other.c").rename(source)
    for name in ("data/prepared/val-labels.idx", "src/mnist_mamba/model/mixer.py"):
        data = (project / name).read_bytes()
        (project / name).write_bytes(data + b"\n")
        assert training_key(load_params()) != key, name
        (project / name).write_bytes(data)
    assert training_key(load_params()) == key


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without GPUs: torch's count of them is replaced."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    second = Processes(rank=1, size=2, local_rank=1, local_size=2)
    assert choose_device("auto", second) == choose_device("cuda", second) == "cuda:1"
    assert choose_device("cpu", second) == "cpu"
    assert choose_device("auto", Processes()) == "cuda"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=r"1 GPU\(s\) for 2 processes"):
        choose_device("auto", second)


def test_threads_are_shared_by_the_processes_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr("pipeline.train.usable_cores", lambda: 7)
    set_threads(0, Processes())  # keeps torch's choice
    set_threads(3, Processes())
    set_threads(0, Processes(size=4, local_size=2))
    set_threads(0, Processes(size=9, local_size=9))
    set_threads(2, Processes(size=4, local_size=4))
    assert chosen == [3, 3, 1, 2]


def test_divergence_says_where_and_what_is_still_good(project: Path) -> None:
    set_params(project, {**UNTRACKED, "train.lr": 1e30, "train.clip_norm": 0})
    done = run_module(project, "pipeline.train")
    assert done.returncode == 1
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith("error: the ")
    for words in (
        "(epoch 1), learning rate ",
        "try a lower train.lr",
        "Last good checkpoint: none",
    ):
        assert words in error


def test_divergence_later_names_the_last_checkpoint(tmp_path: Path) -> None:
    model = MambaClassifier(ARCHITECTURES["patch_tied"], scan="reference")
    report = EpochReport(1, 0.1, 2.0, 0.5, 1.5, 0.75, 100.0, EpochSeconds(), 0.0, model)

    def reports() -> Iterator[EpochReport]:
        yield report
        raise TrainingError("the loss is nan at step 7 (epoch 2)")

    def files() -> TrainingFiles:
        return TrainingFiles(
            tmp_path, tmp_path / "metrics.json", tmp_path / "curves.json", "key", 1
        )

    match = rf"at step 7 \(epoch 2\)\. Last good checkpoint: {tmp_path}/last\.pth"
    with pytest.raises(TrainingError, match=match):
        write_epochs(reports(), files(), None, lambda point: None, 2)
    best = (tmp_path / "best_model.pth").read_bytes()
    # After a resumption only the best checkpoint exists again.
    state = TrainingState(2, 0, 0.0, 0, torch.zeros(1), {})
    saved = SavedTraining("key", state, [report.curve_point()], best)
    for name in ("last.pth", "best_model.pth"):
        (tmp_path / name).unlink()

    def nothing() -> Iterator[EpochReport]:
        raise TrainingError("the loss is nan")
        yield

    with pytest.raises(TrainingError, match=r"checkpoint: .*/best_model\.pth"):
        write_epochs(nothing(), files(), saved, lambda point: None, 2)
    assert (tmp_path / "best_model.pth").read_bytes() == best
    assert load_checkpoint(tmp_path / "best_model.pth").epoch == 1
