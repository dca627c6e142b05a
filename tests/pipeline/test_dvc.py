"""DVC running the stages, in a separate Git repository and with an empty HOME."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
import yaml

from pipeline.common import paths
from tests.pipeline.imports import ROOT
from tests.pipeline.project import IDENTITY, copy_project, documented, dvc, git, run, start
from tests.pipeline.test_trainings import UNTRACKED, kill_in_the_middle

pytestmark = pytest.mark.slow

DIGITS = {
    "data.dataset": "digits",
    "data.resize": 28,
    "model.stem": "patch",
    "model.patch": [7, 7],
    "model.d_model": 16,
    "model.n_layers": 2,
    "model.d_state": 4,
    "train.epochs": 2,
    "train.lr": 0.01,
    "train.batch_size": 32,
    "train.min_steps": 1,
    "benchmark.rounds": 2,
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, home: str) -> Path:
    """A committed project in which `dvc repro` has run once."""
    folder = copy_project(tmp_path_factory.mktemp("dvc"), DIGITS)
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "start"]):
        git(folder, home, *words)
    done = dvc(folder, home, "repro")
    assert "Running stage 'track'" in done.stdout
    return folder


def n_runs(folder: Path) -> int:
    with sqlite3.connect(folder / "mlflow.db") as database:
        count: int = database.execute("select count(*) from runs").fetchone()[0]
        return count


def test_every_stage_left_its_outputs_and_git_sees_no_binaries(repository: Path) -> None:
    lock = yaml.safe_load((repository / "dvc.lock").read_text(encoding="utf-8"))
    assert list(lock["stages"]) == [
        *("check_params", "download", "prepare", "train", "export"),
        *("compile", "evaluate", "benchmark", "track"),
    ]
    status = run(repository, ["git", "status", "--porcelain", "-uall"]).stdout.split("\n")
    new = {line[3:] for line in status if line}
    assert new == {
        "dvc.lock",
        "artifacts/tracking_key.txt",
        *(f"metrics/{name}.json" for name in ("data", "train", "exit", "eval", "benchmark")),
        *(f"plots/{name}.png" for name in ("augmentation", "examples")),
        *(f"plots/{name}" for name in ("curves.json", "predictions.csv", "predictions.png")),
        *(f"plots/{name}.png" for name in ("confusion", "curves", "misclassified")),
        *(f"plots/{name}.png" for name in ("reliability", "robustness")),
    }


def test_a_second_repro_runs_nothing(repository: Path, home: str) -> None:
    done = dvc(repository, home, "repro")
    assert "Running stage" not in done.stdout
    assert "Data and pipelines are up to date" in done.stdout


def test_one_complete_run_is_in_mlflow_and_comes_back(repository: Path, home: str) -> None:
    assert n_runs(repository) == 1
    (repository / "mlflow.db").unlink()
    shutil.rmtree(repository / "mlartifacts")
    dvc(repository, home, "repro", "--single-item", "--force", "track")
    assert n_runs(repository) == 1
    with sqlite3.connect(repository / "mlflow.db") as database:
        steps = database.execute(
            "select step from metrics where key = 'curve/val_accuracy' order by step"
        ).fetchall()
    assert steps == [(1,), (2,)]
    assert list((repository / "mlartifacts").rglob("mnist_mamba.bin"))
    assert "Running stage" not in dvc(repository, home, "repro").stdout


def test_the_dataset_s_digest_is_dvc_s_md5(repository: Path) -> None:
    lock = yaml.safe_load((repository / "dvc.lock").read_text(encoding="utf-8"))
    outs = {out["path"]: out["md5"] for out in lock["stages"]["prepare"]["outs"]}
    with sqlite3.connect(repository / "mlflow.db") as database:
        digests = dict(database.execute("select name, digest from datasets").fetchall())
    for part in ("train", "val", "test"):
        assert digests[part] == outs[f"data/prepared/{part}-images.idx"]


def test_dvc_renders_the_plots(repository: Path, home: str, tmp_path: Path) -> None:
    dvc(repository, home, "plots", "show", "--out", str(tmp_path / "html"))
    page = (tmp_path / "html" / "index.html").read_text(encoding="utf-8")
    for name in ("curves", "confusion", "misclassified", "predictions"):
        assert f"{name}.png" in page
    assert "http" not in page


def test_a_comment_in_the_engine_retrains_nothing(repository: Path, home: str) -> None:
    source = repository / "csrc/engine/forward.c"
    text = source.read_text(encoding="utf-8")
    source.write_text(text + "/* a remark */\n", encoding="utf-8")
    try:
        done = dvc(repository, home, "repro", "--dry")
        running = {line for line in done.stdout.splitlines() if line.startswith("Running stage")}
        assert "Running stage 'compile':" in running
        assert not any("train" in line or "download" in line for line in running)
    finally:
        source.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("data.dataset=mnistt", "data.dataset: got 'mnistt'"),
        ("data.dataset=idx", "model.patch = [7, 7] does not divide the image"),
        ("+model.d_modell=1", "model.d_modell: unknown key, got 1"),
        ("+other.key=1", "other: unknown key"),
        ("train.epochs=-1", "train.epochs = -1: expected a whole number"),
        ("export.checkpoint=first", "export.checkpoint: got 'first'"),
    ],
)
def test_a_wrong_value_removes_no_result(
    setting: str, said: str, repository: Path, home: str
) -> None:
    def results() -> dict[Path, bytes]:
        folders = ("data", "checkpoints", "artifacts", "metrics", "plots", "build/dvc/mamba")
        found = (path for name in folders for path in [*(repository / name).rglob("*")])
        return {path: path.read_bytes() for path in found if path.is_file()}

    before = results()
    params, lock = ((repository / name).read_bytes() for name in ("params.yaml", "dvc.lock"))
    if setting == "data.dataset=idx":  # its size is known only when it is read
        setting += " data.resize=null"
    words = [word for change in setting.split() for word in ("-S", change)]
    done = run(repository, ["dvc", "exp", "run", *words], HOME=home, **IDENTITY)
    (repository / "params.yaml").write_bytes(params)
    assert done.returncode != 0
    assert said in done.stderr
    assert results() == before
    assert (repository / "dvc.lock").read_bytes() == lock


def test_an_experiment_that_git_could_not_store_does_not_start(
    repository: Path, tmp_path: Path
) -> None:
    clone = tmp_path / "clone"
    assert run(tmp_path, ["git", "clone", "-q", str(repository), str(clone)]).returncode == 0
    nobody = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"}
    done = run(clone, ["dvc", "exp", "run", "-S", "train.epochs=1"], **nobody)
    assert done.returncode != 0
    assert "git config --global user.name" in done.stderr
    assert "Running stage 'check_params'" in done.stdout
    assert "Running stage 'download'" not in done.stdout


def test_params_keep_their_comments_through_set_param(tmp_path: Path, home: str) -> None:
    """`-S` rewrites params.yaml."""
    folder = copy_project(tmp_path)
    shutil.copy(ROOT / "params.yaml", folder / "params.yaml")
    from dvc.utils.serialize import modify_yaml

    with modify_yaml(str(folder / "params.yaml")) as content:
        content["train"]["lr"] = 3e-3
    old, new = ((p / "params.yaml").read_text(encoding="utf-8") for p in (ROOT, folder))
    assert new.count("#") == old.count("#")
    assert "lr: 0.003" in new


def test_a_repro_that_was_killed_goes_on(tmp_path: Path, home: str) -> None:
    """DVC deletes a stage's outputs before it runs it, but not the state of a training."""
    folder = copy_project(tmp_path / "project", UNTRACKED)
    git(folder, home, "init", "-q")
    dvc(folder, home, "repro", "prepare")
    whole = shutil.copytree(folder, tmp_path / "whole", symlinks=True)
    kill_in_the_middle(folder, start(folder, ["dvc", "repro", "train"], HOME=home))
    done = dvc(folder, home, "repro", "train")
    assert "resuming in epoch" in done.stdout + done.stderr
    dvc(whole, home, "repro", "train")
    locks = [
        yaml.safe_load((path / "dvc.lock").read_text(encoding="utf-8")) for path in (folder, whole)
    ]
    assert locks[0]["stages"]["train"] == locks[1]["stages"]["train"]


