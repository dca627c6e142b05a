"""Small data sets are learned with the settings of params.yaml."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from mnist_mamba.data.sources import load_digits
from mnist_mamba.data.splits import LabelledImages, describe, resize
from mnist_mamba.training.loop import train
from pipeline.common.build_model import build_model
from pipeline.common.params import load_params
from pipeline.prepare import prepare

SEEDS = (0, 1, 2)


def accuracy(train_set: LabelledImages, test: LabelledImages, size: int, seed: int) -> float:
    """Return the accuracy on test images of one member that is trained with params.yaml."""
    changes = {"data.resize": size, "model.members": 1, "train.seed": seed, "train.threads": 1}
    params = load_params().changed(changes, "test")
    splits = prepare(train_set, test, params.data)
    torch.manual_seed(seed)
    model = build_model(params, describe(splits))
    # Scored on the test images, which nothing is chosen by.
    reports = train(model, splits.train, splits.test, params.train, progress=False)
    found = list(reports)[-1].val_accuracy
    assert found is not None
    return found


@pytest.mark.slow
def test_scikit_learn_s_digits_are_learned() -> None:
    """With batch norms' statistics of a fixed momentum, 78 to 90 % were right."""
    found = [accuracy(*load_digits(), 28, seed) for seed in SEEDS]
    assert statistics.mean(found) >= 0.985, found


@pytest.mark.slow
@pytest.mark.parametrize("size", [8, 28])
def test_20_images_a_class_are_learned_better_than_by_a_linear_model(size: int) -> None:
    whole, test = load_digits()
    chosen = np.concatenate([np.flatnonzero(whole.labels == label)[:20] for label in range(10)])
    few = whole.select(np.sort(chosen))
    linear = LogisticRegression(max_iter=2000)
    linear.fit(resize(few.images, (size, size)).reshape(200, -1) / 255, few.labels)
    pixels = resize(test.images, (size, size)).reshape(len(test.labels), -1) / 255
    found = [accuracy(few, test, size, seed) for seed in SEEDS]
    assert statistics.mean(found) >= linear.score(pixels, test.labels), found
