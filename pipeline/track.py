"""Stage `track`: store this run's files in MLflow; running it again changes nothing.

`make ui` shows the runs: it calls the command with --serve.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from mnist_mamba.atomic_write import write_text
from pipeline.common import command, paths
from pipeline.common.content_key import content_key
from pipeline.common.params import Params, load_params
from pipeline.tracking import client, run

logger = logging.getLogger(__name__)

IN_THIS_DATABASE = Path("mlartifacts/tracking_key.txt")
"""A second copy of the key, not in Git. A clone and DVC's copy for an experiment lack it, so that
`track` runs there even if no other stage has to."""


def serve(params: Params, port: int) -> None:
    """Print the link to the experiment's runs, and replace this process by MLflow's server."""
    with client.mlflow_errors():
        _, experiment = client.connect(params)
    uri = client.tracking_uri()
    is_served = uri.startswith(("http://", "https://"))
    server = uri.rstrip("/") if is_served else f"http://127.0.0.1:{port}"
    view = f"workflowType=machine_learning&viewStateShareKey={client.VIEW}"
    print(f"The runs: {server}/#/experiments/{experiment}/runs?{view}", flush=True)
    if not is_served:
        words = ["mlflow", "ui", "--backend-store-uri", uri, "--port", str(port)]
        os.execvp(words[0], words)


def main() -> None:
    """Create or update the run and write its key, or show the runs."""
    parser = command.parser(__doc__ or "", ["python -m pipeline.track --serve 5001"])
    parser.add_argument(
        "--serve",
        type=int,
        nargs="?",
        const=5000,
        metavar="PORT",
        help="show the runs that are stored, and store none; default: %(const)s",
    )
    arguments = parser.parse_args()
    params = load_params()
    if arguments.serve is not None:
        serve(params, arguments.serve)
        return
    if params.tracking.enabled:
        key = run.upsert(params)
    else:
        key = content_key(params)
        logger.info("tracking.enabled is false: the run was not sent to MLflow")
    for file in (paths.TRACKING_KEY, IN_THIS_DATABASE):
        write_text(file, key + "\n")


if __name__ == "__main__":
    command.run(main)
