"""Picture files, read with Pillow into the arrays that `prepare_picture` takes."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

INSTALL_PILLOW = "pictures need Pillow: run `pip install pillow`"


class PictureError(ValueError):
    """A file that is not a picture, or a damaged one."""


def read_picture(
    source: str | Path | IO[bytes], formats: tuple[str, ...] | None = None
) -> NDArray[np.uint8]:
    """Return the first frame of a picture file, upright as its EXIF data says.

    Args:
        source: a path or an open file.
        formats: Pillow's names of the formats to read; None reads all that Pillow knows.

    Returns:
        (h, w) grey or (h, w, 2 to 4) grey and alpha, RGB, or RGB and alpha. Values of 16
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
            with Image.open(file, formats=formats) as opened:
                return _pixels(ImageOps.exif_transpose(opened), opened.format)
        except PictureError:
            raise
        except Exception as error:  # Pillow's decoders raise errors of many types
            reason = " ".join(str(error).split())
            if isinstance(error, UnidentifiedImageError):
                reason = "unknown format"
            raise PictureError(f"{reason}; expected a complete picture, such as PNG") from error


def _pixels(image: Any, source: str | None) -> NDArray[np.uint8]:
    """Return the pixels of a PIL image of a format as grey or RGB, with alpha if it has some."""
    if image.mode.startswith("I;16") or (image.mode, source) == ("I", "PPM"):
        return np.rint(np.asarray(image) * (255 / 65535)).astype(np.uint8)
    if image.mode in ("I", "F"):
        raise PictureError("32 bits per pixel, expected 8 or 16")
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode in ("L", "LA", "La") else "RGBA")
    elif image.mode not in ("L", "RGB"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    return np.asarray(image, dtype=np.uint8)
