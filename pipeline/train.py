"""Stage `train`: train a model; write its best and its last exponentially averaged weights."""

from __future__ import annotations

import argparse
import datetime as dt
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.common import command, paths
from pipeline.common.options import add_set_option, with_overrides
from pipeline.common.params import Params, load_params

GAP = 0.05
"""Difference of accuracies that is worth a warning; augmentation usually makes it negative."""


def parse_arguments() -> argparse.Namespace:
    """Return the command line's options; params not given are None."""
    parser = command.parser(
        "Train a model on data/prepared. Options that are not given come from params.yaml. If an "
        "option changes a param or the folder, metrics and curves are written next to the "
        "checkpoints and not to the pipeline's metrics/ and plots/.",
        [
            "python -m pipeline.train",
            "python -m pipeline.train --resume",
            "python -m pipeline.train --epochs 2 --learning-rate 3e-3 --save-dir /tmp/quick",
            "python -m pipeline.train --set model.a=tied --track --save-dir /tmp/tied",
            "torchrun --standalone --nproc_per_node=2 -m pipeline.train",
            "dvc exp run -S train.epochs=20",
        ],
    )
    for option, kind, key, text in (
        ("--batch-size", int, "train.batch_size", "images per step"),
        ("--epochs", int, "train.epochs", "passes over the images"),
        ("--learning-rate", float, "train.lr", "peak learning rate"),
    ):
        parser.add_argument(option, type=kind, dest=key, metavar="N", help=f"{text} ({key})")
    add_set_option(parser)
    parser.add_argument(
        "--save-dir",
        type=Path,
        default=paths.CHECKPOINTS,
        help="folder of the checkpoints, for one training at a time; default: %(default)s",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue an interrupted training with the same params, data and code, if there is "
        "one",
    )
    parser.add_argument(
        "--track",
        nargs="?",
        const="",
        metavar="SEARCH",
        help="show this training in MLflow also if options change its params or folder, as a trial "
        "of SEARCH if that is given",
    )
    return parser.parse_args()


if __name__ == "__main__":
    command.run(lambda: with_overrides(load_params(), parse_arguments()))

import torch

from mnist_mamba.scan import choose
from mnist_mamba.training.allocator import prepare_memory
from mnist_mamba.training.distributed import PeerError, Processes
from mnist_mamba.training.epoch import EpochReport
from mnist_mamba.training.loop import StoppedError, TrainingError, train
from mnist_mamba.training.resume import SavedTraining, parse_training
from pipeline.common.build_model import build_model
from pipeline.common.content_key import training_content, training_key
from pipeline.common.machine import usable_cores
from pipeline.common.nested import flatten
from pipeline.common.prepared_data import read_info, read_training_data
from pipeline.common.stop import StopRequest, command_to_continue
from pipeline.common.training_files import TrainingFiles
from pipeline.tracking.client import CurvePoint
from pipeline.tracking.live import live_run

logger = logging.getLogger(__name__)


def choose_device(name: str, processes: Processes) -> str:
    """Return torch's name of the device; each of several processes gets a GPU of its own.

    Raises:
        ValueError: there are fewer GPUs than processes, or none although one is required.
    """
    if name == "cpu":
        return "cpu"
    if not torch.cuda.is_available():
        if name == "cuda":
            raise ValueError("train.device = cuda: PyTorch finds no GPU; use cpu or auto")
        return "cpu"
    if processes.size == 1:
        return "cuda"
    if processes.local_size > torch.cuda.device_count():
        raise ValueError(
            f"train.device = {name}: got {torch.cuda.device_count()} GPU(s) for "
            f"{processes.local_size} processes, expected one per process; start fewer processes "
            "(torchrun --nproc_per_node) or use cpu"
        )
    return f"cuda:{processes.local_rank}"


