"""Import torchvision where its wheel was built for another torch.

The wheels on the package index are built for CUDA. Beside a CPU build of torch their compiled
operators do not load, and the import stops at registering shapes for them. Declaring the two
operators first lets everything that is plain Python (data sets, transforms) work.
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
"""Kept alive: a library's definitions go with it."""


def import_torchvision() -> ModuleType:
    """torchvision, mended if the plain import fails for want of its operators.

    Raises:
        ImportError: torchvision is not installed, or broken in some other way.
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
