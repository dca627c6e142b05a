"""Several classifiers that answer together."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from mnist_mamba.config import ModelConfig
from mnist_mamba.model.classifier import MambaClassifier


class MambaEnsemble(nn.Module):
    """Classifiers of one shape whose logits are averaged (Lakshminarayanan 2017, arXiv 1612.01474).

    They differ by the weights that they begin with, and learn from the same batches, each from its
    own loss: what they have in common is right more often than any of them.

    Args:
        config: of a member, and how many there are.
        scan: backend of the scan, as in `MambaClassifier`.
    """

    def __init__(self, config: ModelConfig, scan: str = "auto") -> None:
        super().__init__()
        self.config = config
        one = dataclasses.replace(config, members=1)
        self.members = nn.ModuleList(MambaClassifier(one, scan) for _ in range(config.members))

    @property
    def classifiers(self) -> list[MambaClassifier]:
        """The members, typed."""
        return [member for member in self.members if isinstance(member, MambaClassifier)]

    @property
    def n_parameters(self) -> int:
        """Learned values."""
        return sum(member.n_parameters for member in self.classifiers)

    def member_logits(self, pixels: Tensor) -> Tensor:
        """(batch, height, width) in [0, 1] to each member's logits (members, batch, n_classes)."""
        return torch.stack([member(pixels) for member in self.members])

    def forward(self, pixels: Tensor) -> Tensor:
        """(batch, height, width) in [0, 1] to logits (batch, n_classes).

        Raises:
            ValueError: pixels of another shape.
        """
        return self.member_logits(pixels).mean(dim=0)


Classifier = MambaClassifier | MambaEnsemble


def build_classifier(config: ModelConfig, scan: str = "auto") -> Classifier:
    """A fresh model: one classifier, or as many as `config.members`."""
    return MambaClassifier(config, scan) if config.members == 1 else MambaEnsemble(config, scan)