def set_threads(threads: int, processes: Processes) -> None:
    """Set this process's threads; 0 shares the cores among the processes of this machine."""
    if threads == 0 and processes.local_size > 1:
        # torchrun sets OMP_NUM_THREADS=1, which would leave cores idle.
        threads = max(1, usable_cores() // processes.local_size)
    if threads:
        torch.set_num_threads(threads)


def description(params: Params, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return all that must be the same in all processes, by names for an error message."""
    content = training_content(params)
    return {
        **flatten(content["params"]),
        **{f"the MD5 of {file}": md5 for file, md5 in content["files"].items()},
        "--resume": arguments.resume,
        "the version of torch": torch.__version__,
    }


def read_state(path: Path, key: str, processes: Processes) -> SavedTraining | None:
    """Return the state to resume from, the same in all processes; None if there is none.

    Raises:
        ResumeError: the file is damaged or not a training state.
    """
    data = path.read_bytes() if processes.is_first and path.is_file() else None
    # Only the first process reads: processes that start at different steps would deadlock.
    data = processes.from_first(data)
    if data is None:
        logger.info("%s not found: training starts from the beginning", path)
        return None
    saved = parse_training(data, path)
    if saved.key != key:
        logger.info(
            "%s belongs to another training (other params, data or code): training starts from the "
            "beginning",
            path,
        )
        return None
    logger.info("resuming in epoch %d after step %d", saved.state.epoch, saved.state.steps)
    return saved


def log_epoch(report: EpochReport, epochs: int) -> None:
    """Log an epoch's results in one line, and its time in another."""
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
    """Train with the params of params.yaml and of the command line."""
    arguments = parse_arguments()
    params = with_overrides(load_params(), arguments)
    processes = Processes.of_torchrun()
    stop = StopRequest()
    if not processes.is_first:
        logging.getLogger().setLevel(logging.WARNING)
    prepare_memory()
    set_threads(params.train.threads, processes)
    device = choose_device(params.train.device, processes)
    try:
        with processes.connected(device) as connected:
            run_training(params, arguments, device, connected, stop)
    except PeerError as error:
        raise PeerError(
            f"{error}; to continue from the last saved state: {command_to_continue()}"
        ) from error
    except StoppedError as stopped:
        state = arguments.save_dir / paths.TRAINING_STATE
        logger.info("%s, saved as %s. To continue: %s", stopped, state, command_to_continue())
        sys.exit(stop.exit_code)


def run_training(
    params: Params,
    arguments: argparse.Namespace,
    device: str,
    processes: Processes,
    stop: StopRequest,
) -> None:
    """Train in one of the processes; the first one writes, logs and tracks."""
    backend = choose(params.train.scan, torch.device(device))
    model = build_model(params, read_info())
    logger.info(
        "%d parameters, %d tokens per image, scan %s on %s, %d threads, %d process(es)",
        model.n_parameters,
        model.config.length,
        backend,
        device,
        torch.get_num_threads(),
        processes.size,
    )
    folder = arguments.save_dir
    is_pipeline_run = params == load_params() and folder.resolve() == paths.CHECKPOINTS.resolve()
    files = TrainingFiles(
        folder,
        paths.METRICS / "train.json" if is_pipeline_run else folder / "metrics.json",
        paths.CURVES if is_pipeline_run else folder / "curves.json",
        training_key(params),
        model.n_parameters,
    )
    if processes.size > 1:
        processes.check_same(description(params, arguments))
    saved = read_state(files.state, files.key, processes) if arguments.resume else None
    reports = train(
        model,
        *read_training_data(params.train.on_val),
        params.train,
        device,
        progress=processes.is_first,
        processes=processes,
        state=saved.state if saved else None,
        save=files.save_state if processes.is_first else None,
        stop=stop,
    )
    if not processes.is_first:
        for _ in reports:
            pass
        return
    own = None if is_pipeline_run else files.metrics  # those of the pipeline are sent by `track`
    tracked = is_pipeline_run or arguments.track is not None
    with live_run(params, tracked, arguments.track or None, own) as log_point:
        write_epochs(reports, files, saved, log_point, params.train.epochs)


def write_epochs(
    reports: Iterator[EpochReport],
    files: TrainingFiles,
    saved: SavedTraining | None,
    log_point: Callable[[CurvePoint], None],
    epochs: int,
) -> None:
    """Write each epoch's files, send it to MLflow and log it.

    Raises:
        TrainingError: the training diverged; the message names the last good checkpoint.
    """
    files.start(saved)
    # The database may be new, or may have missed points; it does not store a point twice.
    for point in files.points:
        log_point(point)
    try:
        for report in reports:
            files.write_epoch(report)
            log_point(report.curve_point())
            log_epoch(report, epochs)
    except TrainingError as error:
        good = next((path for path in (files.last, files.best) if path.is_file()), "none")
        raise TrainingError(f"{error}. Last good checkpoint: {good}") from error
    files.finish()
    warn_of_gap(files.points[-1])


def warn_of_gap(last: CurvePoint) -> None:
    """Warn if the last epoch's validation accuracy is far below that of training."""
    trained, validated = last["train_accuracy"], last["val_accuracy"]
    if trained is not None and validated is not None and validated < trained - GAP:
        logger.warning(
            "the accuracy on validation images, %.1f %%, is far below the %.1f %% in training: the "
            "model has learned these images by heart (try more images, a smaller model or stronger "
            "train.augment), or the validation images differ from them",
            100 * validated,
            100 * trained,
        )


if __name__ == "__main__":
    command.run(main)
