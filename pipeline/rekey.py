"""`make rekey BASE=rev`: keep the recorded trainings after a refactoring.

Each record in metrics/ has a key of all source files that its weights depend on. Even a rename
changes the key, and the training would have to be repeated. This command trains a few steps of each
distinct configuration with the code of BASE and with the code of the work tree. If all weights and
losses are equal bit for bit, it replaces the old keys by the new ones. Otherwise nothing changes.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import logging
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pipeline.common import command


def parse_arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = command.parser(
        "Check that this work tree trains the same weights as another revision, bit for bit, and "
        "give the recorded trainings the keys of the new code.",
        ["python -m pipeline.rekey --base HEAD~1"],
    )
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--base", help="Git revision whose code the records in metrics/ belong to")
    mode.add_argument(
        "--print", action="store_true", help="print this tree's weights and keys as JSON"
    )
    return parser.parse_args()


if __name__ == "__main__":
    command.run(parse_arguments)

import torch

from mnist_mamba.atomic_write import write_text
from mnist_mamba.training.loop import train
from pipeline.common import git, paths
from pipeline.common.build_model import build_model
from pipeline.common.params import Params, load_params
from pipeline.common.prepared_data import read_info, read_training_data
from pipeline.seeds import SCORED
from pipeline.series.trainings import load_series, trainings
from pipeline.study import NAME as STUDY

logger = logging.getLogger(__name__)

SERIES = (STUDY, *SCORED)
EPOCHS = 2
STEPS_PER_EPOCH = 3
"""The last step of an epoch has half a batch, as in a whole training."""
N_VAL = 128
"""Number of validation images."""
EMA_DECAY = 0.3
"""A decay of the averaged weights that, unlike the usual ones, they reach within a few steps."""
CHECKS = ("weights", "average")
"""Results of two short trainings, with each run's own EMA decay and with EMA_DECAY."""


class RekeyError(RuntimeError):
    """The old and the new code train different weights, or cannot be compared."""


def short_training(params: Params, ema_decay: float) -> str:
    """Train a few steps and return the SHA-256 of the losses and the averaged weights."""
    train_set, val_set = read_training_data(params.train.on_val)
    short = dataclasses.replace(
        params.train,
        epochs=EPOCHS,
        ema_decay=ema_decay,
        min_steps=1,
        # That of the whole training: it depends on the number of steps.
        norm_momentum=params.train.resolved_momentum(len(train_set.labels)),
    )
    n = STEPS_PER_EPOCH * short.batch_size - short.batch_size // 2
    reports = train(
        build_model(params, read_info()),
        train_set.select(slice(n)),
        None if val_set is None else val_set.select(slice(N_VAL)),
        short,
        progress=False,
    )
    digest = hashlib.sha256()
    for report in reports:
        digest.update(f"{report.train_loss!r} {report.val_loss!r}".encode())
        for name, tensor in report.model.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def fingerprints() -> dict[str, Any]:
    """Return the results of short trainings of each run, and the keys of its records.

    Returns:
        {"series/run": {"weights": SHA-256, "average": SHA-256, "keys": {seed: training key}}}
    """
    params = load_params()
    found: dict[str, Any] = {}
    known: dict[str, dict[str, str]] = {}
    for series in SERIES:
        for training in trainings(load_series(series), params):
            run = found.setdefault(f"{series}/{training.name}", {"keys": {}})
            run["keys"][str(training.seed)] = training.key
            if CHECKS[0] in run:
                continue  # another seed of the same configuration
            short = dataclasses.replace(training.params.train, epochs=EPOCHS)
            configuration = repr((training.params.model, short))
            if configuration not in known:
                decays = (training.params.train.ema_decay, EMA_DECAY)
                digests = [short_training(training.params, decay) for decay in decays]
                known[configuration] = dict(zip(CHECKS, digests, strict=True))
                logger.info("%s/%s: %s", series, training.name, digests[0][:16])
            run |= known[configuration]
    return found


def base_fingerprints(base: str) -> dict[str, Any]:
    """Return the `fingerprints` that the code of another revision computes.

    That code reads its own params and series, and this work tree's prepared data.

    Raises:
        RekeyError: the revision's code failed.
    """
    with tempfile.TemporaryDirectory(prefix="rekey-") as scratch:
        folder = Path(scratch)
        git.unpack_revision(base, folder)
        prepared = folder / paths.PREPARED
        prepared.parent.mkdir(parents=True, exist_ok=True)
        prepared.symlink_to(paths.PREPARED.resolve(), target_is_directory=True)
        words = [sys.executable, "-m", "pipeline.rekey", "--print"]
        done = subprocess.run(words, cwd=folder, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RekeyError(
            f"the code of {base} failed (see above), expected a revision with pipeline/rekey.py; "
            "no key was rewritten"
        )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def new_keys(old: dict[str, Any], new: dict[str, Any]) -> dict[str, str]:
    """Return the new key for each old key, given both `fingerprints`.

    Raises:
        RekeyError: a run trains other weights than before.
    """
    common = [run for run in old if run in new]
    differing = [
        run
        for run in common
        # A revision may have fewer checks.
        if any(old[run][check] != new[run][check] for check in CHECKS if check in old[run])
    ]
    if differing:
        raise RekeyError(
            f"{len(differing)} of {len(common)} runs train other weights than before: "
            f"{', '.join(differing)}. No key was rewritten: find the cause, or train them again"
        )
    return {
        key: new[run]["keys"][seed]
        for run in common
        for seed, key in old[run]["keys"].items()
        if seed in new[run]["keys"]
    }


def rewrite(keys: dict[str, str]) -> int:
    """Replace the keys in the results files of all series; return the number of changed records."""
    changed = 0
    for series in SERIES:
        file = paths.METRICS / f"{series}.json"
        if not file.is_file():
            continue
        text = before = file.read_text(encoding="utf-8")
        for old, new in keys.items():
            if old != new and f'"{old}"' in before:
                text = text.replace(f'"{old}"', f'"{new}"')
                changed += 1
        if text != before:
            write_text(file, text)
    return changed


def main() -> None:
    """Compare the work tree with BASE and rewrite the keys, or print the work tree's own."""
    arguments = parse_arguments()
    torch.set_num_threads(1)
    if arguments.print:
        print(json.dumps(fingerprints()))
        return
    old = base_fingerprints(arguments.base)
    new = fingerprints()
    changed = rewrite(new_keys(old, new))
    logger.info("%d runs train the same weights as before; %d keys rewritten", len(new), changed)


if __name__ == "__main__":
    command.run(main)
