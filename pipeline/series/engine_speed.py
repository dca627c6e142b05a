"""The C engine's time per image for each model of a series: metrics/SERIES_speed.json."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mnist_mamba.atomic_write import write_json
from mnist_mamba.export import write_model
from pipeline.common import paths
from pipeline.common.build_model import build_model
from pipeline.common.machine import cpu_name
from pipeline.common.prepared_data import read_info
from pipeline.common.run_engine import BATCHES, bench_engine
from pipeline.series.trainings import Training, data_md5

Speed = dict[str, dict[str, float]]
"""Microseconds per image by run and batch size (b1, b100)."""


def time_series(series: str, wanted: Sequence[Training], arguments: argparse.Namespace) -> Speed:
    """Time a series' models, one after the other on one thread, and write the results file.

    The models are untrained, because the weights do not change the time. With --no-timing, return
    the recorded times, or none if the series was never timed on this data set.
    """
    file = paths.METRICS / f"{series}_speed.json"
    data, speed = data_md5(), Speed()
    if arguments.no_timing:
        recorded = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return recorded["us_per_image"] if recorded.get("data") == data else speed
    info = read_info()
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model.bin"
        for training in wanted:
            if training.name not in speed:
                write_model(model, build_model(training.params, info))
                rounds = training.params.benchmark.rounds
                speed[training.name] = {
                    f"b{batch}": bench_engine(batch, rounds, model)["median_us"]
                    for batch in BATCHES
                }
    write_json(file, {"data": data, "us_per_image": speed, "cpu": cpu_name()})
    return speed


def time_fraction(model: Path, images: Path) -> float:
    """Return a model's time per image as a fraction of that of all its members.

    Other work on the machine slows both down, and so hardly changes the fraction.
    """
    rounds = 3
    own, whole = (
        bench_engine(1, rounds, model, images=images, exit_margin=margin)["median_us"]
        for margin in (None, 0)
    )
    fraction: float = own / whole
    return round(fraction, 3)


def mean_speed(speed: Speed, runs: Mapping[str, Mapping[str, Any]]) -> Speed:
    """Return the times per test image: `speed` has those of all members of an ensemble.

    Args:
        speed: what `time_series` returns.
        runs: the runs of a results file, with a "time_fraction" where members exit early.
    """
    return {
        name: {load: us * runs[name].get("time_fraction", 1) for load, us in times.items()}
        for name, times in speed.items()
        if name in runs
    }
