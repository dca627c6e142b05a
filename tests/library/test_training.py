"""Training: the loop, its parts, checkpoints and resume files."""

from __future__ import annotations

import copy
import dataclasses
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mnist_mamba.config import AugmentConfig, ModelConfig, OptimizerName, TrainConfig
from mnist_mamba.data.splits import LabelledImages
from mnist_mamba.model import Classifier, MambaClassifier, MambaEnsemble, build_classifier
from mnist_mamba.training import loop
from mnist_mamba.training.distributed import Processes
from mnist_mamba.training.ema import Ema
from mnist_mamba.training.epoch import CurvePoint, Epoch, EpochReport, TrainingState
from mnist_mamba.training.evaluation import Scores, predict, score
from mnist_mamba.training.flat_parameters import FlatParameters
from mnist_mamba.training.loop import StoppedError, TrainingError, train
from mnist_mamba.training.members import Members
from mnist_mamba.training.optimizer import learning_rate, split_parameters
from mnist_mamba.training.resume import (
    SavedTraining,
    parse_training,
    save_training,
)
from mnist_mamba.training.trainer import NonFiniteError, Trainer
from tests.models import make_images, make_model

MODEL = ModelConfig(
    height=8, width=8, n_classes=3, d_model=16, n_layers=2, d_state=4, pixel_mean=0.5, pixel_std=0.3
)
NORMED = dataclasses.replace(MODEL, stem="conv", stem_width=4, stem_norm="batch", local_conv=True)
ENSEMBLE = dataclasses.replace(NORMED, members=2)
SHAPES = [MODEL, ENSEMBLE]
SHAPE_NAMES = ["patch", "ensemble_with_batch_norms"]
PLAIN = AugmentConfig(rotate=0, scale=0, shear=0, shift=0)


