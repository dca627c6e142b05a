"""DVC's experiments: sweeps, the queue, temp copies, and their runs in MLflow.

From an empty HOME, on the digits inside scikit-learn.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import sqlite3
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.pipeline.project import IDENTITY, columns_shown, copy_project, dvc, git, run
from tests.pipeline.test_dvc import DIGITS

pytestmark = pytest.mark.slow

SWEPT = (("4", "0"), ("8", "0"), ("8", "1"))
"""d_state and seed of the sweep: committed, new, and one more than there are workers."""
STARTED_WITHIN_S = 1800
"""Enough for a busy machine; an idle one needs a minute."""


@dataclasses.dataclass
class Shown:
    """A run in MLflow's database."""

    run_id: str
    status: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, list[tuple[int, float]]]
    """Steps and values by name."""
    datasets: set[str]
    models: int
    """Number of logged models."""

    @property
    def point(self) -> tuple[str, str]:
        """The run's place in the grid."""
        return self.params["model.d_state"], self.params["train.seed"]


def shown(folder: Path) -> tuple[dict[str, Shown], dict[str, Shown]]:
    """Return the parent runs of sweeps in MLflow, and all other runs, by name.

    Reads the database itself, because MLflow's client would continue to read a deleted one.
    """
    parents, others = {}, {}
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as database:

        def rows(query: str, *values: str) -> list[Any]:
            return database.execute(query, values).fetchall()

        for run_id, name, status in rows("select run_uuid, name, status from runs"):
            metrics: dict[str, list[tuple[int, float]]] = {}
            query = "select key, step, value from metrics where run_uuid = ? order by step"
            for key, step, value in rows(query, run_id):
                metrics.setdefault(key, []).append((step, value))
            one = Shown(
                run_id,
                status,
                dict(rows("select key, value from tags where run_uuid = ?", run_id)),
                dict(rows("select key, value from params where run_uuid = ?", run_id)),
                metrics,
                {
                    dataset
                    for (dataset,) in rows(
                        "select d.name from inputs i join datasets d on i.source_id ="
                        " d.dataset_uuid where i.destination_id = ?",
                        run_id,
                    )
                },
                len(rows("select 1 from logged_models where source_run_id = ?", run_id)),
            )
            (parents if "dvc.sweep" in one.tags else others)[name] = one
    return parents, others


def assert_whole(one: Shown) -> None:
    assert (one.status, one.tags["pipeline"]) == ("FINISHED", "whole")
    for curve in ("lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy"):
        assert [step for step, _ in one.metrics[f"curve/{curve}"]] == [1], curve
    assert {"eval/accuracy", "train/val/accuracy", "wall_clock/load_us"} <= set(one.metrics)
    assert one.datasets == {"train", "val", "test"}
    assert one.models == 1
    assert "dvc repro" in one.tags["mlflow.note.content"]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, home: str) -> Path:
    """A project with committed results."""
    settings = {**DIGITS, "train.epochs": 1, "train.threads": 1}
    folder = copy_project(tmp_path_factory.mktemp("experiments") / "project", settings)
    git(folder, home, "init", "-q")
    git(folder, home, "add", "-A")
    git(folder, home, "commit", "-qm", "start")
    dvc(folder, home, "repro")
    git(folder, home, "add", "-A")
    git(folder, home, "commit", "-qm", "results")
    return folder


@pytest.fixture(scope="module")
def swept(repository: Path, home: str) -> Path:
    """The project after a sweep in DVC's queue, whose two workers also create the database.

    They run in temp copies, while Python's path names the project's own src/, as it does where the
    project is installed to be edited, and nothing of that can be imported.
    """
    (repository / "mlflow.db").unlink()
    shutil.rmtree(repository / "mlartifacts")
    dvc(repository, home, "exp", "run", "--queue", "-S", "model.d_state=4,8")
    last = ("-S", "model.d_state=8", "-S", "train.seed=1")
    dvc(repository, home, "exp", "run", "--queue", *last)
    package = repository / "src/mnist_mamba/__init__.py"
    text = package.read_text(encoding="utf-8")
    package.write_text("raise ImportError('the project instead of its copy')\n", encoding="utf-8")
    try:
        with workers(repository, home, PYTHONPATH=str(repository / "src")):
            wait_for_experiments(repository, len(SWEPT))
    finally:
        package.write_text(text, encoding="utf-8")
    return repository


