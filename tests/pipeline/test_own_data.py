"""From a folder of pictures to a checked model: the examples of docs/your-own-data.md."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from mnist_mamba.data.folders import load_folder
from mnist_mamba.data.idx import read_images, read_labels, write_idx
from mnist_mamba.data.sources import IDX_NAMES
from mnist_mamba.data.splits import DataError, with_channels
from mnist_mamba.engine.binding import prepare_picture
from pipeline import check_params, download, example_pictures
from pipeline.common.params import load_params
from tests.pipeline.imports import ROOT
from tests.pipeline.project import SMALL, copy_project, run, run_module, run_stage

STAGES = ("check_params", "download", "prepare", "train", "export", "evaluate")
NAMES = ("a b", "left", "é", "猫")


def write_example(kind: str, folder: Path) -> None:
    done = run_module(ROOT, "pipeline.example_pictures", kind, folder)
    assert done.returncode == 0, done.stderr


def run_stages(folder: Path, stages: tuple[str, ...]) -> str:
    """Run stages in a project and return what they logged."""
    said = ""
    if "evaluate" in stages:
        done = run(folder, ["make", "-s", "-f", "csrc/engine.mk", "dvc-engine", "OUT=build/dvc"])
        assert done.returncode == 0, done.stderr
    for stage in stages:
        said += run_stage(folder, stage)
    return said


def load(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def on_pictures(folder: Path, **changes: Any) -> dict[str, Any]:
    """Return params for pictures in a folder, without MLflow."""
    chosen = {"data.dataset": "folder", "data.folder": str(folder), "tracking.enabled": False}
    return {**chosen, **changes}


def test_the_digits_are_scikit_learn_s(tmp_path: Path) -> None:
    write_example("digits", tmp_path / "digits")
    train, test, names = load_folder(tmp_path / "digits", None, 0.2)
    assert names == tuple("0123456789")
    assert (len(train.labels), len(test.labels)) == (1438, 359)
    images = with_channels(np.concatenate([train.images, test.images]), "auto")
    expected = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)
    assert sorted(map(bytes, images)) == sorted(map(bytes, expected))


def test_an_example_is_written_to_a_new_folder_only(tmp_path: Path) -> None:
    done = run_module(ROOT, "pipeline.example_pictures", "shapes", tmp_path)
    assert done.returncode == 1
    assert done.stderr == f"error: {tmp_path} exists, expected the name of a new folder\n"


def test_colour_pictures_are_prepared_in_colour(tmp_path: Path) -> None:
    write_example("shapes", tmp_path / "shapes")
    folder = copy_project(tmp_path / "project", on_pictures(tmp_path / "shapes"))
    said = run_stages(folder, ("check_params", "download", "prepare"))
    assert "warning" not in said
    info = load(folder, "data/prepared/info.json")
    assert (info["height"], info["width"], info["channels"]) == (32, 32, 3)
    assert info["class_names"] == sorted(example_pictures.SHAPES)
    assert [part["n"] for part in info["splits"].values()] == [216, 24, 60]
    images = read_images(folder / "data/prepared/train-images.idx")
    labels = read_labels(folder / "data/prepared/train-labels.idx")
    brightest = images.reshape(len(images), -1, 3).max(axis=1).argmax(axis=1)
    colours = [("red", "green", "blue")[channel] for channel in brightest]
    assert colours == [info["class_names"][label].split()[0] for label in labels]
    for name in ("examples", "augmentation"):
        with Image.open(folder / f"plots/{name}.png") as picture:
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        assert (abs(pixels[..., 0] - pixels[..., 1]) > 100).sum() > 1000, name
    assert load(folder, "metrics/data.json")["warnings"] == []


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose stages have run on bars in class folders with names of several scripts."""
    root = tmp_path_factory.mktemp("named")
    folder = copy_project(root / "project", SMALL)
    bars = folder / "data" / "idx"
    for part, prefix in (("train", "train"), ("test", "test")):
        images = read_images(bars / IDX_NAMES[f"{prefix}_images"])
        labels = read_labels(bars / IDX_NAMES[f"{prefix}_labels"])
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = root / "pictures" / part / NAMES[label] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    copied = next((root / "pictures/train/left").iterdir())
    (root / "pictures/test/left/copy.png").write_bytes(copied.read_bytes())
    changes = {**SMALL, **on_pictures(root / "pictures")}
    (root / "other").mkdir()
    project = copy_project(root / "other" / "project", changes)
    (project / "said.txt").write_text(run_stages(project, STAGES), encoding="utf-8")
    return project


