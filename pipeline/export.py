"""Stage `export`: write a checkpoint as the C engine's model file, or an image as its input.

Also converts model files of version 1, rounds the weights of a model file, and writes one as an
ONNX file.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import math
from pathlib import Path
from typing import Any, get_args

from mnist_mamba.config import Preparation
from pipeline.common import command, paths
from pipeline.common.params import Params, load_params


def parse_arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = command.parser(
        "Write the C engine's input: a model file, or one image as raw float32. Or convert a model "
        "file of version 1, round the weights of a model file, or write one as an ONNX file.",
        [
            "python -m pipeline.export model --checkpoint checkpoints/best_model.pth "
            "--output mnist_mamba.bin",
            "python -m pipeline.export image --index 0 --output input.bin",
            "./mamba mnist_mamba.bin input.bin",
            "python -m pipeline.export convert old.bin new.bin --preparation mnist",
            "python -m pipeline.export round float32.bin int8.bin",
            "python -m pipeline.export onnx models/mnist_mamba.bin mnist_mamba.onnx",
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
    model.add_argument(
        "--weight-type",
        help="float32, or a byte per weight; default: export.weight_type",
    )
    model.add_argument(
        "--exit-margin",
        type=_margin,
        help="a number, or auto to choose it on the prepared validation images; default: "
        "export.exit_margin",
    )
    model.add_argument(
        "--metrics", type=Path, help="write how many members are asked, and what it costs, here"
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
    rounded = what.add_parser("round", help="write a model file again with int8 weights")
    rounded.add_argument("old", type=Path)
    rounded.add_argument("new", type=Path)
    onnx = what.add_parser("onnx", help="write a model file as an ONNX file")
    onnx.add_argument("model", type=Path)
    onnx.add_argument("onnx", type=Path)
    onnx.add_argument(
        "--check",
        type=Path,
        metavar="IMAGES.idx",
        help="compare ONNX Runtime's logits of these images with the C engine's",
    )
    onnx.add_argument(
        "--batch",
        type=int,
        metavar="N",
        help="write a file for N images per call, which is faster if N is large; default: any "
        "number",
    )
    arguments = parser.parse_args()
    if arguments.what == "model":
        given = {"exit_margin": arguments.exit_margin, "weight_type": arguments.weight_type}
        changes = {f"export.{name}": value for name, value in given.items() if value is not None}
        arguments.params = load_params().changed(changes, "command line")
        if arguments.checkpoint is None:
            arguments.checkpoint = paths.CHECKPOINTS / f"{arguments.params.export.checkpoint}.pth"
    return arguments


def _margin(text: str) -> float | str:
    return text if text == "auto" else float(text)


if __name__ == "__main__":
    command.run(parse_arguments)

import numpy as np
import torch

from mnist_mamba.atomic_write import write_bytes, write_json
from mnist_mamba.data.idx import read_images
from mnist_mamba.early_exit import changed_predictions, members_asked, safe_margin
from mnist_mamba.engine.binding import EXIT_MARGINS, is_exit_margin
from mnist_mamba.engine.format import rounded
from mnist_mamba.engine.version_1 import convert
from mnist_mamba.export import load_model, write_model
from mnist_mamba.metrics import quality
from mnist_mamba.model import MambaEnsemble
from mnist_mamba.onnx_file import compare_onnx, write_onnx
from mnist_mamba.training import evaluation
from mnist_mamba.training.checkpoint import load_checkpoint
from pipeline.common.prepared_data import read_split

logger = logging.getLogger(__name__)


def set_exit_margin(model: MambaEnsemble, params: Params, measure: bool) -> dict[str, Any]:
    """Set the ensemble's exit margin, and return it, with its costs on the validation images.

    Args:
        model: the ensemble.
        params: their `export`, `train.on_val` and `evaluate.ece_bins` are used.
        measure: measure the costs of a margin that is given, too.

    Raises:
        FileNotFoundError: validation images are needed, and no data is prepared.
        ValueError: they do not fit the model, or no file may have the margin that is given.
    """
    chosen = params.export.exit_margin
    if chosen == "auto" and params.train.on_val:
        logger.warning(
            "export.exit_margin = auto: the validation images were trained on (train.on_val), so "
            "all members are asked; set the margin of a run that validates (metrics/exit.json)"
        )
        chosen = 0.0
    if chosen != "auto" and not is_exit_margin(chosen):
        raise ValueError(f"export.exit_margin = {chosen}: expected {EXIT_MARGINS}")
    if chosen != "auto" and (params.train.on_val or not measure):
        model.exit_margin = float(np.float32(chosen))
        return {"exit_margin": round(model.exit_margin, 6)}
    images, labels = read_split(paths.PREPARED, "val", "prepare")
    each = evaluation.member_logits(model, torch.from_numpy(images))
    whole = each.mean(dim=0)
    safe = math.ceil(1000 * safe_margin(each)) / 1000  # equal for all instruction sets
    margin = safe + params.export.exit_reserve if chosen == "auto" else chosen
    model.exit_margin = float(np.float32(margin))  # as the file holds it
    logits, asked = evaluation.answers(model, torch.from_numpy(images))
    bins = params.evaluate.ece_bins
    logger.info(
        "exit margin %.2f: %.3f of %d members are asked on average",
        model.exit_margin,
        asked.double().mean(),
        len(each),
    )
    return {
        "exit_margin": round(model.exit_margin, 6),
        "safe_margin": safe,
        "validation": {
            "members_asked": members_asked(asked, len(each)),
            "predictions_changed": changed_predictions(logits, whole),
            "early_exit": quality(logits.numpy(), labels, bins),
            "all_members": quality(whole.numpy(), labels, bins),
        },
    }


def export_model(
    checkpoint: Path, output: Path, params: Params, metrics: Path | None = None
) -> None:
    """Write a checkpoint's model as a model file; warn if its training has not ended.

    Args:
        checkpoint: the checkpoint.
        output: the model file.
        params: their `export`, `train.on_val` and `evaluate.ece_bins` are used.
        metrics: file for the exit margin of an ensemble and its costs, or None.
    """
    loaded = load_checkpoint(checkpoint)
    state = checkpoint.parent / paths.TRAINING_STATE
    if state.exists():
        logger.warning(
            "%s exists, so the training has not ended: %s is from epoch %d",
            state,
            checkpoint,
            loaded.epoch,
        )
    model = loaded.model
    found: dict[str, Any] = {"exit_margin": 0.0}
    if isinstance(model, MambaEnsemble):
        found = set_exit_margin(model, params, measure=metrics is not None)
    write_model(output, model, params.export.weight_type)
    if metrics is not None:
        write_json(metrics, found)
    logger.info(
        "%s: %d parameters from %s as %s",
        output,
        model.n_parameters,
        checkpoint,
        params.export.weight_type,
    )


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


def round_file(old: Path, new: Path) -> None:
    """Write a model file again, with int8 weights."""
    write_bytes(new, rounded(old.read_bytes()))
    logger.info(
        "%s: %d bytes, from the %d of %s", new, *(f.stat().st_size for f in (new, old)), old
    )


def export_onnx(
    model: Path, onnx: Path, batch: int | None, images: Path | None, tolerance: float
) -> None:
    """Write a model file as an ONNX file, and compare the two on images, if any are given.

    If the file is for batches of a fixed size, whole batches of the images are compared.

    Raises:
        ValueError: the batch is empty, or larger than the images.
        RuntimeError: a package is missing, ONNX Runtime predicts another class, or a logit differs
            by more than the tolerance.
    """
    needed = ("onnx", "onnxscript") if images is None else ("onnx", "onnxscript", "onnxruntime")
    missing = [package for package in needed if importlib.util.find_spec(package) is None]
    if missing:
        raise RuntimeError(
            f"{', '.join(missing)} not found: run `pip install -c constraints.txt -e '.[onnx]'`"
        )
    pixels = None if images is None else read_images(images)
    most = 65_536 if pixels is None else len(pixels)
    if batch is not None and not 1 <= batch <= most:
        raise ValueError(f"--batch: got {batch}, expected 1 to {most}")
    write_onnx(onnx, load_model(model), batch)
    logger.info("%s: %d bytes, from %s", onnx, onnx.stat().st_size, model)
    if pixels is not None:
        pixels = pixels[: len(pixels) // (batch or 1) * (batch or 1)]
        changed, largest = compare_onnx(onnx, model, pixels, batch or 100)
        found = (
            f"{changed} of {len(pixels)} predictions differ from the C engine's, "
            f"and logits by up to {largest:.1e}"
        )
        if changed or not largest <= tolerance:  # also if it is NaN
            raise RuntimeError(f"{onnx}: {found}; expected 0, and up to {tolerance:g}")
        logger.info("%s: %s", onnx, found)


def main() -> None:
    """Export a model or an image, or write a model file as another kind of file."""
    arguments = parse_arguments()
    if arguments.what == "convert":
        convert_file(arguments.old, arguments.new, arguments.preparation, arguments.classes)
    elif arguments.what == "round":
        round_file(arguments.old, arguments.new)
    elif arguments.what == "onnx":
        tolerance = load_params().evaluate.max_abs_logit_diff
        export_onnx(arguments.model, arguments.onnx, arguments.batch, arguments.check, tolerance)
    elif arguments.what == "image":
        export_image(arguments.split, arguments.index, arguments.output)
    else:
        export_model(arguments.checkpoint, arguments.output, arguments.params, arguments.metrics)


if __name__ == "__main__":
    command.run(main)
