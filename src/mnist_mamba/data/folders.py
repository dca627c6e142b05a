"""Folders of pictures, whose subfolders are the classes."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mnist_mamba.config import LIMITS, Preparation, expected_name, printable
from mnist_mamba.data.splits import TEST_SEED, DataError, DataSet, LabelledImages, some, split
from mnist_mamba.engine.binding import EngineError, prepare_picture
from mnist_mamba.engine.pictures import FORMATS, PictureError, read_picture

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

logger = logging.getLogger(__name__)

NOT_DATA = {"Thumbs.db", "desktop.ini", "__MACOSX"}
"""Names that Windows and macOS leave in folders; hidden files are ignored too."""
PARTS = {"train", "training", "test", "testing", "val", "valid", "validation"}
"""Names, in any case, that two folders next to each other have for the parts of a data set."""
SQUASHED = 1.1
"""Smallest change of the ratio of a picture's sides that is worth a warning."""
ORIENTATION, TURNED = 0x0112, {5, 6, 7, 8}
"""EXIF's tag, and its values that exchange height and width."""

Files = list[tuple[Path, int]]
"""Pictures with their labels."""


class PictureFiles(NamedTuple):
    """The files of a folder; none is opened yet."""

    class_names: tuple[str, ...]
    train: Files
    test: Files
    """Empty if test pictures are split off `train`."""


def find_pictures(folder: Path) -> PictureFiles:
    """Return the files of `train/CLASS/` and `test/CLASS/`, or else of `CLASS/`.

    Class names are the folders' names in Unicode's form NFC, sorted. Pictures may be in subfolders
    of a class. Hidden files are ignored; other files that are not in a class folder are too, with a
    warning.

    Raises:
        DataError: no such folder, another structure, a class without pictures or with too few to
            split them, or a name that cannot be a class name.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: not a folder, expected class folders of pictures (data.folder)")
    if not _folders(folder / "train"):  # a class may be named train
        _refuse_other_structures(folder)
        classes = _classes(folder, _files(folder), least=3)
        return PictureFiles(tuple(classes), _labelled(classes, tuple(classes)), [])
    if not _folders(folder / "test"):
        raise DataError(
            f"{folder}: train has class folders, but test has none: expected both (rename a folder "
            "val to test), or class folders without train and test"
        )
    others = [path for path in _visible(folder) if path.name not in ("train", "test")]
    train = _classes(folder / "train", _files(folder / "train") + others, least=2)
    test = _classes(folder / "test", _files(folder / "test"), least=1)
    if unknown := [name for name in test if name not in train]:
        raise DataError(f"{folder / 'test'}: classes {unknown} are missing in {folder / 'train'}")
    names = tuple(train)
    return PictureFiles(names, _labelled(train, names), _labelled(test, names))


def _refuse_other_structures(folder: Path) -> None:
    """Refuse parts of a data set in the place of classes, and a folder around the real one."""
    inner = _folders(folder)
    if len(inner) == 1 and _folders(inner[0]):
        name = printable(inner[0].name)
        raise DataError(
            f"{folder}: got the single folder {name}, expected class folders: set data.folder to "
            f"{folder / name}"
        )
    parts = [path.name for path in inner if path.name.casefold() in PARTS]
    if len(parts) > 1:
        raise DataError(
            f"{folder}: got the folders {', '.join(parts)}, expected class folders, or two folders "
            "with the names train and test and class folders in them (rename val to test)"
        )


def _visible(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if path.name not in NOT_DATA)
    return sorted(path for path in found if not path.name.startswith("."))


def _folders(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.is_dir()]


def _files(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if not path.is_dir()]


def _classes(folder: Path, ignored: Sequence[Path], least: int) -> dict[str, list[Path]]:
    """Return the files of each class folder by the sorted class names."""
    found: dict[str, list[Path]] = {}
    for path in _folders(folder):
        name = _class_name(path)
        if name in found:
            raise DataError(f"{folder}: two folders are named {name}, expected different names")
        found[name] = _below(path)
    if len(found) not in LIMITS["n_classes"]:
        raise DataError(f"{folder}: got {len(found)} class folders, expected {LIMITS['n_classes']}")
    if few := [f"{name} ({len(files)})" for name, files in found.items() if len(files) < least]:
        raise DataError(
            f"{folder}: class folders with too few pictures: {some(few)}; expected at least "
            f"{least} in each"
        )
    everything = [path for files in found.values() for path in files]
    odd = [f"{path} (not a regular file)" for path in everything if not path.is_file()]
    _refuse(odd, len(everything))
    if ignored:
        logger.warning("not in a class folder, so not used: %s", some([*map(str, ignored)]))
    return dict(sorted(found.items()))


def _below(folder: Path) -> list[Path]:
    """Return the files of a folder and its subfolders; a link to a folder counts as a file."""
    found: list[Path] = []
    waiting = [folder]
    while waiting:  # not recursive: folders may be deeper than Python's stack
        for path in _visible(waiting.pop()):
            (waiting if path.is_dir() and not path.is_symlink() else found).append(path)
    return sorted(found)


def _class_name(folder: Path) -> str:
    name = unicodedata.normalize("NFC", folder.name)
    if expected := expected_name(name, ()):
        raise DataError(f"{str(folder)!r}: not a class name, expected {expected}")
    return name


def _labelled(classes: dict[str, list[Path]], names: tuple[str, ...]) -> Files:
    return [(path, names.index(name)) for name, files in classes.items() for path in files]


def picture_size(files: PictureFiles) -> tuple[int, int]:
    """Return the (height, width) that all pictures have, from the start of each file.

    Raises:
        DataError: files that are not pictures, or pictures that differ in size.
    """
    from PIL import Image, UnidentifiedImageError

    sizes: dict[tuple[int, int], Path] = {}
    broken = []
    for path, _ in files.train + files.test:
        try:
            with Image.open(path, formats=FORMATS) as picture:
                sizes.setdefault(_upright_size(picture), path)
        except UnidentifiedImageError:
            broken.append(f"{path} (unknown format)")
        except Exception as error:  # Pillow's readers raise many kinds
            broken.append(f"{path} ({_one_line(error)})")
    _refuse(broken, len(files.train + files.test))
    if len(sizes) > 1:
        small, *_, large = sorted(sizes, key=lambda size: (size[0] * size[1], size))
        path_of = {size: printable(str(sizes[size])) for size in (small, large)}
        raise DataError(
            f"the pictures differ in size, from {small[0]} x {small[1]} ({path_of[small]}) to "
            f"{large[0]} x {large[1]} ({path_of[large]}): set data.resize, for instance to 32"
        )
    return next(iter(sizes))


def _upright_size(picture: Picture) -> tuple[int, int]:
    """Return (height, width) after the turn that EXIF demands, which TIFF's size includes."""
    width, height = picture.size
    turned = picture.format != "TIFF" and picture.getexif().get(ORIENTATION) in TURNED
    return (width, height) if turned else (height, width)


