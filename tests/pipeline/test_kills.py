"""Stages that are killed at any moment or run out of disk leave only whole files."""

from __future__ import annotations

import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mnist_mamba.data.idx import read_images, read_labels
from mnist_mamba.engine import Engine
from mnist_mamba.engine.format import read_model
from mnist_mamba.training.checkpoint import load_checkpoint
from tests.pipeline.fork_server import Fork
from tests.pipeline.project import (
    SMALL,
    copy_project,
    environment,
    run_module,
    start_module,
)

logger = logging.getLogger(__name__)

UNTRACKED = {**SMALL, "tracking.enabled": False}
MODEL = "artifacts/mnist_mamba.bin"
EXPORT = ("pipeline.export", "model", "--output", MODEL)
KILLS = {"download": 17, "prepare": 10, "train": 17, "export": 16}
KINDS = ("images", "labels")
Check = Callable[[Path], None]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with data, checkpoints and a model file."""
    folder = copy_project(tmp_path_factory.mktemp("finished"), UNTRACKED)
    for words in (("pipeline.download",), ("pipeline.prepare",), ("pipeline.train",), EXPORT):
        done = run_module(folder, *words)
        assert done.returncode == 0, done.stderr
    return folder


def data_is_whole(folder: Path) -> None:
    """Check that each file is complete or missing."""
    for part, n in (("train", 200), ("test", 40)):
        images, labels = (folder / f"data/raw/{part}-{kind}.idx" for kind in KINDS)
        if images.exists():
            assert read_images(images).shape == (n, 9, 12)
        if labels.exists():
            assert len(read_labels(labels)) == n


def prepared_is_whole(folder: Path) -> None:
    """Check that the data is complete if info.json, which is written last, exists."""
    parts = {"train": 160, "val": 40, "test": 40}
    for part, n in parts.items():
        images, labels = (folder / f"data/prepared/{part}-{kind}.idx" for kind in KINDS)
        if (folder / "data/prepared/info.json").exists() or images.exists():
            assert read_images(images).shape == (n, 9, 12)
        if (folder / "data/prepared/info.json").exists() or labels.exists():
            assert len(read_labels(labels)) == n


def checkpoints_are_whole(folder: Path) -> None:
    for name in ("last", "best_model"):
        path = folder / f"checkpoints/{name}.pth"
        if path.exists():
            load_checkpoint(path)


def model_is_whole(folder: Path) -> None:
    read_model(folder / MODEL)
    Engine(folder / MODEL).close()


STAGES: dict[str, tuple[tuple[str, ...], str, Check]] = {
    "download": (("pipeline.download",), "data/raw", data_is_whole),
    "prepare": (("pipeline.prepare",), "data/prepared", prepared_is_whole),
    "train": (("pipeline.train", "--resume"), "checkpoints", checkpoints_are_whole),
    "export": (EXPORT, "artifacts", model_is_whole),
}
"""The stage's command, the folder that it writes, and a check for after a kill."""


def temporaries(folder: Path) -> set[str]:
    return {path.name for path in folder.glob(".*.tmp")}


def kill_at_random(process: Fork, folder: Path, whole: float, generator: random.Random) -> bool:
    """Kill at a random moment or while a file is written; return whether it still ran."""
    if generator.random() < 0.5:
        time.sleep(generator.uniform(0, whole))
    else:
        before = temporaries(folder)
        while process.poll() is None and temporaries(folder) == before:
            time.sleep(1e-4)
        time.sleep(generator.choice((0, 1e-4, 1e-3, 5e-3)))
    in_time = process.poll() is None
    if in_time:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return in_time


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_kill_leaves_whole_files(stage: str, finished: Path, tmp_path: Path) -> None:
    words, written, check = STAGES[stage]
    project = shutil.copytree(finished, tmp_path / "project")
    started = time.monotonic()
    assert start_module(project, *words).wait() == 0
    whole = time.monotonic() - started
    seed = random.randrange(2**32)
    logger.info("seed %d", seed)  # shown by pytest if the test fails
    generator = random.Random(seed)
    landed = 0
    for _ in range(3 * KILLS[stage]):
        landed += kill_at_random(start_module(project, *words), project / written, whole, generator)
        check(project)
        if landed == KILLS[stage]:
            break
    assert landed == KILLS[stage], "most kills came too late"
    done = run_module(project, *words)
    assert done.returncode == 0, done.stderr
    for path in (finished / written).iterdir():
        assert (project / written / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.slow
def test_a_killed_download_is_not_taken_for_data(finished: Path, tmp_path: Path) -> None:
    project = shutil.copytree(finished, tmp_path / "project")
    (project / "data/raw/test-labels.idx").unlink()  # as after a kill before the last file
    done = run_module(project, "pipeline.prepare")
    assert done.returncode == 1
    assert "data/raw/test-labels.idx not found: run `python -m pipeline.download`" in done.stderr
    (project / "data/prepared/info.json").unlink()
    done = run_module(project, "pipeline.train")
    assert done.returncode == 1
    assert "data/prepared/info.json not found: run `python -m pipeline.prepare`" in done.stderr


def run_without_room(
    folder: Path, room: int, *words: str | Path
) -> subprocess.CompletedProcess[str]:
    """Run a module with a limit on the size of files, where write() fails as on a full disk."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=folder,
        env=environment(PYTHONDONTWRITEBYTECODE="1"),
        capture_output=True,
        text=True,
        preexec_fn=limit,
    )


def test_no_room_for_new_data_leaves_no_names_of_the_old(finished: Path, tmp_path: Path) -> None:
    project = shutil.copytree(finished, tmp_path / "project")
    assert (project / "data/raw/class_names.json").exists()
    assert run_without_room(project, 4096, "pipeline.download").returncode == 1
    assert not (project / "data/raw/class_names.json").exists()


def test_no_room_for_example_pictures_leaves_no_folder(finished: Path, tmp_path: Path) -> None:
    words = ("pipeline.example_pictures", "shapes", tmp_path / "new/shapes")
    done = run_without_room(finished, 128, *words)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert not list((tmp_path / "new").iterdir())


def test_no_room_for_the_model_keeps_the_old_one(finished: Path, tmp_path: Path) -> None:
    project = shutil.copytree(finished, tmp_path / "project")
    before = (project / MODEL).read_bytes()
    done = run_without_room(project, 4096, *EXPORT)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert errors == done.stderr.splitlines()[-1:]
    assert "File too large" in errors[0]
    assert (project / MODEL).read_bytes() == before
    assert not temporaries(project / "artifacts")


def test_images_that_the_model_cannot_take_are_refused_by_download(tmp_path: Path) -> None:
    project = copy_project(tmp_path / "project", {**UNTRACKED, "model.patch": [2, 4]})
    done = run_module(project, "pipeline.download")
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "error: model.patch = [2, 4] does not divide the image, which is 9 x 12 pixels; "
        "data.resize changes the images' size"
    )
    assert not (project / "data/raw").exists()
