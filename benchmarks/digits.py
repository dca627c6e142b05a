"""`make bench-digits`: time the default model and convolutional networks on real test images.

The model runs in the C engine, PyTorch, torch.compile and ONNX Runtime, the networks
(benchmarks/convnets.py) in ONNX Runtime and OpenVINO. The comparison fails if a logit of any test
image differs from that of the network's own implementation. Results are kept for each processor.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from benchmarks import harness, tables
from benchmarks.digits_cases import CONVNETS, LOADS, MAMBA, PEERS
from benchmarks.digits_plot import draw
from benchmarks.engine import build_engine
from benchmarks.harness import Answer, BenchError, DifferentWorkError, Limits, significant
from benchmarks.options import parse_inference, store
from mnist_mamba.data.idx import read_labels, write_idx
from pipeline.common import command, paths

logger = logging.getLogger(__name__)

WORKER = (sys.executable, "-m", "benchmarks.digits_worker")
LIMITS = Limits(memory_gb=24, time_s=3600)
ENGINES = ("engine", "engine_all_members")
TOLERANCE = 1e-4
"""Largest accepted difference of a logit, relative to the largest logit if that is above 1."""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = command.parser(
        (__doc__ or "").strip(),
        ["make bench-digits", "python -m benchmarks.digits --peers engine,lenet_openvino"],
    )
    return parse_inference(parser, tuple(PEERS), 2.0, argv)


def prepare(folder: Path, peers: Sequence[str], quick: bool) -> None:
    """Build the engine, and write test images, labels and all networks' files."""
    (folder / "logits").mkdir()
    build_engine(folder)
    if quick:
        rng = np.random.default_rng(0)
        write_idx(folder / "test-images.idx", rng.integers(0, 256, (1000, 28, 28), np.uint8))
        write_idx(folder / "test-labels.idx", rng.integers(0, 10, 1000, np.uint8))
    else:
        for path in (paths.images(paths.PREPARED, "test"), paths.labels(paths.PREPARED, "test")):
            _check_exists(path)
            shutil.copyfile(path, folder / path.name)
    used = {PEERS[peer].network for peer in peers}
    if MAMBA in used:
        _prepare_mamba(folder, quick, onnx="onnxruntime" in peers)
    for name in CONVNETS:
        if name in used:
            _prepare_convnet(name, folder, quick)


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise BenchError(f"{path} not found: run `dvc repro` first")


def _prepare_mamba(folder: Path, quick: bool, onnx: bool) -> None:
    """Write the model as checkpoint (no early exit), model file (early exit) and ONNX files."""
    from mnist_mamba.export import write_model
    from mnist_mamba.onnx_file import write_onnx
    from mnist_mamba.training.checkpoint import Checkpoint, save_checkpoint

    model, exit_margin = _quick_mamba() if quick else _default_mamba(folder)
    (folder / MAMBA).mkdir()
    save_checkpoint(folder / MAMBA / "model.pth", Checkpoint(model, 0, 0.0))
    if onnx:
        for load, batch in LOADS.items():
            write_onnx(folder / MAMBA / f"{load}.onnx", model, batch)
    model.exit_margin = exit_margin
    write_model(folder / "mamba.bin", model)


def _default_mamba(folder: Path) -> tuple[Any, float]:
    """Return the model that the pipeline exports, and the exit margin of its file."""
    from mnist_mamba.engine.binding import Engine
    from mnist_mamba.training.checkpoint import load_checkpoint
    from pipeline.common.params import load_params

    checkpoint = paths.CHECKPOINTS / f"{load_params().export.checkpoint}.pth"
    for path in (checkpoint, paths.MODEL):
        _check_exists(path)
    with Engine(paths.MODEL, 1, folder / "build/libmamba.so") as engine:
        return load_checkpoint(checkpoint, scan="reference").model, engine.info["exit_margin"]


def _quick_mamba() -> tuple[Any, float]:
    """Return a tiny ensemble, which only shows that everything runs, and an exit margin."""
    import torch

    from mnist_mamba.config import ModelConfig
    from mnist_mamba.model import MambaEnsemble

    torch.manual_seed(0)
    config = ModelConfig(
        height=28, width=28, n_classes=10, patch=(14, 14), d_model=16, n_layers=1, members=2
    )
    return MambaEnsemble(config, scan="reference").eval(), 0.1


