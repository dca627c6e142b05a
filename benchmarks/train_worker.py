"""A worker of `make bench-train`: time one peer's training steps in a process of its own."""

from __future__ import annotations

import dataclasses
import statistics
import time
from typing import Any

import numpy as np
import torch

from benchmarks import harness, peers
from benchmarks.matmul import matmul_step
from benchmarks.train_cases import EPOCH, MATMUL, TRAIN, TrainCase
from mnist_mamba.data.splits import LabelledImages
from mnist_mamba.training.allocator import prepare_memory
from mnist_mamba.training.loop import train
from mnist_mamba.training.trainer import Trainer


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Return a case's median step (ms), memory (10^6 bytes) and first step's loss.

    Raises:
        DifferentWorkError: the peer computes something else than our reference.
    """
    case = TrainCase.from_spec(spec)
    torch.set_num_threads(case.threads)
    if case.prepare_memory:
        prepare_memory()  # as pipeline.train does
    measures = {MATMUL: _time_products, EPOCH: _time_epoch}
    measured = measures.get(case.peer, _time_steps)(case)
    return {**measured, "torch": torch.__version__}


def _time_products(case: TrainCase) -> dict[str, Any]:
    step = matmul_step(case.model, case.batch)
    times = []
    for _ in range(case.warmup + case.timed):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return {"step_ms": 1e3 * statistics.median(times[case.warmup :])}


def _time_steps(case: TrainCase) -> dict[str, Any]:
    pixels, labels = peers.random_batch(case.model, case.batch)
    trainer = Trainer(peers.build_model(case.peer, case.model), TRAIN)
    before_mb = harness.rss_mb()
    times, losses = [], []
    for _ in range(case.warmup + case.timed):
        started = time.perf_counter()
        loss, _ = trainer.step(pixels, labels, TRAIN.lr)
        times.append(time.perf_counter() - started)
        losses.append(loss)
    peak_mb = harness.peak_rss_mb()
    # After the steps, so that it adds nothing to their memory.
    peers.check_same_model(peers.build_model(case.peer, case.model), case.model)
    return {
        "step_ms": 1e3 * statistics.median(times[case.warmup :]),
        "first_loss": losses[0],
        "peak_rss_mb": peak_mb,
        "above_start_mb": peak_mb - before_mb,
    }


def _time_epoch(case: TrainCase) -> dict[str, Any]:
    """Time an epoch over random images, with one validation image per 11 training images."""
    random = np.random.default_rng(0)

    def images(n: int) -> LabelledImages:
        shape = (n, case.model.height, case.model.width)
        pixels = random.integers(0, 256, shape, dtype=np.uint8)
        return LabelledImages(pixels, random.integers(0, case.model.n_classes, n, dtype=np.uint8))

    n_train = case.timed * case.batch
    config = dataclasses.replace(TRAIN, epochs=1, batch_size=case.batch)
    model = peers.build_model("ours", case.model)
    sets = images(n_train), images(max(1, n_train // 11))
    (report,) = train(model, *sets, config, progress=False)
    seconds = report.seconds
    return {
        "step_ms": 1e3 * seconds.steps / case.timed,
        "images_per_s": report.images_per_s,
        "data_s": seconds.data,
        "steps_s": seconds.steps,
        "evaluation_s": seconds.evaluation,
    }


if __name__ == "__main__":
    harness.serve(measure)
