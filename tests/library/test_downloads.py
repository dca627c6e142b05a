"""MNIST and its siblings from small mirrors, compared with torchvision's own data sets."""

from __future__ import annotations

import gzip
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnist_mamba.data import downloads
from mnist_mamba.data.downloads import CLASSES, load_torchvision, mirror_variable
from mnist_mamba.data.idx import Bytes, write_idx
from mnist_mamba.data.sources import IDX_NAMES
from mnist_mamba.data.splits import DataError, LabelledImages
from mnist_mamba.data.torchvision_compat import import_torchvision

SPLITS = {"byclass": 62, "bymerge": 47, "balanced": 47, "letters": 26, "digits": 10, "mnist": 10}
"""EMNIST's parts and their numbers of classes."""
PLAIN = ("mnist", "fashion_mnist", "kmnist")
"""Data sets whose files have MNIST's names."""


def torchvision_class(dataset: str) -> Any:
    import_torchvision()
    from torchvision import datasets

    return getattr(datasets, CLASSES[dataset])


def make_part(n: int, seed: int, n_classes: int = 10, first: int = 0) -> LabelledImages:
    images = np.random.default_rng(seed).integers(0, 256, (n, 28, 28), dtype=np.uint8)
    return LabelledImages(images, (np.arange(n) % n_classes + first).astype(np.uint8))


def packed(path: Path, values: Bytes) -> str:
    """Write a gzipped IDX file and return its MD5."""
    plain = path.with_suffix(".plain")
    write_idx(plain, values)
    path.write_bytes(gzip.compress(plain.read_bytes(), mtime=0))
    plain.unlink()
    return md5(path)


def md5(path: Path) -> str:
    import_torchvision()
    from torchvision.datasets.utils import calculate_md5

    found: str = calculate_md5(str(path))
    return found


def write_plain(mirror: Path, monkeypatch: pytest.MonkeyPatch, dataset: str) -> None:
    """Write files named as MNIST's, and make torchvision expect their checksums."""
    parts = {"train": make_part(30, 0), "test": make_part(20, 1)}
    resources = []
    for key, name in IDX_NAMES.items():
        part, _, field = key.partition("_")
        file = mirror / f"{name}.gz"
        resources.append((file.name, packed(file, getattr(parts[part], field))))
    monkeypatch.setattr(torchvision_class(dataset), "resources", resources)
    monkeypatch.setattr(torchvision_class(dataset), "mirrors", ["http://127.0.0.1:9/"])


