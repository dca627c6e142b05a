"""All stages in order, on a user's own data with an odd image size and number of classes."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mnist_mamba.data.corruptions import CORRUPTIONS
from mnist_mamba.data.idx import read_images, read_labels, write_idx
from mnist_mamba.data.splits import DataError, LabelledImages
from mnist_mamba.early_exit import safe_margin
from mnist_mamba.engine import Engine
from mnist_mamba.engine.format import read_model
from mnist_mamba.export import load_model
from mnist_mamba.metrics import quality
from mnist_mamba.training.evaluation import member_logits
from pipeline.common.params import load_params
from pipeline.common.prepared_data import read_split, write_splits
from pipeline.evaluate import Answers, ParityError, check, early_exit, parity, summarise
from tests.pipeline.imports import ROOT
from tests.pipeline.project import SMALL, copy_project, run, run_module, run_stage, set_params

STAGES = ("download", "prepare", "train", "export", "evaluate", "benchmark", "track")
UNTRACKED = {**SMALL, "tracking.enabled": False}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose stages have all run, without MLflow."""
    folder = copy_project(tmp_path_factory.mktemp("stages"), UNTRACKED)
    done = run(folder, ["make", "-s", "-f", "csrc/engine.mk", "dvc-engine", "OUT=build/dvc"])
    assert done.returncode == 0, done.stderr
    for stage in STAGES:
        run_stage(folder, stage)
    return folder


