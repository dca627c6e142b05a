"""`make rekey BASE=rev`: carry the recorded trainings over a refactoring.

A record in `metrics/` is filed under a key of every source file that its weights come from, so
each rename would orphan hours of training. This command trains a few steps of each distinct
configuration with the code of BASE and with the code of the work tree. Only if all weights and
losses agree bit for bit does it replace the old keys by the new ones.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import logging
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import torch

from mnist_mamba.atomic_write import write_text
from mnist_mamba.data.splits import LabelledImages
from mnist_mamba.training.loop import train
from pipeline.common import command, paths
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
"""The last step of an epoch takes half a batch, as it may in a whole training."""
N_VAL = 128
"""Validation images, enough to run the evaluation."""


class RekeyError(RuntimeError):
    """The old and the new code do not train the same weights, or cannot be compared."""


def _first(data: LabelledImages, n: int) -> LabelledImages:
    return LabelledImages(data.images[:n], data.labels[:n])


def short_training(params: Params) -> str:
    """Train a few steps and return a SHA-256 of the losses and of the averaged weights."""
    short = dataclasses.replace(params.train, epochs=EPOCHS)
    train_set, val_set = read_training_data(params.train.on_val)
    n = STEPS_PER_EPOCH * short.batch_size - short.batch_size // 2
    reports = train(
        build_model(params, read_info()),
        _first(train_set, n),
        None if val_set is None else _first(val_set, N_VAL),
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
    """Return, for each run of each series, its short training and the key of each seed.

    Returns:
        {"series/run": {"weights": SHA-256, "keys": {seed: training key}}}
    """
    params = load_params()
    found: dict[str, Any] = {}
    known: dict[str, str] = {}
    for series in SERIES:
        for training in trainings(load_series(series), params):
            run = found.setdefault(f"{series}/{training.name}", {"keys": {}})
            run["keys"][str(training.seed)] = training.key
            if "weights" in run:
                continue  # another seed of the same configuration
            values = training.params.model_dump(include={"model", "train"}, mode="json")
            configuration = json.dumps(values | {"train": values["train"] | {"epochs": EPOCHS}})
            if configuration not in known:
                known[configuration] = short_training(training.params)
                logger.info("%s/%s: %s", series, training.name, known[configuration][:16])
            run["weights"] = known[configuration]
    return found


def check_out(base: str, folder: Path) -> None:
    """Unpack the files of a Git revision, with this work tree's prepared data beside them.

    Raises:
        RekeyError: no such revision.
    """
    done = subprocess.run(["git", "archive", "--format=tar", base], capture_output=True)
    if done.returncode:
        raise RekeyError(f"git archive {base}: {done.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    (folder / paths.PREPARED).symlink_to(paths.PREPARED.resolve(), target_is_directory=True)


def base_fingerprints(base: str) -> dict[str, Any]:
    """Return `fingerprints` as the code of another Git revision computes them.

    Raises:
        RekeyError: no such revision, or it has no such command.
    """
    with tempfile.TemporaryDirectory(prefix="rekey-") as folder:
        check_out(base, Path(folder))
        command = [sys.executable, "-m", "pipeline.rekey", "--print"]
        done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RekeyError(f"the code of {base} did not run (above); nothing is rewritten")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def new_keys(old: dict[str, Any], new: dict[str, Any]) -> dict[str, str]:
    """Return the new key of each old one.

    Raises:
        RekeyError: a configuration trains other weights than before.
    """
    common = [run for run in old if run in new]
    differing = [run for run in common if old[run]["weights"] != new[run]["weights"]]
    if differing:
        raise RekeyError(
            f"{len(differing)} of {len(common)} configurations train other weights than before: "
            f"{', '.join(differing)}. Nothing is rewritten: train them again, or find the cause"
        )
    return {
        key: new[run]["keys"][seed]
        for run in common
        for seed, key in old[run]["keys"].items()
        if seed in new[run]["keys"]
    }


def rewrite(keys: dict[str, str]) -> int:
    """Replace the keys in the results files of all series; return how many records changed."""
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
    parser = command.parser(
        "Prove that this work tree trains the same weights as another revision, bit for bit, "
        "and file the recorded trainings under the keys of the new code.",
        ["python -m pipeline.rekey --base HEAD~1"],
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--base", help="Git revision that the records in metrics/ belong to")
    what.add_argument(
        "--print", action="store_true", help="print this tree's keys and weights as JSON"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    new = fingerprints()
    if arguments.print:
        print(json.dumps(new))
        return
    changed = rewrite(new_keys(base_fingerprints(arguments.base), new))
    logger.info("%d configurations train the same weights; %d keys rewritten", len(new), changed)


if __name__ == "__main__":
    command.run(main)
