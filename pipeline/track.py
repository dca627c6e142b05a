"""Stage `track`: store this run's files in MLflow; running it again changes nothing.

If MLflow fails, the results are complete all the same. So the stage only says so and marks them as
untracked, or DVC would throw a whole experiment away. `make track` catches up on all such results:
it calls the command with --missing. `make ui` shows the runs: it calls it with --serve.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from mnist_mamba.atomic_write import write_text
from pipeline.common import command, git, paths
from pipeline.common.content_key import content_key
from pipeline.common.params import Params, load_params
from pipeline.tracking import client, run

logger = logging.getLogger(__name__)

IN_THIS_DATABASE = Path("mlartifacts/tracking_key.txt")
"""A second copy of the key, not in Git. A clone and DVC's copy for an experiment lack it, so that
`track` runs there even if no other stage has to."""


UNTRACKED = " untracked"
"""End of the written key of a run that MLflow did not store."""

EXPERIMENT = re.compile(r"refs/exps/([0-9a-f]{2})/([0-9a-f]+)/(.+)")
"""DVC's name of an experiment: the two parts of its baseline's hash, and the user's name."""


def serve(params: Params, port: int) -> None:
    """Print the link to the experiment's runs, and replace this process by MLflow's server."""
    with client.mlflow_errors("make ui"):
        _, experiment = client.connect(params)
    uri = client.tracking_uri()
    is_served = uri.startswith(("http://", "https://"))
    server = client.public_address(uri).rstrip("/") if is_served else f"http://127.0.0.1:{port}"
    view = f"workflowType=machine_learning&viewStateShareKey={client.VIEW}"
    when = "" if is_served else ", in some seconds"
    print(f"The runs{when}: {server}/#/experiments/{experiment}/runs?{view}", flush=True)
    if not is_served:
        # Not an argument: everybody on this machine can read these, and it may contain a password.
        os.environ["MLFLOW_BACKEND_STORE_URI"] = uri
        # One user needs one worker; each of MLflow's four takes seconds to start, and 0.25 GB.
        words = ["mlflow", "ui", "--workers", "1", "--port", str(port)]
        os.execvp(words[0], words)


def track(params: Params, key: str | None) -> None:
    """Store the run and write its key; if MLflow fails, mark the key as untracked."""
    mark = ""
    if not params.tracking.enabled:
        key = content_key(params)
        logger.info("tracking.enabled is false: the run was not sent to MLflow")
    else:
        key = key or content_key(params)
        try:
            run.upsert(params, key)
        except client.TrackingError as error:
            logger.error("%s", error)
            mark = UNTRACKED
    for file in (paths.TRACKING_KEY, IN_THIS_DATABASE):
        write_text(file, f"{key}{mark}\n")


def track_missing(params: Params) -> None:
    """Store all results in MLflow that are marked as untracked: this work tree's, experiments'.

    Raises:
        TrackingError: MLflow still fails.
    """
    if paths.TRACKING_KEY.is_file() and UNTRACKED in paths.TRACKING_KEY.read_text("utf-8"):
        raise client.TrackingError(
            "these results are not in MLflow yet (the error is above): run `make track` again"
        )
    for ref in git.git("for-each-ref", "--format=%(refname)", "refs/exps").split():
        match = EXPERIMENT.fullmatch(ref)
        if match is None:
            continue
        try:
            key, _, mark = git.git("show", f"{ref}:{paths.TRACKING_KEY}").partition(UNTRACKED)
        except git.GitError:  # it has no results
            continue
        if mark and not run.is_whole(params, key):
            logger.info("experiment %s was not tracked: storing it in MLflow", match[3])
            names = {"DVC_EXP_NAME": match[3], "DVC_EXP_BASELINE_REV": match[1] + match[2]}
            _track_experiment(ref, key, names)


def _track_experiment(ref: str, key: str, variables: dict[str, str]) -> None:
    """Restore an experiment's files in a temporary folder, and store them from there.

    Raises:
        TrackingError: they cannot be restored or stored; the cause is printed.
    """
    root = client.database_root()
    env = {**os.environ, **variables, "DVC_ROOT": str(root)}
    with tempfile.TemporaryDirectory(prefix="mamba-experiment-") as scratch:
        git.unpack_revision(ref, Path(scratch))
        cache = subprocess.run(["dvc", "cache", "dir"], capture_output=True, text=True, check=True)
        config = f"[core]\nno_scm = true\n[cache]\ndir = {root / cache.stdout.strip()}\n"
        write_text(Path(scratch, ".dvc/config.local"), config)
        # Only what the cache lost is missing then, and `track` names it.
        checkout = ["dvc", "checkout", "--quiet", "--allow-missing"]
        store = [sys.executable, "-m", "pipeline.track", "--as", key]
        for words, variables_ in ((checkout, None), (store, env)):
            if subprocess.run(words, cwd=scratch, env=variables_).returncode:
                raise client.TrackingError(f"{' '.join(words)} failed for {ref}")
        if UNTRACKED in Path(scratch, paths.TRACKING_KEY).read_text(encoding="utf-8"):
            raise client.TrackingError(f"{ref} is not in MLflow yet: run `make track` again")


def main() -> None:
    """Create or update the run and write its key, catch up on others, or show the runs."""
    parser = command.parser(__doc__ or "", ["python -m pipeline.track --serve 5001"])
    parser.add_argument(
        "--serve",
        type=int,
        nargs="?",
        const=5000,
        metavar="PORT",
        help="show the runs that are stored, and store none; default: %(const)s",
    )
    parser.add_argument(
        "--missing",
        action="store_true",
        help="store the results of all of DVC's experiments that MLflow failed to store",
    )
    parser.add_argument(
        "--as", dest="key", metavar="KEY", help="content key; default: that of the files"
    )
    arguments = parser.parse_args()
    params = load_params()
    if arguments.serve is not None:
        serve(params, arguments.serve)
    elif arguments.missing:
        track_missing(params)
    else:
        track(params, arguments.key)


if __name__ == "__main__":
    command.run(main)
