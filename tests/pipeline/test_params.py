"""params.yaml: accepted values, and the names and values in the errors on others."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from mnist_mamba.config import TrainConfig
from mnist_mamba.data.sources import load_digits
from mnist_mamba.engine.format import WEIGHT_TYPES
from pipeline.common.nested import look_up
from pipeline.common.params import (
    IMAGE_SIZES,
    OPTIONAL,
    ModelParams,
    Params,
    ParamsError,
    TrainParams,
    load_params,
    parse,
)
from tests.pipeline.imports import ROOT


def parse_params(content: Any) -> Params:
    return parse(Params, content, "params.yaml")


def changed(key: str, value: Any) -> dict[str, Any]:
    """Return params.yaml's content with one value replaced or added."""
    content: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    *folders, name = key.split(".")
    section = content
    for folder in folders:
        section = section[folder]
    section[name] = value
    return content


def test_the_committed_params_are_valid() -> None:
    params = load_params(ROOT / "params.yaml")
    assert isinstance(params.train, TrainConfig)
    config = params.model.config(28, 28, 10, pixel_mean=0.1, pixel_std=0.3)
    assert (config.d_model, config.pixel_std) == (32, 0.3)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("train.lr", "fast", ["train.lr", "'fast'", "number"]),
        ("train.lr", "0.001", ["train.lr", "'0.001'", "valid number"]),
        ("train.epochs", "10", ["train.epochs", "'10'", "valid integer"]),
        ("model.d_model", "1e2", ["model.d_model", "'1e2'", "integer"]),
        ("train.lr", -1, ["train.lr", "-1", "above 0"]),
        ("train.lr", float("inf"), ["train.lr", "inf", "above 0"]),
        ("train.save_every", -1, ["train.save_every", "-1", "0..1000000000"]),
        ("train.epochs", 2.5, ["train.epochs", "2.5", "integer"]),
        ("train.nesterov", True, ["train.nesterov", "unknown key"]),
        ("train.optimizer", "sgd", ["train.optimizer", "'sgd'", "'muon'"]),
        ("train.augment.elastic_scale", 0, ["train.augment.elastic_scale", "0", "(0, 1]"]),
        ("evaluate.robustness.shift", [0.5], ["evaluate.robustness.shift.0", "0.5", "integer"]),
        ("train.augment.rotate", 500, ["train.augment.rotate", "500", "180"]),
        ("train.scan", "gpu", ["train.scan", "'gpu'", "'cuda'"]),
        ("data.dataset", "cifar", ["data.dataset", "'cifar'", "'digits'"]),
        ("data.dataset", 3, ["data.dataset", "3", "'folder'"]),
        ("data.folder", "", ["data.folder", "''", "at least 1 character"]),
        ("data.channels", 2, ["data.channels", "2", "'auto', 1 or 3"]),
        ("data.channels", "3", ["data.channels", "'3'", "'auto', 1 or 3"]),
        ("data.preparation", "crop", ["data.preparation", "'crop'", "'mnist'"]),
        ("data.emnist_split", "all", ["data.emnist_split", "'all'", "'letters'"]),
        ("data.test_fraction", 0.0, ["data.test_fraction", "0.0", "greater than 0"]),
        ("data.val_fraction", 1.0, ["data.val_fraction", "1.0", "less than 1"]),
        ("model.n_layers", True, ["model.n_layers", "True"]),
        ("train.lr", True, ["train.lr", "True"]),
        ("model.pos_embed", "maybe", ["model.pos_embed", "'maybe'"]),
        ("benchmark.rounds", 1001, ["benchmark.rounds", "1001", "1000"]),
        ("model.patch", [0, 4], ["model.patch.0", "0", "greater than or equal to 1"]),
        ("model.d_conv", 0, ["model.d_conv = 0", "1..16"]),
        ("model.d_model", 4096, ["model.d_model = 4096", "1..2048"]),
        ("model.dt_min", 0.5, ["model.dt_min = 0.5", "dt_max = 0.1"]),
        ("data.resize", [4096, 4096], ["model.stem = 'conv3'", "4096 x 4096", "up to 65536"]),
        ("model.a", "mixed", ["model.a", "'mixed'", "'free'", "'tied'"]),
        ("evaluate", None, ["evaluate", "None"]),
        ("model.pos_embed", 1, ["model.pos_embed", "got 1", "boolean"]),
        ("train.on_val", "1", ["train.on_val", "got '1'", "boolean"]),
        ("model.dt_rank", "4", ["model.dt_rank", "got '4'", "'auto'"]),
        ("data.resize", "28", ["data.resize", "got '28'", "integer"]),
        ("evaluate.robustness.shift", [True], ["robustness.shift.0", "got True", "integer"]),
        ("data.split_seed", 2**32, ["data.split_seed", "4294967296", "less than 4294967296"]),
        ("model.dt_init_floor", 0.5, ["model.dt_init_floor = 0.5", "dt_max = 0.1"]),
        ("tracking.model_name", "a/b", ["tracking.model_name", "'a/b'", "pattern"]),
        ("tracking.system_metrics", -1, ["tracking.system_metrics", "-1", "or equal to 0"]),
        ("export.checkpoint", "newest", ["export.checkpoint", "'best_model'"]),
        ("export.weight_type", "int4", ["export.weight_type", "'int4'", "'int8'"]),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(
    key: str, value: Any, words: list[str]
) -> None:
    with pytest.raises(ParamsError) as error:
        parse_params(changed(key, value))
    for word in words:
        assert word in str(error.value)


