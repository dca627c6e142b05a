"""`make promote`: after a passing gate, this result is the champion.

The model is registered in MLflow under an alias, and models/, its card and the README's results are
renewed. Nothing is changed where the gate does not pass; doing it twice changes nothing more.
"""

from __future__ import annotations

import logging

from pipeline import paths, tracked_model
from pipeline.content_key import file_md5
from pipeline.params import Params, load_params
from pipeline.release import gate, published
from pipeline.release.gate import NoVerdictError

logger = logging.getLogger(__name__)

ALIAS = "champion"


def check_of_one_run() -> None:
    """Whether model and results here are those of dvc.lock.

    Raises:
        NoVerdictError: one of them is missing, or another.
    """
    locked = published.locked_md5s()
    for path in (paths.MODEL, paths.METRICS / "eval.json", paths.PREDICTIONS):
        found = file_md5(path) if path.is_file() else "no file"
        if found != locked.get(str(path)):
            raise NoVerdictError(
                f"{path}: got {found}, expected {locked.get(str(path))} as in dvc.lock: `make "
                "repro`, or `dvc checkout` where the cache has it"
            )


def register(params: Params) -> None:
    """Put the model into MLflow's registry, unless the params want no MLflow."""
    if not params.tracking.enabled:
        logger.info("tracking.enabled is false: nothing is registered in MLflow")
        return
    tracked_model.register(params, params.tracking.model_name, ALIAS)


def main() -> int:
    """Judge; if that passes, register and renew."""
    options = gate.arguments(__doc__ or "", "pipeline.release.promote")
    params = load_params()
    check_of_one_run()
    page, verdicts = gate.judged_page(params, options.base)
    code = gate.finish(page, verdicts, options.output)
    if code != gate.PASS:
        logger.error("the gate does not pass: nothing is promoted")
        return code
    register(params)
    published.renew(params)
    logger.info(
        "%s/ and the README's results are renewed: look at them, and commit", published.MODELS
    )
    return code


if __name__ == "__main__":
    gate.run(main)
