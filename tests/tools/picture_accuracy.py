"""Print the tables of docs/pictures.md: the shipped model on pictures of MNIST's test images."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mnist_mamba.data.idx import read_images, read_labels
from mnist_mamba.engine import Engine
from tests.tools.pasted_digits import LIGHT_AND_NOISE, PLAIN, paste

BICUBIC = Image.Resampling.BICUBIC
ROOT = Path(__file__).parents[2]
PAGES, PASTED = 600, 3000
"""Numbers of test images: the first ones as pages, and random ones pasted."""
Pixels = NDArray[np.uint8]


def page_of(digit: Pixels) -> Pixels:
    """Return white paper, (200, 200), with an image (28, 28) of a digit in black on it."""
    larger = Image.fromarray(digit).resize((140, 140), BICUBIC)
    return 255 - np.pad(np.asarray(larger), 30)


def in_canvas(page: Pixels, margin: int) -> Image.Image:
    """Return an opaque grey page in the middle of transparent pixels."""
    opaque = np.full(page.shape, 255, np.uint8)
    return Image.fromarray(np.pad(np.dstack([page, opaque]), [(margin,) * 2] * 2 + [(0, 0)]), "LA")


def rotated(page: Pixels, mode: str = "RGBA", degrees: float = 10) -> Image.Image:
    """Return a rotated page: corners transparent, or (L) white."""
    white = 255 if mode == "L" else None
    opaque = Image.fromarray(page).convert("L" if white else "RGBA")
    return opaque.rotate(degrees, BICUBIC, expand=True, fillcolor=white).convert(mode)


def ink_alone(page: Pixels, ink: tuple[int, int, int]) -> Image.Image:
    """Return the ink of a page in one colour on transparency."""
    drawing = Image.new("RGBA", page.shape[::-1], ink)
    drawing.putalpha(Image.fromarray(255 - page))
    return drawing


def page_kinds() -> dict[str, Callable[[Pixels], object]]:
    """Return functions from a page to a picture of it, by their names."""
    kinds: dict[str, Callable[[Pixels], object]] = {"page": np.asarray}
    for degrees in (5, 10, 20):
        for mode, corners in (("RGBA", "transparent"), ("L", "white")):
            name = f"rotated by {degrees} degrees, {corners} corners"
            kinds[name] = partial(rotated, mode=mode, degrees=degrees)
    for margin in (8, 20, 100):
        kinds[f"transparent margin of {margin} pixels"] = partial(in_canvas, margin=margin)
    for ink in ((0, 0, 0), (255, 255, 255), (127, 127, 127), (255, 0, 0)):
        kinds[f"ink alone, {ink}"] = partial(ink_alone, ink=ink)
    return kinds


def main() -> None:
    """Print the accuracy on each kind of picture."""
    images = read_images(ROOT / "data/prepared/test-images.idx")
    labels = read_labels(ROOT / "data/prepared/test-labels.idx")

    def show(name: str, pictures: Iterable[object], chosen: NDArray[np.integer] | slice) -> None:
        seen = np.array([engine.prepare(np.asarray(picture)) for picture in pictures])
        right = (engine.predict(seen) == labels[chosen]).mean()
        sys.stdout.write(f"{right:8.2%}  {name}\n")

    with Engine() as engine:
        sys.stdout.write(f"{(engine.predict(images) == labels).mean():8.2%}  as they are\n")
        show("prepared", images, slice(None))
        show("negatives", 255 - images, slice(None))
        for ranges in (PLAIN, LIGHT_AND_NOISE):
            rng = np.random.default_rng(ranges.seed)
            chosen = rng.permutation(len(images))[:PASTED]
            alone = (engine.predict(images[chosen]) == labels[chosen]).mean()
            sys.stdout.write(f"{alone:8.2%}  those of the next line, not pasted\n")
            show(f"{ranges}", (paste(rng, images[i], ranges) for i in chosen), chosen)
        pages = [page_of(image) for image in images[:PAGES]]
        for name, picture_of in page_kinds().items():
            show(name, map(picture_of, pages), slice(PAGES))


if __name__ == "__main__":
    main()
