"""The margin at which an ensemble stops asking its members, and what early exits cost."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor


def safe_margin(member_logits: Tensor) -> float:
    """Return an exit margin from which on no image changes its class.

    Args:
        member_logits: (members, n, n_classes).

    Returns:
        The largest margin of a mean of the first members, not all, whose class is not that of the
        whole ensemble, as the float32 that is not below it; 0 if there is none.
    """
    # The rule adds in this order and compares differences of sums: their means are rounded.
    sums = torch.stack(list(itertools.accumulate(member_logits)))
    counts = torch.arange(1, len(sums) + 1, device=sums.device).view(-1, 1)
    means = sums / counts.unsqueeze(2)
    best, second = sums.topk(2, dim=2).values.unbind(dim=2)
    changed = means.argmax(dim=2) != means[-1].argmax(dim=1)
    if not changed.any():
        return 0.0
    exact = float(((best - second).double() / counts)[changed].max())
    nearest = np.float32(exact)
    return float(nearest if nearest.item() >= exact else np.nextafter(nearest, np.float32(np.inf)))


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
