"""The margin at which an ensemble stops asking its members, and what early exits cost."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def safe_margin(member_logits: Tensor) -> float:
    """Return an exit margin from which on no image changes its class.

    Args:
        member_logits: (members, n, n_classes).

    Returns:
        The largest margin of a mean of the first members, not all, whose class is not that of the
        whole ensemble; 0 if there is none.
    """
    counts = torch.arange(1, len(member_logits) + 1).view(-1, 1, 1)
    means = member_logits.cumsum(dim=0) / counts
    best, second = means.topk(2, dim=2).values.unbind(dim=2)
    changed = means.argmax(dim=2) != means[-1].argmax(dim=1)
    return float((best - second)[changed].max()) if changed.any() else 0.0


def members_asked(asked: Tensor, members: int) -> dict[str, Any]:
    """Return the mean of (n,) numbers of members asked, and the share of images by number."""
    shares = torch.bincount(asked.long(), minlength=members + 1)[1:] / len(asked)
    return {
        "mean": float(asked.double().mean()),
        "share": {str(i): round(float(share), 6) for i, share in enumerate(shares, start=1)},
    }


def changed_predictions(logits: Tensor, whole: Tensor) -> int:
    """Return how many of n answers have another class than the whole ensemble's (n, n_classes)."""
    return int((logits.argmax(dim=1) != whole.argmax(dim=1)).sum())
