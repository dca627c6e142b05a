"""`make champion`: fetch the promoted model from MLflow if it is the one that was promoted.

Each file is compared with models/champion.sha256, which the promotion wrote and Git keeps: another
model, an additional file and a missing one are refused. Nothing of the model is run. Serve the
fetched folder, and not the registry's address, which may lead to another model a moment later.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path

from pipeline.common import command


def parse_arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = command.parser(
        __doc__ or "",
        [
            "python -m pipeline.release.champion",
            "mlflow models serve -m build/champion --env-manager local",
        ],
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("build/champion"),
        metavar="FOLDER",
        help="folder that gets the model; default: %(default)s",
    )
    return parser.parse_args()


if __name__ == "__main__":
    command.run(parse_arguments)

from pipeline.common.params import load_params
from pipeline.release.published import ALIAS, CHAMPION
from pipeline.tracking import client as tracking
from pipeline.tracking import served

logger = logging.getLogger(__name__)


def fetch(uri: str, expected: Path, folder: Path) -> None:
    """Fetch a model to a folder, which is replaced, if it has the expected checksums.

    Raises:
        OSError: the list of checksums is missing, or the folder is not one of a model.
        TrackingError: it is another model, or MLflow does not serve it. The folder is as before.
    """
    if not expected.is_file():
        raise FileNotFoundError(f"{expected} not found: a promotion writes it (`make promote`)")
    if folder.is_symlink() or (folder.exists() and not Path(folder, served.DESCRIPTION).is_file()):
        raise FileExistsError(
            f"{folder}: expected no folder, or that of a model, which is replaced: got another; "
            "name a new folder by --output"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        with tracking.mlflow_errors("make champion"):
            copy = served.fetch(uri, Path(scratch, "model"))
        wanted = set(expected.read_text(encoding="utf-8").splitlines())
        found = set(served.checksums(copy).splitlines())
        if found != wanted:
            names = {line.partition("  ")[2] for line in found ^ wanted}
            raise tracking.TrackingError(
                f"{uri} is not the model that was promoted: {min(names)} differs from {expected}, "
                f"{len(names)} files in all. Do not load it; find out who changed the registry, "
                "then run `make promote` again"
            )
        if folder.exists():
            folder.rename(Path(scratch, "former"))
        copy.rename(folder)
    logger.info("%s is the model that was promoted, %d files: %s", uri, len(found), folder)


def main() -> None:
    """Fetch and check the champion."""
    arguments = parse_arguments()
    name = load_params().tracking.model_name
    fetch(f"models:/{name}@{ALIAS}", CHAMPION, arguments.output)


if __name__ == "__main__":
    command.run(main)
