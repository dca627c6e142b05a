"""One worker of `make bench-train`: a peer's training steps in a process of their own."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from benchmarks import harness, peers
from benchmarks.matmul import matmul_step
from benchmarks.train_cases import MATMUL, TRAIN, TrainCase
from mnist_mamba.training.memory import prepare_memory
from mnist_mamba.training.trainer import Trainer


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Time a case: median step in ms, memory in MB, the first step's loss.

    Raises:
        DifferentWorkError: the peer does not compute what our reference computes.
    """
    case = TrainCase.from_spec(spec)
    torch.set_num_threads(case.threads)
    prepare_memory()  # as pipeline.train does
    figures = _time_products(case) if case.peer == MATMUL else _time_steps(case)
    return {**figures, "torch": torch.__version__}


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
    # Behind the steps, so that it adds nothing to their memory.
    peers.check_same_model(peers.build_model(case.peer, case.model), case.model)
    return {
        "step_ms": 1e3 * statistics.median(times[case.warmup :]),
        "first_loss": losses[0],
        "peak_rss_mb": peak_mb,
        "above_start_mb": peak_mb - before_mb,
    }


if __name__ == "__main__":
    harness.serve(measure)
