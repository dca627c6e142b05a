"""The data files that the stages `download` and `prepare` write."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mnist_mamba.data.idx import read_images, read_labels, write_idx
from mnist_mamba.data.splits import DataError, LabelledImages
from pipeline.common import paths

logger = logging.getLogger(__name__)


def read_info() -> dict[str, Any]:
    """Return the sizes, classes and pixel statistics of the prepared data (info.json).

    Raises:
        FileNotFoundError: `prepare` has not run; it writes this file last.
        DataError: an earlier version of this project wrote the file.
    """
    if not paths.DATA_INFO.is_file():
        raise FileNotFoundError(
            f"{paths.DATA_INFO} not found: run `python -m pipeline.prepare` first"
        )
    info: dict[str, Any] = json.loads(paths.DATA_INFO.read_text(encoding="utf-8"))
    if "class_names" not in info:
        raise DataError(
            f"{paths.DATA_INFO} has no class_names: run `python -m pipeline.download` and "
            "`python -m pipeline.prepare` again"
        )
    return info


def read_split(folder: Path, split: str, stage: str) -> LabelledImages:
    """Return the images and labels of a split.

    Args:
        folder: where the split's two files are.
        split: train, val or test.
        stage: the stage that writes these files; error messages name it.

    Raises:
        FileNotFoundError: the stage has not run.
        DataError: the numbers of images and labels differ.
        mnist_mamba.data.idx.IdxError: a file is damaged.
    """
    images, labels = paths.images(folder, split), paths.labels(folder, split)
    for path in (images, labels):
        if not path.is_file():
            raise FileNotFoundError(f"{path} not found: run `python -m pipeline.{stage}` first")
    data = LabelledImages(read_images(images), read_labels(labels))
    if len(data.images) != len(data.labels):
        raise DataError(
            f"{images} has {len(data.images)} images, but {labels} has {len(data.labels)} labels: "
            f"expected equal numbers; run `python -m pipeline.{stage}` again"
        )
    return data


def read_class_names() -> tuple[str, ...]:
    """Return the class names that `download` found; () stands for the numbers from 0.

    Raises:
        FileNotFoundError: the stage has not run.
    """
    if not paths.CLASS_NAMES.is_file():
        raise FileNotFoundError(
            f"{paths.CLASS_NAMES} not found: run `python -m pipeline.download` first"
        )
    return tuple(json.loads(paths.CLASS_NAMES.read_text(encoding="utf-8")))


def write_splits(folder: Path, splits: Mapping[str, LabelledImages]) -> None:
    """Replace the splits' files; a killed stage leaves no mix of old and new ones."""
    for split in splits:
        paths.images(folder, split).unlink(missing_ok=True)
        paths.labels(folder, split).unlink(missing_ok=True)
    for split, data in splits.items():
        write_idx(paths.images(folder, split), data.images)
        write_idx(paths.labels(folder, split), data.labels)
        logger.info("%s: %d images of %s", split, len(data.labels), _shape(data))


def _shape(data: LabelledImages) -> str:
    height, width, *channels = data.images.shape[1:]
    return f"{height} x {width}" + (f" with {channels[0]} channels" if channels else "")


def read_training_data(on_val: bool) -> tuple[LabelledImages, LabelledImages | None]:
    """Return the images to train on and those to validate on.

    With `on_val`, the validation images are appended to the training images, and the second
    result is None.
    """
    train_set = read_split(paths.PREPARED, "train", "prepare")
    val_set = read_split(paths.PREPARED, "val", "prepare")
    return (train_set.joined(val_set), None) if on_val else (train_set, val_set)
