"""Data sets in numpy's .npz files: arrays that are read, and files that are refused."""

from __future__ import annotations

import os
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnist_mamba.data import npz
from mnist_mamba.data.npz import load_npz
from mnist_mamba.data.splits import DataError


def arrays(**changes: Any) -> dict[str, Any]:
    """Return the arrays of a good file, with changes; None removes one."""
    generator = np.random.default_rng(0)
    found: dict[str, Any] = {}
    for part, n in (("train", 20), ("test", 10)):
        found[f"x_{part}"] = generator.integers(0, 256, (n, 4, 5), dtype=np.uint8)
        found[f"y_{part}"] = np.arange(n) % 3
    return {name: value for name, value in (found | changes).items() if value is not None}


def saved(folder: Path, **changes: Any) -> Path:
    np.savez(folder / "data.npz", **arrays(**changes))
    return folder / "data.npz"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_train_and_test_arrays_are_read(tmp_path: Path, save: Any) -> None:
    expected = arrays()
    save(tmp_path / "data.npz", **expected)
    train, test, names = load_npz(tmp_path / "data.npz", 0.5)
    np.testing.assert_array_equal(train.images, expected["x_train"])
    np.testing.assert_array_equal(test.labels, expected["y_test"])
    assert (train.labels.dtype, names) == (np.uint8, ())


def test_x_and_y_are_split(tmp_path: Path) -> None:
    expected = arrays()
    path = tmp_path / "data.npz"
    np.savez(path, x=expected["x_train"], y=expected["y_train"][:, None].astype(np.int8))
    train, test, _ = load_npz(path, 0.3)
    assert (len(train.labels), len(test.labels)) == (14, 6)
    both = np.concatenate([train.images, test.images])
    assert sorted(map(bytes, both)) == sorted(map(bytes, expected["x_train"]))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_channels_are_last(tmp_path: Path, channels: int) -> None:
    images = np.zeros((20, 4, 5, channels), np.uint8)
    train, *_ = load_npz(saved(tmp_path, x_train=images), 0.2)
    assert train.images.shape == ((20, 4, 5) if channels == 1 else (20, 4, 5, channels))


def test_class_names_are_read(tmp_path: Path) -> None:
    names = np.array(["cat", "dog", "café"])
    assert load_npz(saved(tmp_path, class_names=names), 0.2).class_names == ("cat", "dog", "café")
    with pytest.raises(DataError, match=r"y_train: got 0 to 2, expected labels in 0\.\.1"):
        load_npz(saved(tmp_path, class_names=names[:2]), 0.2)


LARGE = np.arange(20) * 20
CASES: list[tuple[dict[str, Any], str]] = [
    ({"x_train": None}, r"got the arrays .'x_test', 'y_test', 'y_train'., expected x_train, y_tr"),
    ({"x_train": np.zeros((20, 4, 5))}, "x_train: got the dtype float64, expected uint8"),
    (
        {"x_train": np.zeros((20, 4, 5), np.uint16)},
        r"x_train: got uint16 \(20, 4, 5\), expected ui",
    ),
    ({"x_train": np.zeros((20, 20), np.uint8)}, r"got uint8 \(20, 20\), expected uint8 .*height"),
    ({"x_train": np.zeros((20, 3, 4, 5), np.uint8)}, "20, 3, 4, 5.* channels as the last"),
    ({"y_train": np.zeros(20)}, "y_train: got the dtype float64, expected whole numbers"),
    (
        {"y_train": np.zeros(19, int)},
        r"y_train: got the shape \(19,\), expected one label for .* 20",
    ),
    ({"y_train": np.zeros((20, 3), int)}, r"y_train: got the shape \(20, 3\)"),
    ({"y_train": np.arange(20) - 1}, r"y_train: got -1 to 18, expected labels in 0\.\.255"),
    ({"y_train": LARGE}, r"y_train: got 0 to 380, expected labels in 0\.\.255"),
    ({"x_train": np.zeros((0, 4, 5), np.uint8), "y_train": LARGE[:0]}, "y_train: .* at least one"),
    ({"class_names": np.array([["cat"], ["dog"], ["owl"]])}, r"got <U3 \(3, 1\), expected one dim"),
    ({"class_names": np.array("abc")}, r"class_names: got <U3 \(\), expected one dimension"),
    ({"class_names": np.array(["a"] * 257)}, r"got <U1 \(257,\), .* up to 256 names"),
    ({"class_names": np.array(["a" * 256] * 3)}, r"got <U256 \(3,\), .* up to 255 characters"),
    ({"class_names": np.array([1, 2, 3])}, "class_names: got the dtype int64, expected text"),
]


@pytest.mark.parametrize(("changes", "message"), CASES)
def test_unsuitable_arrays_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        load_npz(saved(tmp_path, **changes), 0.2)
    assert str(error.value).startswith(f"{tmp_path / 'data.npz'}: ")


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "harm",)

    path = saved(tmp_path, y_train=np.array([Harmful()] * 20, dtype=object))
    with pytest.raises(DataError, match="y_train: got the dtype object"):
        load_npz(path, 0.2)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 half an archive"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"not a readable \.npz file"):
        load_npz(tmp_path / "data.npz", 0.2)


