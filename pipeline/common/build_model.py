"""Building the untrained model that the params describe."""

from __future__ import annotations

from typing import Any

import torch

from mnist_mamba.model import Classifier, build_classifier
from pipeline.common.params import Params

DESCRIBED = ("channels", "class_names", "preparation", "pixel_mean", "pixel_std")
"""Fields of the model's config that `prepare` writes."""


def build_model(params: Params, info: dict[str, Any]) -> Classifier:
    """Return an untrained model for the prepared data; the same params give the same weights.

    Args:
        params: their `model` section, `train.seed` and `train.scan` are used.
        info: sizes and pixel statistics of the data (`prepared_data.read_info`).
    """
    config = params.model.config(
        info["height"],
        info["width"],
        info["n_classes"],
        **{name: info[name] for name in DESCRIBED},
    )
    torch.manual_seed(params.train.seed)
    return build_classifier(config, scan=params.train.scan)
