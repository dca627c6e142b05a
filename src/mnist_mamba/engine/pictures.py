"""Picture files as the arrays that `prepare_picture` takes; Pillow reads most formats."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

INSTALL_PILLOW = (
    "pictures other than binary PGM and PPM of 8 bits need Pillow: run `pip install pillow`"
)
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""The formats to read, by Pillow's names. None of their readers starts a program."""
_GAP = rb"(?:\s|#[^\n]*\n)+"
_NETPBM = re.compile(rb"P([56])" + 2 * (_GAP + rb"(\d{1,5})") + _GAP + rb"255\s")
"""The header of a PGM (P5) or PPM (P6) file: width, height and the largest value."""
STRIP = 1 << 20
"""Pixels that are converted at once, so that copies of a large picture stay small."""
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262
"""TIFF's tags; PHOTOMETRIC is 0 if the smallest value is white."""


class PictureError(ValueError):
    """A file that is not a picture, or a damaged one."""


def read_picture(
    source: str | Path | IO[bytes], max_pixels: int | None = None
) -> NDArray[np.uint8]:
    """Return the first frame of a picture file, upright as its EXIF data says.

    Args:
        source: a path or an open file.
        max_pixels: number of pixels from which on a picture is refused before it is decoded; None
            for Pillow's limit of 179 million.

    Returns:
        (h, w) grey or (h, w, 2 to 4) grey and alpha, RGB, or RGB and alpha. Values of 12
        and 16 bits are scaled to 0..255; palettes, CMYK and other colour spaces become RGB.

    Raises:
        PictureError: Pillow cannot read it, or it has too many pixels.
        OSError: the file cannot be opened, or is not a regular file.
        ModuleNotFoundError: Pillow is not installed, and the picture is not PGM or PPM.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ModuleNotFoundError as error:
        with _opened(source) as file:
            pixels = _netpbm(file.read())
        if pixels is None:
            raise ModuleNotFoundError(INSTALL_PILLOW, name=error.name) from error
        return pixels
    with _opened(source) as file:
        try:
            with Image.open(file, formats=FORMATS) as image:
                if max_pixels is not None and image.width * image.height > max_pixels:
                    got = f"got {image.width} x {image.height} pixels"
                    raise PictureError(f"{got}, expected at most {max_pixels} in all")
                ImageOps.exif_transpose(image, in_place=True)
                return _pixels(image)
        except PictureError:
            raise
        except UnidentifiedImageError as error:
            raise PictureError(f"unknown format; expected {', '.join(FORMATS)}") from error
        except Exception as error:  # Pillow's decoders raise errors of many types
            reason = " ".join(str(error).split())
            raise PictureError(f"{reason}; expected a complete picture, such as PNG") from error


def _opened(source: str | Path | IO[bytes]) -> IO[bytes]:
    """Return the open file. A FIFO is refused, as opening it would wait for a writer."""
    if not isinstance(source, str | Path):
        return source
    path = Path(source)
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path.open("rb")


def _netpbm(data: bytes) -> NDArray[np.uint8] | None:
    """Return the pixels of a binary PGM or PPM file of 8 bits, or None if `data` is not one.

    Raises:
        PictureError: the file has no pixels, or not as many as its header says.
    """
    header = _NETPBM.match(data)
    if header is None:
        return None
    width, height, channels = int(header[2]), int(header[3]), 1 if header[1] == b"5" else 3
    pixels = np.frombuffer(data, np.uint8, offset=header.end())
    if not 0 < width * height * channels <= len(pixels):
        raise PictureError(
            f"{width} x {height} pixels of {channels} bytes in {len(pixels)} bytes; expected a "
            "complete picture"
        )
    pixels = pixels[: width * height * channels]
    return pixels.reshape((height, width) if channels == 1 else (height, width, channels))


def _pixels(image: Any) -> NDArray[np.uint8]:
    """Return the pixels of a PIL image as grey or RGB, with alpha if it has some."""
    convert = _converter(image)
    rows = max(1, STRIP // image.width)
    pixels = np.empty((0,), np.uint8)
    for top in range(0, image.height, rows):
        strip = convert(image.crop((0, top, image.width, min(top + rows, image.height))))
        if top == 0:
            pixels = np.empty((image.height, *strip.shape[1:]), np.uint8)
        pixels[top : top + rows] = strip
    return pixels


def _converter(image: Any) -> Callable[[Any], NDArray[Any]]:
    """Return the function that converts a strip of the image."""
    if image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PPM"):
        tags = image.tag_v2 if image.format == "TIFF" else {}
        largest = 2 ** tags.get(BITS_PER_SAMPLE, (16,))[0] - 1
        negative = tags.get(PHOTOMETRIC) == 0
        return partial(_grey, largest, negative, image.info.get("transparency"))
    if image.mode in ("I", "F"):
        raise PictureError("32 bits per pixel, expected 8 or 16")
    mode = "L" if image.mode in ("1", "L") else "RGB"
    if image.has_transparency_data:
        mode = "LA" if image.mode in ("L", "LA", "La") else "RGBA"
    return lambda strip: np.asarray(strip.convert(mode))


def _grey(largest: int, negative: bool, transparent: int | None, strip: Any) -> NDArray[Any]:
    """Scale values of more than 8 bits; add alpha if one of them stands for transparency."""
    values = np.asarray(strip)
    grey = np.rint(values * (255 / largest)).astype(np.uint8)
    if negative:
        grey = 255 - grey
    if transparent is None:
        return grey
    return np.dstack([grey, np.where(values == transparent, 0, 255)])
