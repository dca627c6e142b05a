"""`make bench-digits`: the networks and their trainings, refusals, tables, plot."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import convnets, digits, digits_plot, digits_worker, tables
from benchmarks.digits_cases import CONVNETS, LOADS, MAMBA, PEERS
from benchmarks.harness import BenchError, DifferentWorkError, Rounds, summary
from mnist_mamba.data.idx import write_idx
from mnist_mamba.data.splits import LabelledImages
from pipeline.common.params import load_params
from pipeline.series.trainings import Training

ACCURACY = {"mean": 0.9968, "std": 0.0003, "params": 91312}


def answer(us: float) -> dict[str, Any]:
    load = {"median_us": us, "p50_us": us, "p99_us": 2 * us}
    return {"loads": dict.fromkeys(LOADS, load)}


def section(us: dict[str, float], **unfinished: str) -> dict[str, Any]:
    """Return a machine's results, of peers that take these microseconds in every round."""
    answers = {name: [answer(value)] for name, value in us.items()}
    found = summary(Rounds(answers, unfinished), LOADS)
    facts = {"cpu": "Some CPU", "isa": "avx2", "git": "abc", "rounds": 1, "load_1m": 0.1}
    return {**found, "max_logit_difference": 1e-6, **facts}


# Networks


def test_the_networks_have_the_sizes_that_their_names_stand_for() -> None:
    assert tuple(convnets.NETWORKS) == tuple(convnets.QUICK_NETWORKS) == CONVNETS
    sizes = {
        name: sum(p.numel() for p in convnets.ConvNet(network).parameters())
        for name, network in convnets.NETWORKS.items()
    }
    lenet = (25 + 1) * 16 + (25 * 16 + 1) * 32 + (7 * 7 * 32 + 1) * 10
    maps = ((1, 16), (16, 16), (16, 32), (32, 32), (32, 48))
    vgg = sum((9 * inputs + 2) * outputs for inputs, outputs in maps) + (3 * 3 * 48 + 1) * 10
    assert (sizes["lenet"], sizes["vgg-48"]) == (lenet, vgg)
    assert 28_000 < lenet < 30_000


@pytest.mark.parametrize("name", CONVNETS)
def test_folding_the_norms_keeps_the_logits(name: str) -> None:
    torch.manual_seed(0)
    model = convnets.ConvNet(convnets.NETWORKS[name])
    for layer in model.features:
        if isinstance(layer, torch.nn.BatchNorm2d):
            for values in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                torch.nn.init.uniform_(values, 0.5, 2.0)
    pixels = torch.rand(5, 28, 28)
    folded = convnets.folded(model)
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in folded.features)
    assert any(isinstance(layer, torch.nn.BatchNorm2d) for layer in model.features) == (
        convnets.NETWORKS[name].norm
    )
    expected = model.eval()(pixels)
    assert folded(pixels).shape == (5, 10)
    torch.testing.assert_close(folded(pixels), expected, rtol=1e-4, atol=1e-4)


# Trainings


def test_a_training_writes_the_weights_that_are_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = np.arange(320, dtype=np.uint8) % 10
    images = np.zeros((320, 28, 28), np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[2 * label + 2 : 2 * label + 6] = 255
    data, network = LabelledImages(images, labels), convnets.NETWORKS["vgg-48"]
    params = load_params().changed({"train.epochs": 4}, "test")
    monkeypatch.setattr(convnets, "load_params", lambda: params)
    monkeypatch.setattr(convnets, "read_training_data", lambda on_val: (data, None))
    monkeypatch.setattr(convnets, "read_split", lambda *_: data)
    monkeypatch.setattr(convnets.series, "data_md5", lambda: "data")
    monkeypatch.setattr(convnets.series, "FOLDER", tmp_path)
    small = dataclasses.replace(network, stages=((8,), (8,)))
    monkeypatch.setitem(convnets.NETWORKS, "vgg-48", small)
    logits = []
    for _ in range(2):
        record = convnets.measure({"name": "vgg-48", "seed": 0})
        logits.append(convnets.load("vgg-48")(torch.from_numpy(images) / 255))
    assert torch.equal(*logits)  # the same seed gives the same weights
    accuracy = (logits[0].argmax(1) == torch.from_numpy(labels)).double().mean().item()
    assert record["test_accuracy"] == accuracy > 0.5  # 0.1 without learning
    assert record["params"] == (9 + 2) * 8 + (72 + 2) * 8 + (7 * 7 * 8 + 1) * 10


def test_trainings_are_keyed_by_network_seed_and_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convnets.series, "data_md5", lambda: "data")
    every = convnets.wanted()
    assert [one.name for one in every[:3]] == list(CONVNETS)
    assert len({one.key for one in every}) == len(every) == len(CONVNETS) * len(convnets.SEEDS)
    lenet = every[0]
    assert (lenet.params.train.on_val, lenet.params.train.seed) == (True, 0)
    key = lenet.key
    wider = dataclasses.replace(convnets.NETWORKS["lenet"], stages=((16,), (33,)))
    monkeypatch.setitem(convnets.NETWORKS, "lenet", wider)
    assert lenet.key != key


