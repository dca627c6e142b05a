"""Stage `prepare`: resample the images, set validation images aside, measure the pixels."""

from __future__ import annotations

from mnist_mamba.atomic_write import write_json
from mnist_mamba.data.splits import LabelledImages, Splits, describe, resize, split
from pipeline.common import command, paths
from pipeline.common.options import add_set_option, parse_params
from pipeline.common.params import DataParams
from pipeline.common.prepared_data import read_split, write_splits


def prepare(train: LabelledImages, test: LabelledImages, params: DataParams) -> Splits:
    """Return the splits: resampled if required, with part of `train` as validation images."""
    if params.size is not None:
        train = train._replace(images=resize(train.images, params.size))
        test = test._replace(images=resize(test.images, params.size))
    rest, val = split(train, params.val_fraction, params.split_seed)
    return Splits(rest, val, test)


def main() -> None:
    """Read data/raw and write data/prepared; info.json comes last, so that it marks whole data."""
    examples = ["python -m pipeline.prepare --set data.resize=28"]
    params = parse_params(add_set_option(command.parser(__doc__ or "", examples)))
    train, test = (read_split(paths.RAW, name, "download") for name in ("train", "test"))
    splits = prepare(train, test, params.data)
    info = describe(splits)
    paths.DATA_INFO.unlink(missing_ok=True)
    write_splits(paths.PREPARED, splits._asdict())
    write_json(paths.DATA_INFO, info)


if __name__ == "__main__":
    command.run(main)
