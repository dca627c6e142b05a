"""The calibration error, computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from mnist_mamba.metrics import expected_calibration_error


def test_calibration_error_matches_a_hand_computed_example() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.0, 1.0]])
    labels = np.array([0, 1, 0, 1])
    # Bin [0.8, 1]: confidences 0.9, 0.9 and 1.0, two correct. Bin [0.6, 0.8): 0.6, correct.
    expected = abs(2.8 - 2) / 4 + abs(0.6 - 1) / 4
    assert expected_calibration_error(probabilities, labels, 5) == pytest.approx(expected)
    sure = np.array([[1.0, 0.0]])
    assert expected_calibration_error(sure, np.array([0]), 15) == 0
