"""Paths that the stages read and write, relative to the project's folder, as in dvc.yaml."""

from pathlib import Path

RAW = Path("data/raw")
PREPARED = Path("data/prepared")
CLASS_NAMES = RAW / "class_names.json"
DATA_INFO = PREPARED / "info.json"
CHECKPOINTS = Path("checkpoints")
TRAINING_STATE = "training_state.pth"
"""File next to the checkpoints while a training runs; DVC would delete it as an output."""
MODEL = Path("artifacts/mnist_mamba.bin")
ENGINE = Path("build/dvc/mamba")
ENGINE_LIBRARY = Path("build/dvc/plain/libmamba.so")
"""The engine built without OpenMP: a server needs only libc and libm to run it."""
METRICS = Path("metrics")
PLOTS = Path("plots")
CURVES = PLOTS / "curves.json"
PREDICTIONS = PLOTS / "predictions.csv"
FIGURES = tuple(
    PLOTS / f"{name}.png"
    for name in (
        *("curves", "confusion", "predictions"),
        *("misclassified", "reliability", "robustness"),
    )
)
"""Pictures of a run, all drawn by `evaluate`; plots/ also has those of series."""
EXAMPLES, AUGMENTATION = PLOTS / "examples.png", PLOTS / "augmentation.png"
"""Pictures of the data, drawn by `prepare`."""
TRACKING_KEY = Path("artifacts/tracking_key.txt")


def images(folder: Path, split: str) -> Path:
    """Return the path of a split's images."""
    return folder / f"{split}-images.idx"


def labels(folder: Path, split: str) -> Path:
    """Return the path of a split's labels."""
    return folder / f"{split}-labels.idx"
