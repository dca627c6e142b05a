"""The splits that `prepare` writes, which `check_params` tries first."""

from __future__ import annotations

from mnist_mamba.data.splits import LabelledImages, Splits, resize, split
from pipeline.common.params import DataParams


def prepare(train: LabelledImages, test: LabelledImages, params: DataParams) -> Splits:
    """Return the splits: resampled if required, with part of `train` as validation images."""
    if params.size is not None:
        train = train._replace(images=resize(train.images, params.size))
        test = test._replace(images=resize(test.images, params.size))
    rest, val = split(train, params.val_fraction, params.split_seed)
    return Splits(rest, val, test)
