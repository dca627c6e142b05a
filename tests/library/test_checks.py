"""Checks of a data set as data."""

from __future__ import annotations

from typing import Any

import numpy as np

from mnist_mamba.data import checks
from mnist_mamba.data.splits import LabelledImages, Splits, describe


def images(n: int, seed: int, n_classes: int = 3) -> LabelledImages:
    pixels = np.random.default_rng(seed).integers(0, 256, (n, 4, 5), dtype=np.uint8)
    return LabelledImages(pixels, (np.arange(n) % n_classes).astype(np.uint8))


def clean() -> Splits:
    return Splits(images(60, 0), images(12, 1), images(15, 2))


def said(splits: Splits, *names: str) -> list[str]:
    return list(checks.warnings(describe(splits, names), checks.measure(splits)))


def test_clean_data_has_nothing_to_say() -> None:
    assert said(clean()) == []
    found = checks.measure(clean())
    assert found["constant"] == found["repeated"] == {"train": 0, "val": 0, "test": 0}
    assert not any(found[name] for name in ("val_in_train", "test_in_train", "contradictory"))


def test_images_in_two_places_are_counted() -> None:
    splits = clean()
    splits.test.images[3] = splits.train.images[0]  # both have the label 0
    splits.test.images[4] = splits.val.images[1]  # the label 1
    splits.val.images[5] = splits.train.images[8]  # the label 2
    splits.train.images[10] = splits.train.images[9]  # 1 and 0
    found = checks.measure(splits)
    assert (found["test_in_train"], found["val_in_train"], found["contradictory"]) == (2, 1, 2)
    assert found["repeated"] == {"train": 1, "val": 0, "test": 0}
    test, val, repeated, contradictory = said(splits)
    assert "2 of 15 test images are training or validation images" in test
    assert "1 of 12 validation images" in val
    assert "1 of 60 training images repeat an earlier one" in repeated
    assert "2 images also occur with another label" in contradictory


def test_images_of_a_single_colour_are_counted() -> None:
    splits = clean()
    splits.train.images[[3, 6]] = 7
    assert checks.measure(splits)["constant"] == {"train": 2, "val": 0, "test": 0}
    assert any("2 train images have a single colour" in text for text in said(splits))
    colours = [np.repeat(part.images[..., None], 3, axis=3) for part in splits]
    colours[2][0] = (255, 0, 0)
    rgb = Splits(*(part._replace(images=c) for part, c in zip(splits, colours, strict=True)))
    assert checks.measure(rgb)["constant"] == {"train": 2, "val": 0, "test": 1}


def test_labels_that_count_from_1_and_gaps_are_named() -> None:
    def relabelled(change: Any) -> Splits:
        return Splits(*(part._replace(labels=change(part.labels)) for part in clean()))

    (text,) = said(relabelled(lambda labels: labels + 1))
    assert "class 0 has no images: are the labels counted from 1?" in text
    first, gap = said(relabelled(lambda labels: 2 * labels + 1))
    assert "class 0 has no images: are the labels counted from 1?" in first
    assert "classes without images, which no answer will ever name: 2, 4" in gap
    (text,) = said(relabelled(lambda labels: 2 * labels))
    assert "classes without images, which no answer will ever name: 1, 3" in text
    (text,) = said(clean(), "cat", "dog", "owl", "yak")
    assert text.endswith("name: yak")


def test_rare_classes_are_named() -> None:
    splits = clean()
    splits = splits._replace(test=splits.test.select(splits.test.labels != 1))
    assert said(splits, "cat", "dog", "owl") == ["classes without test images: dog"]
    rare = [*np.flatnonzero(splits.train.labels != 2).tolist(), 2]
    splits = clean()._replace(train=splits.train.select(np.array(rare)))
    few, ratio = said(splits, "cat", "dog", "owl")
    assert few == "classes with less than 10 training images: owl"
    assert "1 to 20 training images" in ratio
    assert "balanced_accuracy" in ratio


def test_large_images_are_named_with_what_to_do() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (66, 129, 128), dtype=np.uint8)
    data = LabelledImages(pixels, (np.arange(66) % 2).astype(np.uint8))
    (text,) = said(
        Splits(data.select(slice(60)), data.select(slice(60, 64)), data.select(slice(64, 66)))
    )
    assert "129 x 128" in text
    assert "data.resize" in text
