"""Stage `export`: write a checkpoint as the C engine's model file, or an image as its input.

Also converts model files of version 1.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import get_args

from mnist_mamba.config import Preparation
from pipeline.common import command, paths
from pipeline.common.params import load_params


def parse_arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = command.parser(
        "Write the C engine's input: a model file, or one image as raw float32. Or convert a model "
        "file of version 1.",
        [
            "python -m pipeline.export model --checkpoint checkpoints/best_model.pth "
            "--output mnist_mamba.bin",
            "python -m pipeline.export image --index 0 --output input.bin",
            "./mamba mnist_mamba.bin input.bin",
            "python -m pipeline.export convert old.bin new.bin --preparation mnist",
        ],
    )
    what = parser.add_subparsers(dest="what", required=True)
    model = what.add_parser("model", help="write a checkpoint as the engine's model file")
    model.add_argument(
        "--checkpoint", type=Path, help="default: the one that export.checkpoint names"
    )
    model.add_argument(
        "--output", type=Path, default=Path("mnist_mamba.bin"), help="default: %(default)s"
    )
    image = what.add_parser("image", help="write one image as height x width float32 in [0, 1]")
    image.add_argument("--index", type=int, default=0, help="counted from 0; default: %(default)s")
    image.add_argument("--split", choices=("train", "val", "test"), default="test")
    image.add_argument(
        "--output", type=Path, default=Path("input.bin"), help="default: %(default)s"
    )
    convert = what.add_parser("convert", help="write a model file of version 1 as one of version 2")
    convert.add_argument("old", type=Path)
    convert.add_argument("new", type=Path)
    convert.add_argument(
        "--preparation",
        choices=get_args(Preparation),
        default="resize",
        help="how a picture becomes an image of the model's; default: %(default)s",
    )
    convert.add_argument(
        "--classes", default="", help="names with commas between them; default: 0,1,..."
    )
    arguments = parser.parse_args()
    if arguments.what == "model" and arguments.checkpoint is None:
        arguments.checkpoint = paths.CHECKPOINTS / f"{load_params().export.checkpoint}.pth"
    return arguments


if __name__ == "__main__":
    command.run(parse_arguments)

import numpy as np

from mnist_mamba.atomic_write import write_bytes
from mnist_mamba.engine.version_1 import convert
from mnist_mamba.export import write_model
from mnist_mamba.training.checkpoint import load_checkpoint
from pipeline.common.prepared_data import read_split

logger = logging.getLogger(__name__)


def export_model(checkpoint: Path, output: Path) -> None:
    """Write a checkpoint's model as a model file; warn if its training has not ended."""
    loaded = load_checkpoint(checkpoint, scan="reference")
    state = checkpoint.parent / paths.TRAINING_STATE
    if state.exists():
        logger.warning(
            "%s exists, so the training has not ended: %s is from epoch %d",
            state,
            checkpoint,
            loaded.epoch,
        )
    write_model(output, loaded.model)
    logger.info("%s: %d parameters from %s", output, loaded.model.n_parameters, checkpoint)


def export_image(split: str, index: int, output: Path) -> None:
    """Write one image of the prepared data as little-endian float32.

    Raises:
        ValueError: the split has no image with this index.
    """
    images, labels = read_split(paths.PREPARED, split, "prepare")
    if not 0 <= index < len(images):
        raise ValueError(
            f"--index {index}: expected 0 to {len(images) - 1}, the images of the split {split}"
        )
    write_bytes(output, (images[index] / np.float32(255)).astype("<f4").tobytes())
    logger.info("%s: image %d of %s, label %d", output, index, split, labels[index])


def convert_file(old: Path, new: Path, preparation: Preparation, classes: str) -> None:
    """Write a model file of version 1 as one of today's version."""
    names = classes.split(",") if classes else ()
    write_bytes(new, convert(old.read_bytes(), preparation, names))
    logger.info("%s: the model of %s, with the preparation %s", new, old, preparation)
    if preparation == "resize":
        logger.info("if it reads digits as MNIST's, convert it with --preparation mnist")


def main() -> None:
    """Export a model or an image, or convert a model file."""
    arguments = parse_arguments()
    if arguments.what == "convert":
        convert_file(arguments.old, arguments.new, arguments.preparation, arguments.classes)
    elif arguments.what == "image":
        export_image(arguments.split, arguments.index, arguments.output)
    else:
        export_model(arguments.checkpoint, arguments.output)


if __name__ == "__main__":
    command.run(main)
