"""The model's keys, shapes, initial values and behaviour."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import pytest
import torch

from mnist_mamba.model import (
    MambaClassifier,
    MambaEnsemble,
    MambaMixer,
    ModelConfig,
    build_classifier,
)
from tests.models import ARCHITECTURES, make_images, make_model


def test_mixer_has_the_keys_and_shapes_of_mamba_ssm() -> None:
    mixer = MambaMixer(d_model=20, d_state=8, d_conv=3, expand=3)
    shapes = {name: tuple(value.shape) for name, value in mixer.state_dict().items()}
    assert shapes == {
        "in_proj.weight": (120, 20),
        "conv1d.weight": (60, 1, 3),
        "conv1d.bias": (60,),
        "x_proj.weight": (2 + 2 * 8, 60),
        "dt_proj.weight": (60, 2),
        "dt_proj.bias": (60,),
        "A_log": (60, 8),
        "D": (60,),
        "out_proj.weight": (20, 60),
    }


def test_bidirectional_mixer_adds_the_keys_of_vision_mamba() -> None:
    plain = set(MambaMixer(8).state_dict())
    extra = set(MambaMixer(8, bidirectional=True).state_dict()) - plain
    assert extra == {
        "conv1d_b.weight",
        "conv1d_b.bias",
        "x_proj_b.weight",
        "dt_proj_b.weight",
        "dt_proj_b.bias",
        "A_b_log",
        "D_b",
    }


def test_classifier_has_the_keys_of_mamba_ssm_s_backbone() -> None:
    keys = set(make_model("patch_forward_mean").state_dict())
    assert {"layers.1.mixer.A_log", "layers.1.norm.weight", "norm_f.weight", "head.bias"} <= keys


def test_initial_values_follow_the_paper() -> None:
    torch.manual_seed(0)
    mixer = MambaMixer(64, d_state=16, dt_rank=16, dt_min=0.01, dt_max=0.1, dt_scale=0.5)
    torch.testing.assert_close(
        mixer.get_parameter("A_log"), torch.log(torch.arange(1.0, 17)).expand(128, 16)
    )
    assert torch.equal(mixer.get_parameter("D"), torch.ones(128))
    dt = torch.nn.functional.softplus(mixer.get_parameter("dt_proj.bias"))
    assert float(dt.min().detach()) >= 0.01 * 0.999
    assert float(dt.max().detach()) <= 0.1 * 1.001
    bound = 16**-0.5 * 0.5
    weight = mixer.get_parameter("dt_proj.weight").detach().abs()
    assert 0.95 * bound <= float(weight.max()) <= bound


def test_dt_init_floor_is_the_smallest_step_size() -> None:
    mixer = MambaMixer(64, dt_min=1e-6, dt_max=1e-5, dt_init_floor=1e-3)
    dt = torch.nn.functional.softplus(mixer.get_parameter("dt_proj.bias"))
    torch.testing.assert_close(dt, torch.full_like(dt, 1e-3))


def test_a_classifier_starts_with_its_config_s_step_sizes_and_small_positions() -> None:
    config = ModelConfig(
        height=28, width=28, n_classes=3, d_model=48, dt_min=0.02, dt_max=0.03, dt_scale=0.5
    )
    raised = dataclasses.replace(config, dt_init_floor=0.025)
    for changed, low in ((config, 0.02), (raised, 0.025)):
        for block in MambaClassifier(changed).blocks:
            dt = torch.nn.functional.softplus(block.mixer.get_parameter("dt_proj.bias").detach())
            assert low * 0.999 <= float(dt.min()) < low * 1.05
            assert 0.029 < float(dt.max()) <= 0.03 * 1.001
            bound = 3**-0.5 * 0.5
            weight = block.mixer.get_parameter("dt_proj.weight").detach().abs()
            assert 0.9 * bound <= float(weight.max()) <= bound
    positions = MambaClassifier(config).get_parameter("pos_embed").detach()
    assert float(positions.std()) == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("margin", [1e-9, 0.2, 0.5, 1e6])
def test_an_ensemble_asks_members_until_their_mean_is_clear(margin: float) -> None:
    model = make_model("ensemble").eval()
    assert isinstance(model, MambaEnsemble)
    pixels = make_images(model.config, 60).float() / 255
    model.exit_margin = margin
    each = model.member_logits(pixels)
    logits, asked = model.answers(pixels)
    for image in range(60):
        for count in (1, 2, 3):
            mean = each[:count, image].mean(dim=0)
            second, best = mean.sort().values[-2:]
            if best - second > margin:
                break
        assert asked[image] == count
        torch.testing.assert_close(logits[image], mean)
    torch.testing.assert_close(model(pixels), logits)
    model.train()
    torch.testing.assert_close(model(pixels), model.member_logits(pixels).mean(dim=0))


def test_an_exit_margin_of_0_asks_all_members() -> None:
    model = make_model("ensemble").eval()
    assert isinstance(model, MambaEnsemble)
    assert model.exit_margin == 0
    pixels = make_images(model.config, 5).float() / 255
    logits, asked = model.answers(pixels)
    assert asked.tolist() == [3] * 5
    torch.testing.assert_close(logits, model(pixels))
    assert [len(part) for part in model.answers(pixels[:0])] == [0, 0]


def test_later_members_take_their_changes_in_turn() -> None:
    config = ModelConfig(
        height=8,
        width=8,
        n_classes=3,
        members=4,
        d_model=8,
        n_layers=1,
        other_members=({"d_model": 12}, {"direction": "cross", "n_layers": 3}),
    )
    shapes = [(one.d_model, one.n_layers, one.direction) for one in config.member_configs]
    wide, deep = (12, 1, "alternate"), (8, 3, "cross")
    assert shapes == [(8, 1, "alternate"), wide, deep, wide]
    ensemble = build_classifier(config)
    assert [member.config for member in ensemble.classifiers] == config.member_configs
    assert ModelConfig.from_dict(config.to_dict()) == config


def test_members_of_an_ensemble_start_with_their_own_weights() -> None:
    torch.manual_seed(0)
    config = ModelConfig(height=8, width=8, n_classes=3, d_model=8, n_layers=1, members=3)
    ensemble = build_classifier(config, scan="reference")
    heads = [member.head.weight for member in ensemble.members]
    assert not torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert not torch.equal(heads[1], heads[2])


def test_out_proj_starts_smaller_in_deeper_models() -> None:
    config = ModelConfig(height=8, width=8, n_classes=3, d_model=32, n_layers=9)
    bound = 1 / math.sqrt(config.d_inner) / math.sqrt(9)
    for block in MambaClassifier(config).blocks:
        largest = float(block.mixer.out_proj.weight.detach().abs().max())
        assert 0.95 * bound <= largest <= bound


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_parameter_has_a_gradient(name: str) -> None:
    model = make_model(name)
    pixels = make_images(model.config, 4).float() / 255
    logits = model(pixels)
    assert logits.shape == (4, model.config.n_classes)
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0])).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name


def test_a_tied_model_equals_the_free_model_with_its_a() -> None:
    tied = make_model("patch_tied")
    free = make_model("patch_forward_mean")
    config = ModelConfig(**{**tied.config.to_dict(), "a": "free"})
    free = MambaClassifier(config, scan="reference")
    state = {k: v for k, v in tied.state_dict().items() if not k.endswith("a_log")}
    for i, block in enumerate(tied.blocks):
        state[f"layers.{i}.mixer.A_log"] = block.mixer.untied_state_dict()["A_log"]
    free.load_state_dict(state, strict=True)
    pixels = make_images(config, 3).float() / 255
    torch.testing.assert_close(free(pixels), tied(pixels), rtol=1e-5, atol=1e-6)


def test_only_reversed_layers_carry_the_last_token_to_the_first() -> None:
    for direction, leaks in (("forward", False), ("alternate", True), ("bidirectional", True)):
        torch.manual_seed(0)
        config = ModelConfig(
            height=4, width=4, n_classes=2, patch=(1, 4), d_model=8, n_layers=2, direction=direction
        )
        model = MambaClassifier(config, scan="reference")
        with torch.no_grad():
            tokens = model.tokens(torch.rand(1, 4, 4))
            changed = tokens.clone()
            changed[:, -1] += 1
            for block in model.blocks:
                tokens, changed = block(tokens), block(changed)
        assert bool((tokens[:, 0] != changed[:, 0]).any()) is leaks, direction


def test_cross_layers_scan_the_grid_in_four_orders() -> None:
    """A change of one token reaches exactly the tokens after it in the layer's order."""
    torch.manual_seed(0)
    config = ModelConfig(
        height=3, width=4, n_classes=2, patch=(1, 1), d_model=8, n_layers=5, direction="cross"
    )
    model = MambaClassifier(config, scan="reference")
    row, column = 1, 2
    by_rows = torch.arange(12).view(3, 4)
    by_columns = torch.arange(12).view(4, 3).T
    tokens = torch.randn(1, 12, 8)
    changed = tokens.clone()
    changed[0, by_rows[row, column]] += 1
    orders = (by_rows, by_columns, -by_rows, -by_columns, by_rows)
    for block, order in zip(model.blocks, orders, strict=True):
        with torch.no_grad():
            reached = (block(tokens) != block(changed)).any(-1).view(3, 4)
        assert torch.equal(reached, order >= order[row, column])


