"""Figures of a classifier's logits: accuracy, likelihood, calibration, per class."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]


def softmax(logits: Floats) -> NDArray[np.float64]:
    """Probabilities (n, n_classes) of logits of that shape, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    probabilities: NDArray[np.float64] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities


def negative_log_likelihood(logits: Floats, labels: Labels) -> float:
    """Mean cross-entropy in nats."""
    wide = logits.astype(np.float64)
    peak = wide.max(axis=1)
    log_sum = peak + np.log(np.exp(wide - peak[:, None]).sum(axis=1))
    return float((log_sum - wide[np.arange(len(labels)), labels]).mean())


class Bins(NamedTuple):
    """Predictions by their confidence, in equal-width bins; all (bins,)."""

    size: Floats
    """How many there are."""
    confidence: Floats
    """Sum over the bin."""
    correct: Floats
    """How many are right."""


def confidence_bins(probabilities: Floats, labels: Labels, bins: int) -> Bins:
    """Predictions of (n, n_classes) probabilities, sorted into bins by the largest one."""
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    sums = [
        np.bincount(bin_of, weights=weights, minlength=bins).astype(np.float64)
        for weights in (np.ones(len(labels)), confidence, correct)
    ]
    return Bins(*sums)


def expected_calibration_error(probabilities: Floats, labels: Labels, bins: int) -> float:
    """Mean gap between confidence and accuracy over equal-width bins of confidence.

    Source: Guo et al. 2017, arXiv 1706.04599.
    """
    found = confidence_bins(probabilities, labels, bins)
    return float(np.abs(found.confidence - found.correct).sum() / len(labels))


def per_class(predictions: Labels, labels: Labels, n_classes: int) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and support of each class; 0 where a ratio has nothing below it."""
    figures = {}
    for label in range(n_classes):
        hits = int(((predictions == label) & (labels == label)).sum())
        predicted, support = int((predictions == label).sum()), int((labels == label).sum())
        figures[str(label)] = {
            "precision": hits / predicted if predicted else 0.0,
            "recall": hits / support if support else 0.0,
            "f1": 2 * hits / (predicted + support) if predicted + support else 0.0,
            "support": support,
        }
    return figures
