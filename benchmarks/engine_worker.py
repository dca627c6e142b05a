"""A worker of `make bench-engine`: time one peer's inference in a process of its own."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import harness
from benchmarks.engine_cases import CHECK_IMAGES, ENGINES, MODELS, EngineCase
from pipeline.common.machine import usable_cores

Array = NDArray[np.float32]
Run = Callable[[Array], Array]
"""From pixels (batch, height, width) in [0, 1] to logits (batch, n_classes)."""
MIN_CALLS, WARM_UP_CALLS, IMAGE_ROUNDS = 5, 2, 15


def check_images(case: EngineCase) -> NDArray[np.uint8]:
    """Return the images that every peer classifies, (n, height, width), always the same."""
    config = MODELS[case.model]  # the quick models have the same image size
    shape = (CHECK_IMAGES, config.height, config.width)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Return the timings of all loads (µs per image) and the logits of `check_images`.

    Each load has median, p50, p99 and number of calls; our engine's also have `load_us` and `isa`.
    """
    case = EngineCase.from_spec(spec)
    return _measure_engine(case) if case.peer in ENGINES else _measure_python(case)


def _measure_engine(case: EngineCase) -> dict[str, Any]:
    """Time by `mamba bench`; the logits come from the Python binding."""
    isa = ENGINES[case.peer]
    if isa is not None:
        os.environ["MAMBA_ISA"] = isa
    reports = {}
    for name, (images, threads) in case.loads.items():
        options = {"--batch": images, "--threads": threads or usable_cores(), "--rounds": 5}
        words = [str(word) for option in options.items() for word in option]
        command = [f"{case.folder}/build/mamba", "bench", str(case.path("model.bin")), *words]
        done = subprocess.run([*command, "--json"], check=True, capture_output=True, text=True)
        reports[name] = json.loads(done.stdout)
    from mnist_mamba.engine.binding import Engine

    shown = check_images(case)
    with Engine(case.path("model.bin"), 1, f"{case.folder}/build/libmamba.so") as engine:
        logits = engine.logits(shown)
        kinds = {"black": shown * 0, "white": shown * 0 + 255, "random": shown}
        times: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(IMAGE_ROUNDS):  # interleaved, so that a slow moment affects all kinds
            for kind, pixels in kinds.items():
                started = time.perf_counter()
                engine.logits(pixels)
                times[kind].append((time.perf_counter() - started) / len(pixels) * 1e6)
    image_us = {kind: statistics.median(found) for kind, found in times.items()}
    return {"loads": reports, "logits": logits.tolist(), "image_us": image_us}


def _measure_python(case: EngineCase) -> dict[str, Any]:
    pixels = check_images(case).astype(np.float32) / 255
    found = {}
    for name, (images, threads) in case.loads.items():
        run = BUILDERS[case.peer](case, images, threads or usable_cores())
        batch = np.resize(pixels, (images, *pixels.shape[1:]))
        found[name] = time_calls(run, batch, case.seconds)
    # The last load's batch begins with the images to check.
    return {"loads": found, "logits": run(batch)[: len(pixels)].tolist()}


def time_calls(run: Run, batch: Array, seconds: float) -> dict[str, float]:
    """Time calls of `run` for at least `seconds`; the times are µs per image of the batch."""
    for _ in range(WARM_UP_CALLS):
        run(batch)
    times: list[float] = []
    ends = time.perf_counter() + seconds
    while len(times) < MIN_CALLS or time.perf_counter() < ends:
        started = time.perf_counter()
        run(batch)
        times.append((time.perf_counter() - started) / len(batch) * 1e6)
    return {
        "median_us": statistics.median(times),
        "p50_us": statistics.median(times),
        "p99_us": float(np.quantile(times, 0.99)),
        "calls": len(times),
    }


def load_torch(checkpoint: Path, threads: int, scan: str) -> Any:
    """Return a checkpoint's model, in evaluation mode; set PyTorch's number of threads."""
    # Imported here, because the engine's workers need no torch.
    import torch

    from mnist_mamba.training.checkpoint import load_checkpoint

    torch.set_num_threads(threads)
    return load_checkpoint(checkpoint, scan=scan).model


def torch_run(model: Any) -> Run:
    """Return a function from pixels to logits that calls a PyTorch model."""
    import torch

    def run(batch: Array) -> Array:
        with torch.inference_mode():
            logits: Array = model(torch.from_numpy(batch)).numpy()
        return logits

    return run


def compiled_run(model: Any, cache: Path) -> Run:
    """Return `torch_run` of a model compiled for a fixed batch."""
    import torch

    # Later rounds reuse what the first one compiled.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
    return torch_run(torch.compile(model, dynamic=False))


def onnxruntime_run(path: Path, threads: int) -> Run:
    """Return a function from pixels to logits that runs an ONNX file in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(batch: Array) -> Array:
        logits: Array = session.run(None, {name: batch})[0]
        return logits

    return run


def _eager(case: EngineCase, images: int, threads: int) -> Run:
    return torch_run(load_torch(case.path("model.pth"), threads, "reference"))


def _cpu_kernel(case: EngineCase, images: int, threads: int) -> Run:
    return torch_run(load_torch(case.path("model.pth"), threads, "cpu"))


def _compiled(case: EngineCase, images: int, threads: int) -> Run:
    model = load_torch(case.path("model.pth"), threads, "reference")
    return compiled_run(model, Path(case.folder) / "inductor")


def _onnxruntime(case: EngineCase, images: int, threads: int) -> Run:
    return onnxruntime_run(case.path(f"b{images}.onnx"), threads)


BUILDERS: dict[str, Callable[[EngineCase, int, int], Run]] = {
    "pytorch_eager": _eager,
    "torch_compile": _compiled,
    "pytorch_cpu_kernel": _cpu_kernel,
    "onnxruntime": _onnxruntime,
}


if __name__ == "__main__":
    harness.serve(measure)
