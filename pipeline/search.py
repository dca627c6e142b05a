"""Search for params with a low validation loss: trainings whose values Optuna chooses."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.common import command
from pipeline.common.machine import usable_cores
from pipeline.common.nested import flatten, look_up
from pipeline.common.options import add_set_option, with_overrides
from pipeline.common.params import PARAMS_FILE, Params, load_params, read_yaml
from pipeline.series.space import Space, check_validation, load_space

STORAGE = "OPTUNA_STORAGE"
"""Variable with the address of the database; Optuna's own commands read it too."""
PRUNERS = ("median", "hyperband", "none")


def parse_arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = command.parser(
        "Search for the params with the lowest validation loss on data/prepared. SPACE.yaml has "
        "the values of each searched param by its dotted key: {float: [LOW, HIGH]}, {log: [LOW, "
        "HIGH]}, {int: [LOW, HIGH]} or {choice: [A, B, ...]}. The same command goes on with a "
        "search that was stopped, also several times at once.",
        [
            "python -m pipeline.search space.yaml --trials 30",
            "python -m pipeline.search space.yaml --trials 30 --pruner hyperband --set "
            "train.epochs=9",
            f"{STORAGE}=postgresql+psycopg2://ME:PASSWORD@HOST/DB python -m pipeline.search s.yaml",
        ],
    )
    parser.add_argument("space", type=Path, metavar="SPACE.yaml", help="the values to search")
    parser.add_argument(
        "--trials",
        type=command.positive,
        default=20,
        help="trials of the whole study, also of earlier commands; default: %(default)s",
    )
    parser.add_argument(
        "--jobs",
        type=command.positive,
        default=usable_cores(),
        help="parallel trainings, each with one thread; default: %(default)s",
    )
    parser.add_argument(
        "--pruner",
        choices=PRUNERS,
        default=PRUNERS[0],
        help="how trainings are ended that are worse than others; default: %(default)s",
    )
    parser.add_argument(
        "--storage",
        metavar="URL",
        default=os.environ.get(STORAGE),
        help=f"database of the study; default: ${STORAGE}, or else a file in runs/. Others on the "
        "machine can read a password in this option, but not in the variable",
    )
    add_set_option(parser)
    return parser.parse_args()


def differences(base: Params, changed: Params) -> dict[str, Any]:
    """Return the values of `changed` that differ from those of `base`, by dotted keys."""
    old, new = (flatten(params.model_dump(mode="json")) for params in (base, changed))
    return {key: value for key, value in new.items() if old.get(key) != value}


def settings(arguments: argparse.Namespace) -> tuple[Params, dict[str, Any], Space]:
    """Return the params of all trials, their differences from params.yaml, and the space.

    Each training has one thread, unless --set says otherwise: the bits of its weights may depend on
    the number, and so could not be reproduced on another machine.
    """
    base = load_params()
    params = with_overrides(base, arguments)
    if not any(word.startswith("train.threads=") for word in arguments.set):
        params = params.changed({"train.threads": 1}, "default")
    check_validation(params, "params")
    return params, differences(base, params), load_space(arguments.space, params)


if __name__ == "__main__":
    command.run(lambda: settings(parse_arguments()))

try:
    import optuna
except ModuleNotFoundError as missing:
    advice = "pip install -c constraints.txt -e '.[search]'"
    print(f"error: {missing.name} not found, which a search needs: run `{advice}`", file=sys.stderr)
    sys.exit(1)

from sqlalchemy.exc import SQLAlchemyError

from pipeline.common.content_key import hash_of, training_content
from pipeline.common.locks import wait_for_lock
from pipeline.common.prepared_data import read_info
from pipeline.common.stop import StopRequest
from pipeline.series import trials
from pipeline.tracking.client import one_line

logger = logging.getLogger(__name__)


def study_name(space: Path, dimensions: Space, params: Params) -> str:
    """Return the study's name: that of the file, and a hash of all that its trials depend on."""
    content = training_content(params)
    searched = {key: value.model_dump() for key, value in dimensions.items()}
    fixed = {k: v for k, v in flatten(content["params"]).items() if k not in searched}
    key = hash_of({"space": searched, "params": fixed, "files": content["files"]})
    return f"{re.sub(r'[^A-Za-z0-9_-]', '-', space.stem)}-{key[:8]}"