@contextlib.contextmanager
def workers(folder: Path, home: str, **env: str) -> Iterator[None]:
    """Run two workers on the queue; end them and all that they started afterwards."""
    try:
        dvc(folder, home, "queue", "start", "-j", "2", **env)
        yield
    finally:
        run(folder, ["dvc", "queue", "stop", "--kill"], HOME=home, **IDENTITY)
        # Workers that still listen stop within seconds.
        _, alive = psutil.wait_procs(processes(folder), timeout=30)
        for process in alive:
            process.kill()
        psutil.wait_procs(alive, timeout=10)
        assert not processes(folder)


def processes(folder: Path) -> list[psutil.Process]:
    """Return the processes that work in the project: DVC's workers and stages."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if Path(process.cwd()).is_relative_to(folder):
                found.append(process)
    return found


def wait_for_experiments(folder: Path, n: int) -> None:
    """Wait until the queue has stored n experiments in Git.

    `dvc queue status` in a loop would send each worker messages, and one that reads such a message
    while it is being written ends (kombu's transport by files).
    """
    deadline = time.monotonic() + STARTED_WITHIN_S
    while len(experiments(folder)) < n and processes(folder) and time.monotonic() < deadline:
        time.sleep(1)
    logs = [
        path.read_text(encoding="utf-8")[-2000:]
        for path in (folder / ".dvc/tmp/exps").rglob("*.out")
    ]
    assert len(experiments(folder)) == n, "\n".join(logs)


def experiments(folder: Path) -> set[str]:
    """Return the names of the experiments in Git."""
    names = run(folder, ["git", "for-each-ref", "--format=%(refname)", "refs/exps"]).stdout.split()
    return {Path(name).name for name in names if name.count("/") == 4}


def test_a_queue_of_experiments_is_one_sweep_of_whole_runs(swept: Path) -> None:
    parents, children = shown(swept)
    assert len(parents) == 1
    (parent,) = parents.values()
    head = run(swept, ["git", "rev-parse", "HEAD"]).stdout.strip()
    assert parent.tags["dvc.sweep"] == head
    assert parent.status == "FINISHED"
    assert set(children) == experiments(swept)
    assert {child.point for child in children.values()} == set(SWEPT)
    for child in children.values():
        assert child.tags["mlflow.parentRunId"] == parent.run_id
        assert_whole(child)


def test_what_was_trained_before_is_not_trained_again_and_whole_in_mlflow(swept: Path) -> None:
    """The committed content is one of the sweep's; its curves come from the committed file."""
    logs = [
        path.read_text(encoding="utf-8") for path in (swept / ".dvc/tmp/exps/run").rglob("*.out")
    ]
    trained = [log for log in logs if "Running stage 'train'" in log]
    assert (len(logs), len(trained)) == (len(SWEPT), len(SWEPT) - 1)


def test_the_queue_leaves_the_work_tree_as_it_was(swept: Path) -> None:
    assert run(swept, ["git", "status", "--porcelain"]).stdout == ""


def test_exp_show_has_params_and_metrics_of_each(swept: Path, home: str) -> None:
    table = dvc(swept, home, "exp", "show", "--csv", "--only-changed").stdout
    for name, child in shown(swept)[1].items():
        (row,) = (line for line in table.splitlines() if name in line)
        assert str(child.metrics["eval/accuracy"][-1][1])[:6] in row


def test_make_experiments_fits_a_terminal(swept: Path, home: str) -> None:
    words = ("exp", "show", "--only-changed", "--drop", f"(?!({columns_shown()})$)")
    table = dvc(swept, home, *words, COLUMNS="500").stdout.splitlines()
    assert max(map(len, table)) <= 160
    header = next(line for line in table if "Experiment" in line).split()
    assert header[0] == "Experiment"
    assert {"val.accuracy", "model.d_state", "train.seed"} <= set(header)


def test_exp_apply_brings_the_files_of_an_experiment(swept: Path, home: str) -> None:
    name, child = next(
        (name, child) for name, child in shown(swept)[1].items() if child.point == ("8", "1")
    )
    try:
        dvc(swept, home, "exp", "apply", name)
        params = yaml.safe_load((swept / "params.yaml").read_text(encoding="utf-8"))
        assert (params["model"]["d_state"], params["train"]["seed"]) == (8, 1)
        scores = json.loads((swept / "metrics/eval.json").read_text(encoding="utf-8"))
        assert child.metrics["eval/accuracy"] == [(0, scores["accuracy"])]
        # The checkpoints are restored, too, so no stage has to run.
        assert "Running stage 'train'" not in dvc(swept, home, "repro", "--dry", "train").stdout
    finally:
        git(swept, home, "checkout", "-q", ".")


def test_the_run_cache_gives_a_whole_run_to_a_new_database(swept: Path, home: str) -> None:
    (swept / "mlflow.db").unlink()
    words = ("-S", "model.d_state=8", "-S", "train.seed=1", "--name", "again")
    try:
        done = dvc(swept, home, "exp", "run", *words)
        # evaluate runs again: DVC restores no uncached output that is neither metric nor plot.
        for stage in ("train", "export", "benchmark"):
            assert f"Stage '{stage}' is cached" in done.stdout
        parents, children = shown(swept)
        assert (list(parents), list(children)) == ([], ["again"])  # one run alone has no parent
        assert_whole(children["again"])
    finally:
        git(swept, home, "checkout", "-q", ".")


def test_a_temp_experiment_in_a_clone_without_any_cache(
    repository: Path, home: str, tmp_path: Path
) -> None:
    """`make demo` on a fresh machine has a lock whose outputs are not available anywhere."""
    clone = tmp_path / "clone"
    done = run(tmp_path, ["git", "clone", "-q", str(repository), str(clone)], HOME=home)
    assert done.returncode == 0, done.stderr
    words = ("--temp", "--name", "fresh", "-S", "train.lr=3e-3", "-S", "model.n_layers=1")
    done = dvc(clone, home, "exp", "run", *words)
    assert "scan cpu on cpu" in done.stdout + done.stderr  # the copy found the C kernel
    assert run(clone, ["git", "status", "--porcelain"]).stdout == ""
    assert "fresh" in dvc(clone, home, "exp", "show", "--csv").stdout
    (only,) = shown(clone)[1].values()
    assert (only.params["train.lr"], only.params["model.n_layers"]) == ("0.003", "1")
    assert_whole(only)


def test_an_experiment_outlives_a_dead_server(repository: Path, home: str) -> None:
    """Its results are kept, marked as untracked, and stored when the server is back."""
    words = ("--temp", "--name", "lost", "-S", "evaluate.ece_bins=7")
    done = dvc(repository, home, "exp", "run", *words, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert "The results' files are complete: correct MLFLOW_TRACKING_URI" in done.stderr
    table = dvc(repository, home, "exp", "show", "--csv").stdout
    (row,) = (line for line in table.splitlines() if "lost" in line)
    scores = json.loads((repository / "metrics/eval.json").read_text(encoding="utf-8"))
    assert str(scores["accuracy"]) in row
    before = shown(repository)[1]
    assert "lost" not in before
    store = [sys.executable, "-m", "pipeline.track", "--missing"]
    done = run(repository, store, HOME=home, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert (done.returncode, "correct MLFLOW_TRACKING_URI" in done.stderr) == (1, True), done.stderr
    done = run(repository, store, HOME=home)
    assert done.returncode == 0, done.stderr
    after = shown(repository)[1]
    assert set(after) == {*before, "lost"}
    assert_whole(after["lost"])
    assert "storing" in done.stderr
    assert "storing" not in run(repository, store, HOME=home).stderr  # nothing is missing now
    assert run(repository, ["git", "status", "--porcelain"]).stdout == ""
