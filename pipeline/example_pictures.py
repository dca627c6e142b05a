"""Write a small data set as a folder of pictures, to try `data.dataset: folder`."""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pipeline.common import command

SIDE = 32
"""Height and width of the shapes' pictures, in pixels."""
PER_CLASS = 100
"""Number of pictures of each shape."""
SHAPES = ("red circle", "green square", "blue triangle")


def parse_arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = command.parser(
        "Write pictures as FOLDER/CLASS/NUMBER.png.",
        [
            "python -m pipeline.example_pictures digits data/digits",
            "dvc exp run -S data.dataset=folder -S data.folder=data/digits",
        ],
    )
    parser.add_argument(
        "kind",
        choices=("digits", "shapes"),
        help="digits: scikit-learn's 1,797 scans of 8x8 grey pixels, ten classes; shapes: "
        f"{PER_CLASS} drawings in colour for each of three classes",
    )
    parser.add_argument("folder", type=Path, help="a new folder")
    arguments = parser.parse_args()
    if arguments.folder.exists():
        raise FileExistsError(f"{arguments.folder} exists, expected the name of a new folder")
    return arguments


if __name__ == "__main__":
    command.run(parse_arguments)

import numpy as np
from PIL import Image, ImageDraw
from PIL.Image import Image as Picture


def digits() -> Iterator[tuple[str, Picture]]:
    """Yield scikit-learn's digits with their classes."""
    from sklearn.datasets import load_digits

    found = load_digits()
    for image, label in zip(found.images, found.target, strict=True):
        yield str(label), Image.fromarray(np.rint(image * (255 / 16)).astype(np.uint8))


def shapes() -> Iterator[tuple[str, Picture]]:
    """Yield drawings of three shapes of random place, size and shade, with their classes."""
    generator = np.random.default_rng(0)
    for name, _ in itertools.product(SHAPES, range(PER_CLASS)):
        picture = Image.new("RGB", (SIDE, SIDE), tuple(generator.integers(0, 60, 3).tolist()))
        size = int(generator.integers(SIDE // 4, SIDE // 2))
        left, top = generator.integers(0, SIDE - size, 2).tolist()
        box = (left, top, left + size, top + size)
        colour = generator.integers(0, 100, 3)
        colour[SHAPES.index(name)] = generator.integers(180, 256)
        fill, draw = tuple(colour.tolist()), ImageDraw.Draw(picture)
        if "circle" in name:
            draw.ellipse(box, fill)
        elif "square" in name:
            draw.rectangle(box, fill)
        else:
            corners = [(left, top + size), (left + size, top + size), (left + size / 2, top)]
            draw.polygon(corners, fill)
        yield name, picture


def main() -> None:
    """Write the pictures; the folder gets its name once it has all."""
    arguments = parse_arguments()
    folder: Path = arguments.folder
    numbers: Counter[str] = Counter()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".pictures-", dir=folder.parent) as scratch:
        new = Path(scratch, "new")
        for name, picture in {"digits": digits, "shapes": shapes}[arguments.kind]():
            path = new / name / f"{numbers[name]}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
            numbers[name] += 1
        new.rename(folder)
    print(f"{folder}: {numbers.total()} pictures of {len(numbers)} classes")


if __name__ == "__main__":
    command.run(main)
