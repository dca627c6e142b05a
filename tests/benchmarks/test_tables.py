"""The timings in README.md and the docs are those of the committed metrics."""

from __future__ import annotations

import json

import pytest

from benchmarks import tables
from pipeline.common.generated_tables import with_table
from pipeline.common.timings import TIMES
from tests.pipeline.imports import ROOT


def test_the_documents_hold_the_committed_timings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for document, name, block in tables.blocks():
        text = document.read_text(encoding="utf-8")
        assert with_table(text, name, block) == text, "run `python -m benchmarks.tables`"


def test_the_speed_table_divides_by_our_times() -> None:
    engine = json.loads((ROOT / tables.ENGINE_METRICS).read_text(encoding="utf-8"))
    training = json.loads((ROOT / tables.TRAINING_METRICS).read_text(encoding="utf-8"))
    us, ms = engine["us_per_image"], training["step_ms"]
    lines = tables.speed_block(engine, training).splitlines()
    rows = {cells[0]: cells[1:] for cells in (line.strip("| ").split(" | ") for line in lines)}
    for name, cell, ratio in (
        ("ONNX Runtime", 0, us["onnxruntime"]["b1"] / us["engine"]["b1"]),
        ("ONNX Runtime", 1, us["onnxruntime"]["b100"] / us["engine"]["b100"]),
        ("PyTorch, eager loop", 2, ms["reference"] / ms["ours"]),
        ("transformers", 2, ms["transformers"] / ms["ours"]),
    ):
        assert float(rows[name][cell].strip(f" {TIMES}")) == pytest.approx(ratio, rel=0.01)
