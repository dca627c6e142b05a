"""Stage `prepare`: fixed splits, resampled if asked for, with the facts later stages need."""

from __future__ import annotations

import logging

from mnist_mamba.data.idx import read_images, read_labels, write_idx
from mnist_mamba.data.splits import LabelledImages, Splits, describe, resize, split
from mnist_mamba.files import write_json
from pipeline import paths, stage
from pipeline.params import DataParams, load_params

logger = logging.getLogger(__name__)


def prepare(train: LabelledImages, test: LabelledImages, params: DataParams) -> Splits:
    """Resample, and split validation images off the training images."""
    if params.size is not None:
        train = train._replace(images=resize(train.images, params.size))
        test = test._replace(images=resize(test.images, params.size))
    rest, val = split(train, params.val_fraction, params.split_seed)
    return Splits(rest, val, test)


def main() -> None:
    """Read data/raw, write data/prepared."""
    stage.parser(__doc__ or "").parse_args()
    params = load_params()
    if not paths.images(paths.RAW, "train").is_file():
        raise FileNotFoundError(
            f"{paths.RAW} holds no data: python -m pipeline.download comes first"
        )
    raw = [
        LabelledImages(
            read_images(paths.images(paths.RAW, part)), read_labels(paths.labels(paths.RAW, part))
        )
        for part in ("train", "test")
    ]
    splits = prepare(raw[0], raw[1], params.data)
    info = describe(splits)
    for part, data in splits._asdict().items():
        write_idx(paths.images(paths.PREPARED, part), data.images)
        write_idx(paths.labels(paths.PREPARED, part), data.labels)
        logger.info("%s: %d images of %d x %d", part, *data.images.shape)
    write_json(paths.DATA_INFO, info)


if __name__ == "__main__":
    stage.run(main)
