"""What the repository publishes belongs together: lock, metrics, shipped model, README."""

from __future__ import annotations

import csv
import json
import math
import re
from typing import Any

import numpy as np
import pytest

from mnist_mamba.engine import Engine
from pipeline import seeds, study
from pipeline.common import dvc_lock
from pipeline.common.content_key import file_md5
from pipeline.common.generated_tables import with_table
from pipeline.common.params import IMAGE_SIZES, load_params
from pipeline.release import published
from tests.pipeline.imports import ROOT


def metrics(name: str) -> Any:
    return json.loads((ROOT / "metrics" / f"{name}.json").read_text())


def locked_md5s() -> dict[str, str]:
    lock = dvc_lock.read_lock(ROOT / dvc_lock.LOCK)
    return {path: out["md5"] for path, out in dvc_lock.outputs(lock).items()}


def predictions() -> list[dict[str, str]]:
    with (ROOT / "plots/predictions.csv").open() as file:
        return list(csv.DictReader(file))


def test_committed_results_are_those_of_the_lock() -> None:
    for path, md5 in locked_md5s().items():
        if path.startswith(("metrics/", "plots/", "artifacts/tracking_key.txt")):
            assert file_md5(ROOT / path) == md5, path


def test_the_shipped_model_is_the_pipeline_s() -> None:
    assert file_md5(ROOT / "models/mnist_mamba.bin") == locked_md5s()["artifacts/mnist_mamba.bin"]


def test_the_shipped_model_reads_the_shipped_digit() -> None:
    with Engine(ROOT / "models/mnist_mamba.bin") as engine:
        size = int(engine.info["height"]), int(engine.info["width"])
        assert size == IMAGE_SIZES["mnist"]
        pixels = np.fromfile(ROOT / "models/example_input.bin", "<f4").reshape(1, *size)
        digit = int(engine.predict(pixels.astype(np.float32))[0])
    first = predictions()[0]
    assert digit == int(first["predicted"]) == int(first["label"])


def test_metrics_agree_with_the_predictions() -> None:
    rows = predictions()
    scores = metrics("eval")
    correct = sum(row["label"] == row["predicted"] for row in rows)
    assert (len(rows), correct) == (scores["n_test"], scores["correct"])
    assert scores["parity"]["prediction_mismatches"] == 0
    assert scores["parity"]["max_abs_logit_diff"] <= 1e-4


def test_every_number_of_the_readme_is_in_the_metrics() -> None:
    text = (ROOT / "README.md").read_text()
    table = published.results_table(ROOT / "metrics")
    assert with_table(text, published.TABLE, table) == text, "run `make promote`"
    assert f"| {metrics('eval')['accuracy']:.2%} |" in text


def test_the_card_is_that_of_the_results() -> None:
    params = load_params(ROOT / "params.yaml")
    card = published.model_card(params, ROOT)
    assert (ROOT / published.CARD).read_text() == card, "run `make promote`"
    scores = metrics("eval")
    assert f"| {100 * scores['accuracy']:.2f} % |" in card
    low, high = published.interval(scores["correct"], scores["n_test"])
    assert low < scores["accuracy"] < high
    for strength, accuracy in scores["robustness"]["rotate"].items():
        assert f"{strength}: {100 * accuracy:.2f} %" in card


def test_every_number_of_the_training_page_is_in_the_metrics() -> None:
    text = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    for name, table in (("study", study.table), ("seeds", seeds.table), ("pixels", seeds.table)):
        content = table(metrics(name), metrics(f"{name}_speed")["us_per_image"])
        assert with_table(text, name, content) == text, f"run `make {name}`"


@pytest.mark.parametrize(("correct", "n"), [(9957, 10000), (1, 3), (40, 40), (0, 7)])
def test_the_interval_solves_wilson_s_equation(correct: int, n: int) -> None:
    low, high = published.interval(correct, n)
    rate, z = correct / n, 1.959963984540054
    assert 0 <= low <= rate <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            assert abs(rate - end) == pytest.approx(z * math.sqrt(end * (1 - end) / n), rel=1e-9)
    assert low < high


def test_a_table_takes_its_place_between_its_marks() -> None:
    marked = "1\n<!-- a: make it -->\n{}<!-- end of a -->\n2"
    assert with_table(marked.format("| old |\n"), "a", "| new |\n") == marked.format("| new |\n")
    for text, found in (
        ("# a document", 0),
        (marked.replace("end of a", "end"), 0),
        (marked * 2, 2),
    ):
        with pytest.raises(ValueError, match=f"has {found} tables a, expected one"):
            with_table(text, "a", "table")


def test_versions_agree() -> None:
    header = (ROOT / "csrc/engine/version.h").read_text()
    package = (ROOT / "src/mnist_mamba/__init__.py").read_text()
    number = re.compile(r'"(\d+\.\d+\.\d+)"')
    assert number.search(header)[1] == number.search(package)[1]  # type: ignore[index]
