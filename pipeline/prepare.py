"""Stage `prepare`: resample the images, set validation images aside, check and draw the data."""

from __future__ import annotations

import logging

from pipeline.common import command, paths
from pipeline.common.options import add_set_option, parse_params
from pipeline.common.params import Params

PARSER = add_set_option(
    command.parser(__doc__ or "", ["python -m pipeline.prepare --set data.resize=28"])
)

if __name__ == "__main__":
    command.run(lambda: parse_params(PARSER))

import numpy as np
import torch

from mnist_mamba.atomic_write import write_json
from mnist_mamba.data import checks
from mnist_mamba.data.augment import augment
from mnist_mamba.data.splits import LabelledImages, describe
from pipeline.common import plots
from pipeline.common.prepared_data import read_class_names, read_split, write_splits
from pipeline.common.splitting import prepare

logger = logging.getLogger(__name__)

AUGMENTED_CLASSES = 10
"""Number of classes in the picture of the augmentation."""


def draw(train: LabelledImages, names: list[str], params: Params) -> None:
    """Draw examples of each class, and what a training will see of some of them."""
    members = [np.flatnonzero(train.labels == label) for label in range(len(names))]
    rows = [
        (f"{name} ({len(found):,})", train.images[found[: plots.EXAMPLES_PER_CLASS]])
        for name, found in zip(names, members, strict=True)
    ]
    plots.draw_rows(paths.EXAMPLES, rows, "training images, and their number, of each class")
    shown = [label for label, found in enumerate(members) if len(found)][:AUGMENTED_CLASSES]
    copies = plots.EXAMPLES_PER_CLASS - 1
    images = torch.from_numpy(train.images[[members[label][0] for label in shown]])
    changed = augment(
        images.repeat_interleave(copies, dim=0).float() / 255,
        params.train.augment.at(0),
        torch.Generator().manual_seed(0),
    )
    changed = (changed * 255).round().to(torch.uint8).unflatten(0, (len(shown), copies))
    seen = torch.cat([images[:, None], changed], dim=1).numpy()
    plots.draw_rows(
        paths.AUGMENTATION,
        [(names[label], row) for label, row in zip(shown, seen, strict=True)],
        "one image of a class, and how a training sees it (train.augment)",
    )


def main() -> None:
    """Read data/raw and write data/prepared; info.json comes last, so that it marks whole data."""
    params = parse_params(PARSER)
    names = read_class_names()
    train, test = (read_split(paths.RAW, name, "download") for name in ("train", "test"))
    splits = prepare(train, test, params.data)
    info = describe(splits, names, params.data.resolved_preparation)
    found = checks.measure(splits)
    warnings = list(checks.warnings(info, found))
    for warning in warnings:
        logger.warning("warning: %s", warning)
    draw(splits.train, info["class_names"], params)
    metrics = {
        "dataset": params.data.dataset,
        "name": params.data.title,
        "per_class": {
            split: dict(zip(info["class_names"], part["per_class"], strict=True))
            for split, part in info["splits"].items()
        },
        "warnings": warnings,
        **found,
    }
    write_json(paths.METRICS / "data.json", metrics)
    paths.DATA_INFO.unlink(missing_ok=True)
    write_splits(paths.PREPARED, splits._asdict())
    write_json(paths.DATA_INFO, info)


if __name__ == "__main__":
    command.run(main)