def stamps(folder: Path) -> dict[Path, int]:
    """Return the modification time of each file."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def load(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def test_scores_agree_with_a_hand_computed_example() -> None:
    logits = np.array([[1e4, 0, 0], [0, 1, 0], [2, 0, 0]], np.float32)
    answers = Answers(logits, np.ones(3, np.uint8), logits)
    metrics = summarise(answers, answers, np.array([1, 1, 0], np.uint8), 10, ["0", "1", "2"])
    # Confidences: 1 (wrong), e / (e + 2) and e^2 / (e^2 + 2).
    p, q = math.e / (math.e + 2), math.e**2 / (math.e**2 + 2)
    assert metrics["nll"] == round((1e4 - math.log(p) - math.log(q)) / 3, 5)
    assert metrics["ece"] == round((1 + (1 - p) + (1 - q)) / 3, 5)
    assert metrics["per_class"] == {
        "0": {"precision": 0.5, "recall": 1.0, "f1": 2 / 3, "support": 1},
        "1": {"precision": 1.0, "recall": 0.5, "f1": 2 / 3, "support": 2},
        "2": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0},
    }


def test_each_difference_from_pytorch_is_counted() -> None:
    logits, whole = np.array([[1, 0], [1, 0.5], [0, 2]], np.float32), np.eye(2, dtype=np.float32)
    engine = Answers(logits, np.array([1, 1, 2], np.uint8), whole[[0, 0, 1]])
    assert parity(engine, engine) == {
        "max_abs_logit_diff": 0,
        "prediction_mismatches": 0,
        "members_asked_mismatches": 0,
    }
    more = np.array([[0, 3], [0, 0.25], [0, 0]], np.float32)
    other = Answers(logits + more, np.array([2, 1, 1]), whole[[0, 1, 1]])
    assert parity(engine, other) == {
        "max_abs_logit_diff": 3,
        "prediction_mismatches": 2,
        "members_asked_mismatches": 2,
    }


def test_the_costs_of_early_exits_are_those_of_the_answers() -> None:
    logits = np.array([[3, 0], [0, 1], [2, 0], [0, 4]], np.float32)
    whole = np.array([[3, 0], [1, 0], [2, 0], [0, 1]], np.float32)
    engine = Answers(logits, np.array([1, 1, 3, 1], np.uint8), whole)
    labels = np.array([0, 1, 0, 1], np.uint8)
    found = early_exit(engine, 3, labels, 10)
    assert found["members_asked"] == {"mean": 1.5, "share": {"1": 0.75, "2": 0, "3": 0.25}}
    assert found["predictions_changed"] == 1
    assert found["all_members"] == quality(whole, labels, 10)
    assert found["all_members"]["accuracy"] == 0.75


def test_an_ensemble_s_margin_is_chosen_on_validation_images(finished: Path) -> None:
    chosen, scores = load(finished, "metrics/exit.json"), load(finished, "metrics/eval.json")
    margin = read_model(finished / "artifacts/mnist_mamba.bin").header["exit_margin"]
    assert margin == pytest.approx(chosen["exit_margin"])
    assert chosen["exit_margin"] == pytest.approx(chosen["safe_margin"] + 2)
    model = load_model(finished / "artifacts/mnist_mamba.bin")
    pixels = torch.from_numpy(read_images(finished / "data/prepared/val-images.idx"))
    exact = safe_margin(member_logits(model, pixels))
    assert exact - 1e-5 <= chosen["safe_margin"] < exact + 0.00101  # rounded up
    validation = chosen["validation"]
    assert validation["predictions_changed"] == 0
    assert 1 <= validation["members_asked"]["mean"] <= 2
    assert sum(scores["early_exit"]["members_asked"]["share"].values()) == pytest.approx(1)
    images = read_images(finished / "data/prepared/test-images.idx")
    labels = read_labels(finished / "data/prepared/test-labels.idx")
    with Engine(finished / "artifacts/mnist_mamba.bin") as engine:
        logits, asked = engine.answers(images)
    with Engine(finished / "artifacts/mnist_mamba.bin", exit_margin=0) as engine:
        whole = engine.logits(images)
    found = early_exit(Answers(logits, asked, whole), 2, labels, 15)
    assert scores["early_exit"] == found


@pytest.mark.parametrize(
    ("changes", "margin", "said"),
    [
        ({"export.exit_margin": 0.0}, 0, ""),
        ({"export.exit_margin": 1.25}, 1.25, ""),
        ({"train.on_val": True}, 0, "set the margin of a run that validates (metrics/exit.json)"),
        ({"train.on_val": True, "export.exit_margin": 2.5}, 2.5, ""),
    ],
)
def test_an_exit_margin_can_be_given(
    finished: Path, tmp_path: Path, changes: dict[str, Any], margin: float, said: str
) -> None:
    given = tmp_path / "given"
    shutil.copytree(finished, given)
    set_params(given, {**UNTRACKED, **changes})
    words = ("pipeline.export", "model", "--output", "model.bin")
    done = run_module(given, *words, "--metrics", "exit.json")
    assert done.returncode == 0, done.stderr
    assert said in done.stderr
    assert read_model(given / "model.bin").header["exit_margin"] == margin
    found = load(given, "exit.json")
    assert found["exit_margin"] == margin
    assert ("validation" in found) == ("train.on_val" not in changes)
    done = run_module(given, *words, "--exit-margin", "0.5")
    assert read_model(given / "model.bin").header["exit_margin"] == 0.5
    shutil.rmtree(given / "data/prepared")
    assert run_module(given, *words, "--exit-margin", "0.5").returncode == 0
    done = run_module(given, *words, "--exit-margin", "x")
    assert done.returncode == 2
    assert "argument --exit-margin" in done.stderr
    done = run_module(given, *words, "--exit-margin", "1e-46")
    assert "export.exit_margin = 1e-46: expected 0 or 2^-126 to 1e+06" in done.stderr
    if not said:
        done = run_module(given, *words, "--exit-margin", "auto")
        needed = "train.on_val" not in changes
        assert ("val-images.idx not found" in done.stderr) == needed


def test_evaluate_measures_the_engine_and_its_parity(finished: Path) -> None:
    metrics = load(finished, "metrics/eval.json")
    assert metrics["n_test"] == 40
    assert metrics["accuracy"] == metrics["correct"] / 40 >= 0.9
    assert metrics["parity"]["prediction_mismatches"] == 0
    assert metrics["parity"]["members_asked_mismatches"] == 0
    assert 0 < metrics["parity"]["max_abs_logit_diff"] <= 1e-4
    assert metrics["nll"] > 0
    assert 0 <= metrics["ece"] <= 1
    assert set(metrics["per_class"]) == {"0", "1", "2", "3"}
    assert sum(figures["support"] for figures in metrics["per_class"].values()) == 40
    assert metrics["model"]["file_bytes"] == (finished / "artifacts/mnist_mamba.bin").stat().st_size


def test_predictions_are_in_a_file_that_says_the_same(finished: Path) -> None:
    lines = (finished / "plots/predictions.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "index,label,predicted"
    rows = [[int(word) for word in line.split(",")] for line in lines[1:]]
    assert [row[0] for row in rows] == list(range(40))
    correct = sum(label == predicted for _, label, predicted in rows)
    assert correct == load(finished, "metrics/eval.json")["correct"]


def test_train_leaves_curves_metrics_and_both_checkpoints(finished: Path) -> None:
    curves = json.loads((finished / "plots/curves.json").read_text(encoding="utf-8"))
    metrics = load(finished, "metrics/train.json")
    assert [point["epoch"] for point in curves] == [1, 2, 3]
    assert metrics["val"]["accuracy"] == curves[-1]["val_accuracy"]
    assert metrics["val"]["best_accuracy"] == max(point["val_accuracy"] for point in curves)
    last, best = (
        torch.load(finished / f"checkpoints/{name}.pth", weights_only=True)
        for name in ("last", "best_model")
    )
    assert last["epoch"] == 3
    assert best["epoch"] == metrics["val"]["best_epoch"]
    assert last["config"]["n_classes"] == 4
    assert (last["config"]["height"], last["config"]["width"]) == (9, 12)


def test_normalisation_comes_from_the_training_images_and_is_in_the_file(finished: Path) -> None:
    info = load(finished, "data/prepared/info.json")
    header = read_model(finished / "artifacts/mnist_mamba.bin").header
    assert header["pixel_mean"] == pytest.approx(info["pixel_mean"])
    assert header["pixel_std"] == pytest.approx(info["pixel_std"])
    assert (header["height"], header["width"], header["n_classes"]) == (9, 12, 4)


def test_plots_are_png_files(finished: Path) -> None:
    for name in ("predictions.png", "misclassified.png"):
        data = (finished / "plots" / name).read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        assert len(data) > 2000


def test_benchmark_times_both_engines(finished: Path) -> None:
    metrics = load(finished, "metrics/benchmark.json")
    for runner in ("engine", "pytorch_eager"):
        assert all(metrics["us_per_image"][runner][batch] > 0 for batch in ("b1", "b100"))
    assert metrics["load_us"] > 0


def test_commands_that_people_know(finished: Path, tmp_path: Path) -> None:
    model, image = tmp_path / "mnist_mamba.bin", tmp_path / "input.bin"
    best = finished / "checkpoints" / "best_model.pth"
    done = run_module(finished, "pipeline.export", "model", "--checkpoint", best, "--output", model)
    assert done.returncode == 0, done.stderr
    done = run_module(finished, "pipeline.export", "image", "--index", "5", "--output", image)
    assert done.returncode == 0, done.stderr
    pixels = np.fromfile(image, "<f4")
    assert pixels.shape == (108,)
    assert 0 <= pixels.min() <= pixels.max() <= 1
    shutil.copy(finished / "build/dvc/mamba", tmp_path / "mamba")
    (tmp_path / "mamba").chmod(0o755)
    said = run(finished, [str(tmp_path / "mamba"), str(model), str(image), "--json"])
    assert json.loads(said.stdout)["prediction"] in range(4)
    done = run_module(finished, "pipeline.export", "image", "--index", "40", "--output", image)
    assert done.returncode == 1
    assert done.stderr.startswith("error: --index 40: expected 0 to 39")


def test_training_with_options_of_ones_own_leaves_the_pipeline_s_results_alone(
    finished: Path, tmp_path: Path
) -> None:
    before = (finished / "metrics/train.json").read_bytes()
    done = run_module(
        finished,
        "pipeline.train",
        *("--epochs", "1", "--batch-size", "50", "--learning-rate", "1e-3"),
        *("--save-dir", tmp_path / "mine"),
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {
        "best_model.pth",
        "last.pth",
        "metrics.json",
        "curves.json",
    }
    assert load(tmp_path / "mine", "metrics.json")["epochs"] == 1
    assert (finished / "metrics/train.json").read_bytes() == before


def test_training_on_the_validation_images_too(finished: Path, tmp_path: Path) -> None:
    words = ("--set", "train.on_val=true", "--set", "train.epochs=1", "--save-dir", tmp_path)
    done = run_module(finished, "pipeline.train", *words)
    assert done.returncode == 0, done.stderr
    assert "val accuracy none" in done.stderr
    assert "val" not in load(tmp_path, "metrics.json")
    (point,) = json.loads((tmp_path / "curves.json").read_text(encoding="utf-8"))
    assert (point["val_loss"], point["val_accuracy"]) == (None, None)
    assert point["train_accuracy"] * 200 == round(point["train_accuracy"] * 200)  # 160 + 40
    best, last = (tmp_path / name for name in ("best_model.pth", "last.pth"))
    assert best.read_bytes() == last.read_bytes()
    for word, error in (
        ("train.epochs", "error: --set train.epochs: expected KEY=VALUE, e.g. train.seed=1"),
        ("train.epoch=1", "error: command line: train.epoch: unknown key, got 1"),
    ):
        done = run_module(finished, "pipeline.train", "--set", word)
        assert done.returncode == 1
        assert done.stderr.strip().startswith(error)


def test_robustness_of_the_engine_and_its_calibration(finished: Path) -> None:
    metrics = load(finished, "metrics/eval.json")
    table = metrics["robustness"]
    wanted = load_params(finished / "params.yaml").evaluate.robustness.model_dump()
    assert {name: [int(one) for one in row] for name, row in table.items()} == wanted
    assert all(0 <= value <= 1 for row in table.values() for value in row.values())
    images = read_images(finished / "data/prepared/test-images.idx")
    labels = read_labels(finished / "data/prepared/test-labels.idx")
    with Engine(finished / "artifacts/mnist_mamba.bin") as engine:
        for name, strength in (("shift", 10), ("noise", 40), ("invert", 100)):
            predicted = engine.predict(CORRUPTIONS[name](images, strength))
            assert table[name][str(strength)] == (predicted == labels).mean(), name


def test_same_seed_same_files(finished: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(finished, again)
    for stage in ("train", "export", "evaluate"):
        run_stage(again, stage)
    for name in (
        "checkpoints/last.pth",
        "checkpoints/best_model.pth",
        "artifacts/mnist_mamba.bin",
        "plots/curves.json",
        "metrics/train.json",
        "metrics/eval.json",
        "metrics/exit.json",
        "plots/predictions.csv",
        "plots/predictions.png",
        "plots/misclassified.png",
        "plots/reliability.png",
        "plots/robustness.png",
    ):
        assert (again / name).read_bytes() == (finished / name).read_bytes(), name


def test_int8_weights_are_compared_with_the_same_in_pytorch(finished: Path, tmp_path: Path) -> None:
    folder, model = tmp_path / "int8", Path("artifacts/mnist_mamba.bin")
    shutil.copytree(finished, folder)
    set_params(folder, {**UNTRACKED, "export.weight_type": "int8"})
    run_stage(folder, "export")
    run_stage(folder, "evaluate")
    before, after = (load(one, "metrics/eval.json") for one in (finished, folder))
    rounding = after["rounding"]
    assert "rounding" not in before
    assert rounding["float32_accuracy"] == before["accuracy"]
    assert rounding["float32_nll"] == pytest.approx(before["nll"], abs=1e-5)
    assert rounding["float32_file_bytes"] == before["model"]["file_bytes"]
    assert after["model"]["file_bytes"] == (folder / model).stat().st_size
    assert after["model"]["file_bytes"] < 0.4 * before["model"]["file_bytes"]
    images = read_images(folder / "data/prepared/test-images.idx")
    with Engine(finished / model) as exact, Engine(folder / model) as rounded:
        logits, others = exact.logits(images), rounded.logits(images)
    changed = (logits.argmax(axis=1) != others.argmax(axis=1)).sum()
    assert rounding["prediction_mismatches"] == changed
    assert rounding["max_abs_logit_diff"] == pytest.approx(np.abs(logits - others).max(), abs=1e-4)
    assert after["parity"]["max_abs_logit_diff"] < 1e-4 < rounding["max_abs_logit_diff"]
    again = tmp_path / "again.bin"
    done = run_module(finished, "pipeline.export", "round", model, again)
    assert done.returncode == 0, done.stderr
    assert again.read_bytes() == (folder / model).read_bytes()
    chosen = ("--weight-type", "float32", "--output", again)
    done = run_module(folder, "pipeline.export", "model", *chosen)
    assert done.returncode == 0, done.stderr
    assert again.read_bytes() == (finished / model).read_bytes()


def test_a_broken_engine_fails_evaluate_but_leaves_the_evidence(
    finished: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(finished, broken)
    set_params(broken, {**UNTRACKED, "evaluate.max_abs_logit_diff": 1e-12})
    done = run_module(broken, "pipeline.evaluate")
    assert done.returncode == 1
    assert "expected up to 1e-12 (evaluate.max_abs_logit_diff)" in done.stderr
    assert load(broken, "metrics/eval.json")["n_test"] == 40
    (broken / "artifacts/mnist_mamba.bin").write_bytes(b"no model")
    done = run_module(broken, "pipeline.evaluate")
    assert done.returncode == 1
    assert "file size: got 8 bytes" in done.stderr
    (broken / "build/dvc/mamba").unlink()
    done = run_module(broken, "pipeline.evaluate")
    assert done.returncode == 1
    assert done.stderr == "error: build/dvc/mamba not found: run `dvc repro compile` first\n"


def test_predictions_that_differ_fail_evaluate() -> None:
    metrics: dict = {
        "correct": 9,
        "parity": {
            "max_abs_logit_diff": 1e-6,
            "prediction_mismatches": 0,
            "members_asked_mismatches": 0,
        },
    }
    params = load_params(ROOT / "params.yaml")
    check(metrics, {"correct": 9}, params)
    with pytest.raises(ParityError, match=r"8 correct .* expected 9"):
        check(metrics, {"correct": 8}, params)
    metrics["parity"]["prediction_mismatches"] = 1
    with pytest.raises(ParityError, match="1 predictions of the C engine differ"):
        check(metrics, {"correct": 9}, params)
    metrics["parity"] |= {"prediction_mismatches": 0, "members_asked_mismatches": 2}
    with pytest.raises(ParityError, match="2 numbers of members asked of the C engine differ"):
        check(metrics, {"correct": 9}, params)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.idx_dir": "data/nothing"}, "train-images-idx3-ubyte"),
        ({"train.lr": "fast"}, "params.yaml: train.lr: got 'fast'"),
    ],
)
def test_errors_are_one_clear_line(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    folder = copy_project(tmp_path, {**UNTRACKED, **changes})
    done = run_module(folder, "pipeline.download", MNIST_MIRROR="/nowhere")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert not (folder / "data/raw").exists()


@pytest.mark.parametrize("stage", STAGES)
def test_wrong_params_end_each_stage_before_it_does_anything(
    stage: str, finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "wrong"
    shutil.copytree(finished, folder)
    set_params(folder, {**UNTRACKED, "model.d_conv": 0})
    words = ("export", "model") if stage == "export" else (stage,)
    before = stamps(folder)
    done = run_module(folder, f"pipeline.{words[0]}", *words[1:], PYTHONDONTWRITEBYTECODE="1")
    assert done.returncode == 1
    assert done.stderr == "error: params.yaml: model.d_conv = 0: expected a whole number in 1..16\n"
    assert stamps(folder) == before


@pytest.mark.parametrize("words", [("prepare",), ("export", "image")])
def test_a_stage_without_its_data_says_which_one_comes_first(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    folder = copy_project(tmp_path, UNTRACKED)
    done = run_module(folder, f"pipeline.{words[0]}", *words[1:])
    assert done.returncode == 1
    before = {"prepare": "download", "export": "prepare"}[words[0]]
    assert f"run `python -m pipeline.{before}` first" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("more", [-1, 1])
def test_a_split_with_differing_counts_names_both_files(tmp_path: Path, more: int) -> None:
    images, labels = np.zeros((9, 2, 2), np.uint8), np.zeros(9, np.uint8)
    write_splits(tmp_path, {"val": LabelledImages(images, labels)})
    assert len(read_split(tmp_path, "val", "prepare").labels) == 9
    write_idx(tmp_path / "val-labels.idx", np.zeros(9 + more, np.uint8))
    message = f"val-images.idx has 9 images, but .*val-labels.idx has {9 + more} labels: .*prepare"
    with pytest.raises(DataError, match=message):
        read_split(tmp_path, "val", "prepare")


def test_a_patch_that_does_not_fit_the_user_s_images_is_named(
    finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "unfit"
    shutil.copytree(finished, folder)
    set_params(folder, {**UNTRACKED, "model.patch": [4, 4]})
    done = run_module(folder, "pipeline.train")
    assert done.returncode == 1
    assert "patch = [4, 4] does not divide the image, which is 9 x 12 pixels" in done.stderr


def test_asking_for_a_gpu_that_is_not_there_is_an_error(finished: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    folder = tmp_path / "gpu"
    shutil.copytree(finished, folder)
    for setting, message in (
        ({"train.device": "cuda"}, "train.device = cuda: PyTorch finds no GPU"),
        ({"train.scan": "cuda"}, "scan backend 'cuda': mamba-ssm needs CUDA tensors"),
    ):
        set_params(folder, {**UNTRACKED, **setting})
        done = run_module(folder, "pipeline.train")
        assert done.returncode == 1
        assert message in done.stderr


def test_the_stage_s_own_library_wins_over_an_installed_one(tmp_path: Path) -> None:
    """An editable install must not replace the library in DVC's temp copy."""
    folder = copy_project(tmp_path)
    program = "import pipeline, mnist_mamba; print(mnist_mamba.__file__)"
    done = run(
        folder, [shutil.which("python3") or "python3", "-c", program], PYTHONPATH=str(ROOT / "src")
    )
    assert done.stdout.strip() == str(folder / "src/mnist_mamba/__init__.py")
