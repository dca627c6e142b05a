"""`make promote`: a result that passes the gate becomes the champion, others change nothing."""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mnist_mamba.engine import Engine
from pipeline.common import dvc_lock, paths
from pipeline.common.command import NO_VERDICT, PASS, REGRESSION
from pipeline.common.content_key import file_md5
from pipeline.common.params import load_params
from pipeline.release import gate, published
from pipeline.release import promote as promotion
from pipeline.release.gate import NoVerdictError
from tests.pipeline.project import (
    IDENTITY,
    SMALL,
    copy_project,
    dvc,
    git,
    run_module,
    set_params,
    write_changed,
)

RULES: dict[str, Any] = {
    "accuracy.floor": 0.5,
    "metrics": {"eval.parity.prediction_mismatches": {"better": "lower", "bound": 0}},
}
README = "# Small\n\n<!-- results: make promote -->\nnothing yet\n<!-- end of results -->\n\nEnd.\n"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, home: str) -> Path:
    """A repository with a committed, trained model that was never promoted."""
    folder = copy_project(tmp_path_factory.mktemp("promote") / "project")
    write_changed("gate.yaml", folder, RULES)
    (folder / published.README).write_text(README, encoding="utf-8")
    git(folder, home, "init", "-q")
    dvc(folder, home, "repro")
    git(folder, home, "add", "-A")
    git(folder, home, "commit", "-qm", "results")
    return folder


def promote(folder: Path) -> subprocess.CompletedProcess[str]:
    return run_module(folder, "pipeline.release.promote", "--base", "HEAD", **IDENTITY)


def champion(folder: Path) -> Any:
    """Return the registered version that has the alias, or None."""
    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    try:
        return client.get_model_version_by_alias("mnist-mamba", "champion")
    except MlflowException:
        return None