def test_only_missing_trainings_run_and_lost_weights_are_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convnets, "RESULTS", tmp_path / "convnets.json")
    monkeypatch.setattr(convnets.series, "FOLDER", tmp_path / "runs")
    monkeypatch.setattr(convnets.series, "data_md5", lambda: "data")
    trained = []

    def train(training: Training) -> dict[str, Any]:
        assert isinstance(training, convnets.ConvTraining)
        trained.append((training.name, training.seed))
        training.folder.mkdir(parents=True, exist_ok=True)
        training.weights.touch()
        return {"test_accuracy": 0.99, "params": 29_000}

    monkeypatch.setattr(convnets, "train_apart", train)
    convnets.main(["--only", "lenet", "--jobs", "1"])
    assert trained == [("lenet", seed) for seed in convnets.SEEDS]
    runs = json.loads((tmp_path / "convnets.json").read_text(encoding="utf-8"))["runs"]
    assert runs["lenet"]["mean"] == pytest.approx(0.99)
    convnets.main(["--only", "lenet"])
    assert len(trained) == len(convnets.SEEDS)
    convnets.wanted()[0].weights.unlink()
    with pytest.raises(BenchError, match=r"not found: run `python -m benchmarks.convnets` first"):
        convnets.load("lenet")
    convnets.main(["--only", "lenet"])
    assert trained[len(convnets.SEEDS) :] == [("lenet", 0)]


# Timing


def test_a_time_is_the_mean_over_a_whole_pass() -> None:
    seen: list[float] = []

    def run(batch: digits_worker.Array) -> digits_worker.Array:
        seen.extend(batch[:, 0, 0].tolist())
        return batch

    images = np.arange(6, dtype=np.float32).repeat(4).reshape(6, 2, 2)
    found = digits_worker.time_passes(run, images, 2, seconds=0)
    assert seen == [0, 1, 2, 3, *range(6)]  # two calls to warm up
    assert 0 < found["p50_us"] <= found["p99_us"]
    assert found["median_us"] > 0


def write_logits(folder: Path, **logits: Any) -> None:
    (folder / "logits").mkdir(exist_ok=True)
    write_idx(folder / "test-labels.idx", np.array([0, 1, 1], np.uint8))
    for name, values in logits.items():
        np.save(folder / "logits" / f"{name}.npy", np.array(values, np.float32))


