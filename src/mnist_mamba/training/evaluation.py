"""Logits and scores of a model on a set of images."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from mnist_mamba.model import Classifier, MambaClassifier
from mnist_mamba.training.members import Members


@dataclasses.dataclass(frozen=True)
class Scores:
    """Metrics over a set of images."""

    accuracy: float
    """Fraction classified correctly."""
    loss: float
    """Mean cross-entropy, in nats."""


def predict(model: Classifier, images: Tensor, batch_size: int = 256) -> Tensor:
    """Return the logits (n, n_classes), float32 on the CPU, of (n, height, width) uint8 images."""
    was_training = model.training
    model.eval()
    members = Members(model)
    with members.one_thread():
        logits = members.map(lambda member: _predict_one(member, images, batch_size))
    model.train(was_training)
    return torch.stack(logits).mean(dim=0)


@torch.inference_mode()
def _predict_one(member: MambaClassifier, images: Tensor, batch_size: int) -> Tensor:
    device = next(member.parameters()).device
    batches = (batch.to(device, torch.float32) / 255 for batch in images.split(batch_size))
    return torch.cat([member(batch).float().cpu() for batch in batches])


def score(model: Classifier, images: Tensor, labels: Tensor, batch_size: int = 256) -> Scores:
    """Return a model's scores on (n, height, width) uint8 images with (n,) labels."""
    logits = predict(model, images, batch_size)
    correct = int((logits.argmax(dim=1) == labels).sum())
    loss = float(F.cross_entropy(logits.double(), labels))
    return Scores(accuracy=correct / len(labels), loss=loss)
