"""`make bench-digits`, first part: train the convolutional networks that it compares with.

They learn from the images, with the augmentation, the schedule and the moving average of the
default model (params.yaml), by the same training loop. Records are in metrics/convnets.json;
trainings that have one are not repeated.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import hashlib
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from benchmarks import harness
from benchmarks.harness import Answer, Limits, Spec
from mnist_mamba.atomic_write import replacing
from mnist_mamba.data.splits import LabelledImages
from mnist_mamba.model import Classifier
from mnist_mamba.training.evaluation import score
from mnist_mamba.training.loop import train
from pipeline.common import command, paths
from pipeline.common.params import TrainParams, load_params
from pipeline.common.prepared_data import read_split, read_training_data
from pipeline.seeds import summary
from pipeline.series import trainings as series

logger = logging.getLogger(__name__)

RESULTS = paths.METRICS / "convnets.json"
WORKER = (sys.executable, "-m", "benchmarks.convnets", "worker")
LIMITS = Limits(memory_gb=16, time_s=24 * 3600)
SIDE, CLASSES = 28, 10
SEEDS = [0, 1, 2, 3, 4]


@dataclasses.dataclass(frozen=True)
class Network:
    """Convolutions with ReLU, in stages that end with max pooling by 2, and a linear head."""

    kernel: int
    """Height and width of each convolution, which keeps the size of its input."""
    stages: tuple[tuple[int, ...], ...]
    """Output channels of each stage's convolutions."""
    norm: bool
    """Whether a batch norm follows each convolution."""
    lr: float
    """Peak learning rate."""


NETWORKS = {
    "lenet": Network(kernel=5, stages=((16,), (32,)), norm=False, lr=3e-3),
    "vgg-48": Network(kernel=3, stages=((16, 16), (32, 32), (48,)), norm=True, lr=6e-3),
    "vgg-64": Network(kernel=3, stages=((32, 32), (64, 64)), norm=True, lr=6e-3),
}
QUICK_NETWORKS = {
    name: dataclasses.replace(network, stages=tuple((2,) for _ in network.stages))
    for name, network in NETWORKS.items()
}
"""Tiny networks, which only show that everything runs."""


class ConvNet(nn.Module):
    """Pixels (batch, 28, 28) in [0, 1] to logits (batch, 10)."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for stage in network.stages:
            for out in stage:
                layers.append(
                    nn.Conv2d(channels, out, network.kernel, padding="same", bias=not network.norm)
                )
                layers += [nn.BatchNorm2d(out)] if network.norm else []
                layers.append(nn.ReLU())
                channels = out
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        side = SIDE >> len(network.stages)
        self.head = nn.Linear(channels * side * side, CLASSES)

    @property
    def classifiers(self) -> list[ConvNet]:
        """The network itself: the training loop asks each model for its members."""
        return [self]

    def forward(self, pixels: Tensor) -> Tensor:
        # Channels last: a training step takes a fifth less.
        maps = pixels.unsqueeze(1).to(memory_format=torch.channels_last)
        logits: Tensor = self.head(self.features(maps).flatten(1))
        return logits


def folded(model: ConvNet) -> ConvNet:
    """Return a copy in evaluation mode, with each batch norm folded into its convolution."""
    model = copy.deepcopy(model).eval()
    layers: list[nn.Module] = []
    for layer in model.features:
        if isinstance(layer, nn.BatchNorm2d):
            layers[-1] = fuse_conv_bn_eval(cast(nn.Conv2d, layers[-1]), layer)
        else:
            layers.append(layer)
    model.features = nn.Sequential(*layers)
    return model


class ConvTraining(series.Training):
    """One training of a network; its key has the network, the data and the training's settings."""

    @property
    def key(self) -> str:
        """The key of all that decides the weights, but for the code."""
        settings = dataclasses.asdict(self.params.train)
        content = [dataclasses.asdict(NETWORKS[self.name]), settings, series.data_md5()]
        return hashlib.md5(json.dumps(content).encode(), usedforsecurity=False).hexdigest()

    @property
    def weights(self) -> Path:
        """The file of the averaged weights after the last step."""
        return self.folder / "weights.pth"


def as_series() -> series.Series:
    """Return what differs from params.yaml: the rates, the optimizer, and all images to train."""
    runs = {name: {"train.lr": network.lr} for name, network in NETWORKS.items()}
    shared = {"train.on_val": True, "train.optimizer": "adamw"}
    return series.Series(params=shared, seeds=SEEDS, runs=runs)


def wanted() -> list[ConvTraining]:
    """Return all trainings: each network with the first seed, then with the second, ..."""
    return [
        ConvTraining(one.name, one.seed, one.params, one.changes)
        for one in series.trainings(as_series(), load_params())
    ]


def train_network(network: Network, data: LabelledImages, config: TrainParams) -> ConvNet:
    """Train and return the averaged network after the last step."""
    torch.manual_seed(config.seed)
    model = cast(Classifier, ConvNet(network))
    for report in train(model, data, None, config, progress=False):
        averaged = report.model
        logger.info("epoch %d: training loss %.4f", report.epoch, report.train_loss)
    return cast(ConvNet, averaged)


def measure(spec: Spec) -> Answer:
    """Train one network and write its weights; return its accuracy and number of parameters."""
    (training,) = (one for one in wanted() if (one.name, one.seed) == (spec["name"], spec["seed"]))
    data, _ = read_training_data(on_val=True)
    model = train_network(NETWORKS[training.name], data, training.params.train)
    with replacing(training.weights) as temporary:
        torch.save(model.state_dict(), temporary)
    test = read_split(paths.PREPARED, "test", "prepare")
    images, labels = torch.from_numpy(test.images), torch.from_numpy(test.labels).long()
    accuracy = score(cast(Classifier, model), images, labels).accuracy
    return {"test_accuracy": accuracy, "params": sum(p.numel() for p in model.parameters())}


def train_apart(training: series.Training) -> series.TrainingRecord:
    """Run `measure` in a process of its own."""
    spec = {"name": training.name, "seed": training.seed}
    return harness.run_worker(WORKER, spec, LIMITS)


def load(name: str) -> ConvNet:
    """Return a network with the weights of the first seed.

    Raises:
        BenchError: they have not been trained on this machine.
    """
    training = next(one for one in wanted() if one.name == name)
    if not training.weights.is_file():
        raise harness.BenchError(
            f"{training.weights} not found: run `python -m benchmarks.convnets` first"
        )
    model = ConvNet(NETWORKS[name])
    model.load_state_dict(torch.load(training.weights, weights_only=True))
    return model.eval()


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    examples = ["make bench-digits", "python -m benchmarks.convnets --only lenet --jobs 1"]
    parser = command.parser((__doc__ or "").strip(), examples)
    series.add_options(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the trainings without a record, and the first seed's if its weights are not here."""
    arguments = parse(argv)
    every = wanted()
    runs = series.run_missing(as_series(), every, RESULTS, arguments, train_apart, summary)
    for name, result in runs.items():
        logger.info("%s: %s", name, series.plus_minus(result, ".3%"))
    timed = every[: len(NETWORKS)]  # all networks with the first seed
    for training in timed:
        if training.name in (arguments.only or NETWORKS) and not training.weights.is_file():
            logger.info("training %s again for its weights", training.name)
            train_apart(training)


if __name__ == "__main__":
    if sys.argv[1:] == ["worker"]:
        torch.set_num_threads(1)
        harness.serve(measure)
    else:
        command.run(main)
