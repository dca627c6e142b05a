"""A worker of `make bench-digits`: time one peer on real test images in a process of its own."""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import harness
from benchmarks.digits_cases import LOADS, PEERS, Peer
from benchmarks.engine_worker import (
    WARM_UP_CALLS,
    Array,
    Run,
    compiled_run,
    load_torch,
    onnxruntime_run,
    torch_run,
)
from mnist_mamba.data.idx import read_images
from mnist_mamba.engine.binding import Engine

STEP = 10
"""Implementations in Python are timed on every tenth image: some take minutes for all."""


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Return the timings of all loads; write logits unless they exist.

    The logits are those of all test images and, from a peer in Python, again of the first ones as
    single images.
    """
    peer, folder = PEERS[spec["peer"]], Path(spec["folder"])
    logits = folder / "logits" / f"{spec['peer']}.npy"
    if peer.runtime == "engine":
        return _measure_engine(peer, folder, logits)
    images: Array = read_images(folder / "test-images.idx").astype(np.float32) / np.float32(255)
    found, runs = {}, {}
    for load, batch in LOADS.items():
        runs[load] = build(peer, folder, load)
        found[load] = time_passes(runs[load], images[::STEP], batch, spec["seconds"])
    if not logits.is_file():
        first = images[: LOADS["b100"]]
        found_logits = [in_batches(runs["b100"], images, LOADS["b100"])]
        found_logits.append(in_batches(runs["b1"], first, 1))
        np.save(logits, np.concatenate(found_logits))
    return {"loads": found}


def _measure_engine(peer: Peer, folder: Path, logits: Path) -> dict[str, Any]:
    """Time all test images by `mamba bench`; the logits come from the Python binding."""
    margin = [] if peer.exits else ["--exit-margin", "0"]
    files = [str(folder / name) for name in ("build/mamba", "mamba.bin", "test-images.idx")]
    reports = {}
    for load, batch in LOADS.items():
        words = [files[0], "bench", *files[1:], "--batch", str(batch), "--json", *margin]
        done = subprocess.run(words, check=True, capture_output=True, text=True)
        reports[load] = json.loads(done.stdout)
    if not logits.is_file():
        library, asked = folder / "build/libmamba.so", None if peer.exits else 0.0
        with Engine(files[1], 1, library, exit_margin=asked) as engine:
            np.save(logits, engine.logits(read_images(Path(files[2]))))
    return {
        "loads": reports,
        "isa": reports["b1"]["isa"],
        "members_asked": reports["b1"]["members_asked_mean"],
    }


def build(peer: Peer, folder: Path, load: str) -> Run:
    """Return a peer's function from pixels to logits, for one load on one thread."""
    onnx = folder / peer.network / f"{load}.onnx"
    if peer.runtime == "onnxruntime":
        return onnxruntime_run(onnx, threads=1)
    if peer.runtime == "openvino":
        return openvino_run(onnx)
    scan = "cpu" if peer.runtime == "pytorch_cpu_kernel" else "reference"
    model = load_torch(folder / peer.network / "model.pth", 1, scan)
    if peer.exits:
        with Engine(folder / "mamba.bin", 1, folder / "build/libmamba.so") as engine:
            model.exit_margin = engine.info["exit_margin"]
    if peer.runtime == "torch_compile":
        return compiled_run(model, folder / "inductor")
    return torch_run(model)


def openvino_run(path: Path) -> Run:
    """Return a function from pixels to logits that runs an ONNX file in OpenVINO, in fp32."""
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        # By default OpenVINO multiplies in bfloat16 where the processor can.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    request = compiled.create_infer_request()

    def run(batch: Array) -> Array:
        # Both without a copy: the next call overwrites the result.
        result = request.infer({0: batch}, share_inputs=True, share_outputs=True)
        logits: Array = result[0]
        return logits

    return run


def in_batches(run: Run, images: Array, batch: int) -> Array:
    """Return the logits of images, whose number is a multiple of `batch`."""
    parts = np.split(images, len(images) // batch)
    return np.concatenate([run(part).copy() for part in parts])


def time_passes(run: Run, images: Array, batch: int, seconds: float) -> dict[str, float]:
    """Time whole passes over images for at least `seconds`; the times are µs per image.

    Images for which an ensemble asks more members take longer, so that the median is over passes,
    each with its mean, as in `mamba bench`; p50 and p99 are over calls.
    """
    parts = np.split(images, len(images) // batch)
    for part in itertools.islice(itertools.cycle(parts), WARM_UP_CALLS):
        run(part)
    calls: list[list[float]] = []
    ends = time.perf_counter() + seconds
    while not calls or time.perf_counter() < ends:
        calls.append([])
        for part in parts:
            started = time.perf_counter()
            run(part)
            calls[-1].append((time.perf_counter() - started) / batch * 1e6)
    p50, p99 = np.quantile(calls, [0.5, 0.99])
    means = [statistics.fmean(one) for one in calls]
    return {"median_us": statistics.median(means), "p50_us": float(p50), "p99_us": float(p99)}


if __name__ == "__main__":
    harness.serve(measure)
