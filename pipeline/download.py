"""Stage `download`: fetch the data set, check it, and write it as four IDX files."""

from __future__ import annotations

import os
from pathlib import Path

from mnist_mamba.data.sources import load_digits, load_idx, load_mnist
from mnist_mamba.data.splits import LabelledImages
from pipeline.common import command, paths
from pipeline.common.options import add_set_option, parse_params
from pipeline.common.params import Params
from pipeline.common.prepared_data import write_splits


def fetch(params: Params) -> tuple[LabelledImages, LabelledImages]:
    """Return the training set and the test set of the chosen data set."""
    match params.data.dataset:
        case "mnist":
            return load_mnist(os.environ.get("MNIST_MIRROR") or None)
        case "digits":
            return load_digits()
        case "idx":
            return load_idx(Path(params.data.idx_dir))


def main() -> None:
    """Fetch the data and write it to data/raw."""
    examples = [
        "MNIST_MIRROR=/my/mnist python -m pipeline.download",
        "python -m pipeline.download --set data.dataset=digits",
    ]
    params = parse_params(add_set_option(command.parser(__doc__ or "", examples)))
    train, test = fetch(params)
    # The size of a user's own images is known only now, and `train` would fail late.
    params.check_fit(*train.images.shape[1:])
    write_splits(paths.RAW, {"train": train, "test": test})


if __name__ == "__main__":
    command.run(main)