def test_a_colleague_s_clone_pulls_all_and_trains_nothing(
    repository: Path, home: str, tmp_path: Path
) -> None:
    """The commands of docs/team.md, word for word except for the two addresses."""
    shared, env = tmp_path / "shared", {"HOME": home, **IDENTITY}
    origin = shutil.copytree(repository, tmp_path / "origin", symlinks=True)
    git(origin, home, "add", "-A")
    git(origin, home, "commit", "-qm", "results")
    heading = "Share data and checkpoints: a DVC remote"
    remote = {"/srv/mnist-mamba": str(shared)}
    add = documented("team", heading, 0, remote).splitlines()[0]
    for words in (add, documented("team", heading, 2)):
        done = run(origin, ["bash", "-e", "-c", words], **env)
        assert done.returncode == 0, done.stderr
    fetch = documented("team", heading, 3, {"URL": str(origin)})
    done = run(tmp_path, ["bash", "-e", "-c", fetch], **env)
    assert done.returncode == 0, done.stderr
    ran = [line for line in done.stdout.splitlines() if line.startswith("Running stage")]
    assert ran == ["Running stage 'track':"]
    clone = tmp_path / "project"
    assert n_runs(clone) == 1
    assert run(clone, ["git", "status", "--porcelain"]).stdout == ""
    # Somebody who can write to the remote alone cannot give a colleague another engine.
    lock = yaml.safe_load((clone / "dvc.lock").read_text(encoding="utf-8"))
    md5 = next(out["md5"] for out in lock["stages"]["compile"]["outs"])
    stored = shared / "files/md5" / md5[:2] / md5[2:]
    stored.chmod(0o644)
    stored.write_bytes(stored.read_bytes() + b"another engine")
    for path in (clone / ".dvc/cache", clone / "build"):
        shutil.rmtree(path)
    done = run(clone, ["dvc", "pull"], **env)
    assert done.returncode != 0, done.stdout
    assert not (clone / paths.ENGINE).exists()