def test_a_local_convolution_reaches_a_token_and_its_eight_neighbours() -> None:
    torch.manual_seed(0)
    config = ModelConfig(
        height=4, width=5, n_classes=2, patch=(1, 1), d_model=8, n_layers=1, local_conv=True
    )
    local = MambaClassifier(config, scan="reference").eval().blocks[0].local
    assert local is not None
    tokens = torch.randn(1, 20, 8)
    changed = tokens.clone()
    changed[0, 1 * 5 + 3] += 1
    with torch.no_grad():
        reached = (local(tokens) != local(changed)).any(-1).view(4, 5)
    expected = torch.zeros(4, 5, dtype=torch.bool)
    expected[0:3, 2:5] = True
    assert torch.equal(reached, expected)


def test_folding_a_local_convolution_keeps_its_map() -> None:
    local = make_model("patch_local").blocks[0].local
    assert local is not None
    taps, bias = local.folded()
    tokens = torch.randn(2, 12, 8)
    maps = tokens.double().view(2, 4, 3, 8).permute(0, 3, 1, 2)
    kernel = taps.T.reshape(8, 1, 3, 3)
    folded = torch.nn.functional.conv2d(maps, kernel, bias, padding=1, groups=8)
    with torch.no_grad():
        torch.testing.assert_close(local(tokens).double(), folded.flatten(2).transpose(1, 2))


