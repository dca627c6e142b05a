"""The figures of a training: averages, rates, times, and which step an error names."""

from __future__ import annotations

import copy
import dataclasses
import datetime as dt
import io
import logging
import os
import re
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from tqdm import tqdm

from mnist_mamba.config import AugmentConfig, ModelConfig, OptimizerName, TrainConfig
from mnist_mamba.model import Classifier, build_classifier
from mnist_mamba.training import loop, progress
from mnist_mamba.training.distributed import Processes
from mnist_mamba.training.epoch import Epoch, EpochReport, TrainingState
from mnist_mamba.training.evaluation import Scores, predict, score
from mnist_mamba.training.loop import TrainingError, train
from mnist_mamba.training.optimizer import learning_rate
from mnist_mamba.training.trainer import NonFiniteError, Trainer
from tests.library.test_training import MODEL, NORMED, PLAIN, bars

ANY: Any = None
"""Stands for an argument that is not used."""


def new_model(config: ModelConfig = MODEL) -> Classifier:
    torch.manual_seed(0)
    return build_classifier(config, scan="reference")


@given(
    n_images=st.integers(1, 40),
    batch_size=st.integers(1, 50),
    number=st.integers(1, 3),
    resumed=st.floats(0, 1),
    data=st.data(),
)
def test_an_epoch_s_figures_are_averages_over_its_images(
    n_images: int, batch_size: int, number: int, resumed: float, data: st.DataObject
) -> None:
    """Also with a smaller last batch, and if the epoch was interrupted after any step."""
    config = TrainConfig(epochs=3, batch_size=batch_size, min_steps=1, warmup=0.3)
    epoch = Epoch(number, n_images, config)
    sizes = [len(batch) for batch in epoch.batches]
    losses = data.draw(st.lists(st.floats(0, 9), min_size=len(sizes), max_size=len(sizes)))
    hits = [data.draw(st.integers(0, size)) for size in sizes]
    stop = int(resumed * (len(sizes) - 1))
    for i, step in enumerate(zip(losses, hits, strict=True)):
        if i == stop:
            trainer: Any = SimpleNamespace(state_dict=dict)
            state = epoch.state(trainer)
            epoch = Epoch(number, n_images, config)
            epoch.resume(state)
        assert epoch.images_seen == sum(sizes[:i])
        assert epoch.images_seen_total == (number - 1) * n_images + sum(sizes[:i])
        epoch.add_step(*step)
    epoch.seconds.data, epoch.seconds.steps, epoch.seconds.evaluation = 2.0, 3.0, 100.0
    report = epoch.report(Scores(accuracy=0.25, loss=2.5), 7.0, model=ANY)
    loss_sum = sum(loss * size for loss, size in zip(losses, sizes, strict=True))
    assert report.train_loss == pytest.approx(loss_sum / n_images)
    assert report.train_accuracy == sum(hits) / n_images
    assert report.images_per_s == pytest.approx(sum(sizes[stop:]) / 5)
    total = 3 * len(sizes)
    assert report.lr == learning_rate(number * len(sizes) - 1, total, config)
    assert (report.val_accuracy, report.val_loss) == (0.25, 2.5)
    assert (report.epoch, report.seconds_left) == (number, 7.0)


