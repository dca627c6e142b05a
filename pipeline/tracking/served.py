"""Models as MLflow serves them: fetched, compared with files at hand, and only then loaded.

A model of MLflow is code: loading it runs the Python and the library in it. Anybody who may write
to the server or its artifact store can put a foreign model under any name, tag or alias. So a model
is fetched to a folder of our own, every byte of it is compared, and that folder is loaded, not the
store's.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import yaml

from mnist_mamba.engine import Engine
from pipeline.common import paths
from pipeline.tracking import client as tracking
from pipeline.tracking.client import TrackingError

if TYPE_CHECKING:
    from numpy.typing import NDArray

DESCRIPTION = "MLmodel"
"""File that says how MLflow loads the model."""
OF_THIS_COPY = ("artifact_path", "model_id", "model_uuid", "run_id", "utc_time_created")
"""Entries of the description that name one upload of a model, and do not say how it is loaded."""
ADDED_BY_DOWNLOAD = "registered_model_meta"
"""File that MLflow's client itself writes into the copy of a registered model."""


class ForeignModelError(TrackingError):
    """MLflow serves other files than those at hand; the message names one of them."""


def fetch(uri: str, folder: Path) -> Path:
    """Download a model to a folder that does not exist yet, and return the folder."""
    from mlflow.artifacts import download_artifacts

    with tracking.process_default():
        copy = Path(download_artifacts(artifact_uri=uri, dst_path=str(folder)))
    (copy / ADDED_BY_DOWNLOAD).unlink(missing_ok=True)
    return copy


def check_same(uri: str, served: Path, expected: Path) -> None:
    """Check that a fetched model has the expected files and each has the expected bytes.

    Raises:
        ForeignModelError: it has not; the first file that differs is named.
    """
    theirs, ours = files(served), files(expected)
    for name in sorted({*theirs, *ours}):
        if name not in theirs:
            problem = "missing"
        elif name not in ours:
            problem = "a file that the model does not have"
        elif _content(theirs[name]) != _content(ours[name]):
            problem = f"got {sha256(theirs[name])}, expected {sha256(ours[name])}"
        else:
            continue
        raise ForeignModelError(
            f"{uri} in MLflow is not the model of these files: {name}: {problem}"
        )


def check_answer(uri: str, served: Path, expected: Path, image: NDArray[Any]) -> None:
    """Load a model that was checked and compare its answer with the engine's, bit for bit.

    Args:
        uri: the model's name in errors.
        served: its folder.
        expected: the folder of the same model, made from the files at hand.
        image: [1, height, width(, channels)], float32 in [0, 1].

    Raises:
        TrackingError: it cannot be loaded, or gives another answer.
    """
    from mlflow import pyfunc

    model, library = (
        expected / "artifacts" / path.name for path in (paths.MODEL, paths.ENGINE_LIBRARY)
    )
    with Engine(model, threads=1, library=library) as engine:
        wanted = engine.probabilities(image)
    with loading():
        answer = pyfunc.load_model(str(served)).predict(image)["probabilities"]
    if not np.array_equal(answer, wanted):
        raise TrackingError(f"{uri} in MLflow answers {answer}, expected {wanted} as the engine")


def loading() -> Any:
    """Return a context in which MLflow loads a model without a change of folder or process.

    MLflow puts the model's code in front of all other, and Python would write compiled files into
    it, which MLflow would store.
    """
    return mock.patch.multiple(sys, path=[*sys.path], dont_write_bytecode=True)


def files(folder: Path) -> dict[str, Path]:
    """Return all files below a folder by their names, relative and with slashes."""
    found = (path for path in folder.rglob("*") if not path.is_dir())
    return {path.relative_to(folder).as_posix(): path for path in found}


def sha256(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksums(folder: Path) -> str:
    """Return the SHA-256 of all files below a folder, as `sha256sum` prints them."""
    return "".join(f"{sha256(path)}  {name}\n" for name, path in sorted(files(folder).items()))


def digest(folder: Path) -> str:
    """Return a hash of a model's files; its description, which names the upload, is left out."""
    lines = checksums(folder).splitlines(keepends=True)
    kept = "".join(line for line in lines if not line.endswith(f"  {DESCRIPTION}\n"))
    return hashlib.sha256(kept.encode()).hexdigest()


def _content(path: Path) -> Any:
    """Return a file's bytes, or the entries of the description without those of this copy."""
    if path.name != DESCRIPTION:
        return path.read_bytes()
    try:
        entries = yaml.safe_load(path.read_bytes())
    except yaml.YAMLError:
        return None
    known = isinstance(entries, dict)
    return {key: entries[key] for key in entries if key not in OF_THIS_COPY} if known else entries
