"""Stage `track`: store this run's files in MLflow; running it again changes nothing."""

from __future__ import annotations

import logging
from pathlib import Path

from mnist_mamba.atomic_write import write_text
from pipeline.common import command, paths
from pipeline.common.content_key import content_key
from pipeline.common.options import parse_params
from pipeline.tracking import run

logger = logging.getLogger(__name__)

IN_THIS_DATABASE = Path("mlartifacts/tracking_key.txt")
"""A second copy of the key, not in Git. A clone and DVC's copy for an experiment lack it, so that
`track` runs there even if no other stage has to."""


def main() -> None:
    """Create or update the run and write its key."""
    params = parse_params(command.parser(__doc__ or ""))
    if params.tracking.enabled:
        key = run.upsert(params)
    else:
        key = content_key(params)
        logger.info("tracking.enabled is false: the run was not sent to MLflow")
    for file in (paths.TRACKING_KEY, IN_THIS_DATABASE):
        write_text(file, key + "\n")


if __name__ == "__main__":
    command.run(main)
