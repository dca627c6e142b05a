"""The choice of the images that plots show."""

from __future__ import annotations

import numpy as np

from pipeline.common.plots import even_choice


def test_too_many_images_are_chosen_evenly_over_the_classes() -> None:
    labels = np.array([7, 7, 7, 7, 2, 7, 2, 2, 9], np.uint8)
    assert even_choice(labels, 5).tolist() == [0, 1, 4, 6, 8]
    assert even_choice(labels, 6).tolist() == [0, 1, 2, 4, 6, 8]
    assert even_choice(np.repeat(np.arange(10, dtype=np.uint8), 50), 60).size == 60


def test_all_images_that_fit_are_chosen_in_order() -> None:
    labels = np.array([7, 7, 2, 9, 7], np.uint8)
    assert even_choice(labels, 5).tolist() == [0, 1, 2, 3, 4]
    assert even_choice(labels[:0], 5).tolist() == []
