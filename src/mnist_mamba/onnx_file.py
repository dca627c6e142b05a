"""A model as an ONNX file, for other runtimes: pixels in, logits out.

ONNX's operators have no recurrence that runtimes run well. A file for any number of images has the
scan as log2(length) passes (`scan.reference.selective_scan_parallel`), one for a fixed batch as a
step per token. All members of an ensemble are asked: the graph has no early exit, and its time is
that of all members.

Needs the packages of `mnist-mamba[onnx]`.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mnist_mamba.atomic_write import write_bytes
from mnist_mamba.engine import Engine
from mnist_mamba.model import Classifier, MambaEnsemble
from mnist_mamba.model.mixer import MambaMixer

OPSET = 18
"""Version of ONNX's operators in the files: ONNX Runtime 1.14 and OpenVINO 2023 know it."""


def write_onnx(path: Path, model: Classifier, batch: int | None = None) -> None:
    """Write a model as an ONNX file, whole or not at all.

    The input `pixels` is (batch, height, width), or (batch, height, width, channels) if there are
    several channels: float32 in [0, 1]. The output `logits` is (batch, n_classes) float32. The
    file's metadata have class_names, one name per line, and preparation.

    Args:
        path: the file, replaced if it exists.
        model: a classifier or an ensemble. The file's scan does not depend on the model's.
        batch: images per call, or None for any number.

    Raises:
        ModuleNotFoundError: onnx or onnxscript is not installed.
        OSError: the file cannot be written.
    """
    model = copy.deepcopy(model).cpu().float().eval()
    for part in model.modules():
        if isinstance(part, MambaMixer):
            part.scan_backend = "parallel" if batch is None else "reference"
    if isinstance(model, MambaEnsemble):
        model.exit_margin = 0.0
    config = model.config
    channels = () if config.channels == 1 else (config.channels,)
    pixels = torch.rand(batch or 2, config.height, config.width, *channels)
    names = "\n".join(config.resolved_class_names)
    metadata = {"class_names": names, "preparation": config.preparation}
    write_graph(path, model, pixels, metadata, any_batch=batch is None)


def write_graph(
    path: Path,
    model: nn.Module,
    pixels: Tensor,
    metadata: Mapping[str, str] = MappingProxyType({}),
    any_batch: bool = False,
) -> None:
    """Write a module from pixels to logits as an ONNX file, whole or not at all.

    Args:
        path: the file, replaced if it exists.
        model: the module, in evaluation mode. A loop in its forward is unrolled.
        pixels: an example of its input; if any_batch, of at least two images.
        metadata: texts for the file.
        any_batch: let the file take any number of images, instead of the example's.
    """
    for package in ("onnx_ir", "onnxscript"):  # they report each step of their optimizer
        logging.getLogger(package).setLevel(logging.WARNING)
    batch = ({0: torch.export.Dim("batch", min=1)},) if any_batch else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own code
        program: Any = torch.onnx.export(
            model,
            (pixels,),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=["pixels"],
            output_names=["logits"],
            dynamic_shapes=batch,
        )
    # The exporter's notes of its source have stack traces, which name files of this machine.
    for part in (program.model, program.model.graph, *program.model.graph.all_nodes()):
        part.metadata_props.clear()
    program.model.metadata_props.update(metadata)
    write_bytes(path, program.model_proto.SerializeToString())


def compare_onnx(
    onnx: Path, model: Path, images: NDArray[np.uint8], batch: int = 100
) -> tuple[int, float]:
    """Compare an ONNX file with the C engine that asks all members.

    Args:
        onnx: the ONNX file, run by ONNX Runtime on the CPU.
        model: the model file that it was made of.
        images: (n, height, width[, channels]) uint8.
        batch: images per call; the last call has the rest.

    Returns:
        The number of predictions that differ, and the largest difference of a logit.

    Raises:
        ModuleNotFoundError: onnxruntime is not installed.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])
    pixels = np.split(images.astype(np.float32) / 255, range(batch, len(images), batch))
    found = np.concatenate([session.run(None, {"pixels": part})[0] for part in pixels])
    with Engine(model, exit_margin=0) as engine:
        expected = engine.logits(images)
    changed = int((found.argmax(axis=1) != expected.argmax(axis=1)).sum())
    return changed, float(np.abs(found - expected).max())
