"""What the models of a series cost the C engine: metrics/SERIES_speed.json."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mnist_mamba.atomic_write import write_json
from mnist_mamba.export import write_model
from pipeline.benchmark import BATCHES, cpu_name, engine_bench
from pipeline.common import paths
from pipeline.series.trainings import Training
from pipeline.train import build_model, read_info

Speed = dict[str, dict[str, float]]
"""Microseconds an image by run and load (b1, b100)."""


def engine_speed(series: str, wanted: Sequence[Training], keep: bool) -> Speed:
    """Time a series' models and write it down; with `keep`, what an earlier call wrote, if any."""
    file = paths.METRICS / f"{series}_speed.json"
    if not keep:
        write_json(file, {"us_per_image": _time(wanted), "cpu": cpu_name()})
    if not file.is_file():
        return {}
    speed: Speed = json.loads(file.read_text())["us_per_image"]
    return speed


def _time(wanted: Sequence[Training]) -> Speed:
    """On one thread, one model by one.

    Of untrained models: what the weights are changes no time.
    """
    speed: Speed = {}
    info = read_info()
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model.bin"
        for training in wanted:
            if training.name not in speed:
                write_model(model, build_model(training.params, info))
                rounds = training.params.benchmark.rounds
                speed[training.name] = {
                    f"b{batch}": engine_bench(batch, 1, rounds, model)["median_us"]
                    for batch in BATCHES
                }
    return speed
