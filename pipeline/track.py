"""Stage `track`: put this run's files into MLflow. Runs last; running it again changes nothing."""

from __future__ import annotations

import logging
from pathlib import Path

from mnist_mamba.atomic_write import write_text
from pipeline.common import command, paths
from pipeline.common.content_key import content_key
from pipeline.common.params import load_params
from pipeline.tracking import run

logger = logging.getLogger(__name__)

IN_THIS_DATABASE = Path("mlartifacts/tracking_key.txt")
"""The key once more, but not in Git: a clone, or DVC's copy of the project for an experiment, lacks
it, so `track` runs there even if nothing else has to."""


def main() -> None:
    """Upsert the run and write its key."""
    command.parser(__doc__ or "").parse_args()
    params = load_params()
    if params.tracking.enabled:
        key = run.upsert(params)
    else:
        key = content_key(params)
        logger.info("tracking.enabled is false: nothing was sent to MLflow")
    for file in (paths.TRACKING_KEY, IN_THIS_DATABASE):
        write_text(file, key + "\n")


if __name__ == "__main__":
    command.run(main)
