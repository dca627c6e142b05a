"""The repository's published files agree: lock, metrics, shipped model, README."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax

from mnist_mamba.engine import Engine
from pipeline import seeds, study
from pipeline.common import dvc_lock
from pipeline.common.content_key import file_md5
from pipeline.common.generated_tables import with_table
from pipeline.common.params import IMAGE_SIZES, load_params
from pipeline.release import published
from pipeline.series.engine_speed import mean_speed
from tests.pipeline.imports import ROOT


def metrics(name: str) -> Any:
    return json.loads((ROOT / "metrics" / f"{name}.json").read_text(encoding="utf-8"))


def locked_md5s() -> dict[str, str]:
    lock = dvc_lock.read_lock(ROOT / dvc_lock.LOCK)
    return {path: out["md5"] for path, out in dvc_lock.outputs(lock).items()}


def predictions() -> list[dict[str, str]]:
    with (ROOT / "plots/predictions.csv").open(encoding="utf-8") as file:
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


def test_documents_show_the_answer_for_the_shipped_digit() -> None:
    """The answers that the documents quote are those of the shipped model."""
    with Engine(ROOT / "models/mnist_mamba.bin") as engine:
        pixels = np.fromfile(ROOT / "models/example_input.bin", "<f4").reshape(
            1, *IMAGE_SIZES["mnist"]
        )
        exact = softmax(engine.logits(pixels)[0].astype(np.float64))
    for name in ("README.md", "docs/quickstart.md"):
        lines = re.findall(r"^ +(\d) +([\d.]+) %", document(name), re.MULTILINE)
        assert lines, name
        assert lines == [(label, f"{100 * exact[int(label)]:.4f}") for label, _ in lines], name
    (quoted,) = re.findall(
        r'"probabilities": \[\[(.*), \.\.\., (.*)\]\]', document("docs/experiments.md")
    )
    first, second = quoted[0].split(", ")
    assert [first, second, quoted[1]] == [f"{exact[i]:.3e}" for i in (0, 1, -1)]


def test_metrics_agree_with_the_predictions() -> None:
    rows = predictions()
    scores = metrics("eval")
    correct = sum(row["label"] == row["predicted"] for row in rows)
    assert (len(rows), correct) == (scores["n_test"], scores["correct"])
    assert scores["parity"]["prediction_mismatches"] == 0
    assert scores["parity"]["max_abs_logit_diff"] <= 1e-4


def document(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_generated_parts_are_up_to_date() -> None:
    readme, training = document("README.md"), document("docs/training.md")
    table = published.results_table(ROOT)
    assert with_table(readme, published.TABLE, table) == readme, "run `make promote`"
    card = published.model_card(load_params(ROOT / "params.yaml"), ROOT)
    assert document(str(published.CARD)) == card, "run `make promote`"
    for name, make in (("study", study.table), ("seeds", seeds.table), ("pixels", seeds.table)):
        runs, speed = metrics(name)["runs"], metrics(f"{name}_speed")["us_per_image"]
        content = make(runs, mean_speed(speed, runs))
        assert with_table(training, name, content) == training, f"run `make {name}`"


# The tests below do not use the functions that write the documents.


def rows(text: str, header: str) -> dict[str, list[str]]:
    """Return the other cells of each row, by the first one, of the table with this header line."""
    lines = text[text.index(header) :].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    end = next(i for i, line in enumerate([*lines[2:], ""]) if not line.startswith("|"))
    return {first.strip("`"): rest for first, *rest in cells[:end]}


def assert_shows(text: str, value: float) -> None:
    """Check that a text is the value, a fraction if it ends with %, rounded to its own digits."""
    shown = re.fullmatch(r"([\d,]+(?:\.(\d+))?)( ?%)?", text)
    assert shown, text
    wanted = 100 * value if shown[3] else value
    half = 0.5 * 10.0 ** -len(shown[2] or "")
    assert abs(float(shown[1].replace(",", "")) - wanted) <= half * (1 + 1e-9), (text, wanted)


def assert_spread(text: str, values: list[float]) -> None:
    """Check a mean, and for several values their sample standard deviation after a ±."""
    mean, _, deviation = text.partition(" ± ")
    assert_shows(mean, float(np.mean(values)))
    assert bool(deviation) == (len(values) > 1)
    if deviation:
        assert_shows(deviation, float(np.std(values, ddof=1)))


def each(run: dict[str, Any], name: str) -> list[float]:
    """Return a metric of each training of a run, in the order of the seeds."""
    return [record[name] for record in sorted(run["trainings"], key=lambda one: one["seed"])]


def test_the_readme_s_results_are_those_of_the_metrics_files() -> None:
    text = document("README.md")
    scores, series = metrics("eval"), metrics("seeds")["runs"]
    header = f"| model | parameters | accuracy, {scores['n_test']:,} test images | per image (µs) |"
    (name, shipped), *others = rows(text, header).items()
    assert name == "models/mnist_mamba.bin"
    us = metrics("benchmark")["us_per_image"]["engine"]["b1"]
    for cell, value in zip(
        shipped, (metrics("train")["parameters"], scores["accuracy"], us), strict=False
    ):
        assert_shows(cell, value)
    assert [name for name, _ in others] == list(series)
    for name, (parameters, accuracy, us_text, command) in others:
        (size,) = set(each(series[name], "params"))
        assert_shows(parameters, size)
        assert_spread(accuracy, each(series[name], "test_accuracy"))
        all_members = metrics("seeds_speed")["us_per_image"][name]["b1"]
        assert_shows(us_text, all_members * metrics("seeds")["runs"][name].get("time_fraction", 1))
        assert command == "`make seeds`"
    prose = " ".join(text.split())
    for words in (
        f"shipped file: {(ROOT / 'models/mnist_mamba.bin').stat().st_size:,} bytes, validation",
        f"validation accuracy {metrics('train')['val']['accuracy']:.2%}.",
        f"{scores['parity']['prediction_mismatches']} predictions differ from PyTorch's",
        f"no logit by more than {scores['parity']['max_abs_logit_diff']:.1e}.",
        f"C engine: {scores['correct']} of {scores['n_test']} correct ({scores['accuracy']:.4f}); "
        f"logits within {scores['parity']['max_abs_logit_diff']:.1e} of PyTorch's",
    ):
        assert words in prose


def test_the_card_s_figures_are_those_of_the_metrics_files() -> None:
    text, scores = document("models/README.md"), metrics("eval")
    table = {name: cells[0] for name, cells in rows(text, "| metric | value |").items()}
    assert_shows(table["accuracy"], scores["correct"] / scores["n_test"])
    assert_shows(table["validation accuracy"], metrics("train")["val"]["accuracy"])
    assert_shows(table["negative log-likelihood (nats)"], scores["nll"])
    assert_shows(table["expected calibration error"], scores["ece"])
    ends = table["its 95 % confidence interval (Wilson)"].split(" to ")
    for end, value in zip(ends, interval_of(scores["correct"], scores["n_test"]), strict=True):
        assert_shows(end, value)
    for name, run in metrics("seeds")["runs"].items():
        values = each(run, "test_accuracy")
        cell = table[f"accuracy of `{name}`, trained on all images, {len(values)} seeds"]
        assert_spread(cell, values)
    classes = rows(text, "| class | precision | recall | F1 | images |")
    for name, figures in scores["per_class"].items():
        for cell, key in zip(classes[name], ("precision", "recall", "f1", "support"), strict=True):
            assert_shows(cell, figures[key])
    assert len(classes) == len(scores["per_class"])
    robustness = rows(text, "| change | strength: accuracy |")
    assert list(robustness) == list(scores["robustness"])
    for name, (cell,) in robustness.items():
        pairs = dict(pair.split(": ") for pair in cell.split(", "))
        assert list(pairs) == list(scores["robustness"][name])
        for strength, accuracy in pairs.items():
            assert_shows(accuracy, scores["robustness"][name][strength])
    us = metrics("benchmark")["us_per_image"]
    speed = rows(text, "| | batch of 1 (µs) | batch of 100 (µs) |")
    for cells, runner in zip(
        speed.values(), ("engine", "engine_all_members", "pytorch_eager"), strict=True
    ):
        for cell, batch in zip(cells, ("b1", "b100"), strict=True):
            assert_shows(cell, us[runner][batch])
    md5s = rows(text, "| | |\n|---|---|\n| data set |")
    for part in ("train", "val", "test"):
        md5 = locked_md5s()[f"data/prepared/{part}-images.idx"]
        assert md5s[f"MD5 of the {part} images"] == [f"`{md5}`"]
    assert md5s["MD5 of this model"] == [f"`{file_md5(ROOT / 'models/mnist_mamba.bin')}`"]
    prose, last = " ".join(text.split()), metrics("benchmark")["load_us"]
    (load,) = re.findall(r"Opening and checking the file takes (\S+) µs", prose)
    assert_shows(load, last)
    table_of = scores["robustness"]
    for words, name, strength in (
        (r"accuracy on inverted images is (\S+ %)", "invert", "100"),
        (r"accuracy falls to (\S+ %) and \S+ %\.", "noise", "40"),
        (r"accuracy falls to \S+ % and (\S+ %)\.", "blur", "6"),
    ):
        (found,) = re.findall(words, prose)
        assert_shows(found, table_of[name][strength])


def interval_of(correct: int, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval by its closed formula."""
    z, rate = 1.959963984540054, correct / n
    middle, half = rate + z * z / (2 * n), z * math.sqrt(rate * (1 - rate) / n + (z / n / 2) ** 2)
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def test_the_training_page_s_figures_are_those_of_the_metrics_files() -> None:
    text = document("docs/training.md")
    runs, us = metrics("study")["runs"], metrics("study_speed")["us_per_image"]
    found = rows(text, "| run | changes | parameters | validation accuracy | validation loss |")
    assert set(found) == set(runs)
    means = [float(np.mean(each(runs[name], "val_accuracy"))) for name in found]
    assert means == sorted(means, reverse=True)
    for name, (changes, parameters, accuracy, loss, us_text) in found.items():
        for key, value in runs[name]["changes"].items():
            assert f"{key}={json.dumps(value)}" in changes
        assert_shows(parameters, runs[name]["trainings"][0]["parameters"])
        assert_spread(accuracy, each(runs[name], "val_accuracy"))
        assert_spread(loss, each(runs[name], "val_loss"))
        assert_shows(us_text, us[name]["b100"])
    for series in seeds.SCORED:
        part = text[text.index(f"<!-- {series}: ") :]
        found = rows(part, "| run | parameters | test accuracy | of each seed, % | µs per image |")
        runs = metrics(series)["runs"]
        assert list(found) == list(runs)
        us = metrics(f"{series}_speed")["us_per_image"]
        fractions = {name: run.get("time_fraction", 1) for name, run in runs.items()}
        for name, (parameters, accuracy, of_each, us_text) in found.items():
            values = each(runs[name], "test_accuracy")
            assert_shows(parameters, runs[name]["trainings"][0]["params"])
            assert_spread(accuracy, values)
            for cell, value in zip(of_each.split(", "), values, strict=True):
                assert_shows(f"{cell} %", value)
            assert_shows(us_text, us[name]["b100"] * fractions[name])


