"""Logits and scores of a model on a set of images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from mnist_mamba.model import Classifier, MambaEnsemble


@dataclasses.dataclass(frozen=True)
class Scores:
    """Metrics over a set of images."""

    accuracy: float
    """Fraction classified correctly."""
    loss: float
    """Mean cross-entropy, in nats."""


@contextmanager
def _evaluated(model: Classifier) -> Iterator[None]:
    """Put a model into evaluation mode, without gradients, and back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes:
            module.training = training


def predict(model: Classifier, images: Tensor, batch_size: int = 256) -> Tensor:
    """Return the logits (n, n_classes), float32 on the CPU, of n uint8 images."""
    return _batched(model, model, images, batch_size)


def member_logits(model: Classifier, images: Tensor, batch_size: int = 256) -> Tensor:
    """Return each member's logits (members, n, n_classes), as `predict`."""
    each = [_batched(model, member, images, batch_size) for member in model.classifiers]
    return torch.stack(each)


def answers(model: MambaEnsemble, images: Tensor, batch_size: int = 256) -> tuple[Tensor, Tensor]:
    """Return logits as `predict` and the number of members asked (n,), for n uint8 images."""
    columns = _batched(
        model, lambda batch: torch.column_stack(model.answers(batch)), images, batch_size
    )
    return columns[:, :-1], columns[:, -1].long()


def _batched(
    model: Classifier, call: Callable[[Tensor], Tensor], images: Tensor, batch_size: int
) -> Tensor:
    device = next(model.parameters()).device
    with _evaluated(model):
        batches = (batch.to(device, torch.float32) / 255 for batch in images.split(batch_size))
        return torch.cat([call(batch).float().cpu() for batch in batches])


def score(model: Classifier, images: Tensor, labels: Tensor, batch_size: int = 256) -> Scores:
    """Return a model's scores on uint8 images (n, height, width[, channels]) with (n,) labels."""
    logits = predict(model, images, batch_size)
    correct = int((logits.argmax(dim=1) == labels).sum())
    loss = float(F.cross_entropy(logits.double(), labels))
    return Scores(accuracy=correct / len(labels), loss=loss)
