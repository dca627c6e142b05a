"""Reading the parts of the data that an earlier stage has written."""

from __future__ import annotations

from pathlib import Path

from mnist_mamba.data.idx import read_images, read_labels
from mnist_mamba.data.splits import DataError, LabelledImages
from pipeline.common import paths


def read_part(folder: Path, part: str, stage: str) -> LabelledImages:
    """Images and labels of a part, which `stage` has made.

    Raises:
        FileNotFoundError: it has not; the message says what to run.
        DataError: not as many labels as images.
        mnist_mamba.data.idx.IdxError: a file is damaged.
    """
    images, labels = paths.images(folder, part), paths.labels(folder, part)
    for path in (images, labels):
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not there: python -m pipeline.{stage} comes first")
    found = LabelledImages(read_images(images), read_labels(labels))
    if len(found.images) != len(found.labels):
        raise DataError(
            f"{images} has {len(found.images)} images and {labels} {len(found.labels)} labels, "
            f"expected as many: run python -m pipeline.{stage} again"
        )
    return found
