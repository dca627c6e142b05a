"""Tests that need a GPU: recorded training steps, and kernels that are interpreted elsewhere."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mnist_mamba.config import ModelConfig, TrainConfig
from mnist_mamba.data.splits import LabelledImages
from mnist_mamba.model import Classifier, build_classifier
from mnist_mamba.model.classifier import BatchNorm
from mnist_mamba.scan import mamba_ssm, selective_scan
from mnist_mamba.scan.reference import selective_scan_reference
from mnist_mamba.training.loop import train
from mnist_mamba.training.resume import SavedTraining, parse_training, save_training
from mnist_mamba.training.trainer import NonFiniteError, Trainer
from tests.library.scan_cases import make_inputs
from tests.models import make_images

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

ENSEMBLE = ModelConfig(
    height=28, width=28, n_classes=10, d_model=16, n_layers=2, d_state=4, stem="conv3",
    stem_width=4, stem_norm="batch", local_conv=True, direction="cross", members=3,
    other_members=({"d_model": 24, "n_layers": 3},),
)  # fmt: skip
ONE = dataclasses.replace(ENSEMBLE, members=1, other_members=())


def batches(*sizes: int) -> list[tuple[Tensor, Tensor]]:
    """Return images (n, 28, 28) in [0, 1] and labels (n,) of each size."""
    images = make_images(ONE, sum(sizes)).float() / 255
    labels = torch.arange(sum(sizes)) % 10
    return list(zip(images.split(sizes), labels.split(sizes), strict=True))


def trained(model: Classifier, recorded: bool, *sizes: int) -> tuple[Trainer, list[float]]:
    """Return the trainer after a step on each batch, and the losses."""
    trainer = Trainer(copy.deepcopy(model), TrainConfig(), "cuda")
    if not recorded:
        trainer._passes = trainer._gradient_and_sums  # type: ignore[assignment]
    losses = [trainer.step(*batch, lr=1e-3)[0] for batch in batches(*sizes)]
    return trainer, losses


def test_a_batch_norm_takes_weights_anywhere_in_memory() -> None:
    vector, maps = torch.rand(89), torch.randn(4, 44, 7, 7)
    maps = maps.to(memory_format=torch.channels_last)  # as the local convolutions make them
    norms = BatchNorm(44), BatchNorm(44).cuda()
    outs = []
    for norm, device in zip(norms, ("cpu", "cuda"), strict=True):
        weights = vector.to(device)  # none at a multiple of 16 bytes
        norm.weight.data, norm.bias.data = weights[1:45], weights[45:]
        outs.append(norm(maps.to(device)).cpu())
    torch.testing.assert_close(outs[1], outs[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norms[1].running_var.cpu(), norms[0].running_var)


@pytest.mark.parametrize("config", [ONE, ENSEMBLE], ids=["one", "ensemble"])
def test_recorded_steps_equal_those_of_python(config: ModelConfig) -> None:
    """Full batches, smaller ones between them, and those that only a graph has run."""
    torch.manual_seed(0)
    model = build_classifier(config)
    sizes = (32, 32, 20, 32, 20, 32, 20)
    (graph, found), (python, expected) = (trained(model, which, *sizes) for which in (True, False))
    assert found == pytest.approx(expected, rel=1e-4)
    for kind in ("model", "ema"):
        values = python.state_dict()[kind]
        values = values.get("model", values)
        others = graph.state_dict()[kind]
        others = others.get("model", others)
        for name, value in values.items():
            torch.testing.assert_close(others[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_the_model_runs_twice_for_each_size() -> None:
    model = build_classifier(ONE).to("cuda")
    calls: list[int] = []
    model.register_forward_hook(lambda _module, inputs, _output: calls.append(len(inputs[0])))
    trainer = Trainer(model, TrainConfig(), "cuda")
    for batch in batches(*[16] * 5, *[8] * 3):
        trainer.step(*batch, lr=1e-3)
    assert calls == [16, 16, 8, 8]


@pytest.mark.parametrize("broken_step", [0, 1, 4])
def test_a_loss_that_is_not_finite_stops_before_the_weights_move(broken_step: int) -> None:
    torch.manual_seed(0)
    trainer = Trainer(build_classifier(ONE), TrainConfig(), "cuda")
    for i, (pixels, labels) in enumerate(batches(*[16] * 5)):
        if i < broken_step:
            trainer.step(pixels, labels, lr=1e-3)
    before = copy.deepcopy(trainer.model.state_dict())
    with pytest.raises(NonFiniteError, match="the loss is nan"):
        trainer.step(pixels * torch.nan, labels, lr=1e-3)
    weights = dict(trainer.model.named_parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in weights.items())


def test_a_restored_state_continues_where_it_was() -> None:
    """Graphs of the steps before read the restored weights, which keep their memory."""
    torch.manual_seed(0)
    trainer, _ = trained(build_classifier(ENSEMBLE), True, 16, 16, 16)
    state: Any = copy.deepcopy(trainer.state_dict())
    batch = batches(16, 16)[1]

    def step() -> float:
        return trainer.step(*batch, lr=1e-2)[0]

    losses = [step(), step()]
    trainer.load_state_dict(state)
    assert [step(), step()] == pytest.approx(losses, rel=1e-4)


def test_a_saved_training_goes_on(tmp_path: Path) -> None:
    images = make_images(ONE, 80).numpy()
    data = LabelledImages(images, (torch.arange(80) % 10).to(torch.uint8).numpy())
    config = TrainConfig(epochs=3, batch_size=32, min_steps=1, save_every=2)
    files: list[bytes] = []

    def save(state: Any) -> None:
        points = [report.curve_point() for report in reports]
        save_training(tmp_path / "state", SavedTraining("key", state, points, b""))
        files.append((tmp_path / "state").read_bytes())

    torch.manual_seed(0)
    model, reports = build_classifier(ENSEMBLE), []
    for report in train(model, data, data, config, "cuda", progress=False, save=save):
        reports.append(report)  # noqa: PERF402 -- `save` reads it meanwhile
    assert len(files) == 5
    for file in files:
        state = parse_training(file, tmp_path).state
        again = build_classifier(ENSEMBLE)
        rest = list(train(again, data, data, config, "cuda", progress=False, state=state))
        assert rest[-1].train_loss == pytest.approx(reports[-1].train_loss, rel=1e-3)
        assert rest[-1].val_loss == pytest.approx(reports[-1].val_loss, rel=1e-3)


@pytest.mark.parametrize("backend", ["triton", "cuda"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(4, 64, 8, 49), (3, 88, 8, 49), (2, 70, 16, 300)], ids=str)
def test_the_kernels_are_the_reference(
    shape: tuple[int, int, int, int], transposed: bool, dtype: torch.dtype, backend: str
) -> None:
    """Output and all gradients; mamba-ssm's kernel is skipped where it is not installed."""
    if backend == "cuda" and (reason := mamba_ssm.why_unavailable(torch.device("cuda"))):
        pytest.skip(reason)
    inputs = {
        name: value if name in ("A", "D", "delta_bias") else value.to(dtype)
        for name, value in make_inputs(*shape, transposed=transposed).items()
    }
    weight = torch.randn(shape[0], shape[1], shape[3], generator=torch.Generator().manual_seed(1))

    def results(scan: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
        leaves = {name: value.detach().requires_grad_() for name, value in inputs.items()}
        out = scan(**leaves, delta_softplus=True)
        gradients = torch.autograd.grad(out, list(leaves.values()), weight.to(out))
        return [value.detach().cpu().double() for value in (out, *gradients)]

    expected = results(selective_scan_reference, {k: v.double() for k, v in inputs.items()})
    found = results(
        lambda **given: selective_scan(**given, backend=backend),
        {name: value.cuda() for name, value in inputs.items()},
    )
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    for got, exact in zip(found, expected, strict=True):
        assert float((got - exact).norm()) <= tolerance * float(exact.norm())
