"""Where the stages read and write, relative to the project's folder; dvc.yaml says the same."""

from collections.abc import Iterable
from pathlib import Path

RAW = Path("data/raw")
PREPARED = Path("data/prepared")
DATA_INFO = PREPARED / "info.json"
CHECKPOINTS = Path("checkpoints")
TRAINING_STATE = "training_state.pth"
"""Beside the checkpoints while a training runs; no output of the stage, which DVC would delete."""
MODEL = Path("artifacts/mnist_mamba.bin")
ENGINE = Path("build/dvc/mamba")
ENGINE_LIBRARY = Path("build/dvc/plain/libmamba.so")
"""Without OpenMP, so that it needs nothing but libc and libm where it is served."""
METRICS = Path("metrics")
PLOTS = Path("plots")
CURVES = PLOTS / "curves.json"
PREDICTIONS = PLOTS / "predictions.csv"
TRACKING_KEY = Path("artifacts/tracking_key.txt")


def images(folder: Path, part: str) -> Path:
    """Images of a part of the data."""
    return folder / f"{part}-images.idx"


def labels(folder: Path, part: str) -> Path:
    """Labels of a part of the data."""
    return folder / f"{part}-labels.idx"


def remove_data(folder: Path, parts: Iterable[str]) -> None:
    """Remove the parts' files, so that a stage that is killed leaves no mixture of old and new."""
    for part in parts:
        images(folder, part).unlink(missing_ok=True)
        labels(folder, part).unlink(missing_ok=True)
