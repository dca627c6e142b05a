"""`make promote`: after a passing gate, this result is the champion.

The model is registered in MLflow under an alias, and models/, its card and the README's results are
renewed. Nothing is changed where the gate does not pass, or where anything of that cannot be made;
doing it twice changes nothing more.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from pipeline.common import paths
from pipeline.common.content_key import file_md5
from pipeline.common.params import PARAMS_FILE, Params, load_params
from pipeline.release import gate, published
from pipeline.release.gate import NoVerdictError
from pipeline.tracking import model as tracked_model
from pipeline.tracking.client import flatten

logger = logging.getLogger(__name__)

ALIAS = "champion"
RESULTS = (str(paths.METRICS), str(paths.PREDICTIONS.parent))
"""Folders of what the stages found out."""


def check_of_one_run(params: Params) -> None:
    """Whether params, model and results here are those of dvc.lock.

    Raises:
        NoVerdictError: one of them is missing, or another.
    """
    repair = "`make repro`, or `dvc checkout` where the cache has it"
    for name, md5 in published.locked_md5s().items():
        path = Path(name)
        if path != paths.MODEL and path.parts[0] not in RESULTS:
            continue
        found = file_md5(path) if path.is_file() else "no file"
        if found != md5:
            raise NoVerdictError(f"{path}: got {found}, expected {md5} as in dvc.lock: {repair}")
    # Through Params, because YAML writes one number in many ways.
    locked = flatten(params.changed(published.locked_params(), str(published.LOCK)).model_dump())
    for name, value in flatten(params.model_dump()).items():
        if value != locked.get(name):
            raise NoVerdictError(
                f"{PARAMS_FILE}: {name} is {value!r}, expected {locked.get(name)!r} as in "
                f"dvc.lock: {repair}"
            )


def register(params: Params) -> None:
    """Put the model into MLflow's registry, unless the params want no MLflow."""
    if not params.tracking.enabled:
        logger.info("tracking.enabled is false: nothing is registered in MLflow")
        return
    tracked_model.register(params, params.tracking.model_name, ALIAS)


def main(options: argparse.Namespace) -> int:
    """Judge; if that passes, register and renew."""
    params = load_params()
    check_of_one_run(params)
    page, verdicts = gate.judged_page(params, options.base)
    code = gate.finish(page, verdicts, options.output)
    if code != gate.PASS:
        logger.error("the gate does not pass: nothing is promoted")
        return code
    renewal = published.prepare(params)
    register(params)
    renewal.write()
    logger.info(
        "%s/ and the README's results are renewed: look at them, and commit", published.MODELS
    )
    return code


if __name__ == "__main__":
    gate.run(main, __doc__ or "", "pipeline.release.promote")