def test_a_damaged_array_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    data = path.read_bytes()
    place = data.index(bytes(arrays()["x_train"][5]))
    path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    with pytest.raises(DataError, match=r"data\.npz: x_train: not an array: Bad CRC-32"):
        load_npz(path, 0.2)


def with_header(text: str, version: int = 1) -> bytes:
    """Return an .npy file's start with a header of any text."""
    size = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + size + text.encode()


def header_of(shape: str, version: int = 1, dtype: str = "|u1") -> bytes:
    """Return an .npy file's start that claims a shape."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    return with_header(text.ljust(117) + "\n", version)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header_of("(4294967296, 4096, 4096)") + bytes(100), "which is not the size of uint8"),
        (header_of("(1, 2, 2)") + bytes(5), "which is not the size of uint8"),
        (
            header_of("(1, 2, -2)") + bytes(4),
            r"got the shape \(1, 2, -2\) of uint8, expected whole",
        ),
        (header_of("(1, -2, -2)") + bytes(4), "expected whole numbers from 0"),
        (header_of("(True, 2, 2)") + bytes(4), "expected whole numbers from 0"),
        (header_of(f"(0, {10**30}, 2)"), "data.npz: "),
        (header_of("(1, 2, 2)", 9) + bytes(4), r"got version 9\.0, expected 1\.0, 2\.0 or 3\.0"),
        (header_of("(1, 2, 'a')") + bytes(4), "x_train: not an array"),
        (bytes(300), "x_train: not an array"),
        (b"", "x_train: not an array"),
        (header_of("(64, 1024, 1024)") + bytes(2**26), f"expected up to {2**20}"),
    ],
)
def test_a_small_file_takes_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str
) -> None:
    monkeypatch.setattr(npz, "MAX_UNPACKED", 2**20)
    path = saved(tmp_path, x_train=None)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x_train.npy", content)
    del content
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=message):
            load_npz(path, 0.2)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "content",
    [
        *(header_of(side) for side in ("9" * 5000, "-" * 5000 + "1", "[" * 3000 + "]" * 3000)),
        *(with_header(text) for text in ("(" * 200, "  {\n")),
    ],
    ids=["digits", "signs", "brackets", "open", "indented"],
)
def test_a_header_that_is_not_python_is_refused(tmp_path: Path, content: bytes) -> None:
    path = saved(tmp_path, x_train=None)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x_train.npy", content)
    with pytest.raises(DataError, match=rf"^{path}: x_train: not an array: ") as error:
        load_npz(path, 0.2)
    assert len(str(error.value)) < 1000


def test_an_empty_dtype_takes_no_memory(tmp_path: Path) -> None:
    path = saved(tmp_path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("class_names.npy", header_of(f"({10**6},)", dtype="<U0"))
    with pytest.raises(DataError, match=r"class_names: .* expected .* at least one byte"):
        load_npz(path, 0.2)


@pytest.mark.parametrize("kind", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_DEFLATED])
def test_damaged_compression_is_refused(tmp_path: Path, kind: int) -> None:
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, values in arrays().items():
            with archive.open(f"{name}.npy", "w") as file:
                np.save(file, values)
    data = bytearray(path.read_bytes())
    data[50:90] = bytes(byte ^ 0x55 for byte in data[50:90])
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"^{path}: "):
        load_npz(path, 0.2)


@pytest.mark.parametrize(
    "changes",
    [
        {"x_train": None, **{f"other{i}": np.zeros(1) for i in range(300)}},
        {"y_train": np.zeros(20, [(f"field{i}", "u1") for i in range(200)])},
    ],
)
def test_an_error_is_short_whatever_the_file_has(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = saved(tmp_path, **changes)
    with pytest.raises(DataError) as error:
        load_npz(path, 0.2)
    assert len(str(error.value)) < len(str(path)) + 400


def test_an_encrypted_file_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    data = bytearray(path.read_bytes())
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = data.find(mark)
        while place >= 0:
            data[place + flags] |= 1
            place = data.find(mark, place + 1)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"data\.npz: not a readable \.npz file: .*encrypted"):
        load_npz(path, 0.2)


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "data.npz")
    with pytest.raises(DataError, match="not a regular file"):
        load_npz(tmp_path / "data.npz", 0.2)


def test_a_stored_array_is_not_larger_than_its_file(tmp_path: Path) -> None:
    path = saved(tmp_path, x_train=None)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x_train.npy", header_of("(4, 1024, 1024)") + bytes(4))
    data = path.read_bytes()
    size = struct.pack("<I", 128 + 4)
    place = data.rindex(b"x_train.npy") - 46 + 24
    assert data[place : place + 4] == size
    path.write_bytes(data[:place] + struct.pack("<I", 128 + 2**22) + data[place + 4 :])
    with pytest.raises(DataError, match=f"x_train: got {128 + 2**22} bytes, expected up to"):
        load_npz(path, 0.2)