def test_class_names_go_from_the_folders_to_the_results(named: Path) -> None:
    info, scores = load(named, "data/prepared/info.json"), load(named, "metrics/eval.json")
    assert (tuple(info["class_names"]), info["channels"]) == (NAMES, 1)
    assert (tuple(scores["per_class"]), scores["n_test"]) == (NAMES, 41)
    assert scores["accuracy"] > 0.9
    assert scores["parity"]["prediction_mismatches"] == 0
    checkpoint = torch.load(named / "checkpoints/last.pth", weights_only=True)
    assert tuple(checkpoint["config"]["class_names"]) == NAMES
    with (named / "plots/predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    labels = read_labels(named / "data/prepared/test-labels.idx")
    assert [row["label"] for row in rows] == [NAMES[label] for label in labels]
    correct = sum(row["label"] == row["predicted"] for row in rows)
    assert correct == scores["correct"]


def test_what_prepare_finds_is_said_and_kept(named: Path) -> None:
    found = load(named, "metrics/data.json")
    assert (found["dataset"], found["test_in_train"]) == ("folder", 1)
    assert found["name"] == "pictures"
    per_class = load(named, "data/prepared/info.json")["splits"]["test"]["per_class"]
    assert found["per_class"]["test"] == dict(zip(NAMES, per_class, strict=True))
    assert sum(per_class) == 41
    (warning,) = found["warnings"]
    assert "1 of 41 test images" in warning
    assert f"warning: {warning}" in (named / "said.txt").read_text(encoding="utf-8")


def check(changes: dict[str, Any]) -> None:
    check_params.check_data(load_params(ROOT / "params.yaml").changed(changes, "test"))


def test_params_that_do_not_fit_the_pictures_are_refused_at_once(tmp_path: Path) -> None:
    write_example("shapes", tmp_path / "shapes")
    chosen = {"data.dataset": "folder", "data.folder": str(tmp_path / "shapes")}
    check(chosen)
    with pytest.raises(ValueError, match=r"model\.patch = \[5, 5\] does not divide .* 32 x 32"):
        check({**chosen, "model.stem": "patch", "model.patch": [5, 5]})
    large = tmp_path / "large"
    for i in range(6):
        path = large / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (1100, 1000)).save(path)
    words = r"68750 tokens of an image of 1000 x 1100 .*; data\.resize changes"
    with pytest.raises(ValueError, match=words):
        check({**chosen, "data.folder": str(large)})
    Image.new("RGB", (9, 7)).save(tmp_path / "shapes" / "red circle" / "x.png")
    with pytest.raises(DataError, match=r"7 x 9 .* 32 x 32 .*: set data\.resize"):
        check(chosen)
    check({**chosen, "data.resize": 16})
    with pytest.raises(DataError, match="not a folder"):
        check({**chosen, "data.folder": str(tmp_path / "nothing")})


def test_an_npz_file_and_colour_idx_files_are_refused_or_taken_at_once(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 6, 8, 3), dtype=np.uint8)
    labels = (np.arange(20) % 2).astype(np.uint8)
    np.savez(tmp_path / "data.npz", x=images, y=labels)
    chosen = {"data.dataset": "npz", "data.folder": str(tmp_path / "data.npz")}
    check(chosen)
    with pytest.raises(FileNotFoundError):
        check({**chosen, "data.folder": str(tmp_path / "nothing.npz")})
    for name, values in zip(IDX_NAMES, (images, labels) * 2, strict=True):
        write_idx(tmp_path / IDX_NAMES[name], values)
    for source in (chosen, {"data.dataset": "idx", "data.idx_dir": str(tmp_path)}):
        check(source)
        with pytest.raises(ValueError, match="does not divide the image, which is 6 x 8"):
            check({**source, "model.stem": "patch"})


