"""Stage `download`: fetch the data set, check it, and write it as four IDX files."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Literal

import numpy as np

from mnist_mamba.atomic_write import write_json
from mnist_mamba.data.downloads import load_torchvision, mirror_variable
from mnist_mamba.data.folders import load_folder
from mnist_mamba.data.idx import Bytes
from mnist_mamba.data.npz import load_npz
from mnist_mamba.data.sources import load_digits, load_idx
from mnist_mamba.data.splits import DataError, DataSet, some, with_channels
from mnist_mamba.engine.binding import (
    NOTHING_DRAWN,
    EngineError,
    prepare_picture,
)
from pipeline.common import command, paths
from pipeline.common.options import add_set_option, parse_params
from pipeline.common.params import Params
from pipeline.common.prepared_data import write_splits

logger = logging.getLogger(__name__)


def fetch(params: Params) -> DataSet:
    """Return the chosen data set."""
    data = params.data
    match data.dataset:
        case "digits":
            return DataSet(*load_digits())
        case "idx":
            return DataSet(*load_idx(Path(data.idx_dir)))
        case "npz":
            return load_npz(Path(data.folder), data.test_fraction)
        case "folder":
            return load_folder(
                Path(data.folder), data.size, data.test_fraction, data.resolved_preparation
            )
        case name:
            mirror = os.environ.get(mirror_variable(name)) or None
            return load_torchvision(name, mirror, data.emnist_split)


def find_digits(data: DataSet, size: tuple[int, int]) -> DataSet:
    """Return the data set with each image as `./mamba` shows a picture to a model of this size.

    Raises:
        DataError: images in which nothing is drawn.
    """
    empty: list[str] = []

    def prepared(part: str, images: Bytes) -> Bytes:
        found = np.zeros((len(images), *size), np.uint8)
        for i, image in enumerate(images):
            try:
                found[i] = prepare_picture(image, *size)
            except EngineError as error:
                if error.status != NOTHING_DRAWN:
                    raise DataError(f"{part} image {i}: {error}") from error
                empty.append(f"{part} image {i}")
        return found

    train = data.train._replace(images=prepared("train", data.train.images))
    test = data.test._replace(images=prepared("test", data.test.images))
    if empty:
        raise DataError(
            f"data.preparation = 'mnist' finds nothing in {len(empty)} images: {some(empty)}; "
            "remove them, or set data.preparation to resize"
        )
    return data._replace(train=train, test=test)


def convert(data: DataSet, channels: Literal["auto", 1, 3]) -> DataSet:
    """Return the data set as grey or as colour, train and test images alike."""
    train, test = (with_channels(part.images, channels) for part in (data.train, data.test))
    if {train.shape[3:], test.shape[3:]} == {(), (3,)}:  # `auto`, and only one of them is grey
        train, test = (with_channels(images, 3) for images in (train, test))
    return data._replace(
        train=data.train._replace(images=train), test=data.test._replace(images=test)
    )


def load(params: Params) -> DataSet:
    """Return the chosen data set in the form in which it is written.

    Raises:
        DataError: the data cannot be used.
        ValueError: the model does not accept it.
    """
    data = fetch(params)
    if params.data.finds_digits and params.data.size and params.data.dataset != "folder":
        data = find_digits(data, params.data.size)
    data = convert(data, params.data.channels)
    height, width, channels = (*data.train.images.shape[1:], 1)[:3]
    params.check_fit(height, width, channels, data.class_names or ("0", "1"))
    return data


def main() -> None:
    """Fetch the data and write it to data/raw."""
    examples = [
        "MNIST_MIRROR=/my/mnist python -m pipeline.download",
        "python -m pipeline.download --set data.dataset=digits",
        "python -m pipeline.download --set data.dataset=folder --set data.folder=my/pictures",
    ]
    params = parse_params(add_set_option(command.parser(__doc__ or "", examples)))
    data = load(params)
    paths.CLASS_NAMES.unlink(missing_ok=True)  # written last, so that it marks whole data
    write_splits(paths.RAW, {"train": data.train, "test": data.test})
    write_json(paths.CLASS_NAMES, data.class_names)


if __name__ == "__main__":
    command.run(main)