def _prepare_convnet(name: str, folder: Path, quick: bool) -> None:
    """Write a network's ONNX files, norms folded, and PyTorch's logits with norms not folded."""
    import torch

    from benchmarks import convnets
    from mnist_mamba.data.idx import read_images
    from mnist_mamba.model import Classifier
    from mnist_mamba.onnx_file import write_graph
    from mnist_mamba.training.evaluation import predict

    torch.manual_seed(0)
    model = convnets.ConvNet(convnets.QUICK_NETWORKS[name]).eval() if quick else convnets.load(name)
    (folder / name).mkdir()
    for load, batch in LOADS.items():
        path = folder / name / f"{load}.onnx"
        write_graph(path, convnets.folded(model), torch.rand(batch, 28, 28))
    images = torch.from_numpy(read_images(folder / "test-images.idx"))
    logits = predict(cast(Classifier, model), images)
    np.save(folder / "logits" / f"{name}.npy", logits.numpy())


def check_logits(folder: Path, peers: Sequence[str]) -> dict[str, Any]:
    """Return each peer's accuracy on the test images, and the largest difference of a logit.

    Raises:
        DifferentWorkError: a difference is above the tolerance, or not a number.
    """
    labels = read_labels(folder / "test-labels.idx")
    logits = {peer: np.load(folder / "logits" / f"{peer}.npy") for peer in peers}
    largest = 0.0
    for peer, values in logits.items():
        same = [one for one in logits if PEERS[one].work == PEERS[peer].work]
        name = same[0] if PEERS[peer].network == MAMBA else PEERS[peer].network
        expected = logits[name] if name in logits else np.load(folder / "logits" / f"{name}.npy")
        # A peer may repeat the first images.
        difference = float(np.abs(values - np.resize(expected, values.shape)).max())
        accepted = TOLERANCE * max(1.0, float(np.abs(expected).max()))
        if not difference <= accepted:
            raise DifferentWorkError(
                f"{peer}: logits differ from {name}'s by {difference:.1e}, expected at most "
                f"{accepted:.0e}: {peer} computes something else"
            )
        largest = max(largest, difference)
    hits = {peer: found[: len(labels)].argmax(1) == labels for peer, found in logits.items()}
    accuracy = {peer: float(found.mean()) for peer, found in hits.items()}
    return {"test_accuracy": accuracy, "max_logit_difference": significant(largest)}


def run_all(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Time the peers and return this machine's results."""
    where = harness.machine()
    prepare(folder, options.peers, options.quick)

    def measure(peer: str) -> Answer:
        spec = {"peer": peer, "folder": str(folder), "seconds": options.seconds}
        return harness.run_worker(WORKER, spec, LIMITS)

    found = harness.run_rounds(measure, options.peers, options.rounds)
    engines = {peer: found.answers[peer][0] for peer in ENGINES if peer in found.answers}
    return {
        **harness.summary(found, LOADS),
        **check_logits(folder, list(found.answers)),
        "members_asked": {peer: first["members_asked"] for peer, first in engines.items()},
        "isa": next((first["isa"] for first in engines.values()), ""),
        "rounds": options.rounds,
        **where,
    }


def with_machine(old: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the file's content with this machine's results added, or renewed.

    Virtual machines may name processors of several generations alike, so that the instruction set
    is part of the name.
    """
    name = f"{result['cpu']}, {result['isa'].upper()}" if result["isa"] else result["cpu"]
    return {"machines": {**old.get("machines", {}), name: result}}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table, and write metrics, plot and table; see `options.store`."""
    options = parse(argv)
    if shutil.which("cc") is None:
        raise BenchError("no C compiler found: got no `cc`, install gcc or clang")
    with tempfile.TemporaryDirectory(prefix="mnist_mamba-bench-") as folder:
        result = run_all(options, Path(folder))
    committed = tables.DIGITS_METRICS
    old = json.loads(committed.read_text(encoding="utf-8")) if committed.is_file() else {}
    content = with_machine({} if options.output else old, result)
    accuracies = tables.accuracies()
    print(tables.digits_tables({"machines": {result["cpu"]: result}}, accuracies))
    whole = not options.quick and set(options.peers) == set(PEERS)
    store(content, options.output, committed, whole)
    if whole and not options.output:
        draw(paths.PLOTS / "bench_digits.png", content["machines"], accuracies)


if __name__ == "__main__":
    command.run(main)