def test_series_name_the_test_images_that_dvc_lock_has() -> None:
    for name in (study.NAME, *seeds.SCORED):
        for file in (name, f"{name}_speed"):
            assert metrics(file)["data"] == locked_md5s()["data/prepared/test-images.idx"], file


def test_a_promotion_shows_no_series_of_another_data_set(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "metrics", tmp_path / "metrics")
    lock = document("dvc.lock")
    params = load_params(ROOT / "params.yaml")
    (tmp_path / "dvc.lock").write_text(lock, encoding="utf-8")
    assert "`five_epochs`" in published.results_table(tmp_path)
    assert "`five_epochs`" in published.model_card(params, tmp_path)
    other = lock.replace(locked_md5s()["data/prepared/test-images.idx"], "0" * 32)
    (tmp_path / "dvc.lock").write_text(other, encoding="utf-8")
    assert "`five_epochs`" not in published.results_table(tmp_path)
    assert "`five_epochs`" not in published.model_card(params, tmp_path)
    # The file still holds the results; only other data hides them.
    assert "five_epochs" in (tmp_path / "metrics/seeds.json").read_text(encoding="utf-8")


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
    header = (ROOT / "csrc/engine/version.h").read_text(encoding="utf-8")
    package = (ROOT / "src/mnist_mamba/__init__.py").read_text(encoding="utf-8")
    number = re.compile(r'"(\d+\.\d+\.\d+)"')
    assert number.search(header)[1] == number.search(package)[1]  # type: ignore[index]


def test_a_card_of_other_data_speaks_of_that_data_alone(tmp_path: Path) -> None:
    for name in ("metrics", "dvc.lock"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    (tmp_path / "metrics/seeds.json").unlink()
    scores = metrics("eval")
    scores["per_class"] = dict.fromkeys(("cat", "a|b", "é"), scores["per_class"]["0"])
    (tmp_path / "metrics/eval.json").write_text(json.dumps(scores), encoding="utf-8")
    changes = {"data.dataset": "folder", "data.folder": "/my/pets"}
    text = published.model_card(
        load_params(ROOT / "params.yaml").changed(changes, "test"), tmp_path
    )
    assert "images of 3 classes" in text
    assert "pets (`data.dataset: folder`" in text
    assert "| é |" in text
    assert "| a\\|b |" in text
    assert not re.search(r"MNIST(?!_)|digit|stroke", text)
