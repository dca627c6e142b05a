"""`make promote`: make this work tree's result the champion if the gate passes.

The model is registered in MLflow under an alias, and models/, the model card and the README's
results are updated. models/champion.sha256 has the checksums of what MLflow then serves. Nothing
changes if the gate fails or if any of these files cannot be made. Promoting twice changes nothing
more.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from pipeline.common import command

COMMAND = (__doc__ or "", "pipeline.release.promote")

if __name__ == "__main__":
    command.judge_arguments(*COMMAND)

from mnist_mamba.atomic_write import write_bytes
from pipeline.common import dvc_lock, paths
from pipeline.common.content_key import file_md5
from pipeline.common.nested import flatten
from pipeline.common.params import PARAMS_FILE, Params, load_params
from pipeline.release import gate, published
from pipeline.release.gate import NoVerdictError
from pipeline.tracking import model as tracked_model

logger = logging.getLogger(__name__)

RESULTS = (str(paths.METRICS), str(paths.PREDICTIONS.parent))
"""Folders of the stages' results."""


def check_of_one_run(params: Params) -> None:
    """Check that params, model and results are those of dvc.lock.

    Raises:
        NoVerdictError: one of them is missing or differs.
    """
    repair = "run `make repro`, or `dvc checkout` if the cache has the file"
    lock = dvc_lock.read_lock()
    for name, out in dvc_lock.outputs(lock).items():
        path = Path(name)
        if path != paths.MODEL and path.parts[0] not in RESULTS:
            continue
        found = file_md5(path) if path.is_file() else "no file"
        if found != out["md5"]:
            raise NoVerdictError(
                f"{path}: got {found}, expected {out['md5']} as in dvc.lock: {repair}"
            )
    # Compared as Params, because YAML has several notations for one number.
    changed = params.changed(dvc_lock.locked_params(lock), str(dvc_lock.LOCK))
    locked = flatten(changed.model_dump())
    for name, value in flatten(params.model_dump()).items():
        if value != locked.get(name):
            raise NoVerdictError(
                f"{PARAMS_FILE}: {name} is {value!r}, expected {locked.get(name)!r} as in "
                f"dvc.lock: {repair}"
            )


def main(options: argparse.Namespace) -> int:
    """Judge; if the gate passes, register the model and update the published files."""
    params = load_params()
    check_of_one_run(params)
    code = gate.main(options)
    if code != command.PASS:
        logger.error("the gate fails: nothing is promoted")
        return code
    files = published.prepare(params)
    if params.tracking.enabled:
        _, checksums = tracked_model.register(params, params.tracking.model_name, published.ALIAS)
        files[published.CHAMPION] = checksums.encode()
    else:
        published.CHAMPION.unlink(missing_ok=True)  # its checksums would be another model's
        logger.info("tracking.enabled is false: the model is not registered in MLflow")
    for path, content in files.items():
        write_bytes(path, content)
    logger.info("%s/ and the README's results are updated: review and commit", published.MODELS)
    return code


if __name__ == "__main__":
    command.run_judge(main, *COMMAND)