def strokes(n: int = 20) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return (n, 40, 30, 3) photos of dark strokes of several lengths on bright paper."""
    images = np.full((n, 40, 30, 3), 220, np.uint8)
    for i, image in enumerate(images):
        image[5 : 20 + i // 2, 10 + i % 3 : 14 + i % 3] = 30
    return images


def test_arrays_are_prepared_as_pictures_if_params_say_so(tmp_path: Path) -> None:
    images, labels = strokes(), (np.arange(20) % 2).astype(np.uint8)
    np.savez(tmp_path / "data.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    for name, values in zip(IDX_NAMES, (images, labels) * 2, strict=True):
        write_idx(tmp_path / IDX_NAMES[name], values)
    expected = np.stack([prepare_picture(image, 28, 28) for image in images])
    assert expected[:, 0, 0].max() == 0  # bright on dark
    params = load_params(ROOT / "params.yaml").changed({"data.preparation": "mnist"}, "test")
    for source in (
        {"data.dataset": "npz", "data.folder": str(tmp_path / "data.npz")},
        {"data.dataset": "idx", "data.idx_dir": str(tmp_path)},
    ):
        train, test, _ = download.load(params.changed(source, "test"))
        np.testing.assert_array_equal(train.images, expected)
        np.testing.assert_array_equal(test.images, expected)
        small, *_ = download.load(params.changed({**source, "data.resize": [20, 24]}, "test"))
        assert small.images.shape == (20, 20, 24)
        as_it_is, *_ = download.load(params.changed({**source, "data.preparation": "auto"}, "test"))
        np.testing.assert_array_equal(as_it_is.images, images[..., 0])


def test_check_params_refuses_the_arrays_that_download_refuses(tmp_path: Path) -> None:
    images, labels = strokes(), np.arange(20) % 2
    images[3] = 220
    path = tmp_path / "data.npz"
    chosen = {"data.dataset": "npz", "data.folder": str(path)}
    np.savez(path, x=images, y=labels, class_names=np.array(["a", "b"]))
    check(chosen)
    with pytest.raises(DataError, match=r"finds nothing in 1 images: t\w+ image \d+; remove"):
        check({**chosen, "data.preparation": "mnist"})
    np.savez(path, x=np.zeros((4, 70000, 1), np.uint8), y=labels[:4])
    with pytest.raises(DataError, match=r"train image 0: picture: got 1 x 70000 pixels, expected"):
        check({**chosen, "data.preparation": "mnist"})
    np.savez(path, x=images, y=labels, class_names=np.array(["a", "a"]))
    with pytest.raises(ValueError, match=r"^the data: class_names\[1\] = 'a': expected"):
        check(chosen)
    np.savez(path, x=images[..., :2], y=labels)
    with pytest.raises(DataError, match="have 2 channels, expected 1 or 3"):
        check({**chosen, "data.channels": 3})


def test_check_params_refuses_the_arrays_that_prepare_refuses(tmp_path: Path) -> None:
    images, labels = strokes(), np.arange(20) % 2
    path = tmp_path / "data.npz"
    chosen = {"data.dataset": "npz", "data.folder": str(path)}
    opaque = np.concatenate([images, images[..., :1]], axis=3)

    def refused(test: Any, train_labels: Any, test_labels: Any, words: str) -> None:
        np.savez(path, x_train=images, y_train=train_labels, x_test=test, y_test=test_labels)
        with pytest.raises(DataError, match=words):
            check(chosen)

    refused(images[:, :9], labels, labels, r"image sizes differ .*\(40, 30\).*\(9, 30\)")
    grey = images[..., 0] // 2 * 2
    refused(opaque, labels, labels, r"image sizes differ .*'test': \(40, 30, 4\)")
    refused(images, labels, labels + 1, r"test split has labels \[2\], which the train split lacks")
    refused(grey, labels * 0, labels * 0, r"only the labels \[0\], expected at least 2")
    refused(images, [2, *labels[1:]], labels, "class 2 has 1 image, expected at least 2")
    np.savez(path, x_train=images, y_train=labels, x_test=images[:, :9], y_test=labels)
    check({**chosen, "data.resize": [20, 24]})


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "least"), [("digits", 0.985), ("shapes", 1.0)])
def test_the_examples_are_learned_with_the_defaults(
    tmp_path: Path, kind: str, least: float
) -> None:
    write_example(kind, tmp_path / kind)
    changes = on_pictures(tmp_path / kind, **{"train.threads": 1})
    folder = copy_project(tmp_path / "project", changes)
    run_stages(folder, STAGES)
    scores = load(folder, "metrics/eval.json")
    assert scores["accuracy"] >= least
    assert scores["parity"]["prediction_mismatches"] == 0
