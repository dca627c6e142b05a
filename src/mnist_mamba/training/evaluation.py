"""Logits and scores of a model on a set of images."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from mnist_mamba.model import Classifier


@dataclasses.dataclass(frozen=True)
class Scores:
    """Metrics over a set of images."""

    accuracy: float
    """Fraction classified correctly."""
    loss: float
    """Mean cross-entropy, in nats."""


@torch.inference_mode()
def predict(model: Classifier, images: Tensor, batch_size: int = 256) -> Tensor:
    """Return the logits (n, n_classes), float32 on the CPU, of n uint8 images."""
    device = next(model.parameters()).device
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        batches = (batch.to(device, torch.float32) / 255 for batch in images.split(batch_size))
        return torch.cat([model(batch).float().cpu() for batch in batches])
    finally:
        for module, training in modes:
            module.training = training


def score(model: Classifier, images: Tensor, labels: Tensor, batch_size: int = 256) -> Scores:
    """Return a model's scores on uint8 images (n, height, width[, channels]) with (n,) labels."""
    logits = predict(model, images, batch_size)
    correct = int((logits.argmax(dim=1) == labels).sum())
    loss = float(F.cross_entropy(logits.double(), labels))
    return Scores(accuracy=correct / len(labels), loss=loss)
