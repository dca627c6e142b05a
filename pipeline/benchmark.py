"""Stage `benchmark`: the C engine's speed beside eager PyTorch's; noisy, so apart from evaluate."""

from __future__ import annotations

import json
import logging
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from mnist_mamba.atomic_write import write_json
from mnist_mamba.model import Classifier
from mnist_mamba.training.checkpoint import load_checkpoint
from pipeline.common import command, paths
from pipeline.common.params import load_params
from pipeline.common.run_engine import run_engine

logger = logging.getLogger(__name__)

BATCHES = (1, 100)


def engine_bench(
    batch: int, threads: int, rounds: int, model: Path = paths.MODEL
) -> dict[str, Any]:
    """What `mamba bench` reports: microseconds an image."""
    options = {"--batch": batch, "--threads": threads, "--rounds": rounds}
    words = [word for option in options.items() for word in option]
    return run_engine("bench", model, *words)


@torch.inference_mode()
def pytorch_us(model: Classifier, batch: int, rounds: int) -> float:
    """Median microseconds an image of eager PyTorch with the plain-torch scan, one thread."""
    pixels = torch.rand(batch, model.config.height, model.config.width)
    model(pixels)
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        model(pixels)
        times.append(time.perf_counter() - started)
    return statistics.median(times) / batch * 1e6


def cpu_name() -> str:
    """The processor's name, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    """Time the engine and PyTorch, in that order, with one thread; then the engine with all."""
    command.parser(__doc__ or "").parse_args()
    params = load_params()
    rounds = params.benchmark.rounds
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    checkpoint = paths.CHECKPOINTS / f"{params.export.checkpoint}.pth"
    model = load_checkpoint(checkpoint, scan="reference").model
    single = {batch: engine_bench(batch, 1, rounds) for batch in BATCHES}
    parallel = engine_bench(max(BATCHES), threads, rounds)
    figures = {
        "us_per_image": {
            "engine": {f"b{batch}": report["median_us"] for batch, report in single.items()},
            "engine_all_threads": {f"b{max(BATCHES)}": parallel["median_us"]},
            "pytorch_eager": {f"b{batch}": pytorch_us(model, batch, rounds) for batch in BATCHES},
        },
        "load_us": single[1]["load_us"],
        "binary_bytes": paths.ENGINE.stat().st_size,
        "threads": threads,
        "cpu": cpu_name(),
    }
    write_json(paths.METRICS / "benchmark.json", figures)
    logger.info("%s", json.dumps(figures["us_per_image"]))


if __name__ == "__main__":
    command.run(main)
