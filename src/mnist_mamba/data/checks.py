"""Checks of a data set as data: balance, duplicates, images without content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mnist_mamba.data.idx import Bytes
from mnist_mamba.data.splits import Splits, some

IMBALANCE = 10
"""Ratio of the largest class to the smallest one that is worth a warning."""
FEW = 10
"""Number of training images of a class below which a warning is worth it."""
LARGE = 128 * 128
"""Number of pixels above which a training takes long."""


def measure(splits: Splits) -> dict[str, Any]:
    """Return the numbers of doubtful images in a data set.

    Returns:
        constant: images of a single colour, by split. repeated: images that equal an earlier image
        of their split, by split. val_in_train, test_in_train: images that equal a training image,
        or for test images also a validation image. contradictory: images whose pixels also occur
        with another label.
    """
    digests = {name: _digests(part.images) for name, part in splits._asdict().items()}
    constant = {
        name: sum(bool((image == image[0, 0]).all()) for image in part.images)
        for name, part in splits._asdict().items()
    }
    labels: dict[bytes, set[int]] = {}
    for name, part in splits._asdict().items():
        for digest, label in zip(digests[name], part.labels.tolist(), strict=True):
            labels.setdefault(digest, set()).add(label)
    train, learned = set(digests["train"]), {*digests["train"], *digests["val"]}
    return {
        "constant": constant,
        "repeated": {name: len(found) - len(set(found)) for name, found in digests.items()},
        "val_in_train": sum(digest in train for digest in digests["val"]),
        "test_in_train": sum(digest in learned for digest in digests["test"]),
        "contradictory": sum(
            len(labels[digest]) > 1 for found in digests.values() for digest in found
        ),
    }


def _digests(images: Bytes) -> list[bytes]:
    return [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images]


def warnings(info: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a user should know before training, in plain English.

    Args:
        info: result of `describe`.
        found: result of `measure`.
    """
    counts = {name: part["per_class"] for name, part in info["splits"].items()}
    yield from _class_warnings(info["class_names"], counts["train"], counts["test"])
    n_train, n_val, n_test = (info["splits"][name]["n"] for name in ("train", "val", "test"))
    if n := found["test_in_train"]:
        yield (
            f"{n} of {n_test} test images are training or validation images too: the accuracy on "
            "them says nothing about new images; remove them from one side"
        )
    if n := found["val_in_train"]:
        yield f"{n} of {n_val} validation images are training images too: remove duplicates"
    if n := found["repeated"]["train"]:
        yield f"{n} of {n_train} training images repeat an earlier one: remove the copies"
    if n := found["contradictory"]:
        yield f"{n} images also occur with another label: no model can get all of these right"
    for name, n in found["constant"].items():
        if n:
            yield f"{n} {name} images have a single colour: nothing can be seen in them"
    if info["height"] * info["width"] > LARGE:
        yield (
            f"images of {info['height']} x {info['width']} pixels train slowly: try a smaller "
            "data.resize, for instance 64"
        )


def _class_warnings(all_names: Sequence[str], train: list[int], test: list[int]) -> Iterator[str]:
    def names(labels: Sequence[int]) -> str:
        return some([all_names[label] for label in labels])

    empty = [label for label, n in enumerate(train) if not n]
    if empty[:1] == [0]:
        yield f"class {all_names[0]} has no images: are the labels counted from 1? Expected from 0"
        empty = empty[1:]
    if empty:
        yield f"classes without images, which no answer will ever name: {names(empty)}"
    if untested := [label for label, n in enumerate(test) if train[label] and not n]:
        yield f"classes without test images: {names(untested)}"
    if few := [label for label, n in enumerate(train) if 0 < n < FEW]:
        yield f"classes with less than {FEW} training images: {names(few)}"
    small, large = min(n for n in train if n), max(train)
    if large > IMBALANCE * small:
        yield (
            f"the classes have {small} to {large} training images: judge the model by its "
            "balanced_accuracy, in which each class counts the same"
        )