NORMED = ModelConfig(
    height=8, width=8, n_classes=3, d_model=8, stem="conv", stem_norm="batch", local_conv=True
)


@pytest.mark.parametrize(
    "name", ["stem.norm1", "stem.norm2", "layers.0.local.norm", "layers.3.norm", "norm_f"]
)
@pytest.mark.parametrize("pool", ["mean", "last"])
def test_a_norm_s_own_eps_is_what_counts(name: str, pool: Any) -> None:
    torch.manual_seed(0)
    model = MambaClassifier(dataclasses.replace(NORMED, pool=pool)).eval()
    pixels = torch.rand(2, 8, 8)
    before = model(pixels)
    norm: Any = model.get_submodule(name)
    norm.eps = 0.5
    got = model(pixels)
    for module in model.modules():  # torch calls what has a hook
        module.register_forward_hook(lambda *_: None)
    torch.testing.assert_close(got, model(pixels))
    assert not torch.allclose(got, before, rtol=1e-3)


@pytest.mark.parametrize("a", ["free", "tied"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_have_torch_s_default_dtype(dtype: torch.dtype, a: Any) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(NORMED, a=a, n_layers=2)
    torch.set_default_dtype(dtype)
    try:
        model = MambaClassifier(config)
        logits = model(torch.rand(2, 8, 8))
    finally:
        torch.set_default_dtype(torch.float32)
    assert {value.dtype for value in (*model.parameters(), logits)} == {dtype}
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    fused = model.blocks[0].mixer.runs_fused(torch.rand(1, 4, 8, dtype=dtype), model.blocks[0].norm)
    assert fused == (dtype == torch.float64)


@pytest.mark.parametrize("stem", ["patch", "conv", "conv3"])
@pytest.mark.parametrize("scan", ["cpu", "reference"])
def test_a_last_batch_of_one_tiny_image_trains(stem: Any, scan: str) -> None:
    """On a grid of 1x1, a batch norm sees one value per channel."""
    torch.manual_seed(0)
    config = dataclasses.replace(NORMED, height=3, width=2, patch=(3, 2), stem=stem, n_layers=2)
    model = MambaClassifier(config, scan).train()
    assert config.grid == (1, 1)
    model(torch.rand(128, 3, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pixels = torch.rand(1, 3, 2)
    logits = model(pixels)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    norms = [n for n in model.modules() if isinstance(n, torch.nn.BatchNorm2d)]
    statistics = [norm.running_var for norm in norms if norm.running_var is not None]
    assert len(statistics) == len(norms) > 0
    assert all(bool(variance.isfinite().all()) for variance in statistics)
    if stem == "patch":  # no norm sees more than one value
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
        torch.testing.assert_close(logits, model.eval()(pixels))


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("scan", ["cpu", "reference"])
def test_no_images_have_no_logits_and_no_gradient(name: str, scan: str) -> None:
    model = make_model(name, scan=scan).train()
    logits = model(make_images(model.config, 1)[:0].float())
    assert logits.shape == (0, model.config.n_classes)
    logits.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("changed", ["hooked", "replaced"])
def test_the_final_norm_is_called_if_it_was_changed(changed: str) -> None:
    model = make_model("patch_forward_mean")
    pixels = make_images(model.config, 2).float() / 255
    calls = []
    expected = model(pixels)
    if changed == "replaced":
        model.norm_f = torch.nn.LayerNorm(model.config.d_model)  # type: ignore[assignment]
    model.norm_f.register_forward_hook(lambda _, __, output: calls.append(output))
    logits = model(pixels)
    torch.testing.assert_close(logits, model.head(calls[0].mean(dim=1)))
    assert torch.allclose(logits, expected, atol=1e-5) == (changed == "hooked")


def test_a_patch_s_channels_are_next_to_each_other() -> None:
    """The weight of input (row * 4 + column) * 3 + channel sees that value of its patch alone."""
    model = make_model("colours")
    image = torch.arange(8 * 8 * 3).reshape(1, 8, 8, 3) / 192
    state = model.state_dict()
    state["stem.linear.weight"] = torch.zeros_like(state["stem.linear.weight"])
    for row, column, channel in ((0, 0, 0), (0, 0, 2), (1, 3, 1)):
        i = (row * 4 + column) * 3 + channel
        state["stem.linear.weight"][i] = torch.eye(24)[i]
    state["stem.linear.bias"] = torch.zeros_like(state["stem.linear.bias"])
    state["pos_embed"] = torch.zeros_like(state["pos_embed"])
    model.load_state_dict(state)
    tokens = model.classifiers[0].tokens(image)[0].unflatten(0, model.config.grid)
    expected = (image[0] - model.config.pixel_mean) / model.config.pixel_std
    for row, column, channel in ((0, 0, 0), (0, 0, 2), (1, 3, 1)):
        i = (row * 4 + column) * 3 + channel
        torch.testing.assert_close(tokens[..., i], expected[row::2, column::4, channel])


@pytest.mark.parametrize("name", ["patch_tied", "conv_alternate", "ensemble"])
def test_grey_images_may_have_a_dim_of_one_channel(name: str) -> None:
    model = make_model(name)
    pixels = make_images(model.config, 3) / 255
    assert torch.equal(model(pixels.unsqueeze(3)), model(pixels))


@pytest.mark.parametrize("name", ["colours", "colours_conv3"])
def test_images_with_other_channels_are_refused(name: str) -> None:
    model = make_model(name)
    pixels = make_images(model.config, 3) / 255
    shape = ", ".join(map(str, pixels.shape[1:]))
    for wrong in (pixels[..., 0], pixels[..., :1], pixels.permute(0, 3, 1, 2), pixels[0]):
        with pytest.raises(ValueError, match=rf"expected \(batch, {shape}\)"):
            model(wrong)


def test_images_of_another_size_are_refused() -> None:
    for shape in ((2, 8, 9), (2, 9, 8), (8, 8), (2, 1, 8, 8)):
        message = rf"shape {re.escape(str(shape))}, expected \(batch, 8, 8\)"
        with pytest.raises(ValueError, match=message):
            make_model("patch_forward_mean")(torch.zeros(shape))


def test_the_residual_stays_in_fp32_when_the_weights_do_not() -> None:
    model = make_model("patch_forward_mean").bfloat16()
    dtypes = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, inputs, output: dtypes.append(output.dtype))
    logits = model(make_images(model.config, 2).bfloat16() / 255)
    assert dtypes == [torch.float32, torch.float32]
    assert logits.dtype == torch.bfloat16
