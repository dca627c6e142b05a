"""`make promote` for real: what passes the gate becomes the champion, the rest changes nothing."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mnist_mamba.engine import Engine
from pipeline.common import dvc_lock, paths
from pipeline.common.command import NO_VERDICT, PASS, REGRESSION
from pipeline.release import published
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

pytestmark = pytest.mark.slow

RULES: dict[str, Any] = {
    "accuracy.floor": 0.5,
    "metrics": {"eval.parity.prediction_mismatches": {"better": "lower", "bound": 0}},
}
README = "# Small\n\n<!-- results: make promote -->\nnothing yet\n<!-- end of results -->\n\nEnd.\n"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, home: str) -> Path:
    """A repository with a trained model that was never promoted, committed."""
    folder = copy_project(tmp_path_factory.mktemp("promote") / "project")
    write_changed("gate.yaml", folder, RULES)
    (folder / published.README).write_text(README)
    git(folder, home, "init", "-q")
    dvc(folder, home, "repro")
    git(folder, home, "add", "-A")
    git(folder, home, "commit", "-qm", "results")
    return folder


def promote(folder: Path) -> subprocess.CompletedProcess[str]:
    return run_module(folder, "pipeline.release.promote", "--base", "HEAD", **IDENTITY)


def champion(folder: Path) -> Any:
    """The registered version that has the alias, or None."""
    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    try:
        return client.get_model_version_by_alias("mnist-mamba", "champion")
    except MlflowException:
        return None


def published_files(folder: Path) -> dict[str, str]:
    """MD5 of all that a promotion renews."""
    files = [folder / published.README, *sorted((folder / published.MODELS).glob("*"))]
    return {file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in files}


def test_the_champion_and_what_is_refused(project: Path, home: str) -> None:
    before = published_files(project)

    # A figure that no stage has made is no result to judge.
    scores = project / paths.METRICS / "eval.json"
    true_scores = scores.read_text()
    scores.write_text(json.dumps({**json.loads(true_scores), "accuracy": 1.0}))
    done = promote(project)
    assert done.returncode == NO_VERDICT, done.stderr
    assert "metrics/eval.json" in done.stderr
    assert "as in dvc.lock" in done.stderr
    assert (published_files(project), champion(project)) == (before, None)
    scores.write_text(true_scores)

    # Nor is a plot, or a param that no stage ran with.
    plot = project / "plots/reliability.png"
    picture = plot.read_bytes()
    plot.write_bytes(picture + b"\0")
    done = promote(project)
    assert (done.returncode, "plots/reliability.png" in done.stderr) == (NO_VERDICT, True)
    plot.write_bytes(picture)
    settings = (project / "params.yaml").read_text()
    set_params(project, {**SMALL, "train.weight_decay": 0.123})
    done = promote(project)
    assert done.returncode == NO_VERDICT
    assert "train.weight_decay is 0.123, expected" in done.stderr
    (project / "params.yaml").write_text(settings)

    # What cannot be prepared as a whole is not begun.
    readme_here = project / published.README
    readme_here.write_text("# no place for a table\n")
    done = promote(project)
    assert done.returncode == NO_VERDICT, done.stdout + done.stderr
    assert "expected one between the lines" in done.stderr
    assert champion(project) is None
    readme_here.write_text(README)
    assert published_files(project) == before

    # What passes becomes the champion.
    done = promote(project)
    assert done.returncode == PASS, done.stdout + done.stderr
    first = champion(project)
    assert str(first.version) == "1"
    renewed = published_files(project)
    lock = dvc_lock.read_lock(project / dvc_lock.LOCK)
    model = dvc_lock.outputs(lock)[str(paths.MODEL)]["md5"]
    assert renewed[paths.MODEL.name] == model
    readme = (project / published.README).read_text()
    assert "nothing yet" not in readme
    assert f"{json.loads(true_scores)['accuracy']:.2%}" in readme
    assert readme.endswith("<!-- end of results -->\n\nEnd.\n")
    assert model in (project / published.CARD).read_text()
    example = np.fromfile(project / published.MODELS / "example_input.bin", "<f4")
    with Engine(project / published.MODELS / paths.MODEL.name) as engine:
        assert engine.predict(example.reshape(1, 9, 12)).shape == (1,)

    # Again: nothing more.
    assert promote(project).returncode == PASS
    assert published_files(project) == renewed
    assert champion(project).version == first.version

    # A worse model is refused, and all stays as it was.
    git(project, home, "add", "-A")
    git(project, home, "commit", "-qm", "champion")
    set_params(project, {**SMALL, "train.lr": 1e-6})
    dvc(project, home, "repro", "track")
    done = promote(project)
    assert done.returncode == REGRESSION, done.stdout + done.stderr
    assert "nothing is promoted" in done.stderr
    assert published_files(project) == renewed
    assert champion(project).source == first.source
