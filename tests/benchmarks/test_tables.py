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


def test_the_speed_table_divides_by_our_time() -> None:
    engine = json.loads((ROOT / tables.ENGINE_METRICS).read_text(encoding="utf-8"))
    training = json.loads((ROOT / tables.TRAINING_METRICS).read_text(encoding="utf-8"))
    table = tables.speed_block(engine, training)
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line]
    numbers = [
        float(row[1].replace(",", "")) / float(row[2].rstrip(TIMES))
        for row in rows
        if row[0] in ("ONNX Runtime", "transformers")
    ]
    ours = engine["us_per_image"]["engine"]["b1"], training["step_ms"]["ours"]
    assert numbers == pytest.approx(ours, rel=0.01)
