"""An ensemble of classifiers."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from mnist_mamba.config import ModelConfig
from mnist_mamba.model.classifier import MambaClassifier


class MambaEnsemble(nn.Module):
    """Classifiers whose logits are averaged (Lakshminarayanan et al. 2017, arXiv 1612.01474).

    The members differ in their initial weights, and may differ in their shapes. They learn from the
    same batches, each from its own loss.

    Almost no image needs all of them. In evaluation, members are asked one after the other until
    the two best classes of their mean logits differ by more than `exit_margin`.

    Attributes:
        exit_margin: 0 asks all members, and is the value of a new ensemble.

    Args:
        config: the members' shapes, and their number.
        scan: backend of the scan, as in `MambaClassifier`.
    """

    def __init__(self, config: ModelConfig, scan: str = "auto") -> None:
        super().__init__()
        self.config = config
        self.exit_margin = 0.0
        self.members = nn.ModuleList(MambaClassifier(one, scan) for one in config.member_configs)

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
        if self.training or self.exit_margin == 0:
            return self.member_logits(pixels).mean(dim=0)
        return self.answers(pixels)[0]

    def answers(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean logits of the members asked, and how many were asked of each image.

        Args:
            pixels: as in `MambaClassifier.forward`.

        Returns:
            Logits (batch, n_classes), and numbers of members (batch,).
        """
        margin = self.exit_margin or math.inf
        first, *others = self.classifiers
        total = first(pixels)
        asked = torch.ones(len(pixels), dtype=torch.long, device=total.device)
        unsure = torch.arange(len(pixels), device=total.device)
        for count, member in enumerate(others, start=1):
            best, second = total[unsure].topk(2, dim=1).values.unbind(dim=1)
            unsure = unsure[~(best - second > margin * count)]
            if len(unsure) == 0:
                break
            total = total.index_add(0, unsure, member(pixels[unsure]))
            asked[unsure] += 1
        return total / asked.unsqueeze(1), asked


Classifier = MambaClassifier | MambaEnsemble


def build_classifier(config: ModelConfig, scan: str = "auto") -> Classifier:
    """Return a new classifier, or an ensemble if `config.members` is above 1."""
    return MambaClassifier(config, scan) if config.members == 1 else MambaEnsemble(config, scan)
