"""MNIST and its siblings, through torchvision, which checks each file's MD5."""

from __future__ import annotations

import hashlib
import logging
import tempfile
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np

from mnist_mamba.data.splits import DataError, DataSet, LabelledImages

logger = logging.getLogger(__name__)

CLASSES = {
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "kmnist": "KMNIST",
    "emnist": "EMNIST",
    "qmnist": "QMNIST",
}
"""torchvision's class of each data set."""
NAMED = ("fashion_mnist", "kmnist", "emnist")
"""Data sets with class names; the classes of the others are the digits."""
MAX_DOWNLOAD = {"emnist": 2**30}
"""Largest file, in bytes, that is read from a mirror; EMNIST is one file of 562 MB."""
MAX_OTHERS = 2**26
"""The same for all other data sets, whose largest file has 31 MB."""
CHUNK = 2**20


def mirror_variable(dataset: str) -> str:
    """Return the environment variable that names a mirror of a data set."""
    return f"{dataset.upper()}_MIRROR"


def load_torchvision(dataset: str, mirror: str | None, emnist_split: str = "balanced") -> DataSet:
    """Return a data set's train and test images, upright and labelled from 0.

    Args:
        dataset: a key of CLASSES.
        mirror: folder or URL with the files as torchvision downloads them, tried before the public
            mirrors; None uses only the public mirrors.
        emnist_split: the part of EMNIST: byclass, bymerge, balanced, letters, digits or mnist.

    Raises:
        DataError: no mirror has the files, or `mirror` has a truncated or altered one.
    """
    from mnist_mamba.data.torchvision_compat import import_torchvision

    import_torchvision()
    from torchvision import datasets

    kind = getattr(datasets, CLASSES[dataset])
    options = {"split": emnist_split} if dataset == "emnist" else {}
    variable = mirror_variable(dataset)
    with tempfile.TemporaryDirectory(prefix=f"{dataset}-") as scratch:
        raw = Path(scratch) / CLASSES[dataset] / "raw"
        raw.mkdir(parents=True)
        if mirror:
            _copy_from_mirror(f"{variable} = {mirror}", mirror, raw, _files(kind), dataset)
        try:
            # Does not download files that are present with the right checksum.
            parts = [
                kind(scratch, train=train, download=True, **options) for train in (True, False)
            ]
        except (RuntimeError, OSError, HTTPException) as error:
            asked = f"{variable} = {mirror} and the" if mirror else "The"
            raise DataError(
                f"{asked} public mirrors gave no good copy of {CLASSES[dataset]} ({_last(error)}). "
                f"Connect to the network, or set {variable} to a folder or URL with "
                f"{', '.join(_files(kind))}"
            ) from error
        first = 1 if emnist_split == "letters" and dataset == "emnist" else 0
        train, test = (_images(part, dataset, first) for part in parts)
    names = tuple(parts[0].classes[first:]) if dataset in NAMED else ()
    return DataSet(train, test, names)


def _files(kind: Any) -> dict[str, str]:
    """Return the MD5 of each file that torchvision downloads for a data set."""
    resources = getattr(kind, "resources", [])
    if hasattr(kind, "url"):  # EMNIST
        resources = [(kind.url, kind.md5)]
    elif isinstance(resources, dict):  # QMNIST
        resources = resources["train"] + resources["test"]
    return {url.rpartition("/")[2]: md5 for url, md5 in resources}


def _images(part: Any, dataset: str, first: int) -> LabelledImages:
    """Return a part of torchvision's as arrays; its labels count from `first`."""
    images, labels = part.data.numpy(), part.targets.numpy()
    if dataset == "emnist":  # its images are transposed
        images = images.transpose(0, 2, 1)
    if dataset == "qmnist":  # other columns describe the writer
        labels = labels[:, 0]
    return LabelledImages(np.ascontiguousarray(images), (labels - first).astype(np.uint8))


def _last(error: BaseException) -> str:
    """Return an error's last line, which says why."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].rstrip(".")


def _copy_from_mirror(
    source: str, mirror: str, raw: Path, md5s: dict[str, str], dataset: str
) -> None:
    """Copy the files from the mirror; log a warning if it lacks any.

    Raises:
        DataError: a file whose checksum is wrong.
    """
    for name, md5 in md5s.items():
        try:
            found = _fetch(mirror, name, raw / name, MAX_DOWNLOAD.get(dataset, MAX_OTHERS))
        except (OSError, ValueError, RuntimeError, HTTPException) as error:  # ~name of nobody
            logger.warning("%s: cannot get %s: %s", source, name, error)
            (raw / name).unlink(missing_ok=True)
            return
        if found != md5:
            raise DataError(
                f"{source}: {name} is truncated or altered (its MD5 is not {md5}); replace it, or "
                f"unset {mirror_variable(dataset)}"
            )
    logger.info("%s from the mirror %s", CLASSES[dataset], mirror)


def _fetch(mirror: str, name: str, target: Path, most: int) -> str:
    """Copy one file of a folder or URL, of up to `most` bytes, and return its MD5."""
    if "://" in mirror:
        source = urllib.request.urlopen(f"{mirror.rstrip('/')}/{name}", timeout=60)
    else:
        source = (Path(mirror).expanduser() / name).open("rb")
    digest, size = hashlib.md5(usedforsecurity=False), 0
    with source, target.open("wb") as file:
        while data := source.read(min(CHUNK, most + 1 - size)):
            size += len(data)
            if size > most:
                raise ValueError(f"got more than {most} bytes, expected a file of the data set")
            digest.update(data)
            file.write(data)
    return digest.hexdigest()
