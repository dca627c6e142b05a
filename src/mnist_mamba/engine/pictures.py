"""Picture files, read with Pillow into the arrays that `prepare_picture` takes."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

INSTALL_PILLOW = "pictures need Pillow: run `pip install pillow`"


class PictureError(ValueError):
    """A file that is not a picture, or a damaged one."""


def read_picture(source: str | Path | IO[bytes]) -> NDArray[np.uint8]:
    """Return the first frame of a picture file, upright as its EXIF data says.

    Args:
        source: a path or an open file, of any format that Pillow reads.

    Returns:
        (h, w) grey or (h, w, 2 to 4) grey and alpha, RGB, or RGB and alpha. Values of more than 8
        bits are scaled to 0..255; palettes, CMYK and other colour spaces become RGB.

    Raises:
        PictureError: Pillow cannot read it, or a picture has more than 178 million pixels.
        OSError: the file cannot be opened.
        ModuleNotFoundError: Pillow is not installed.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(INSTALL_PILLOW, name=error.name) from error
    with Path(source).open("rb") if isinstance(source, str | Path) else source as file:
        try:
            with Image.open(file) as opened:
                return _pixels(ImageOps.exif_transpose(opened))
        except Exception as error:  # Pillow's decoders raise errors of many types
            reason = " ".join(str(error).split())
            if isinstance(error, UnidentifiedImageError):
                reason = "got a file of no format that Pillow knows"
            raise PictureError(f"{reason}; expected a complete picture, such as PNG") from error


def _pixels(image: Any) -> NDArray[np.uint8]:
    """Return the pixels of a PIL image as grey or RGB, with alpha if it has some."""
    if image.mode.startswith(("I", "F")):
        return _scale_deep(np.asarray(image, dtype=np.float64))
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode in ("L", "LA", "La") else "RGBA")
    elif image.mode not in ("L", "RGB"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    return np.asarray(image, dtype=np.uint8)


def _scale_deep(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Scale grey values of 16 or 32 bits, or fractions of 1, to 0..255."""
    largest = values.max(initial=0)
    if not (values.min(initial=0) >= 0 and largest <= 65535):
        raise PictureError("got grey values outside 0..65535")
    top = 1 if largest <= 1 else 255 if largest <= 255 else 65535
    return np.rint(values * (255 / top)).astype(np.uint8)