def test_every_runner_s_accuracy_and_logits_are_the_network_s_own(tmp_path: Path) -> None:
    right, wrong = [5.0, 0.0], [0.0, 3.0]
    own = [right, wrong, right]
    write_logits(tmp_path, engine=own, engine_all_members=[wrong] * 3)
    # Peers in Python repeat the first images, one by one.
    write_logits(tmp_path, pytorch_exit=[*own, right], onnxruntime=[wrong] * 4)
    write_logits(tmp_path, lenet=own, lenet_openvino=[[5.0001, 0.0], wrong, right, right])
    peers = ["engine", "engine_all_members", "pytorch_exit", "onnxruntime", "lenet_openvino"]
    found = digits.check_logits(tmp_path, peers)
    assert found["test_accuracy"]["pytorch_exit"] == pytest.approx(2 / 3)
    assert found["max_logit_difference"] == pytest.approx(1e-4, rel=0.01)
    for peer, other in (
        ("lenet_openvino", "lenet"),
        ("pytorch_exit", "engine"),
        ("onnxruntime", "engine_all_members"),
    ):
        file = tmp_path / "logits" / f"{peer}.npy"
        kept = np.load(file)
        for row in range(4):
            for change in (0.001, np.nan):
                changed = kept.copy()
                changed[row, 0] += change
                np.save(file, changed)
                with pytest.raises(DifferentWorkError, match=f"{peer}: logits differ from {other}"):
                    digits.check_logits(tmp_path, peers)
        np.save(file, kept)


def test_files_of_the_pipeline_that_are_missing_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digits, "build_engine", lambda folder: None)
    monkeypatch.setattr(digits.paths, "PREPARED", tmp_path / "nowhere")
    with pytest.raises(BenchError, match=r"nowhere/test-images.idx not found: run `dvc repro`"):
        digits.prepare(tmp_path, ["engine"], quick=False)


# Results


def test_each_machine_keeps_its_results() -> None:
    old = digits.with_machine({}, section({"engine": 1.0}))
    other = {**section({"engine": 2.0}), "isa": "avx512"}
    both = digits.with_machine(old, other)["machines"]
    assert list(both) == ["Some CPU, AVX2", "Some CPU, AVX512"]
    renewed = digits.with_machine({"machines": both}, section({"engine": 3.0}))["machines"]
    times = [one["us_per_image"]["engine"]["b1"] for one in renewed.values()]
    assert times == [3.0, 2.0]


def test_a_row_without_times_says_why() -> None:
    found = section({"engine": 100.0, "lenet_onnxruntime": 50.0}, lenet_openvino="No module | x")
    text = tables.digits_tables({"machines": {"Some CPU": found}}, {MAMBA: ACCURACY})
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + len(PEERS)
    by_name = dict(zip(PEERS, rows[1:], strict=True))
    assert by_name["engine"][:4] == [MAMBA, "91,312", "C engine, early exit", "99.68% ± 0.03%"]
    assert by_name["lenet_onnxruntime"][4:7] == ["50.0", "100", "0.50\N{MULTIPLICATION SIGN}"]
    assert by_name["lenet_openvino"][4] == "No module \\| x"
    assert by_name["torch_compile"][4] == "not measured"


def test_the_page_is_right_without_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert tables.digits_block() == "No results yet: run `make bench-digits`.\n"
    assert tables.accuracies() == {}
    content = digits.with_machine({}, section({"engine": 100.0}))
    tables.DIGITS_METRICS.parent.mkdir()
    tables.DIGITS_METRICS.write_text(json.dumps(content), encoding="utf-8")
    block = tables.digits_block()
    assert "../plots/bench_digits.png" in block
    assert "Some CPU, AVX2, revision abc" in block


def test_the_plot_shows_each_machine(tmp_path: Path) -> None:
    machines = {
        "a": section({"engine": 50.0, "lenet_openvino": 60.0}),
        "b": section({"engine": 70.0}),
    }
    accuracies = {MAMBA: ACCURACY, "lenet": {**ACCURACY, "std": None}}
    digits_plot.draw(tmp_path / "plot.png", machines, accuracies)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_everything_still_runs(tmp_path: Path) -> None:
    output = tmp_path / "metrics.json"
    digits.main(["--quick", "--output", str(output)])
    (found,) = json.loads(output.read_text(encoding="utf-8"))["machines"].values()
    missing = (
        {} if importlib.util.find_spec("openvino") else {f"{name}_openvino" for name in CONVNETS}
    )
    assert set(found["did_not_finish"]) == set(missing)
    assert all("openvino" in reason for reason in found["did_not_finish"].values())
    assert set(found["us_per_image"]) == set(found["test_accuracy"]) == set(PEERS) - set(missing)
    assert found["members_asked"]["engine"] <= found["members_asked"]["engine_all_members"] == 2
