"""A project with the files of a finished run, for the tests of MLflow."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from mnist_mamba.atomic_write import write_json
from mnist_mamba.data.idx import write_idx
from mnist_mamba.engine.binding import find_library
from mnist_mamba.export import write_model
from mnist_mamba.model import MambaClassifier, ModelConfig
from pipeline.common import paths
from tests.pipeline.project import copy_project

POINTS = [
    {"epoch": 1, "lr": 0.1, "train_loss": 2.0, "val_accuracy": 0.5},
    {"epoch": 2, "lr": 0.2, "train_loss": 1.0, "val_accuracy": 0.75},
]
CONFIG = ModelConfig(height=2, width=2, n_classes=3, patch=(1, 1), d_model=8, n_layers=1, d_state=4)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An empty HOME."""
    return str(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's empty tables, which takes seconds to create."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def engine_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model file of 2 x 2 pixels and three classes, and the engine's library."""
    torch.manual_seed(0)
    model = tmp_path_factory.mktemp("model") / "model.bin"
    write_model(model, MambaClassifier(CONFIG, scan="reference"))
    return model, find_library()


@pytest.fixture
def project(
    tmp_path: Path,
    empty_database: Path,
    engine_files: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A project folder with the files of a finished run, as the current folder."""
    folder = copy_project(tmp_path)
    shutil.copy(empty_database, folder / "mlflow.db")
    monkeypatch.chdir(folder)
    for variable in ("DVC_ROOT", "MLFLOW_TRACKING_URI", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        monkeypatch.delenv(variable, raising=False)
    write_json(paths.CURVES, POINTS)
    trained = {"val": {"accuracy": 0.75}, "epochs": 2, "parameters": 1234}
    write_json(paths.METRICS / "train.json", trained)
    scores = {"accuracy": 0.7, "n_test": 3, "parity": {"max": 1e-6}}
    write_json(paths.METRICS / "eval.json", scores)
    write_json(paths.METRICS / "study.json", {"of another": 1})
    splits = {part: {"n": 3, "per_class": [2, 1, 0]} for part in ("train", "val", "test")}
    size = {"height": CONFIG.height, "width": CONFIG.width, "n_classes": CONFIG.n_classes}
    classes = {"class_names": ["0", "1", "2"], "channels": 1, "preparation": "resize"}
    write_json(paths.DATA_INFO, {**size, **classes, "splits": splits})
    for i, part in enumerate(splits):
        write_idx(paths.images(paths.PREPARED, part), np.full((3, 2, 2), i, np.uint8))
        write_idx(paths.labels(paths.PREPARED, part), np.array([0, 0, 1], np.uint8))
    for path, source in zip((paths.MODEL, paths.ENGINE_LIBRARY), engine_files, strict=True):
        path.parent.mkdir(parents=True)
        shutil.copy(source, path)
    for file in (paths.PLOTS / "predictions.png", paths.PREDICTIONS):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"content of " + file.name.encode())
    Path("dvc.lock").write_text("schema: '2.0'\n", encoding="utf-8")
    return folder