def published_files(folder: Path) -> dict[str, str]:
    """Return the MD5 of each file that a promotion updates."""
    files = [folder / published.README, *sorted((folder / published.MODELS).glob("*"))]
    return {file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture
def finished(project: Path) -> Path:
    """The project of a finished run whose dvc.lock agrees with its files and params."""
    results = (
        paths.MODEL,
        paths.METRICS / "eval.json",
        paths.METRICS / "train.json",
        paths.PLOTS / "predictions.png",
        paths.PREDICTIONS,
    )
    outs = [{"path": str(path), "md5": file_md5(path)} for path in results]
    outs.append({"path": "data/raw/train-images.idx", "md5": "not needed to promote"})
    params = load_params().model_dump(mode="json")
    content = {"stages": {"all": {"outs": outs, "params": {"params.yaml": params}}}}
    Path("dvc.lock").write_text(yaml.safe_dump(content), encoding="utf-8")
    return project


def test_each_result_must_be_that_of_the_lock(finished: Path) -> None:
    promotion.check_of_one_run(load_params())
    for name in (
        "artifacts/mnist_mamba.bin",
        "metrics/eval.json",
        "metrics/train.json",
        "plots/predictions.csv",
        "plots/predictions.png",
    ):
        content = Path(name).read_bytes()
        Path(name).write_bytes(content + b" ")
        with pytest.raises(NoVerdictError, match=rf"^{name}: got \w+, expected \w+ as in dvc.lock"):
            promotion.check_of_one_run(load_params())
        Path(name).unlink()
        with pytest.raises(NoVerdictError, match=rf"^{name}: got no file, expected"):
            promotion.check_of_one_run(load_params())
        Path(name).write_bytes(content)
    promotion.check_of_one_run(load_params())


def test_each_param_must_be_that_of_the_lock(finished: Path) -> None:
    for setting, value in (("train.lr", 0.5), ("data.val_fraction", 0.3), ("model.a", "free")):
        set_params(finished, {**SMALL, setting: value})
        with pytest.raises(
            NoVerdictError, match=rf"^params.yaml: {setting} is {value!r}, expected"
        ):
            promotion.check_of_one_run(load_params())


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("code", [PASS, REGRESSION])
def test_only_a_result_that_passes_the_gate_is_registered_and_published(
    finished: Path, monkeypatch: pytest.MonkeyPatch, enabled: bool, code: int
) -> None:
    text = Path("dvc.lock").read_text(encoding="utf-8")
    Path("dvc.lock").write_text(
        text.replace("enabled: true", f"enabled: {str(enabled).lower()}"), encoding="utf-8"
    )
    set_params(finished, {**SMALL, "tracking.enabled": enabled})
    published.MODELS.mkdir(exist_ok=True)
    published.CHAMPION.write_text("the former champion's checksums", encoding="utf-8")
    registered: list[tuple[str, str]] = []
    monkeypatch.setattr(gate, "main", lambda options: code)
    monkeypatch.setattr(published, "prepare", lambda params: {Path("models/new"): b"content"})

    def register(_: Any, name: str, alias: str) -> tuple[str, str]:
        registered.append((name, alias))
        return "1", "the champion's checksums"

    monkeypatch.setattr(promotion.tracked_model, "register", register)
    assert promotion.main(argparse.Namespace(base="HEAD", output=None)) == code
    passes = code == PASS
    assert registered == [("mnist-mamba", "champion")] * (passes and enabled)
    assert Path("models/new").is_file() == passes
    assert published.CHAMPION.is_file() == (enabled or not passes)
    if enabled or not passes:
        of = "the champion" if passes else "the former champion"
        assert published.CHAMPION.read_text(encoding="utf-8") == f"{of}'s checksums"


@pytest.mark.slow
def test_the_champion_and_what_is_refused(repository: Path, home: str) -> None:
    project = repository
    before = published_files(project)

    # A metric that no stage has written is refused.
    scores = project / paths.METRICS / "eval.json"
    true_scores = scores.read_text(encoding="utf-8")
    scores.write_text(json.dumps({**json.loads(true_scores), "accuracy": 1.0}), encoding="utf-8")
    done = promote(project)
    assert done.returncode == NO_VERDICT, done.stderr
    assert "metrics/eval.json" in done.stderr
    assert "as in dvc.lock" in done.stderr
    assert (published_files(project), champion(project)) == (before, None)
    scores.write_text(true_scores, encoding="utf-8")

    # A changed plot is refused, and a param that no stage ran with.
    plot = project / "plots/reliability.png"
    picture = plot.read_bytes()
    plot.write_bytes(picture + b"\0")
    done = promote(project)
    assert (done.returncode, "plots/reliability.png" in done.stderr) == (NO_VERDICT, True)
    plot.write_bytes(picture)
    settings = (project / "params.yaml").read_text(encoding="utf-8")
    set_params(project, {**SMALL, "train.weight_decay": 0.123})
    done = promote(project)
    assert done.returncode == NO_VERDICT
    assert "train.weight_decay is 0.123, expected" in done.stderr
    (project / "params.yaml").write_text(settings, encoding="utf-8")

    # Nothing changes if one of the files cannot be made.
    readme_here = project / published.README
    readme_here.write_text("# no place for a table\n", encoding="utf-8")
    done = promote(project)
    assert done.returncode == NO_VERDICT, done.stdout + done.stderr
    assert "expected one between the lines" in done.stderr
    assert champion(project) is None
    readme_here.write_text(README, encoding="utf-8")
    assert published_files(project) == before

    # A result that passes becomes the champion.
    done = promote(project)
    assert done.returncode == PASS, done.stdout + done.stderr
    first = champion(project)
    assert str(first.version) == "1"
    renewed = published_files(project)
    lock = dvc_lock.read_lock(project / dvc_lock.LOCK)
    model = dvc_lock.outputs(lock)[str(paths.MODEL)]["md5"]
    assert renewed[paths.MODEL.name] == model
    readme = (project / published.README).read_text(encoding="utf-8")
    assert "nothing yet" not in readme
    assert f"{json.loads(true_scores)['accuracy']:.2%}" in readme
    assert readme.endswith("<!-- end of results -->\n\nEnd.\n")
    assert model in (project / published.CARD).read_text(encoding="utf-8")
    example = np.fromfile(project / published.MODELS / "example_input.bin", "<f4")
    with Engine(project / published.MODELS / paths.MODEL.name) as engine:
        assert engine.predict(example.reshape(1, 9, 12)).shape == (1,)

    # A server can check it.
    done = run_module(project, "pipeline.release.champion")
    assert done.returncode == 0, done.stderr
    served = project / "build/champion/artifacts" / paths.MODEL.name
    assert hashlib.md5(served.read_bytes()).hexdigest() == model

    # A second promotion changes nothing more.
    assert promote(project).returncode == PASS
    assert published_files(project) == renewed
    assert champion(project).version == first.version

    # A worse model is refused and changes nothing.
    git(project, home, "add", "-A")
    git(project, home, "commit", "-qm", "champion")
    set_params(project, {**SMALL, "train.lr": 1e-6})
    dvc(project, home, "repro", "track")
    done = promote(project)
    assert done.returncode == REGRESSION, done.stdout + done.stderr
    assert "nothing is promoted" in done.stderr
    assert published_files(project) == renewed
    assert champion(project).source == first.source
