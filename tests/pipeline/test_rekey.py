"""`make rekey`: records are kept after a refactoring, and only then."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mnist_mamba.atomic_write import write_json
from pipeline import download, prepare, rekey, study
from pipeline.common import paths
from pipeline.common.git import GitError
from pipeline.common.params import load_params
from pipeline.series.trainings import load_series, trainings
from tests.pipeline.project import copy_project, git

SERIES = {
    name: {"params": {"train.epochs": 1}, "seeds": [0, 1], "runs": runs}
    for name, runs in (
        ("study", {"base": {}, "free": {"model.a": "free"}}),
        ("seeds", {"default": {}}),
        ("pixels", {"default": {}}),
    )
}
DOCUMENT = "<!-- study: make study -->\n<!-- end of study -->\n"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, home: str) -> Path:
    """A repository with small series and, committed, a record of each training of the study."""
    folder = copy_project(tmp_path_factory.mktemp("rekey") / "project")
    series = folder / "pipeline/series/series.yaml"
    series.write_text(yaml.safe_dump(SERIES), encoding="utf-8")
    (folder / "docs").mkdir()
    (folder / "docs/training.md").write_text(DOCUMENT, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["stage"])
        download.main()
        prepare.main()
        runs: dict[str, Any] = {}
        for training in trainings(load_series("study"), load_params()):
            record = {"seed": training.seed, "key": training.key, "parameters": 1}
            scores = {"val_accuracy": 0.5, "val_loss": 1.0}
            run = runs.setdefault(training.name, {"trainings": []})
            run["trainings"].append({**record, **scores})
        write_json(paths.METRICS / "study.json", {"params": {}, "runs": runs})
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "records"]):
        git(folder, home, *words)
    return folder


@pytest.fixture
def project(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the repository, as the current folder."""
    folder = shutil.copytree(recorded, tmp_path / "project")
    monkeypatch.chdir(folder)
    return folder


def edit(name: str, old: str, new: str) -> None:
    text = Path(name).read_text(encoding="utf-8")
    assert old in text
    Path(name).write_text(text.replace(old, new), encoding="utf-8")


def rekey_from(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run `make rekey`; this process's code stands for that of the work tree."""
    monkeypatch.setattr(sys, "argv", ["rekey", "--base", base])
    rekey.main()


def test_records_are_kept_if_the_code_trains_the_same_weights(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = json.loads(Path("metrics/study.json").read_text(encoding="utf-8"))["runs"]
    for name in ("training/loop.py", "model/mixer.py"):
        with Path("src/mnist_mamba", name).open("a", encoding="utf-8") as file:
            file.write("# a remark\n")
    rekey_from("HEAD", monkeypatch)
    monkeypatch.setattr(sys, "argv", ["study", "--no-timing"])
    with caplog.at_level(logging.INFO):
        study.main()
    assert "4 of 4 trainings are done" in caplog.text
    after = json.loads(Path("metrics/study.json").read_text(encoding="utf-8"))["runs"]
    for name, run in before.items():
        for old, new in zip(run["trainings"], after[name]["trainings"], strict=True):
            assert old["key"] != new["key"]
            assert {**old, "key": ""} == {**new, "key": ""}


def test_nothing_is_rewritten_if_the_code_trains_other_weights(
    project: Path, home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = Path("metrics/study.json").read_bytes()
    source = "src/mnist_mamba/training/trainer.py"
    edit(source, "Ema(model, config.ema_decay)", "Ema(model, 0.9 * config.ema_decay)")
    git(project, home, "commit", "-qam", "another average")
    git(project, home, "checkout", "-q", "HEAD~1", "--", source)
    with pytest.raises(rekey.RekeyError, match=r"study/base.*study/free.*seeds/default"):
        rekey_from("HEAD", monkeypatch)
    assert Path("metrics/study.json").read_bytes() == records


def test_an_unknown_revision_is_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GitError, match="nowhere"):
        rekey_from("nowhere", monkeypatch)


def test_a_revision_without_the_command_is_an_error(
    project: Path, home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("pipeline/rekey.py").unlink()
    git(project, home, "commit", "-qam", "no rekey")
    with pytest.raises(rekey.RekeyError, match=r"code of HEAD failed"):
        rekey_from("HEAD", monkeypatch)