def write_emnist(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write EMNIST's one file with all its parts."""
    with zipfile.ZipFile(mirror / "gzip.zip", "w") as archive:
        for i, (name, n_classes) in enumerate(SPLITS.items()):
            for seed, part in enumerate(("train", "test")):
                data = make_part(130, 10 * i + seed, n_classes, first=int(name == "letters"))
                for kind, values in (("images-idx3", data.images), ("labels-idx1", data.labels)):
                    file = mirror / f"emnist-{name}-{part}-{kind}-ubyte.gz"
                    packed(file, values)
                    archive.write(file, f"gzip/{file.name}")
                    file.unlink()
    kind = torchvision_class("emnist")
    monkeypatch.setattr(kind, "md5", md5(mirror / "gzip.zip"))
    monkeypatch.setattr(kind, "url", "http://127.0.0.1:9/gzip.zip")


def write_qmnist(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write QMNIST's images, and its labels: a digit and seven facts of each image, as int32."""
    resources = {}
    for seed, part in enumerate(("train", "test")):
        data = make_part(40, seed)
        images = mirror / f"qmnist-{part}-images-idx3-ubyte.gz"
        labels = mirror / f"qmnist-{part}-labels-idx2-int.gz"
        facts = np.column_stack([data.labels, *[np.arange(40) + 300] * 7]).astype(">i4")
        header = bytes((0, 0, 12, 2)) + struct.pack(">2I", *facts.shape)
        labels.write_bytes(gzip.compress(header + facts.tobytes(), mtime=0))
        sums = (packed(images, data.images), md5(labels))
        resources[part] = [
            (f"http://127.0.0.1:9/{file.name}", found)
            for file, found in zip((images, labels), sums, strict=True)
        ]
    monkeypatch.setattr(torchvision_class("qmnist"), "resources", resources)


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: Any) -> Path:
    """A mirror with small files of a data set, MNIST unless the test names another."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    dataset = getattr(request, "param", "mnist")
    if dataset in PLAIN:
        write_plain(folder, monkeypatch, dataset)
    else:
        {"emnist": write_emnist, "qmnist": write_qmnist}[dataset](folder, monkeypatch)
    return folder


CASES = [(dataset, dataset, None) for dataset in ("mnist", "fashion_mnist", "kmnist", "qmnist")]
CASES += [("emnist", "emnist", split) for split in SPLITS]


@pytest.mark.parametrize(("mirror", "dataset", "split"), CASES, indirect=["mirror"])
def test_images_labels_and_names_are_torchvision_s(
    mirror: Path, dataset: str, split: str | None, tmp_path: Path
) -> None:
    options = {"emnist_split": split} if split else {}
    *parts, names = load_torchvision(dataset, str(mirror), **options)
    raw = tmp_path / CLASSES[dataset] / "raw"
    raw.mkdir(parents=True)
    for file in mirror.iterdir():
        (raw / file.name).write_bytes(file.read_bytes())
    theirs = {"split": split} if split else {}
    for train, part in zip((True, False), parts, strict=True):
        kind = torchvision_class(dataset)
        expected = kind(tmp_path, train=train, download=True, **theirs)
        assert len(part.labels) == len(expected)
        assert part.labels.min() == 0
        for i in (0, 1, 9, len(expected) - 1):
            picture, label = expected[i]
            upright = np.asarray(picture).T if split else np.asarray(picture)
            np.testing.assert_array_equal(part.images[i], upright)
            if dataset in ("mnist", "qmnist"):
                assert (names, label) == ((), part.labels[i])
            else:
                assert names[part.labels[i]] == expected.classes[label]
    if split:
        assert len(names) == SPLITS[split] == parts[0].labels.max() + 1


@pytest.mark.parametrize("as_url", [False, True])
def test_a_mirror_is_a_folder_or_a_url(mirror: Path, as_url: bool) -> None:
    train, test, _ = load_torchvision("mnist", mirror.as_uri() if as_url else str(mirror))
    assert (train.images.shape, len(test.labels)) == ((30, 28, 28), 20)


@pytest.mark.parametrize(
    ("mirror", "dataset", "file"),
    [
        ("mnist", "mnist", "t10k-labels-idx1-ubyte.gz"),
        ("kmnist", "kmnist", "t10k-labels-idx1-ubyte.gz"),
        ("emnist", "emnist", "gzip.zip"),
        ("qmnist", "qmnist", "qmnist-test-labels-idx2-int.gz"),
    ],
    indirect=["mirror"],
)
def test_without_network_or_mirror_both_solutions_are_named(
    mirror: Path, dataset: str, file: str
) -> None:
    with pytest.raises(DataError) as error:
        load_torchvision(dataset, None)
    message = str(error.value)
    assert "Connect to the network" in message
    assert f"set {dataset.upper()}_MIRROR" in message
    assert mirror_variable(dataset) in message
    assert file in message
    assert "\n" not in message


@pytest.mark.parametrize("damage", ["truncated", "altered"])
@pytest.mark.parametrize(
    ("mirror", "dataset", "file"),
    [
        ("mnist", "mnist", "t10k-images-idx3-ubyte.gz"),
        ("emnist", "emnist", "gzip.zip"),
        ("qmnist", "qmnist", "qmnist-test-images-idx3-ubyte.gz"),
    ],
    indirect=["mirror"],
)
def test_damaged_files_of_a_mirror_are_refused(
    mirror: Path, dataset: str, file: str, damage: str
) -> None:
    data = (mirror / file).read_bytes()
    altered = data[:50] + bytes([data[50] ^ 1]) + data[51:]
    (mirror / file).write_bytes(data[:-10] if damage == "truncated" else altered)
    with pytest.raises(DataError, match=rf"{dataset.upper()}_MIRROR .* {file} is truncated"):
        load_torchvision(dataset, str(mirror))


def test_no_more_of_a_mirror_is_read_than_the_data_set_can_have(
    mirror: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    victim = mirror / "train-images-idx3-ubyte.gz"
    with victim.open("r+b") as file:
        file.truncate(downloads.MAX_OTHERS + 1)
    with pytest.raises(DataError, match="public mirrors gave no good copy"):
        load_torchvision("mnist", mirror.as_uri())
    assert f"cannot get {victim.name}: got more than {2**26} bytes" in caplog.text
    with victim.open("r+b") as file:
        file.truncate(downloads.MAX_OTHERS)
    with pytest.raises(DataError, match="truncated or altered"):
        load_torchvision("mnist", str(mirror))


@pytest.mark.parametrize(
    "address",
    ["/nowhere/at/all", "http://127.0.0.1:9", "http://bad host/", "~nobody-of-this-name/mnist"],
)
def test_the_network_is_tried_if_the_mirror_lacks_files(
    mirror: Path, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(DataError) as error:
        load_torchvision("mnist", address)
    assert str(error.value).startswith(f"MNIST_MIRROR = {address} and the public mirrors")
    assert "cannot get" in caplog.text
