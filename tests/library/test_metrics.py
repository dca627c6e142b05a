"""Metrics compared with scikit-learn, and computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss, precision_recall_fscore_support

from mnist_mamba.metrics import (
    expected_calibration_error,
    negative_log_likelihood,
    per_class,
    softmax,
)


@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 100))
def test_likelihood_and_classes_agree_with_scikit_learn(seed: int, scale: float) -> None:
    generator = np.random.default_rng(seed)
    logits = (scale * generator.normal(size=(50, 4))).astype(np.float32)
    labels = generator.integers(0, 4, 50)
    probabilities = softmax(logits)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    if probabilities.min() > 1e-12:
        theirs = log_loss(labels, probabilities, labels=range(4))
        assert negative_log_likelihood(logits, labels) == pytest.approx(theirs, rel=1e-6)
    predictions = logits.argmax(axis=1)
    metrics = per_class(predictions, labels, 4)
    theirs = precision_recall_fscore_support(
        labels, predictions, labels=range(4), zero_division=0.0
    )
    for i, name in enumerate(("precision", "recall", "f1", "support")):
        np.testing.assert_allclose([metrics[str(c)][name] for c in range(4)], theirs[i])


def test_likelihood_of_huge_logits_does_not_overflow() -> None:
    logits = np.array([[1e4, 0.0]], dtype=np.float32)
    assert negative_log_likelihood(logits, np.array([1])) == pytest.approx(1e4)


def test_calibration_error_matches_a_hand_computed_example() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.0, 1.0]])
    labels = np.array([0, 1, 0, 1])
    # Bin [0.8, 1]: confidences 0.9, 0.9 and 1.0, two correct. Bin [0.6, 0.8): 0.6, correct.
    expected = abs(2.8 - 2) / 4 + abs(0.6 - 1) / 4
    assert expected_calibration_error(probabilities, labels, 5) == pytest.approx(expected)
    sure = np.array([[1.0, 0.0]])
    assert expected_calibration_error(sure, np.array([0]), 15) == 0
