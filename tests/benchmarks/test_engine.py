"""`make bench-engine`: comparison, refusals, operation counts, the machine's limits."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import engine, engine_cases, engine_worker
from benchmarks.engine_cases import LOADS, MODELS, EngineCase
from benchmarks.harness import BenchError, DifferentWorkError, UnfinishedError


def answer(us: float, logit: float = 0.5) -> dict[str, Any]:
    load = {"median_us": us, "p50_us": us, "p99_us": 2 * us, "load_us": 300.0, "isa": "scalar"}
    return {
        "loads": dict.fromkeys(LOADS, load),
        "logits": [[logit, 1.0]],
        "image_us": {"black": us, "white": us, "random": us},
    }


def options(*peers: str, rounds: int = 1) -> argparse.Namespace:
    return engine.parse(["--peers", ",".join(peers), "--rounds", str(rounds)])


def compare(us: dict[str, list[float]], **logits: float) -> dict[str, Any]:
    """Return the metrics of peers whose rounds take these microseconds."""
    left = {peer: list(values) for peer, values in us.items()}

    def measure(case: EngineCase) -> dict[str, Any]:
        return answer(left[case.peer].pop(0), logits.get(case.peer, 0.5))

    rounds = max(map(len, us.values()))
    return engine.compare("tied", Path("unused"), options(*us, rounds=rounds), measure)


def test_metrics_are_medians_over_rounds_and_ratios_to_the_engine() -> None:
    found = compare({"engine": [100.0, 300.0, 200.0], "pytorch_eager": [800.0, 900.0, 1000.0]})
    assert found["us_per_image"]["engine"] == dict.fromkeys(LOADS, 200.0)
    assert found["p99_us"]["engine"] == dict.fromkeys(LOADS, 400.0)
    assert found["ratio"] == {"pytorch_eager": dict.fromkeys(LOADS, 4.5)}
    assert found["round_us"]["engine"]["b1"] == [100.0, 300.0, 200.0]
    assert (found["load_us"], found["image_us"]["black"]) == (300.0, 200.0)
    assert found["isa"] == "scalar"


def test_logits_may_differ_by_rounding_only() -> None:
    found = compare({"engine": [1.0], "pytorch_eager": [1.0]}, engine=0.50005)
    assert found["max_logit_difference"] == pytest.approx(5e-5)
    for wrong in (0.5002, float("nan")):
        with pytest.raises(DifferentWorkError, match="engine: logits differ from pytorch_eager's"):
            compare({"engine": [1.0], "pytorch_eager": [1.0]}, engine=wrong)


def test_a_peer_may_not_finish_but_the_engine_must() -> None:
    def measure(case: EngineCase) -> dict[str, Any]:
        if case.peer == failing:
            raise UnfinishedError("not done within 1 s")
        return answer(1.0)

    failing = "onnxruntime"
    found = engine.compare("tied", Path("unused"), options("engine", "onnxruntime"), measure)
    assert found["did_not_finish"] == {"onnxruntime": "not done within 1 s"}
    assert found["ratio"] == {}
    failing = "engine"
    with pytest.raises(BenchError, match="the engine did not finish: not done within 1 s"):
        engine.compare("tied", Path("unused"), options("engine", "onnxruntime"), measure)


def test_operations_per_image_are_counted_by_hand() -> None:
    layer = 49 * (64 * 256 + 128 * 36 + 4 * 128 + 128 * 64)
    assert engine_cases.flops(MODELS["free"]) == 2 * (49 * 16 * 64 + 4 * layer + 64 * 10)
    channels = 4 * 49 * 128
    assert engine_cases.exponentials(MODELS["tied"]) == channels * (1 + 3)
    assert engine_cases.exponentials(MODELS["free"]) == channels * (16 + 3)


def test_times_are_per_image() -> None:
    shapes = []

    def run(batch: engine_worker.Array) -> engine_worker.Array:
        shapes.append(batch.shape)
        return batch

    found = engine_worker.time_calls(run, np.zeros((4, 2, 2), np.float32), seconds=0)
    assert found["calls"] == engine_worker.MIN_CALLS
    assert len(shapes) == engine_worker.MIN_CALLS + engine_worker.WARM_UP_CALLS
    assert 0 < found["median_us"] <= found["p99_us"]


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_the_machine_program_measures_rates_and_memory(tmp_path: Path) -> None:
    program = engine.machine_program(tmp_path, "scalar")
    for what in ("fma", "exp2"):
        done = subprocess.run([program, what], check=True, capture_output=True, text=True)
        assert float(done.stdout) > 0
    words = [str(program), "rss", str(program), "exp2"]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    assert 100 < int(done.stderr) < 20_000  # KB: not the test's own hundreds of MB
    failed = subprocess.run([program, "rss", "/nowhere"], check=False, capture_output=True)
    assert failed.returncode != 0


@pytest.mark.slow
def test_everything_still_runs(tmp_path: Path) -> None:
    output = tmp_path / "metrics.json"
    engine.main(["--quick", "--output", str(output)])
    found = json.loads(output.read_text(encoding="utf-8"))
    assert set(found["us_per_image"]) == set(found["free_a"]) == set(engine_cases.PEERS)
    assert not found["did_not_finish"]
    assert found["max_logit_difference"] <= engine_cases.TOLERANCE
    assert found["binary_kb"] <= 96
    assert found["peak_rss_kb"] <= 4096
