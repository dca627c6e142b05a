"""Import torchvision even if its wheel was built for another torch.

PyPI's wheels are built for CUDA. With a CPU build of torch their compiled operators do not load,
and the import fails where it registers shapes for them. With these two operators declared first,
everything that is plain Python (data sets, transforms) works.
"""

from __future__ import annotations

import importlib
from types import ModuleType

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_libraries: list[torch.library.Library] = []
"""Keeps the libraries alive: their definitions die with them."""


def import_torchvision() -> ModuleType:
    """Import torchvision, declaring its operators if the plain import lacks them.

    Raises:
        ImportError: torchvision is not installed, or broken in another way.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise ImportError(f"torchvision does not import: {error}") from error
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        library.define(schema)
    _libraries.append(library)
    return importlib.import_module("torchvision")