def test_mnist_s_preparation_is_for_grey_images() -> None:
    content = changed("data.preparation", "mnist")
    parse_params(content)
    content["data"]["channels"] = 3
    with pytest.raises(
        ParamsError, match=r"data: got .* preparation = 'mnist' .*is for grey images"
    ):
        parse_params(content)
    content["data"]["preparation"] = "auto"  # the same for MNIST itself
    with pytest.raises(ParamsError, match=r"data: got .* preparation = 'mnist' \(which auto means"):
        parse_params(content)
    content["data"]["preparation"] = "resize"
    parse_params(content)


@pytest.mark.parametrize(
    ("dataset", "key", "path", "title"),
    [
        ("folder", "folder", "data/cats/", "cats"),
        ("folder", "folder", ".", ROOT.name),
        ("npz", "folder", "/my/cats.npz", "cats.npz"),
        ("idx", "idx_dir", "my/cats", "your own images in cats"),
    ],
)
def test_the_title_of_data_of_one_s_own_tells_folders_apart(
    dataset: str, key: str, path: str, title: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    changes = {"data.dataset": dataset, f"data.{key}": path}
    assert load_params().changed(changes, "test").data.title == title


def test_only_size_errors_advise_another_size() -> None:
    params = parse_params(changed("data.dataset", "npz"))
    with pytest.raises(ValueError, match=r"data\.resize changes the images' size$"):
        params.check_fit(2000, 2000)
    with pytest.raises(ValueError, match=r"^the data: class_names\[1\] = 'a': expected") as error:
        params.check_fit(28, 28, 1, ("a", "a"))
    assert "resize" not in str(error.value)


@pytest.mark.parametrize(
    ("dataset", "preparation"),
    [
        *(("mnist", "mnist"), ("emnist", "mnist"), ("qmnist", "mnist"), ("digits", "resize")),
        *(("kmnist", "resize"), ("fashion_mnist", "resize"), ("folder", "resize")),
        *(("npz", "resize"), ("idx", "resize")),
    ],
)
def test_the_preparation_depends_on_the_data_set(dataset: str, preparation: str) -> None:
    params = parse_params(changed("data.dataset", dataset))
    assert params.data.resolved_preparation == preparation
    changed_params = params.changed({"data.preparation": "mnist"}, "here")
    assert changed_params.data.resolved_preparation == "mnist"
    assert changed_params.data.size == ((28, 28) if preparation == "resize" else None)


@pytest.mark.parametrize(("scan", "device"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_scan_of_another_device_is_refused(scan: str, device: str) -> None:
    content = changed("train.scan", scan)
    parse_params(content)  # device: auto
    content["train"]["device"] = device
    with pytest.raises(ParamsError, match=rf"train\.scan = '{scan}' .* train\.device = '{device}'"):
        parse_params(content)


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    path = tmp_path / "params.yaml"
    path.write_text(
        text.replace("  n_layers: 2\n", "  n_layers: 2\n  n_layers: 4\n"), encoding="utf-8"
    )
    with pytest.raises(ParamsError, match=r'"n_layers".*line \d+'):
        load_params(path)


def test_a_width_that_is_a_product_names_its_factors() -> None:
    content = changed("model.expand", 8)
    content["model"]["d_model"] = 2048
    with pytest.raises(ParamsError, match=r"model\.expand \* model\.d_model = 16384: .* 1\.\.8192"):
        parse_params(content)


@pytest.mark.parametrize(
    "key",
    [
        "data.dataset",
        "model",
        "model.d_model",
        "train.epochs",
        "train.scan",
        "train.augment",
        "train.augment.rotate",
        "evaluate.ece_bins",
    ],
)
def test_a_missing_key_is_named_alone(key: str) -> None:
    content = changed("model.members", 1)
    section, _, name = key.rpartition(".")
    del (look_up(content, section) if section else content)[name]
    with pytest.raises(ParamsError) as error:
        parse_params(content)
    assert str(error.value) == f"params.yaml: {key}: missing, expected a value"


def test_the_best_on_validation_needs_validation_images() -> None:
    content = changed("export.checkpoint", "best_model")
    parse_params(content)
    content["train"]["on_val"] = True
    with pytest.raises(ParamsError, match=r"'best_model' .* train\.on_val = true .* 'last'"):
        parse_params(content)


def test_only_optional_settings_have_the_library_s_defaults() -> None:
    content = changed("model.members", 1)
    for section, owner in (("model", ModelParams), ("train", TrainParams)):
        omitted = {field.name for field in dataclasses.fields(owner)} - {*content[section]}
        assert omitted == OPTIONAL & {field.name for field in dataclasses.fields(owner)}
    assert "split_seed" not in content["data"]
    params = parse_params(content)
    assert (params.data.split_seed, params.model.dt_min, params.train.beta1) == (0, 0.001, 0.9)
    other = params.changed({"model.dt_min": 1e-2, "train.augment.elastic_scale": 1}, "here")
    assert (other.model.dt_min, other.train.augment.elastic_scale) == (0.01, 1.0)
    assert other.model.config(28, 28, 10).dt_min == 0.01


def test_changes_by_dotted_keys() -> None:
    params = load_params(ROOT / "params.yaml")
    other = params.changed({"train.augment.rotate": 3, "model.a": "tied"}, "here")
    assert (other.train.augment.rotate, other.model.a) == (3.0, "tied")
    assert (
        other.changed(
            {"train.augment.rotate": params.train.augment.rotate, "model.a": params.model.a}, "here"
        )
        == params
    )
    for key, words in (
        ("train.rate", "here: train.rate: unknown key"),
        ("train.augment.flip", "here: train.augment.flip: unknown key"),
        ("trains.lr", "here: trains.lr: unknown key"),
        ("train.lr.peak", "here: train.lr.peak: unknown key"),
    ):
        with pytest.raises(ParamsError, match=words):
            params.changed({key: 1}, "here")


@pytest.mark.parametrize(
    ("notation", "words"), [("1e-3", None), ("1E-3", None), ("'1e-3'", "train.lr: got '1e-3'")]
)
def test_exponents_without_a_dot_are_numbers(
    tmp_path: Path, notation: str, words: str | None
) -> None:
    """PyYAML reads 1e-3 as text, DVC as a number."""
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    path = tmp_path / "params.yaml"
    path.write_text(re.sub(r"\blr: \S+", f"lr: {notation}", text), encoding="utf-8")
    if words is None:
        assert load_params(path).train.lr == 0.001
        return
    with pytest.raises(ParamsError, match=words):
        load_params(path)


def test_patch_is_checked_against_the_size_after_resampling() -> None:
    content = changed("data.resize", [30, 20])
    content["model"] |= {"stem": "patch", "patch": [5, 4]}
    assert parse_params(content).data.size == (30, 20)
    content["data"]["resize"] = 28
    with pytest.raises(ParamsError, match="does not divide"):
        parse_params(content)
    content["data"]["resize"] = None  # the data set's own size: MNIST's, the digits'
    with pytest.raises(ParamsError, match=r"model.patch = \[5, 4\] does not divide .* 28 x 28"):
        parse_params(content)
    content["data"]["dataset"] = "digits"
    with pytest.raises(ParamsError, match="8 x 8"):
        parse_params(content)
    # One's own images' size is known only when they are read.
    content["data"]["dataset"] = "idx"
    params = parse_params(content)
    params.check_fit(10, 8)
    with pytest.raises(ValueError, match="9 x 8"):
        params.check_fit(9, 8)


def test_the_known_sizes_are_those_of_the_data() -> None:
    train, test = load_digits()
    assert train.images.shape[1:] == test.images.shape[1:] == IMAGE_SIZES["digits"]
    # MNIST's: tests/pipeline/test_published.py compares the shipped model, which has them.
    assert IMAGE_SIZES["mnist"] == (28, 28)


def test_missing_or_broken_file(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="run in the project's folder"):
        load_params(tmp_path / "params.yaml")
    broken = (b"a: [", b"a: \xff", b"a: !!python/object:os.system x", b"a: !!int x", b"a: !!bool x")
    for content in (*broken, b"%YAML 1.3\n---\na: 1", b"a: 2020-13-45"):
        (tmp_path / "params.yaml").write_bytes(content)
        with pytest.raises(ParamsError, match="not valid YAML"):
            load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "got None, expected a mapping of keys to values"),
        ("[1]", r"got \[1\], expected a mapping of keys to values"),
        ("data: 2020-01-01", "date is not JSON serializable: .*put a date in quotes"),
        ("data: !!binary aGk=", "bytes is not JSON serializable: expected mappings"),
        ("? [1, 2]\n: 3", "keys must be str.* not tuple: expected mappings"),
        ("data: &a [*a]", "Circular reference detected: expected mappings"),
    ],
)
def test_content_that_is_not_plain_is_refused(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ParamsError, match=rf"^{re.escape(str(path))}: .*{message}"):
        load_params(path)


def test_weights_are_stored_in_each_type_of_a_model_file() -> None:
    for name in WEIGHT_TYPES:
        assert parse_params(changed("export.weight_type", name)).export.weight_type == name
