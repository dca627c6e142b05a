"""Stage `track`: put this run's files into MLflow. Runs last; running it again changes nothing."""

from __future__ import annotations

import logging

from mnist_mamba.files import write_text
from pipeline import paths, stage, tracked_run
from pipeline.content_key import content_key
from pipeline.params import load_params

logger = logging.getLogger(__name__)


def main() -> None:
    """Upsert the run and write its key."""
    stage.parser(__doc__ or "").parse_args()
    params = load_params()
    if params.tracking.enabled:
        key = tracked_run.upsert(params)
    else:
        key = content_key(params)
        logger.info("tracking.enabled is false: nothing was sent to MLflow")
    write_text(paths.TRACKING_KEY, key + "\n")


if __name__ == "__main__":
    stage.run(main)