def open_study(name: str, storage: str | None, pruner: str, epochs: int) -> optuna.Study:
    """Return the study, created if it is new.

    Raises:
        RuntimeError: the database cannot be used.
    """
    pruners: dict[str, optuna.pruners.BasePruner] = {
        # The first epochs warm up, and their averaged weights lag.
        "median": optuna.pruners.MedianPruner(n_warmup_steps=epochs // 4),
        "hyperband": optuna.pruners.HyperbandPruner(max_resource=epochs),
        "none": optuna.pruners.NopPruner(),
    }
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = storage or f"sqlite:///{trials.FOLDER / 'studies.db'}"
    wait = {"connect_args": {"timeout": 60}} if url.startswith("sqlite:") else {}

    def create() -> optuna.Study:
        return optuna.create_study(
            study_name=name,
            storage=optuna.storages.RDBStorage(url, engine_kwargs=wait),
            sampler=optuna.samplers.TPESampler(constant_liar=True),
            pruner=pruners[pruner],
            load_if_exists=True,
        )

    with wait_for_lock(trials.FOLDER / "lock"):  # the first connection creates the tables
        try:
            return create()
        except SQLAlchemyError:  # another machine may have created them at the same moment
            time.sleep(1)
            return create()


def experiment_command(changes: Mapping[str, Any]) -> str:
    """Return the command that runs the whole pipeline with these changes of params.yaml."""
    listed = read_yaml(PARAMS_FILE, PARAMS_FILE)
    words = ["dvc", "exp", "run"]
    for key, value in changes.items():
        try:
            look_up(listed, key)
        except KeyError:
            key = f"+{key}"  # for DVC, a key that the file does not have
        # DVC's grammar has no quotes around keys, and needs none around words.
        text = re.sub(r'"([A-Za-z_]\w*)"', r"\1", json.dumps(value, separators=(",", ":")))
        words += ["-S", f"{key}={text}"]
    return shlex.join(words)


def show(search: trials.Search) -> None:
    """Log the study's results and print the command that reproduces the best trial.

    Raises:
        RuntimeError: no trial is complete.
    """
    found = search.study.get_trials(deepcopy=False)
    logger.info("%s: %d trials (%s)", search.name, len(found), trials.count(found))
    if unfinished := [t.number for t in found if t.state == optuna.trial.TrialState.RUNNING]:
        logger.info(
            "not finished: %s. The same command goes on with them on the machine that began them; "
            "if it is gone, a larger --trials runs others instead",
            ", ".join(map(str, unfinished)),
        )
    if not any(trial.state == optuna.trial.TrialState.COMPLETE for trial in found):
        raise RuntimeError(f"{search.name}: no trial is complete: the causes are above")
    best = search.study.best_trial
    logger.info("best: trial %d, validation loss %.6g. To reproduce it:", best.number, best.value)
    print(experiment_command(search.training(best).changes))


def main() -> None:
    """Run the missing trials of a study and print the best."""
    arguments = parse_arguments()
    params, changes, space = settings(arguments)
    read_info()  # refuses data that are not prepared
    stop = StopRequest()
    name = study_name(arguments.space, space, params)
    try:
        study = open_study(name, arguments.storage, arguments.pruner, params.train.epochs)
        search = trials.Search(name, study, space, params, changes, arguments.trials, stop)
        logger.info("%s: %s of %d trials so far", name, len(study.trials), arguments.trials)
        search.run(arguments.jobs)
        if not stop():
            show(search)
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise RuntimeError(
            f"the database of the study failed: {one_line(error)}. Correct --storage or "
            f"{STORAGE}; then the same command goes on"
        ) from error
    except ImportError as error:
        raise RuntimeError(
            f"{one_line(error)} The database's driver is missing: postgresql+psycopg2://... needs "
            "`pip install psycopg2-binary`"
        ) from error
    if stop():
        logger.info("%s: stopped; the same command goes on", name)
        sys.exit(stop.exit_code)


if __name__ == "__main__":
    command.run(main)