def test_each_epoch_of_each_seed_has_an_order_of_its_own() -> None:
    orders = [
        torch.cat(Epoch(number, 50, TrainConfig(seed=seed, batch_size=16, min_steps=1)).batches)
        for seed in range(3)
        for number in range(1, 4)
    ]
    assert all(sorted(order.tolist()) == list(range(50)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == len(orders)


@pytest.mark.parametrize("dims", [MODEL, NORMED], ids=["patch", "conv_batch_norm"])
def test_reports_are_those_of_steps_taken_by_hand(dims: ModelConfig) -> None:
    """One batch holds all images, so that their order does not matter."""
    config = TrainConfig(
        epochs=3,
        batch_size=30,
        min_steps=1,
        lr=0.05,
        ema_decay=0.5,
        augment=PLAIN,
        label_smoothing=0.1,
    )
    train_set, val_set = bars(30, 1), bars(12, 2)
    model = new_model(dims)
    momentum = config.resolved_momentum(30)
    trainer = Trainer(copy.deepcopy(model), config, norm_momentum=momentum)
    pixels = torch.from_numpy(train_set.images) / 255
    labels = torch.from_numpy(train_set.labels).long()
    for i, report in enumerate(train(model, train_set, val_set, config, progress=False)):
        loss, hits = trainer.step(pixels, labels, learning_rate(i, 3, config))
        scores = score(
            trainer.ema.model,
            torch.from_numpy(val_set.images),
            torch.from_numpy(val_set.labels).long(),
        )
        assert report.train_loss == pytest.approx(loss, rel=1e-4)
        assert report.train_accuracy == hits / 30
        assert report.val_loss == pytest.approx(scores.loss, rel=1e-3)
        assert report.val_accuracy == scores.accuracy
        expected = trainer.ema.model.state_dict()
        for name, value in report.model.state_dict().items():
            torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("clip_norm", [0.0, 0.1, 1e6])
def test_the_optimizer_gets_the_clipped_gradient_of_the_smoothed_loss(
    clip_norm: float, optimizer: OptimizerName
) -> None:
    """After one step the optimizer's averages are (1 - decay) times the gradient."""
    config = TrainConfig(
        optimizer=optimizer,
        clip_norm=clip_norm,
        label_smoothing=0.3,
        beta1=0.6,
        beta2=0.8,
        momentum=0.7,
    )
    model = new_model()
    pixels, labels = torch.rand(9, 8, 8), torch.arange(9) % 3
    loss = F.cross_entropy(model(pixels), labels, label_smoothing=0.3)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    norm = torch.linalg.vector_norm(torch.cat([part.flatten() for part in gradients]))
    scale = min(1.0, clip_norm / float(norm)) if clip_norm else 1.0
    trainer = Trainer(model, config)
    assert trainer.step(pixels, labels, lr=0.01)[0] == pytest.approx(float(loss.detach()))
    states = [
        state for one in trainer.state_dict()["optimizers"] for state in one.values() if state
    ]
    squares = scale**2 * sum(part.square().sum() for part in gradients)
    means: dict[str, float] = {"exp_avg": 0.6, "momentum_buffer": 0.7}
    found = sum(
        (state[name] / (1 - decay)).square().sum()
        for state in states
        for name, decay in means.items()
        if name in state
    )
    assert float(found) == pytest.approx(float(squares), rel=1e-4)
    for state in states:
        if "exp_avg" in state:
            expected = (state["exp_avg"] / 0.4).square() * 0.2
            torch.testing.assert_close(state["exp_avg_sq"], expected, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_rate_of_0_moves_no_weight(optimizer: OptimizerName) -> None:
    trainer = Trainer(new_model(), TrainConfig(optimizer=optimizer, lr=1.0))
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.step(torch.rand(6, 8, 8), torch.arange(6) % 3, lr=0.0)
    assert all(torch.equal(value, before[k]) for k, value in trainer.model.state_dict().items())
    trainer.step(torch.rand(6, 8, 8), torch.arange(6) % 3, lr=0.01)
    moved = [not torch.equal(v, before[k]) for k, v in trainer.model.state_dict().items()]
    assert all(moved)


def test_the_average_moves_towards_the_weights_after_the_step() -> None:
    trainer = Trainer(new_model(), TrainConfig(ema_decay=0.9))
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.step(torch.rand(6, 8, 8), torch.arange(6) % 3, lr=0.1)
    average = trainer.ema.model.state_dict()
    for name, value in trainer.model.state_dict().items():
        torch.testing.assert_close(average[name], torch.lerp(value, before[name], 2 / 11))


@pytest.mark.parametrize("training", [True, False])
def test_predicting_uses_the_running_statistics_and_keeps_the_mode(training: bool) -> None:
    model = new_model(NORMED)
    images = torch.from_numpy(bars(10, 3).images)
    with torch.no_grad():
        expected = copy.deepcopy(model).eval()(images / 255)
    model.train(training)
    before = copy.deepcopy(model.state_dict())
    torch.testing.assert_close(predict(model, images, batch_size=4), expected)
    assert [module.training for module in model.modules()].count(not training) == 0
    assert all(torch.equal(value, before[k]) for k, value in model.state_dict().items())


def test_a_trainer_trains_a_model_that_was_in_evaluation_mode() -> None:
    model = new_model(NORMED).eval()
    trainer = Trainer(model, TrainConfig())
    assert model.training
    assert not trainer.ema.model.training
    assert not any(average.requires_grad for average in trainer.ema.model.parameters())


def test_an_ensemble_s_hits_are_those_of_its_mean_logits() -> None:
    ensemble = new_model(dataclasses.replace(MODEL, members=3))
    pixels, labels = torch.rand(60, 8, 8), torch.arange(60) % 3
    with torch.no_grad():
        each = (ensemble.member_logits(pixels).argmax(dim=2) == labels).sum(dim=1)
        together = int((ensemble(pixels).argmax(dim=1) == labels).sum())
    assert together not in each.tolist()
    assert Trainer(ensemble, TrainConfig()).step(pixels, labels, lr=0.01)[1] == together


def test_processes_connect_by_the_backend_of_their_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[Any] = []
    waits: list[dt.timedelta] = []

    def connect(backend: str, timeout: dt.timedelta) -> None:
        calls.append(backend)
        waits.append(timeout)

    monkeypatch.setattr(torch.cuda, "set_device", calls.append)
    monkeypatch.setattr(torch.distributed, "init_process_group", connect)
    monkeypatch.setattr(torch.distributed, "new_group", connect)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: calls.append("end"))
    for processes, device in ((Processes(), "cpu"), (Processes(), "cuda")):
        with processes.connected(device):
            assert calls == []
    for device, wanted in (("cpu", ["gloo", "gloo"]), ("cuda:1", ["cuda:1", "gloo", "nccl"])):
        with Processes(1, 2, 1, 2).connected(device):
            assert calls == wanted
        assert calls == [*wanted, "end"]
        calls.clear()
    # A lost link ends a training within a minute; the start may take longer.
    assert waits[1] < dt.timedelta(seconds=50) < waits[0]
    for device, after in (("cpu", ["gloo", "gloo", "end"]), ("cuda:1", ["cuda:1", "gloo", "nccl"])):
        calls.clear()
        with pytest.raises(RuntimeError, match="failed"), Processes(1, 2, 1, 2).connected(device):
            raise RuntimeError("failed")
        assert calls == after  # nccl would wait for the others, which may never get here


class Clock:
    """A clock that moves only when a spied part of the training runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, data: float, step: float, val: float):
        self.now = 50.0
        for module in (loop, progress):
            monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: self.now))
        for owner, name, seconds in (
            (loop, "augment", data),
            (Trainer, "step", step),
            (loop, "score", val),
        ):
            monkeypatch.setattr(owner, name, self.timed(getattr(owner, name), seconds))

    def timed(self, function: Any, seconds: float) -> Any:
        def run(*arguments: Any) -> Any:
            self.now += seconds
            return function(*arguments)

        return run


def test_times_of_a_resumed_training_count_from_its_resumption(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """96 images in steps of 20: 2 s of data, 3 s of training per step, 10 s per evaluation."""
    config = TrainConfig(epochs=4, batch_size=20, min_steps=1, save_every=3)
    states: list[TrainingState] = []
    first = train(new_model(), bars(96, 1), bars(9, 2), config, progress=False, save=states.append)
    next(first)
    next(first)
    (state,) = (state for state in states if (state.epoch, state.steps) == (2, 3))
    state = copy.deepcopy(state)
    Clock(monkeypatch, 2, 3, 10)
    reports = list(train(new_model(), bars(96, 1), bars(9, 2), config, progress=False, state=state))
    rows = [
        (report.seconds.data, report.seconds.steps, report.seconds.evaluation) for report in reports
    ]
    assert rows == [(4, 6, 10), (10, 15, 10), (10, 15, 10)]
    assert reports[0].images_per_s == pytest.approx(36 / 10)
    assert reports[1].images_per_s == pytest.approx(96 / 25)
    left = [20 / 36 * 192, 55 / (36 + 96) * 96, 0]
    assert [report.seconds_left for report in reports] == pytest.approx(left)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudoterminals")
def test_a_terminal_that_does_not_know_its_size_shows_the_bar(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As that of `docker exec -t` or `script` without one; os.openpty's has 0 rows of 0 columns."""
    reader, terminal = os.openpty()
    os.set_blocking(reader, False)
    with os.fdopen(reader, "rb", buffering=0) as shown, os.fdopen(terminal, "w") as stderr:
        monkeypatch.setattr("sys.stderr", stderr)
        list(train(new_model(), bars(96, 1), None, TrainConfig(epochs=1)))
        assert b"epoch 1/1:   0%" in (shown.read(4096) or b"")


def test_the_progress_bar_counts_images_and_shows_the_report_s_figures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also in an epoch that is resumed after two of its five steps."""
    shown = io.StringIO()

    class Bar(tqdm):  # type: ignore[type-arg]
        """A bar that is drawn after every step, as on a terminal."""

        def __init__(self, **settings: Any) -> None:
            shown_always = {"disable": False, "mininterval": 0, "miniters": 1, "file": shown}
            super().__init__(**{**settings, **shown_always})

    config = TrainConfig(epochs=1, batch_size=20, min_steps=1, save_every=2)
    states: list[TrainingState] = []

    def save(state: TrainingState) -> None:
        states.append(copy.deepcopy(state))

    list(train(new_model(), bars(96, 1), None, config, progress=False, save=save))
    monkeypatch.setattr(progress, "tqdm", Bar)
    (report,) = train(new_model(), bars(96, 1), None, config, state=states[0])
    text = shown.getvalue()
    assert re.search(r"epoch 1/1: .* 40/96 ", text)
    scores = rf"loss {report.train_loss:.4f}, accuracy {report.train_accuracy:.4f}"
    assert re.search(rf" 96/96 .*images/s, {scores}, all epochs in 00:00", text)


def test_without_a_terminal_a_line_every_half_minute_says_what_the_bar_would(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A step takes 12 s and so does the evaluation; a line comes after steps 3 and 5."""
    caplog.set_level(logging.INFO)
    Clock(monkeypatch, 2, 10, 12)
    config = TrainConfig(epochs=2, batch_size=20, min_steps=1)
    arguments = (new_model(), bars(96, 1), bars(9, 2), config)
    list(train(*arguments))
    lines = [line for line in caplog.messages if "images:" in line]
    assert [re.findall(r"epoch ./2, \d+/96", line)[0] for line in lines] == [
        "epoch 1/2, 60/96",
        "epoch 2/2, 20/96",
        "epoch 2/2, 80/96",
    ]
    assert "about 01:19 left for all epochs" in lines[0]  # 132 images at 36 s for 60
    caplog.clear()
    list(train(*arguments, progress=False))
    assert caplog.messages == []


def test_a_step_that_diverges_is_named_with_its_epoch_and_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []

    def step(*_: object) -> tuple[float, int]:
        calls.append(1)
        if len(calls) == 8:
            raise NonFiniteError("the loss is nan")
        return 1.0, 1

    monkeypatch.setattr(Trainer, "step", step)
    config = TrainConfig(epochs=3, batch_size=20, min_steps=1, lr=0.7)
    rate = f"{learning_rate(7, 15, config):.3g}"
    message = rf"^the loss is nan at step 8 \(epoch 2\), learning rate {re.escape(rate)}: .* try"
    with pytest.raises(TrainingError, match=message):
        list(train(new_model(), bars(96, 1), None, config, progress=False))


@dataclasses.dataclass(frozen=True)
class Threads(Processes):
    """Processes of one training as threads of this process; each sum waits for all of them."""

    barrier: threading.Barrier = ANY
    parts: dict[int, Tensor] = ANY

    def sum(self, values: Tensor) -> Tensor:
        self.parts[self.rank] = values.clone()
        self.barrier.wait(60)
        values.copy_(torch.stack([self.parts[rank] for rank in range(self.size)]).sum(dim=0))
        self.barrier.wait(60)
        return values


def test_shares_of_several_processes_add_up_to_the_training_of_one() -> None:
    """41 images in steps of 20: in the last step, two of the three shares are empty."""
    augment = AugmentConfig(elastic=0.03)
    config = TrainConfig(epochs=2, batch_size=20, min_steps=1, lr=3e-3, augment=augment)

    def run(processes: Processes, found: dict[int, list[EpochReport]]) -> None:
        model = copy.deepcopy(start)
        found[processes.rank] = [
            dataclasses.replace(report, model=copy.deepcopy(report.model))
            for report in train(
                model, bars(41, 1), bars(11, 2), config, progress=False, processes=processes
            )
        ]

    start = new_model()
    alone: dict[int, list[EpochReport]] = {}
    run(Processes(), alone)
    barrier, parts = threading.Barrier(3), dict[int, Tensor]()
    shared: dict[int, list[EpochReport]] = {}
    workers = [
        threading.Thread(target=run, args=(Threads(rank, 3, rank, 3, barrier, parts), shared))
        for rank in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert set(shared) == {0, 1, 2}
    for reports in shared.values():
        for one, several in zip(alone[0], reports, strict=True):
            assert several.curve_point() == pytest.approx(one.curve_point(), rel=1e-5)
            for name, value in several.model.state_dict().items():
                torch.testing.assert_close(value, one.model.state_dict()[name], rtol=0, atol=1e-4)


def test_processes_average_their_batch_norms_by_the_sizes_of_their_shares() -> None:
    """Each of two processes sees its own images; the empty share of a third counts for nothing."""
    pixels, labels = torch.rand(5, 8, 8), torch.tensor([0, 1, 2, 0, 1])
    parts = (slice(0, 3), slice(3, 5), slice(5, 5))
    expected: Any = 0
    for share in parts[:2]:
        trainer = Trainer(new_model(NORMED), TrainConfig())
        trainer.step(pixels[share], labels[share], 1e-3)
        mean = trainer.model.stem.get_submodule("norm1").running_mean
        expected = expected + mean * (share.stop - share.start) / 5
    barrier, sums = threading.Barrier(3), dict[int, Tensor]()
    found: dict[int, Any] = {}

    def run(rank: int) -> None:
        trainer = trainers[rank]
        trainer.step(pixels[parts[rank]], labels[parts[rank]], 1e-3, 5)
        found[rank] = trainer.model.stem.get_submodule("norm1").running_mean

    trainers = [
        Trainer(
            new_model(NORMED), TrainConfig(), processes=Threads(rank, 3, rank, 3, barrier, sums)
        )
        for rank in range(3)
    ]
    workers = [threading.Thread(target=run, args=(rank,)) for rank in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for rank in range(3):
        torch.testing.assert_close(found[rank], expected)