def load_folder(
    folder: Path,
    size: tuple[int, int] | None,
    test_fraction: float,
    preparation: Preparation = "resize",
) -> DataSet:
    """Return a folder's pictures, prepared as the engine prepares pictures for a model.

    Args:
        folder: see `find_pictures`.
        size: (height, width) of the images; None keeps the size that all pictures have.
        test_fraction: fraction of each class to split off as test images, unless the folder has
            test pictures.
        preparation: resize makes RGB images, (n, height, width, 3); mnist makes grey ones, (n,
            height, width), see docs/pictures.md.

    Raises:
        DataError: see `find_pictures` and `picture_size`; a damaged picture, one that Pillow
            refuses to decode because it is too large, or one in which the preparation finds
            nothing.
    """
    files = find_pictures(folder)
    height, width = size or picture_size(files)
    channels = 1 if preparation == "mnist" else 3
    broken: list[str] = []
    squashed: list[bool] = []

    def load(part: Files) -> LabelledImages:
        images = []
        for path, _ in part:
            try:
                picture = read_picture(path)
                squashed.append(_squashed(picture.shape[:2], (height, width)))
                images.append(
                    prepare_picture(picture, height, width, channels, preparation=preparation)
                )
            except (PictureError, EngineError, OSError) as error:
                broken.append(f"{path} ({_one_line(error)})")
        shape = (0, height, width, channels)[: 3 + (channels > 1)]
        labels = np.array([label for _, label in part], np.uint8)
        return LabelledImages(np.stack(images) if images else np.empty(shape, np.uint8), labels)

    train, test = load(files.train), load(files.test)
    _refuse(broken, len(files.train + files.test))
    if preparation == "resize" and any(squashed):
        logger.warning(
            "%d of %d pictures have sides of another ratio than %d x %d, and are squashed to that "
            "size: crop them, or choose another data.resize",
            *(sum(squashed), len(squashed), height, width),
        )
    if not files.test:
        train, test = split(train, test_fraction, TEST_SEED)
    return DataSet(train, test, files.class_names)


def _squashed(size: tuple[int, ...], target: tuple[int, int]) -> bool:
    ratio = size[0] * target[1] / (size[1] * target[0])
    return max(ratio, 1 / ratio) > SQUASHED


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _refuse(broken: Sequence[str], n_files: int) -> None:
    """Raise an error if there are broken files."""
    if broken:
        heic = any(re.search(r"\.hei[cf] \(", text, re.IGNORECASE) for text in broken)
        raise DataError(
            f"{len(broken)} of {n_files} files are not whole pictures: {some(broken)}; expected "
            f"{', '.join(FORMATS)}: {'convert HEIC to JPEG, ' * heic}replace or remove them"
        )
