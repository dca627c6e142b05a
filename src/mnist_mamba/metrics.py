"""Metrics of a classifier's logits: likelihood, calibration, precision and recall per class."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]


def softmax(logits: Floats) -> NDArray[np.float64]:
    """Return the float64 probabilities (n, n_classes) of logits (n, n_classes)."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    probabilities: NDArray[np.float64] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities


def negative_log_likelihood(logits: Floats, labels: Labels) -> float:
    """Return the mean cross-entropy, in nats, of logits (n, n_classes) and labels (n,)."""
    wide = logits.astype(np.float64)
    peak = wide.max(axis=1)
    log_sum = peak + np.log(np.exp(wide - peak[:, None]).sum(axis=1))
    return float((log_sum - wide[np.arange(len(labels)), labels]).mean())


class Bins(NamedTuple):
    """Predictions in equal-width bins of confidence; all arrays are (bins,)."""

    size: Floats
    """Number of predictions."""
    confidence: Floats
    """Sum of the predictions' confidence."""
    correct: Floats
    """Number of correct predictions."""


def confidence_bins(probabilities: Floats, labels: Labels, bins: int) -> Bins:
    """Sort predictions into bins of confidence, which is the largest probability of each image.

    Args:
        probabilities: (n, n_classes).
        labels: (n,).
        bins: number of bins.
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    sums = [
        np.bincount(bin_of, weights=weights, minlength=bins).astype(np.float64)
        for weights in (np.ones(len(labels)), confidence, correct)
    ]
    return Bins(*sums)


def expected_calibration_error(probabilities: Floats, labels: Labels, bins: int) -> float:
    """Return the mean gap between confidence and accuracy over equal-width bins of confidence.

    Args:
        probabilities: (n, n_classes).
        labels: (n,).
        bins: number of bins.

    Source: Guo et al. 2017, arXiv 1706.04599.

    >>> probabilities = np.array([[0.75, 0.25], [0.25, 0.75]])
    >>> expected_calibration_error(probabilities, np.array([0, 1]), bins=10)
    0.25
    """
    found = confidence_bins(probabilities, labels, bins)
    return float(np.abs(found.confidence - found.correct).sum() / len(labels))


def per_class(predictions: Labels, labels: Labels, n_classes: int) -> dict[str, dict[str, float]]:
    """Return precision, recall, F1 and support of each class; a ratio with denominator 0 is 0."""
    metrics = {}
    for label in range(n_classes):
        hits = int(((predictions == label) & (labels == label)).sum())
        predicted, support = int((predictions == label).sum()), int((labels == label).sum())
        metrics[str(label)] = {
            "precision": hits / predicted if predicted else 0.0,
            "recall": hits / support if support else 0.0,
            "f1": 2 * hits / (predicted + support) if predicted + support else 0.0,
            "support": support,
        }
    return metrics
