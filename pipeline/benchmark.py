"""Stage `benchmark`: time the C engine and eager PyTorch; separate from evaluate as it is noisy."""

from __future__ import annotations

import json
import logging
import statistics
import time

from pipeline.common import command, paths
from pipeline.common.options import parse_params

PARSER = command.parser(__doc__ or "")

if __name__ == "__main__":
    command.run(lambda: parse_params(PARSER))

import torch

from mnist_mamba.atomic_write import write_json
from mnist_mamba.model import Classifier
from mnist_mamba.training.checkpoint import load_checkpoint
from pipeline.common.machine import cpu_name
from pipeline.common.run_engine import BATCHES, bench_engine

logger = logging.getLogger(__name__)

PARALLEL_BATCH = 1000
"""Images per call with all threads: 100 of a small model take less time than waking the threads."""


@torch.inference_mode()
def pytorch_us(model: Classifier, batch: int, rounds: int) -> float:
    """Return eager PyTorch's median time with the reference scan, one thread (µs per image)."""
    config = model.config
    channels = () if config.channels == 1 else (config.channels,)
    pixels = torch.rand(batch, config.height, config.width, *channels)
    model(pixels)
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        model(pixels)
        times.append(time.perf_counter() - started)
    return statistics.median(times) / batch * 1e6


def main() -> None:
    """Time the engine with one thread, then with all, then PyTorch with one thread.

    The engine classifies the test images, and asks as many members of an ensemble as they need.
    PyTorch asks all.
    """
    params = parse_params(PARSER)
    rounds = params.benchmark.rounds
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    checkpoint = paths.CHECKPOINTS / f"{params.export.checkpoint}.pth"
    model = load_checkpoint(checkpoint, scan="reference").model
    images = paths.images(paths.PREPARED, "test")
    single = {batch: bench_engine(batch, rounds, images=images) for batch in BATCHES}
    us = {"engine": {f"b{batch}": report["median_us"] for batch, report in single.items()}}
    if model.config.members > 1:  # the worst case
        us["engine_all_members"] = {
            f"b{batch}": bench_engine(batch, rounds)["median_us"] for batch in BATCHES
        }
    if threads > 1:
        parallel = bench_engine(PARALLEL_BATCH, rounds, threads=threads, images=images)
        us["engine_all_threads"] = {f"b{PARALLEL_BATCH}": parallel["median_us"]}
    us["pytorch_eager"] = {f"b{batch}": pytorch_us(model, batch, rounds) for batch in BATCHES}
    results = {
        "us_per_image": us,
        "call_us": {name: single[1][f"{name}_us"] for name in ("p50", "p99")},
        "members_asked": single[1]["members_asked_mean"],
        "load_us": single[1]["load_us"],
        "binary_bytes": paths.ENGINE.stat().st_size,
        "threads": threads,
        "cpu": cpu_name(),
    }
    write_json(paths.METRICS / "benchmark.json", results)
    logger.info("%s", json.dumps(us))


if __name__ == "__main__":
    command.run(main)