def bars(n: int, seed: int) -> LabelledImages:
    """Return images of three classes: a bright band at the top, middle or bottom."""
    generator = np.random.default_rng(seed)
    labels = (np.arange(n) % 3).astype(np.uint8)
    images = generator.integers(0, 120, (n, 8, 8), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[3 * label : 3 * label + 2] += 100
    return LabelledImages(images, labels)


def run(
    config: TrainConfig, model: ModelConfig = MODEL, seed: int = 0
) -> tuple[Classifier, list[EpochReport]]:
    """Train a new classifier on bars; return it and the reports."""
    torch.manual_seed(seed)
    classifier = build_classifier(model, scan="reference")
    reports = train(classifier, bars(96, 1), bars(48, 2), config, progress=False)
    return classifier, list(reports)


OPTIMIZERS: list[OptimizerName] = ["adamw", "muon"]


@pytest.mark.parametrize("model", SHAPES, ids=SHAPE_NAMES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_shape_and_optimizer_learns_the_bars(
    optimizer: OptimizerName, model: ModelConfig
) -> None:
    config = TrainConfig(
        epochs=4, batch_size=16, min_steps=1, optimizer=optimizer, lr=1e-2, augment=PLAIN
    )
    _, reports = run(config, model)
    assert reports[-1].val_accuracy >= 0.95
    assert reports[-1].train_loss < reports[0].train_loss
    assert [report.epoch for report in reports] == [1, 2, 3, 4]


def test_the_seed_determines_the_weights_bit_for_bit() -> None:
    config = TrainConfig(epochs=2, batch_size=32, min_steps=1)
    (a, first), (b, second) = run(config), run(config)
    for name, value in a.state_dict().items():
        assert torch.equal(value, b.state_dict()[name]), name
    assert [r.curve_point() for r in first] == [r.curve_point() for r in second]
    other, _ = run(dataclasses.replace(config, seed=1))
    assert any(not torch.equal(v, other.state_dict()[k]) for k, v in a.state_dict().items())


def test_ensemble_members_learn_from_their_own_loss() -> None:
    """A member's gradient in an ensemble of two is half the gradient it has when trained alone."""
    torch.manual_seed(0)
    ensemble = MambaEnsemble(ENSEMBLE, scan="reference")
    config = TrainConfig(clip_norm=0)
    alone = [Trainer(copy.deepcopy(member), config) for member in ensemble.classifiers]
    pixels, labels = torch.rand(12, 8, 8), torch.arange(12) % 3
    losses = [trainer.step(pixels, labels, lr=1e-3)[0] for trainer in alone]
    loss, _ = Trainer(ensemble, config).step(pixels, labels, lr=1e-3)
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)
    assert loss == pytest.approx(sum(losses) / 2, rel=1e-6)
    for member, trainer in zip(ensemble.classifiers, alone, strict=True):
        for part, whole in zip(member.parameters(), trainer.model.parameters(), strict=True):
            assert part.grad is not None
            assert whole.grad is not None
            torch.testing.assert_close(2 * part.grad, whole.grad, rtol=1e-4, atol=1e-7)


def test_an_ensemble_s_logits_are_the_mean_of_its_members() -> None:
    ensemble = make_model("ensemble")
    assert isinstance(ensemble, MambaEnsemble)
    pixels = torch.rand(5, 8, 8)
    with torch.no_grad():
        each = [member(pixels) for member in ensemble.classifiers]
        torch.testing.assert_close(ensemble(pixels), sum(each) / 3)
    assert all((one - each[0]).abs().max() > 0.01 for one in each[1:])
    assert ensemble.n_parameters == 3 * ensemble.classifiers[0].n_parameters
    with pytest.raises(ValueError, match="members = 3: expected 1"):
        MambaClassifier(ensemble.config)


def test_an_infinite_loss_stops_training_and_names_step_and_rate() -> None:
    with pytest.raises(TrainingError, match=r"step \d+ \(epoch \d\), learning rate") as error:
        run(TrainConfig(epochs=4, batch_size=32, min_steps=1, lr=1e18, clip_norm=0, augment=PLAIN))
    assert "train.lr" in str(error.value)


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_changes_no_weight(clip_norm: float) -> None:
    """The loss of that step is finite: only the gradient's norm tells."""
    torch.manual_seed(0)
    model = MambaClassifier(MODEL, scan="reference")
    trainer = Trainer(model, TrainConfig(clip_norm=clip_norm))
    trainer.model.head.bias.register_hook(lambda gradient: gradient / 0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(NonFiniteError, match=r"the norm of the gradient is (nan|inf)"):
        trainer.step(torch.rand(4, 8, 8), torch.tensor([0, 1, 2, 0]), lr=0.1)
    for part in (model, trainer.ema.model):
        assert all(torch.equal(value, before[k]) for k, value in part.state_dict().items())


@pytest.mark.parametrize("config", [{"lr": 3e38}, {"weight_decay": 1e300}], ids=["lr", "decay"])
def test_a_step_that_makes_a_weight_infinite_stops_training(config: dict[str, float]) -> None:
    """The last step of a training has no later loss that would tell."""
    with pytest.raises(TrainingError, match=r"\S+ holds NaN or infinity at step 1 \(epoch 1\)"):
        run(TrainConfig(epochs=1, batch_size=96, min_steps=1, augment=PLAIN, **config))


def test_a_statistic_that_is_not_finite_stops_training_before_it_is_saved() -> None:
    """The loss is finite: in training, batch norms use their batch."""
    model = MambaClassifier(NORMED, scan="reference")
    with torch.no_grad():
        model.stem.get_submodule("conv1").weight.mul_(1e20)
    config = TrainConfig(epochs=2, batch_size=32, min_steps=1, save_every=2)
    states: list[TrainingState] = []
    with pytest.raises(TrainingError, match=r"norm1\.running_var holds NaN or infinity at step 2"):
        list(train(model, bars(96, 1), None, config, progress=False, save=states.append))
    assert states == []


def test_after_a_failed_step_no_member_goes_on() -> None:
    """Its gradient would be added to that of the next step."""
    model = build_classifier(ENSEMBLE, scan="reference")
    trainer = Trainer(model, TrainConfig())
    slow, done = model.classifiers[1], []

    def fail(*_: object) -> None:
        raise MemoryError("no memory")

    def wait(*_: object) -> None:
        time.sleep(0.3)
        done.append(True)

    model.classifiers[0].register_forward_pre_hook(fail)
    slow.register_forward_hook(wait)
    with pytest.raises(MemoryError):
        trainer.step(torch.rand(4, 8, 8), torch.tensor([0, 1, 2, 0]), lr=0.1)
    assert done == [True]


def test_after_a_member_that_cannot_start_none_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    submit, calls, done = ThreadPoolExecutor.submit, [], []

    def fail_at_the_second(pool: Any, *arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise RuntimeError("can't start new thread")
        return submit(pool, *arguments)

    def wait(_: object) -> None:
        time.sleep(0.3)
        done.append(True)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", fail_at_the_second)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with pytest.raises(RuntimeError, match="can't start"):
        Members(build_classifier(ENSEMBLE, scan="reference")).map(wait)
    assert done == [True]


def test_an_ensemble_on_the_cpu_does_not_start_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forked child cannot start it, if the machine has a GPU."""
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: pytest.fail("CUDA was started"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", torch.cuda._lazy_init)
    run(TrainConfig(epochs=1, batch_size=32, min_steps=1), ENSEMBLE)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("same_number", [False, True])
def test_an_ensemble_trains_in_a_forked_child(
    same_number: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if same_number:  # as in another PID namespace
        monkeypatch.setattr(os, "getpid", lambda: 7)
    trainer = Trainer(build_classifier(ENSEMBLE, scan="reference"), TrainConfig())
    arguments = (torch.rand(4, 8, 8), torch.tensor([0, 1, 2, 0]), 0.1)
    trainer.step(*arguments)
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        trainer.step(*arguments)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def test_predict_calls_replaced_members_and_keeps_each_module_s_mode() -> None:
    model = build_classifier(ENSEMBLE, scan="reference").train()
    images = torch.from_numpy(bars(9, 1).images)
    model.members[1] = torch.nn.Sequential(model.members[1])
    model.classifiers[0].stem.get_submodule("norm1").eval()
    modes = [module.training for module in model.modules()]
    expected = copy.deepcopy(model).eval()(images.float() / 255)
    torch.testing.assert_close(predict(model, images), expected)
    assert [module.training for module in model.modules()] == modes
    assert model.n_parameters == sum(p.numel() for p in model.parameters())


def test_a_validation_loss_that_is_not_finite_stops_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop, "score", lambda *_: Scores(accuracy=0.5, loss=float("inf")))
    with pytest.raises(TrainingError, match="the validation loss is inf after epoch 1"):
        run(TrainConfig(epochs=2, batch_size=32, min_steps=1))


def test_a_report_has_the_seconds_of_each_part_of_an_epoch() -> None:
    _, reports = run(TrainConfig(epochs=2, batch_size=32, min_steps=1))
    for report in reports:
        seconds = dataclasses.asdict(report.seconds)
        assert set(seconds) == {"data", "steps", "evaluation"}
        assert all(value > 0 for value in seconds.values())
        assert report.images_per_s == pytest.approx(96 / (seconds["data"] + seconds["steps"]))
    assert reports[0].seconds_left > reports[1].seconds_left == 0


RESUMED = TrainConfig(epochs=2, batch_size=20, min_steps=1, save_every=2)
"""Five steps per epoch, the last with 16 images."""


def curve_point(epoch: int) -> CurvePoint:
    """Return some epoch's point of the learning curves, without validation."""
    val = {"val_loss": None, "val_accuracy": None}
    return {"epoch": epoch, "lr": 0.1, "train_loss": 1.5, "train_accuracy": 0.5, **val}


def saved_states(
    config: TrainConfig, path: Path, dims: ModelConfig = MODEL
) -> tuple[list[bytes], Classifier, list[EpochReport]]:
    """Return every state file of an uninterrupted training, its final model and its reports."""
    files: list[bytes] = []

    def save(state: TrainingState) -> None:
        points = [curve_point(epoch) for epoch in range(1, state.epoch)]
        save_training(path, SavedTraining("key", state, points, b""))
        files.append(path.read_bytes())

    torch.manual_seed(0)
    model = build_classifier(dims, scan="reference")
    reports = list(train(model, bars(96, 1), bars(48, 2), config, progress=False, save=save))
    return files, model, reports


@pytest.mark.parametrize("dims", SHAPES, ids=SHAPE_NAMES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_training_resumed_anywhere_ends_with_the_same_bits(
    optimizer: OptimizerName, dims: ModelConfig, tmp_path: Path
) -> None:
    shrinking = AugmentConfig(elastic=0.05, hold=0.25, end=0.5)
    config = dataclasses.replace(RESUMED, optimizer=optimizer, augment=shrinking)
    files, model, reports = saved_states(config, tmp_path / "state", dims)
    states = [parse_training(data, tmp_path).state for data in files]
    saved = [(state.epoch, state.steps) for state in states]
    assert saved == [(1, 2), (1, 4), (2, 0), (2, 2), (2, 4)]
    for state in states:
        torch.manual_seed(1)  # other initial weights must not matter
        again = build_classifier(dims, scan="reference")
        rest = list(train(again, bars(96, 1), bars(48, 2), config, progress=False, state=state))
        where = f"epoch {state.epoch}, step {state.steps}"
        for name, value in model.state_dict().items():
            assert torch.equal(value, again.state_dict()[name]), (where, name)
        average, expected = rest[-1].model.state_dict(), reports[-1].model.state_dict()
        assert all(torch.equal(value, average[name]) for name, value in expected.items()), where
        points = [report.curve_point() for report in reports[state.epoch - 1 :]]
        assert [report.curve_point() for report in rest] == points, where


def test_a_training_stopped_in_any_step_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    config = dataclasses.replace(RESUMED, save_every=0)
    whole, reports = run(config, ENSEMBLE)
    steps = 0

    def stop() -> bool:
        nonlocal steps
        steps += 1
        return steps == stopped_after

    for stopped_after in (1, 5, 7):
        states: list[TrainingState] = []
        steps = 0
        torch.manual_seed(0)
        model = build_classifier(ENSEMBLE, scan="reference")
        data = (bars(96, 1), bars(48, 2), config)
        epoch, step = divmod(stopped_after, 5)
        where = f"step {step} of 5 of epoch {epoch + 1}"
        with pytest.raises(StoppedError, match=where):
            list(train(model, *data, progress=False, save=states.append, stop=stop))
        again = build_classifier(ENSEMBLE, scan="reference")
        rest = list(train(again, *data, progress=False, state=copy.deepcopy(states[-1])))
        assert rest[-1].curve_point() == reports[-1].curve_point(), where
        for name, value in whole.state_dict().items():
            assert torch.equal(value, again.state_dict()[name]), (where, name)


@pytest.mark.parametrize("scan", ["reference", "cpu"])
def test_an_ensemble_s_bits_do_not_depend_on_the_threads(scan: str) -> None:
    found, threads = [], torch.get_num_threads()
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            torch.manual_seed(0)
            model = build_classifier(dataclasses.replace(ENSEMBLE, members=3), scan=scan)
            config = TrainConfig(epochs=1, batch_size=40)
            reports = list(train(model, bars(96, 1), bars(48, 2), config, progress=False))
            assert torch.get_num_threads() == n
            # The number that a new thread gets.
            assert ThreadPoolExecutor(1).submit(torch.get_num_threads).result() == n
            weights = reports[-1].model.state_dict()
            found.append((reports[-1].curve_point(), [v.tolist() for v in weights.values()]))
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1] == found[2]


def test_a_small_data_set_is_trained_in_many_small_steps() -> None:
    config = TrainConfig(batch_size=128, min_steps=16)
    sizes = {n: config.images_per_step(n) for n in (1, 16, 17, 540, 2048, 60000)}
    assert sizes == {1: 1, 16: 1, 17: 2, 540: 34, 2048: 128, 60000: 128}
    batches = Epoch(1, 540, config).batches
    assert [len(batch) for batch in batches] == [34] * 15 + [30]


@pytest.mark.parametrize(
    ("n_images", "epochs", "momentum"),
    [(60000, 20, 0.01), (54000, 5, 0.01), (256, 125, 0.01), (256, 20, 20 / 320), (8, 2, 1.0)],
)
def test_short_trainings_average_the_norms_statistics_over_fewer_steps(
    n_images: int, epochs: int, momentum: float
) -> None:
    assert TrainConfig(epochs=epochs).resolved_momentum(n_images) == pytest.approx(momentum)
    fixed = TrainConfig(epochs=epochs, norm_momentum=0.3)
    assert fixed.resolved_momentum(n_images) == 0.3


@pytest.mark.parametrize("steps", [20, 100])
def test_the_norms_statistics_are_those_of_the_averaged_weights(steps: int) -> None:
    """With a fixed momentum of 0.01, a short training's logits had nothing of its weights."""
    config = TrainConfig(epochs=steps // 5, batch_size=20, min_steps=1, lr=1e-2, augment=PLAIN)
    _, reports = run(config, NORMED)
    model, images = reports[-1].model, torch.from_numpy(bars(960, 1).images)
    found = predict(model, images)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
    with torch.no_grad():
        model.train()(images.float() / 255)
    expected = predict(model, images)
    gap = (found - expected).norm() / expected.norm()
    assert gap < 0.15
    agree = (found.argmax(dim=1) == expected.argmax(dim=1)).float().mean()
    assert agree > 0.95


def test_saving_states_changes_no_bit_of_the_weights(tmp_path: Path) -> None:
    often, model, _ = saved_states(dataclasses.replace(RESUMED, save_every=1), tmp_path / "a")
    seldom, other, _ = saved_states(dataclasses.replace(RESUMED, save_every=0), tmp_path / "b")
    assert (len(often), len(seldom)) == (9, 1)
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("n", [0, 1, 2, 5, 128])
def test_the_processes_shares_partition_the_items_in_order(size: int, n: int) -> None:
    items = list(range(n))
    shares = [items[Processes(rank, size).share(n)] for rank in range(size)]
    assert [item for share in shares for item in share] == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_learning_rate_warms_up_and_decays_to_lr_end() -> None:
    config = TrainConfig(lr=2.0, warmup=0.2, lr_end=0.1)
    rates = [learning_rate(step, 100, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[19] == pytest.approx(2.0)
    assert rates[19:] == sorted(rates[19:], reverse=True)
    assert rates[-1] == pytest.approx(0.2)
    assert learning_rate(0, 1, TrainConfig(lr=1.0)) == 1.0
    assert learning_rate(1, 2, TrainConfig(lr=1.0, lr_end=0.5)) == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["patch_bidirectional_tied", "conv_alternate"])
def test_weight_decay_applies_only_to_matrices_and_filters(name: str) -> None:
    model = make_model(name)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    model.head.bias.requires_grad_(False)
    kinds = split_parameters(model)
    matrix_names = {names[id(p)] for p in kinds.matrices}
    decayed_names = {names[id(p)] for p in kinds.decayed}
    no_decay_names = {names[id(p)].split(".", 2)[-1] for p in kinds.no_decay}
    assert {"mixer.D", "norm.weight", "mixer.dt_proj.bias", "mixer.conv1d.bias"} <= no_decay_names
    some = ("log", "bias", "D", "D_b", "pos_embed")
    assert not any(n.endswith(some) for n in decayed_names | matrix_names)
    assert "head.weight" in decayed_names
    assert all("_proj" in n for n in matrix_names)
    assert sum(map(len, kinds)) == len(names) - 1  # all but the frozen bias
    sizes = [sum(p.numel() for p in kind) for kind in kinds]
    decays = [0.3, 0.3, 0.0]  # not the optimizers' own defaults
    for optimizer in OPTIMIZERS:
        config = TrainConfig(optimizer=optimizer, weight_decay=0.3)
        groups = [g for o in Trainer(model, config).optimizers.all for g in o.param_groups]
        assert [g["weight_decay"] for g in groups] == decays
        assert [sum(p.numel() for p in g["params"]) for g in groups] == sizes


def test_muon_steps_matrices_orthogonally_and_adamw_the_rest() -> None:
    config = TrainConfig(optimizer="muon", weight_decay=0, augment=PLAIN)
    model = make_model("conv_alternate")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    images = make_images(model.config, 8)
    Trainer(model, config).step(images.float() / 255, torch.arange(8) % 10, lr=0.01)
    for name, parameter in model.named_parameters():
        step = parameter.detach() - before[name]
        if name.endswith("_proj.weight"):
            size = 0.2 * 0.01 * max(step.shape) ** 0.5
            # Muon's iteration leaves singular values near 1; adding to the weights rounds them.
            values = torch.linalg.svdvals(step) / size
            assert values.max() < 1.4, name
            assert values.median() > 0.5, name
        else:
            # AdamW's first step is the rate itself, or less where the gradient is nearly 0.
            assert step.abs().max() < 0.01001, name
            assert step.abs().max() > 0.005, name


def test_without_validation_images_nothing_is_validated() -> None:
    torch.manual_seed(0)
    classifier = MambaClassifier(MODEL, scan="reference")
    config = TrainConfig(epochs=1, batch_size=16, min_steps=1, augment=PLAIN)
    (report,) = train(classifier, bars(32, 1), None, config, progress=False)
    assert (report.val_loss, report.val_accuracy) == (None, None)
    assert report.curve_point()["val_loss"] is None


def test_ema_decay_warms_up() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    ema = Ema(model, decay=0.5)
    weights = [FlatParameters(kind).vector for kind in split_parameters(model)]
    torch.nn.init.ones_(model.weight)
    expected = 0.0
    for step in range(1, 30):
        ema.update(weights)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay)
        assert float(ema.model.weight.detach()) == pytest.approx(expected, rel=1e-5)


def test_ema_averages_batch_norm_statistics() -> None:
    torch.manual_seed(0)
    trainer = Trainer(MambaClassifier(NORMED, scan="reference"), TrainConfig(ema_decay=0.5))
    expected = [torch.zeros(4), torch.ones(4)]
    for step in range(1, 12):
        trainer.step(torch.rand(6, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2]), lr=0.01)
        decay = min(0.5, (1 + step) / (10 + step))
        norm = trainer.model.stem.get_submodule("norm1")
        for one, live in zip(expected, (norm.running_mean, norm.running_var), strict=True):
            one.mul_(decay).add_(live, alpha=1 - decay)
    average = trainer.ema.model.stem.get_submodule("norm1")
    assert not average.training
    torch.testing.assert_close(average.running_mean, expected[0])
    torch.testing.assert_close(average.running_var, expected[1])


def test_maps_keep_their_size_during_hold_and_then_shrink_to_end_but_corruptions_stay() -> None:
    config = AugmentConfig(elastic=0.05, hold=0.5, end=0.2, corrupt=0.3)
    sizes = ("rotate", "scale", "shear", "shift", "elastic")
    for progress, size in ((0, 1), (0.25, 1), (0.5, 1), (0.75, 0.6), (1, 0.2)):
        now = config.at(progress)
        for name in sizes:
            assert getattr(now, name) == pytest.approx(size * getattr(config, name))
        assert now.elastic_scale == config.elastic_scale
        assert (now.corrupt, now.corruptions) == (0.3, config.corruptions)
    assert AugmentConfig(elastic=0.03, end=1).at(0.97) == AugmentConfig(elastic=0.03, end=1)
    assert dataclasses.replace(config, end=0).at(1).maps == {}


def test_each_step_uses_the_augmentation_of_its_progress(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shifts = []

    def spy(pixels: torch.Tensor, config: AugmentConfig, *_: object) -> torch.Tensor:
        shifts.append(config.shift)
        return pixels

    monkeypatch.setattr(loop, "augment", spy)
    augment = AugmentConfig(shift=0.1, hold=0.5, end=0)
    run(TrainConfig(epochs=2, batch_size=24, min_steps=1, augment=augment))
    assert shifts == pytest.approx([0.1] * 5 + [0.075, 0.05, 0.025])


def test_score_matches_accuracy_and_cross_entropy_of_the_logits() -> None:
    model = make_model("patch_forward_mean")
    images = make_images(model.config, 7)
    logits = predict(model, images, batch_size=3)
    torch.testing.assert_close(logits, model(images.float() / 255).detach())
    labels = logits.argmax(dim=1)
    labels[0] = (labels[0] + 1) % 10
    scores = score(model, images, labels, batch_size=4)
    assert scores.accuracy == pytest.approx(6 / 7)
    log_p = logits.double().log_softmax(dim=1)
    assert scores.loss == pytest.approx(-float(log_p[torch.arange(7), labels].mean()))
