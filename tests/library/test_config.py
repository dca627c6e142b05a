"""Configs: the values they refuse, and what follows from them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from mnist_mamba.config import AugmentConfig, ConfigError, ModelConfig, TrainConfig

IMAGE = {"height": 28, "width": 28, "n_classes": 10}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_conv": 0}, "d_conv = 0: expected a whole number in 1..16"),
        ({"d_state": 257}, "d_state = 257"),
        ({"d_model": 64.0}, "d_model = 64.0"),
        ({"n_layers": True}, "n_layers = True"),
        ({"dt_rank": 0}, "dt_rank = 0"),
        ({"n_classes": 1}, "n_classes = 1"),
        ({"channels": 5}, "channels = 5: expected a whole number in 1..4"),
        ({"channels": 4, "height": 4096, "width": 4096, "patch": (64, 64)}, "channels = 4 at each"),
        ({"class_names": ["a", "b"]}, "class_names = ['a', 'b']: expected a list of 10 names"),
        ({"class_names": "0123456789"}, "class_names = '0123456789': expected a list"),
        ({"class_names": ["a", ""] + ["b"] * 8}, "class_names[1] = '': expected 1 to 255 bytes"),
        ({"class_names": ["ä" * 128] * 10}, "expected 1 to 255 bytes of UTF-8"),
        ({"class_names": [*"abcdefghi", "a\n"]}, "class_names[9] = 'a\\n': expected UTF-8 without"),
        ({"class_names": [*"abcdefghi", "\x9b"]}, "[9] = '\\x9b': expected UTF-8 without control"),
        ({"class_names": [*"abcdefghi", "\ud800"]}, "expected UTF-8 without control characters"),
        ({"class_names": [*range(10)]}, "class_names[0] = 0: expected UTF-8"),
        ({"class_names": [*"abcdefghib"]}, "expected another name than that of class 1"),
        ({"preparation": "crop"}, "preparation = 'crop': expected one of resize, mnist"),
        ({"preparation": "mnist", "channels": 3}, "expected 'resize' for 3 channels"),
        ({"pixel_std": 0.0}, "pixel_std = 0.0: expected a number in [1e-06, 1e+06]"),
        ({"pixel_mean": float("nan")}, "pixel_mean = nan"),
        ({"dt_min": 0.2}, "dt_min = 0.2 is above dt_max = 0.1"),
        ({"stem": "vit"}, "stem = 'vit': expected one of patch, conv, conv3"),
        ({"direction": "up"}, "direction = 'up'"),
        ({"a": "shared"}, "a = 'shared'"),
        ({"patch": (5, 4)}, "patch = [5, 4] does not divide the image, which is 28 x 28"),
        ({"patch": (0, 4)}, "patch = [0, 4]"),
        ({"patch": (4,)}, "patch = [4]"),
        ({"height": 4096, "width": 4096, "patch": (1, 1)}, "16777216 tokens"),
        ({"d_model": 2048, "expand": 8}, "d_inner = 16384"),
        ({"dt_init_floor": 0.2}, "dt_init_floor = 0.2 is above dt_max = 0.1"),
        ({"dt_rank": "4"}, "dt_rank = '4': expected a whole number in 1..2048 or 'auto'"),
        ({"pos_embed": 1}, "pos_embed = 1: expected true or false"),
        ({"other_members": {"d_model": 8}}, "{'d_model': 8}: expected a list of settings"),
        ({"other_members": [8]}, "other_members = [8]: expected a list of settings"),
        ({"other_members": [{}] * 3, "members": 3}, "a list of 3: expected up to 2, the number"),
        ({"other_members": [{"height": 9}]}, "other_members[0]: got 'height', expected settings"),
        ({"other_members": [{"members": 2}]}, "other_members[0]: got 'members', expected"),
        (
            {"other_members": [{}, {"d_model": 0}], "members": 3},
            "other_members[1]: d_model = 0: expected",
        ),
        (
            {"other_members": [{"stem": "patch", "patch": (5, 4)}], "members": 2},
            "other_members[0]: patch = [5, 4] does not divide the image",
        ),
        *(
            ({"other_members": [{"patch": wrong}], "members": 3}, f"[0]: patch = {wrong!r}: expect")
            for wrong in (4, None, 1.5, "x", {4: 1, 7: 2})
        ),
    ],
)
def test_model_settings_that_cannot_work_are_refused_by_name(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        ModelConfig(**{**IMAGE, **changes})
    assert message in str(error.value)


def test_a_single_member_has_no_others() -> None:
    """`members = 1` alone is enough where the defaults have other members."""
    config = ModelConfig(**IMAGE, members=1, other_members=({"d_model": 8},))
    assert config == ModelConfig(**IMAGE)
    with pytest.raises(ConfigError, match="got 'width', expected settings of one member"):
        ModelConfig(**IMAGE, members=1, other_members=({"width": 8},))


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (TrainConfig, {"lr": 0}, "lr = 0: expected a number above 0"),
        (TrainConfig, {"lr": math.inf}, "lr = inf: expected a number above 0"),
        (TrainConfig, {"lr": "1e-3"}, "lr = '1e-3': expected a number above 0"),
        (TrainConfig, {"weight_decay": math.nan}, "weight_decay = nan: expected a number >= 0"),
        (TrainConfig, {"beta1": 1}, "beta1 = 1: expected a number in [0, 1)"),
        (TrainConfig, {"warmup": True}, "warmup = True: expected a number in [0, 1]"),
        (TrainConfig, {"epochs": 2.5}, "epochs = 2.5: expected a whole number in 1..1000000"),
        (TrainConfig, {"optimizer": "sgd"}, "optimizer = 'sgd': expected one of adamw, muon"),
        (AugmentConfig, {"rotate": 181}, "rotate = 181: expected a number in [0, 180]"),
        (AugmentConfig, {"elastic_scale": 0}, "expected a number in (0, 1]"),
    ],
)
def test_training_settings_out_of_range_are_refused_by_name(
    kind: type[TrainConfig | AugmentConfig], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        kind(**changes)
    assert message in str(error.value)


def test_a_conv_stem_ignores_the_patch() -> None:
    config = ModelConfig(**{**IMAGE, "stem": "conv", "height": 9, "width": 30})
    assert config.grid == (3, 8)
    assert config.length == 24


def test_derived_dims_follow_the_paper() -> None:
    config = ModelConfig(**IMAGE, d_model=33, expand=3)
    assert (config.d_inner, config.resolved_dt_rank, config.length) == (99, 3, 49)


def test_a_config_from_before_class_names_has_their_numbers() -> None:
    config = ModelConfig.from_dict({**IMAGE, "n_classes": 3})
    assert (config.class_names, config.preparation) == ((), "resize")
    assert config.resolved_class_names == ("0", "1", "2")


def test_to_dict_and_from_dict_round_trip() -> None:
    names = tuple("abcdefghij")
    choices = {"direction": "bidirectional", "a": "tied", "dt_rank": 5, "preparation": "mnist"}
    config = ModelConfig(**IMAGE, **choices, class_names=names)
    assert ModelConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ConfigError, match="unknown model setting: 'depth'"):
        ModelConfig.from_dict({**config.to_dict(), "depth": 3})
    with pytest.raises(ConfigError, match="missing model settings: height, width"):
        ModelConfig.from_dict({"n_classes": 10})
