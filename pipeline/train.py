"""Stage `train`: learn a model, keep its best and its last averaged weights."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from mnist_mamba.data.splits import LabelledImages
from mnist_mamba.model import Classifier, build_classifier
from mnist_mamba.scan import choose
from mnist_mamba.training.allocator import prepare_memory
from mnist_mamba.training.distributed import Processes
from mnist_mamba.training.epoch import EpochReport
from mnist_mamba.training.loop import TrainingError, train
from mnist_mamba.training.resume import SavedTraining, parse_training
from pipeline.common import command, paths
from pipeline.common.content_key import training_key
from pipeline.common.params import Params, ParamsError, load_params
from pipeline.common.prepared_data import read_part
from pipeline.common.training_files import Recorder
from pipeline.tracking import client as tracking
from pipeline.tracking.client import CurvePoint

logger = logging.getLogger(__name__)

OPTIONS = {
    "batch_size": "train.batch_size",
    "epochs": "train.epochs",
    "learning_rate": "train.lr",
}
"""Options of the command line that have a name of their own, and their keys in params.yaml."""


def parse_arguments() -> argparse.Namespace:
    """The command line; what is not given comes from params.yaml."""
    parser = command.parser(
        "Train a model on data/prepared. Options that are not given come from params.yaml. With "
        "options of your own, metrics and curves stand beside the checkpoints, so that they are "
        "not taken for the pipeline's.",
        [
            "python -m pipeline.train",
            "python -m pipeline.train --resume",
            "python -m pipeline.train --epochs 2 --learning-rate 3e-3 --save-dir /tmp/quick",
            "python -m pipeline.train --set model.a=tied --set train.seed=1 --save-dir /tmp/tied",
            "torchrun --standalone --nproc_per_node=2 -m pipeline.train",
            "dvc exp run -S train.epochs=20",
        ],
    )
    parser.add_argument("--batch-size", type=int, help="images a step (train.batch_size)")
    parser.add_argument("--epochs", type=int, help="passes over the images (train.epochs)")
    parser.add_argument("--learning-rate", type=float, help="peak learning rate (train.lr)")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="any other key of params.yaml, dotted; may be given several times",
    )
    parser.add_argument(
        "--save-dir", type=Path, default=paths.CHECKPOINTS, help="default: %(default)s"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the training of these params, data and code that was stopped, if any",
    )
    return parser.parse_args()


def with_overrides(params: Params, arguments: argparse.Namespace) -> Params:
    """Params with the command line's values, checked like the file's."""
    changes = {
        key: value
        for name, key in OPTIONS.items()
        if (value := getattr(arguments, name)) is not None
    }
    for word in arguments.set:
        key, equals, text = word.partition("=")
        if not equals:
            raise ParamsError(f"--set {word}: expected KEY=VALUE, e.g. train.seed=1")
        changes[key] = yaml.safe_load(text)
    return params.changed(changes, "command line")


def read_info() -> dict[str, Any]:
    """What prepare has measured, which it writes last.

    Raises:
        FileNotFoundError: it has not; the message says what to run.
    """
    if not paths.DATA_INFO.is_file():
        raise FileNotFoundError(
            f"{paths.DATA_INFO} is not there: python -m pipeline.prepare comes first"
        )
    info: dict[str, Any] = json.loads(paths.DATA_INFO.read_text())
    return info


def read_data(on_val: bool) -> tuple[LabelledImages, LabelledImages | None]:
    """Images to train on and to validate with; with `on_val` all of them are to train on."""
    train_set, val_set = (read_part(paths.PREPARED, part, "prepare") for part in ("train", "val"))
    return (train_set.joined(val_set), None) if on_val else (train_set, val_set)


def build_model(params: Params, info: dict[str, Any]) -> Classifier:
    """A fresh model for the prepared data."""
    config = params.model.config(
        info["height"],
        info["width"],
        info["n_classes"],
        pixel_mean=info["pixel_mean"],
        pixel_std=info["pixel_std"],
    )
    torch.manual_seed(params.train.seed)
    return build_classifier(config, scan=params.train.scan)


def choose_device(name: str, processes: Processes) -> str:
    """The device's name for torch; each of several processes has a GPU of its own.

    Raises:
        ValueError: a GPU was asked for and there is none, or fewer than processes.
    """
    if name == "cpu":
        return "cpu"
    if not torch.cuda.is_available():
        if name == "cuda":
            raise ValueError("train.device = cuda: PyTorch sees no GPU here; use cpu or auto")
        return "cpu"
    if processes.size == 1:
        return "cuda"
    if processes.local_size > torch.cuda.device_count():
        raise ValueError(
            f"train.device = {name}: {processes.local_size} processes on this machine and "
            f"{torch.cuda.device_count()} GPU(s), expected one for each; start fewer processes "
            "(torchrun --nproc_per_node), or use cpu"
        )
    return f"cuda:{processes.local_rank}"


def set_threads(threads: int, processes: Processes) -> None:
    """Threads of this process; 0 shares the cores among the processes of this machine."""
    if threads == 0 and processes.local_size > 1:
        # torchrun says OMP_NUM_THREADS=1, which would leave cores idle.
        threads = max(1, _cores() // processes.local_size)
    if threads:
        torch.set_num_threads(threads)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # those that this process may use; Linux only
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def read_state(path: Path, key: str, processes: Processes) -> SavedTraining | None:
    """The state that this training can go on from, if any; the same in all processes.

    Raises:
        ResumeError: the file is damaged, or something else.
    """
    data = path.read_bytes() if processes.is_first and path.is_file() else None
    # From the first one alone: processes that begin at different steps would wait for each other.
    data = processes.from_first(data)
    if data is None:
        logger.info("%s is not there: training starts from the beginning", path)
        return None
    saved = parse_training(data, path)
    if saved.key != key:
        logger.info(
            "%s is of another run (other params, data or code): training starts from the beginning",
            path,
        )
        return None
    logger.info("going on in epoch %d after step %d", saved.state.epoch, saved.state.steps)
    return saved


def log_epoch(report: EpochReport, epochs: int) -> None:
    """One line on what an epoch gave, one on the time that it took."""
    validated = (report.val_loss, report.val_accuracy)
    logger.info(
        "epoch %d/%d  loss %.4f  val loss %s  val accuracy %s  %.0f images/s",
        report.epoch,
        epochs,
        report.train_loss,
        *("none" if value is None else f"{value:.4f}" for value in validated),
        report.images_per_s,
    )
    seconds = report.seconds
    logger.info(
        "  steps %.1f s, data %.1f s, evaluation %.1f s; about %s left for all epochs",
        seconds.steps,
        seconds.data,
        seconds.evaluation,
        dt.timedelta(seconds=round(report.seconds_left)),
    )


def main() -> None:
    """Train as params.yaml and the command line say."""
    arguments = parse_arguments()
    params = with_overrides(load_params(), arguments)
    processes = Processes.of_torchrun()
    if not processes.is_first:
        logging.getLogger().setLevel(logging.WARNING)
    prepare_memory()
    set_threads(params.train.threads, processes)
    device = choose_device(params.train.device, processes)
    with processes.connected(device):
        run_training(params, arguments, device, processes)


def run_training(
    params: Params, arguments: argparse.Namespace, device: str, processes: Processes
) -> None:
    """Train, in one of the processes that do; the first writes, logs and tracks."""
    backend = choose(params.train.scan, torch.device(device))
    model = build_model(params, read_info())
    logger.info(
        "%d parameters, %d tokens an image, scan %s on %s, %d threads, %d process(es)",
        model.n_parameters,
        model.config.length,
        backend,
        device,
        torch.get_num_threads(),
        processes.size,
    )
    of_the_pipeline = params == load_params() and arguments.save_dir == paths.CHECKPOINTS
    folder = arguments.save_dir
    recorder = Recorder(
        folder,
        paths.METRICS / "train.json" if of_the_pipeline else folder / "metrics.json",
        paths.CURVES if of_the_pipeline else folder / "curves.json",
        training_key(params),
        model.n_parameters,
    )
    saved = read_state(recorder.state, recorder.key, processes) if arguments.resume else None
    reports = train(
        model,
        *read_data(params.train.on_val),
        params.train.config(),
        device,
        progress=processes.is_first,
        processes=processes,
        state=saved.state if saved else None,
        save=recorder.save if processes.is_first else None,
    )
    if not processes.is_first:
        for _ in reports:
            pass
        return
    with tracking.live_run(params, enabled=of_the_pipeline) as log_point:
        record(reports, recorder, saved, log_point, params.train.epochs)


def record(
    reports: Iterator[EpochReport],
    recorder: Recorder,
    saved: SavedTraining | None,
    log_point: Callable[[CurvePoint], None],
    epochs: int,
) -> None:
    """Write, track and log each epoch's report."""
    if saved is None:
        recorder.start()
    else:
        recorder.resume(saved)
        # Those that MLflow has are not logged twice; it may have been away, or be a new one.
        for point in recorder.points:
            log_point(point)
    try:
        for report in reports:
            recorder.record(report)
            log_point(report.curve_point())
            log_epoch(report, epochs)
    except TrainingError as error:
        raise TrainingError(f"{error}. Last good checkpoint: {recorder.last_good}") from error
    recorder.finish()


if __name__ == "__main__":
    command.run(main)
