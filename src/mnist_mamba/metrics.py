"""Rates of a classifier's predictions, and calibration of its probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]


Rates = dict[str, dict[str, float]]
"""Precision, recall, f1 and support by class."""


def class_rates(predictions: Labels, labels: Labels, names: Sequence[str]) -> Rates:
    """Return precision, recall, f1 and support by class name; a rate without images is 0.

    >>> class_rates(np.array([0, 1, 1]), np.array([0, 0, 1]), names=["cat", "dog"])["cat"]
    {'precision': 1.0, 'recall': 0.5, 'f1': 0.6666666666666666, 'support': 2}
    """
    n_classes = len(names)
    hits = np.bincount(labels[predictions == labels], minlength=n_classes).tolist()
    predicted = np.bincount(predictions, minlength=n_classes).tolist()
    support = np.bincount(labels, minlength=n_classes).tolist()
    return {
        name: {
            "precision": hit / (found or 1),
            "recall": hit / (true or 1),
            "f1": 2 * hit / (found + true or 1),
            "support": true,
        }
        for name, hit, found, true in zip(names, hits, predicted, support, strict=True)
    }


def balanced_accuracy(rates: Rates) -> float:
    """Return the mean recall of the classes with images, each of which counts the same."""
    recalls = [rate["recall"] for rate in rates.values() if rate["support"]]
    return sum(recalls) / len(recalls)


def macro_f1(rates: Rates, predictions: Labels) -> float:
    """Return the mean f1 of the classes that are a label or a prediction of any image."""
    predicted = set(predictions.tolist())
    scores = [
        rate["f1"]
        for label, rate in enumerate(rates.values())
        if rate["support"] or label in predicted
    ]
    return sum(scores) / len(scores)


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
    correct = (probabilities.argmax(axis=1) == labels).astype(np.float64)
    weights = (np.ones(len(labels)), confidence, correct)
    return Bins(*(np.histogram(confidence, bins, (0, 1), weights=each)[0] for each in weights))


def quality(logits: Floats, labels: Labels, bins: int) -> dict[str, float]:
    """Return accuracy, likelihood and calibration of logits (n, n_classes).

    Likelihood and calibration are rounded to digits that are equal for all instruction sets.
    """
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    of_labels = log_probabilities[np.arange(len(labels)), labels]
    return {
        "accuracy": float((logits.argmax(axis=1) == labels).mean()),
        "nll": round(-float(of_labels.mean()), 5),
        "ece": round(expected_calibration_error(np.exp(log_probabilities), labels, bins), 5),
    }


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
