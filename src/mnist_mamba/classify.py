"""Classify what others send: images as numbers, or picture files.

The server, the model in MLflow and the command `mnist-mamba` share this module, which needs only
NumPy and, for pictures, Pillow.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_mamba.engine import Engine, EngineError, softmax
from mnist_mamba.engine.pictures import read_picture

MAX_SCANS = 256
"""Scans of a progressive JPEG file; one has about ten. Each costs a pass over all pixels, and a few
bytes of the file."""


class InputError(ValueError):
    """Input that is refused, in one line: the entry, and at most its first wrong value."""


def classify(engine: Engine, images: NDArray[Any]) -> list[dict[str, Any]]:
    """Return an answer per image, ready for JSON; arguments and errors as for `Engine.answers`."""
    logits, members_asked = engine.answers(images)
    return [
        {
            "prediction": int(row.argmax()),
            "class": engine.class_names[row.argmax()],
            "probabilities": row.tolist(),
            "members_asked": int(asked),
        }
        for row, asked in zip(softmax(logits), members_asked, strict=True)
    ]


def read_inputs(engine: Engine, inputs: Any, max_pixels: int | None = None) -> NDArray[Any]:
    """Return images that `Engine.answers` takes.

    Args:
        engine: its model says which size, and how pictures are prepared.
        inputs: an array, lists, or a data frame, of which a single column holds the images. Each
            entry is an image, (height, width(, channels)), or the same numbers in one row; uint8,
            or other types with values of 0 (background) to 1. Or each is a picture file: bytes, or
            a text in base64, which may be a data URL.
        max_pixels: pixels that all pictures together may have.

    Raises:
        InputError: the first entry that is refused, and why.
    """
    entries = inputs
    if hasattr(inputs, "to_numpy"):
        entries = inputs.to_numpy()
        if entries.ndim == 2 and entries.shape[1] == 1:
            entries = entries[:, 0]
    if isinstance(entries, np.ndarray) and entries.dtype.kind in "OSU":
        entries = entries.tolist()
    if isinstance(entries, list):
        kinds = [type(one) for one in entries]
        if type(None) in kinds:
            index = kinds.index(type(None))
            raise InputError(f"inputs[{index}]: got null, expected an image or a picture file")
        if str in kinds or bytes in kinds:
            return _read_pictures(engine, entries, max_pixels)
    return _read_numbers(engine, entries)


def _read_pictures(engine: Engine, entries: list[Any], max_pixels: int | None) -> NDArray[np.uint8]:
    prepared = []
    for index, entry in enumerate(entries):
        expected = "; expected a picture file in base64"
        if not isinstance(entry, str | bytes):
            got = f"got {type(entry).__name__} among pictures"
            raise InputError(f"inputs[{index}]: {got}{expected}")
        try:
            if isinstance(entry, str):
                entry = base64.b64decode(entry.rpartition(",")[2], validate=True)  # or a data URL
            else:
                expected = ""
            if entry.startswith(b"\xff\xd8") and (scans := entry.count(b"\xff\xda")) > MAX_SCANS:
                raise ValueError(f"got {scans} scans in a JPEG file, expected at most {MAX_SCANS}")
            picture = read_picture(io.BytesIO(entry), max_pixels)
        except ValueError as error:
            raise InputError(f"inputs[{index}]: {error}{expected}") from error
        try:
            prepared.append(engine.prepare(picture))
        except EngineError as error:
            raise InputError(f"inputs[{index}]: {error}") from error
        if max_pixels is not None:
            max_pixels -= picture.shape[0] * picture.shape[1]
    return np.array(prepared)


def _read_numbers(engine: Engine, entries: Any) -> NDArray[Any]:
    size = [int(engine.info[name]) for name in ("height", "width", "channels")]
    size = size if size[2] > 1 else size[:2]
    try:
        images = _array(entries)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(
            "inputs: got no array of numbers: other values, or rows of different lengths; expected "
            f"(n, {', '.join(map(str, size))}), or a list of pictures in base64"
        ) from error
    if images.ndim == 2 and images.shape[1] == np.prod(size):
        images = images.reshape(-1, *size)
    if images.dtype != np.uint8:
        _check_range(images)
    return images


def _array(entries: Any) -> NDArray[Any]:
    """Return nested lists and arrays as one array of uint8 or float32.

    Lists become float32 at once: numpy would find room for a longest text among them first.
    """
    nested = _lists(entries)
    first = nested
    while isinstance(first, list) and first:
        first = first[0]
    keeps_type = isinstance(first, np.ndarray) and first.dtype == np.uint8
    with np.errstate(over="ignore"):  # infinite ones are refused later
        array = np.asarray(nested, None if keeps_type else np.float32)
    return array if array.dtype == np.uint8 else array.astype(np.float32, copy=False)


def _lists(entries: Any) -> Any:
    """Return arrays of arrays, which Spark and Parquet make of nested lists, as lists of arrays."""
    if isinstance(entries, np.ndarray) and entries.dtype == object:
        entries = entries.tolist()
    if isinstance(entries, list) and entries and isinstance(entries[0], np.ndarray):
        return [_lists(entry) for entry in entries]
    return entries


def _check_range(images: NDArray[Any]) -> None:
    wrong = np.argwhere(~((images >= 0) & (images <= 1)))  # also finds NaN
    if len(wrong):
        place = "".join(f"[{index}]" for index in wrong[0])
        raise InputError(
            f"inputs{place}: got {images[tuple(wrong[0])]:g}, expected 0 (background) to 1; "
            "divide pixels of 0 to 255 by 255"
        )
