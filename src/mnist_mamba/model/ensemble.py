"""An ensemble of classifiers."""

from __future__ import annotations

import dataclasses
from typing import cast

import torch
from torch import Tensor, nn

from mnist_mamba.config import ModelConfig
from mnist_mamba.model.classifier import MambaClassifier


class MambaEnsemble(nn.Module):
    """Classifiers of one shape whose logits are averaged (Lakshminarayanan 2017, arXiv 1612.01474).

    The members differ in their initial weights. They learn from the same batches, each from its
    own loss.

    Args:
        config: the members' shape, and their number.
        scan: backend of the scan, as in `MambaClassifier`.
    """

    def __init__(self, config: ModelConfig, scan: str = "auto") -> None:
        super().__init__()
        self.config = config
        one = dataclasses.replace(config, members=1)
        self.members = nn.ModuleList(MambaClassifier(one, scan) for _ in range(config.members))

    @property
    def classifiers(self) -> list[MambaClassifier]:
        """The members, typed; a user may have replaced one."""
        return [cast(MambaClassifier, member) for member in self.members]

    @property
    def n_parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(parameter.numel() for parameter in self.parameters())

    def member_logits(self, pixels: Tensor) -> Tensor:
        """Return (members, batch, n_classes) logits of pixels as in `MambaClassifier.forward`."""
        return torch.stack([member(pixels) for member in self.members])

    def forward(self, pixels: Tensor) -> Tensor:
        """Return (batch, n_classes) logits of pixels as in `MambaClassifier.forward`.

        Raises:
            ValueError: the pixels have another shape.
        """
        return self.member_logits(pixels).mean(dim=0)


Classifier = MambaClassifier | MambaEnsemble


def build_classifier(config: ModelConfig, scan: str = "auto") -> Classifier:
    """Return a new classifier, or an ensemble if `config.members` is above 1."""
    return MambaClassifier(config, scan) if config.members == 1 else MambaEnsemble(config, scan)
