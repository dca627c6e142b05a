"""Stage `download`: fetch the data set, check it, and write it as four IDX files."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Literal

from mnist_mamba.atomic_write import write_json
from mnist_mamba.data.downloads import load_torchvision, mirror_variable
from mnist_mamba.data.folders import load_folder
from mnist_mamba.data.npz import load_npz
from mnist_mamba.data.sources import load_digits, load_idx
from mnist_mamba.data.splits import DataSet, with_channels
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


def convert(data: DataSet, channels: Literal["auto", 1, 3]) -> DataSet:
    """Return the data set as grey or as colour, train and test images alike."""
    train, test = (with_channels(part.images, channels) for part in (data.train, data.test))
    if train.ndim != test.ndim:  # `auto`, and only one of them is grey
        train, test = (with_channels(images, 3) for images in (train, test))
    return data._replace(
        train=data.train._replace(images=train), test=data.test._replace(images=test)
    )


def main() -> None:
    """Fetch the data and write it to data/raw."""
    examples = [
        "MNIST_MIRROR=/my/mnist python -m pipeline.download",
        "python -m pipeline.download --set data.dataset=digits",
        "python -m pipeline.download --set data.dataset=folder --set data.folder=my/pictures",
    ]
    params = parse_params(add_set_option(command.parser(__doc__ or "", examples)))
    data = convert(fetch(params), params.data.channels)
    # The size of a user's own images is known only now, and `train` would fail late.
    height, width, channels = (*data.train.images.shape[1:], 1)[:3]
    params.check_fit(height, width, channels, data.class_names or ("0", "1"))
    write_splits(paths.RAW, {"train": data.train, "test": data.test})
    write_json(paths.CLASS_NAMES, data.class_names)


if __name__ == "__main__":
    command.run(main)
