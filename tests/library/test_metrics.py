"""Bins of confidence, and the calibration error, computed by hand."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import (
    balanced_accuracy_score,
    f1_score,
    precision_recall_fscore_support,
)

from mnist_mamba.metrics import (
    balanced_accuracy,
    class_rates,
    confidence_bins,
    expected_calibration_error,
    macro_f1,
)


@given(seed=st.integers(0, 1000), n=st.integers(1, 20), n_classes=st.integers(2, 8))
def test_class_rates_are_scikit_learn_s(seed: int, n: int, n_classes: int) -> None:
    """Small numbers of images, so that many classes have none."""
    labels, predictions = np.random.default_rng(seed).integers(0, n_classes, (2, n))
    expected = precision_recall_fscore_support(
        labels, predictions, labels=range(n_classes), zero_division=0.0
    )
    rates = class_rates(predictions, labels, [f"class {label}" for label in range(n_classes)])
    assert list(rates) == [f"class {label}" for label in range(n_classes)]
    found = [list(row.values()) for row in rates.values()]
    np.testing.assert_array_equal(np.array(found).T, np.stack(expected))
    f1 = f1_score(labels, predictions, average="macro", zero_division=0.0)
    assert macro_f1(rates, predictions) == pytest.approx(f1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # predicted classes without labels
        balanced = balanced_accuracy_score(labels, predictions)
    assert balanced_accuracy(rates) == pytest.approx(balanced)


def test_calibration_error_matches_a_hand_computed_example() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.0, 1.0]])
    labels = np.array([0, 1, 0, 1])
    # Bin [0.8, 1]: confidences 0.9, 0.9 and 1.0, two correct. Bin [0.6, 0.8): 0.6, correct.
    expected = abs(2.8 - 2) / 4 + abs(0.6 - 1) / 4
    assert expected_calibration_error(probabilities, labels, 5) == pytest.approx(expected)
    sure = np.array([[1.0, 0.0]])
    assert expected_calibration_error(sure, np.array([0]), 15) == 0


@given(seed=st.integers(0, 1000), bins=st.integers(1, 20))
def test_bins_of_confidence_are_of_equal_width_and_include_their_lower_edge(
    seed: int, bins: int
) -> None:
    generator = np.random.default_rng(seed)
    confidence = generator.choice(np.arange(17, 33) / 32, 30)  # exact in binary; has edges and 1
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    labels = generator.integers(0, 2, 30)
    found = confidence_bins(probabilities, labels, bins)
    for i in range(bins):
        inside = (confidence >= i / bins) & ((confidence < (i + 1) / bins) | (i == bins - 1))
        assert found.size[i] == inside.sum()
        assert found.confidence[i] == pytest.approx(confidence[inside].sum())
        assert found.correct[i] == (labels[inside] == 0).sum()
    gaps = np.abs(found.confidence - found.correct)
    error = expected_calibration_error(probabilities, labels, bins)
    assert error == pytest.approx(gaps.sum() / 30)
