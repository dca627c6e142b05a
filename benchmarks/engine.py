"""`make bench-engine`: time the C engine and other implementations of the same model on this CPU.

All load the same checkpoint. The comparison fails if their logits differ by more than 1e-4.
"""

from __future__ import annotations

import argparse
import functools
import logging
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import engine_cases as cases
from benchmarks import harness, tables
from benchmarks.harness import ROOT, Answer, BenchError, DifferentWorkError, Limits, significant
from benchmarks.options import parse_inference, store
from mnist_mamba.c_build import isa_flags
from mnist_mamba.config import ModelConfig
from pipeline.common import command
from pipeline.common.machine import usable_cores

logger = logging.getLogger(__name__)

WORKER = (sys.executable, "-m", "benchmarks.engine_worker")
ENGINE_KEYS = ("load_us", "image_us", "isa")
"""Metrics that only the engine has."""

Measure = Callable[[cases.EngineCase], Answer]
Models = Mapping[str, ModelConfig]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = command.parser(
        (__doc__ or "").strip(),
        ["make bench-engine", "python -m benchmarks.engine --peers engine,onnxruntime --rounds 1"],
    )
    return parse_inference(parser, cases.PEERS, 1.0, argv)


def prepare(folder: Path, models: Models, peers: Sequence[str]) -> None:
    """Build the engine with OpenMP, and write each model's checkpoint in every peer's format."""
    from benchmarks.peers import build_model
    from mnist_mamba.export import write_model
    from mnist_mamba.onnx_file import write_onnx
    from mnist_mamba.training.checkpoint import Checkpoint, save_checkpoint

    build_engine(folder)
    for name, config in models.items():
        model = build_model("reference", config).eval()
        (folder / name).mkdir()
        write_model(folder / name / "model.bin", model)
        save_checkpoint(folder / name / "model.pth", Checkpoint(model, 0, 0.0))
        if "onnxruntime" in peers:
            for images, _ in cases.LOADS.values():
                write_onnx(folder / name / f"b{images}.onnx", model, images)


def build_engine(folder: Path) -> None:
    """Build command and library with OpenMP in folder/build."""
    make = ["make", "-s", "-f", "csrc/engine.mk", "dvc-engine", f"OUT={folder / 'build'}"]
    subprocess.run(make, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def compare(name: str, folder: Path, options: argparse.Namespace, measure: Measure) -> Answer:
    """Time all peers on one model and return its metrics, by peer and load.

    Raises:
        BenchError: the engine did not finish, or a peer computes something else.
    """

    def measure_peer(peer: str) -> Answer:
        case = cases.EngineCase(
            peer=peer, model=name, folder=str(folder), loads=cases.LOADS, seconds=options.seconds
        )
        answer = measure(case)
        logger.info("%s, %s: %s", name, peer, _summary(answer))
        return answer

    found = harness.run_rounds(measure_peer, options.peers, options.rounds)
    if "engine" in found.unfinished:
        raise BenchError(f"the engine did not finish: {found.unfinished['engine']}")
    difference = check_logits(found.answers)
    summary = harness.summary(found, cases.LOADS)
    us = summary["us_per_image"]
    return {
        **summary,
        "ratio": {
            peer: {load: significant(value / us["engine"][load]) for load, value in loads.items()}
            for peer, loads in us.items()
            if peer != "engine" and "engine" in us
        },
        "max_logit_difference": difference,
        **_engine_metrics(found.answers.get("engine", [])),
    }


def _summary(answer: Answer) -> str:
    loads = answer["loads"].items()
    return ", ".join(f"{load} {found['median_us']:.1f} us" for load, found in loads)


def _engine_metrics(answers: Sequence[Answer]) -> dict[str, Any]:
    """Return load time, time per black, white and random image, and the instruction set."""
    if not answers:
        return dict.fromkeys(ENGINE_KEYS)
    loads = [load for answer in answers for load in answer["loads"].values()]
    image_us = {
        kind: significant(statistics.median(answer["image_us"][kind] for answer in answers), 4)
        for kind in answers[0]["image_us"]
    }
    load_us = significant(statistics.median(load["load_us"] for load in loads))
    return dict(zip(ENGINE_KEYS, (load_us, image_us, loads[0]["isa"]), strict=True))


def check_logits(answers: Mapping[str, Sequence[Answer]]) -> float:
    """Return the largest difference of a logit from eager PyTorch's, or else the first peer's.

    Raises:
        DifferentWorkError: the difference is above the tolerance, or not a number.
    """
    logits = {peer: np.array(found[0]["logits"]) for peer, found in answers.items()}
    first = "pytorch_eager" if "pytorch_eager" in logits else next(iter(logits))
    largest = 0.0
    for peer, values in logits.items():
        difference = float(np.abs(values - logits[first]).max())
        if not difference <= cases.TOLERANCE:
            raise DifferentWorkError(
                f"{peer}: logits differ from {first}'s by {difference:.1e}, expected at most "
                f"{cases.TOLERANCE:.0e}: {peer} computes something else"
            )
        largest = max(largest, difference)
    return significant(largest)


def machine_program(folder: Path, isa: str) -> Path:
    """Compile benchmarks/machine.c for an instruction set and return the program's path."""
    program = folder / "machine"
    flags = ["-std=c11", "-O2", f"-DSIMD_{isa.upper()}", "-Icsrc/simd"]
    flags += isa_flags("{}").get(isa, ())
    command = ["cc", *flags, "benchmarks/machine.c", "-lm", "-o", str(program)]
    subprocess.run(command, cwd=ROOT, check=True)
    return program


def limits(
    folder: Path, models: Models, engine_b100: Mapping[str, float], isa: str
) -> dict[str, Any]:
    """Return each model's time per image at the limit of one core (µs), and the engine's multiple.

    At the limit, matrix products run at the rate of fused multiply-adds on registers, and
    exponentials at the rate of the kernels' own in a loop of nothing else.
    """
    program = machine_program(folder, isa)
    peak, exp_ns = (
        float(subprocess.run([program, what], check=True, capture_output=True, text=True).stdout)
        for what in ("fma", "exp2")
    )
    found: dict[str, Any] = {"fma_gflops": significant(peak), "exp2_ns": significant(exp_ns)}
    for name, config in models.items():
        products_us = cases.flops(config) / peak / 1e3
        exponentials_us = cases.exponentials(config) * exp_ns / 1e3
        limit_us = products_us + exponentials_us
        found[name] = {
            "products_us": significant(products_us),
            "exponentials_us": significant(exponentials_us),
            "engine_of_limit": significant(engine_b100[name] / limit_us),
        }
    return found


def sizes(folder: Path) -> dict[str, float]:
    """Return ./mamba's stripped size and its peak resident memory on one image (KiB)."""
    mamba = ROOT / "build" / "plain" / "mamba"
    make = ["make", "-s", "-f", "csrc/engine.mk", "build/plain/mamba"]
    subprocess.run(make, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["strip", "-o", folder / "stripped", mamba], check=True)
    config = cases.MODELS["tied"]
    image = folder / "image.bin"
    image.write_bytes(np.zeros((config.height, config.width), np.float32).tobytes())
    files = [str(path) for path in (mamba, folder / "tied" / "model.bin", image)]
    command = [str(folder / "machine"), "rss", *files]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {
        "binary_kb": significant((folder / "stripped").stat().st_size / 1024, 4),
        "peak_rss_kb": int(done.stderr.strip().splitlines()[-1]),
    }


def run_all(options: argparse.Namespace, folder: Path, measure: Measure) -> dict[str, Any]:
    """Time both models and return the content of the metrics file."""
    where = harness.machine()
    models = cases.QUICK_MODELS if options.quick else cases.MODELS
    prepare(folder, models, options.peers)
    found = {name: compare(name, folder, options, measure) for name in models}
    tied, free = found["tied"], found["free"]
    result = {
        **{key: value for key, value in tied.items() if key not in ENGINE_KEYS},
        "free_a": free["us_per_image"],
        **{f"free_a_{key}": free[key] for key in ("p99_us", "ratio", "round_us", "did_not_finish")},
    }
    if "engine" in options.peers:
        b100 = {name: section["us_per_image"]["engine"]["b100"] for name, section in found.items()}
        result |= {
            **{key: tied[key] for key in ENGINE_KEYS},
            "gflops": significant(cases.flops(models["tied"]) / b100["tied"] / 1e3),
            "limit": limits(folder, models, b100, tied["isa"]),
            **sizes(folder),
        }
    return {**result, "rounds": options.rounds, "threads": usable_cores(), **where}


def measure_case(case: cases.EngineCase, limits: Limits) -> Answer:
    """Run one case in a process of its own; raises what `harness.run_worker` raises."""
    return harness.run_worker(WORKER, case.to_spec(), limits)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the tables, and write the metrics; see `options.store` for where."""
    options = parse(argv)
    if shutil.which("cc") is None:
        raise BenchError("no C compiler found: got no `cc`, install gcc or clang")
    # torch.compile takes minutes, and gigabytes for the unrolled loop.
    measure = functools.partial(measure_case, limits=Limits(memory_gb=16, time_s=1800))
    with tempfile.TemporaryDirectory(prefix="mnist_mamba-bench-") as folder:
        result = run_all(options, Path(folder), measure)
    print(f"{tables.engine_machine(result)}\n\n{tables.engine_tables(result)}")
    whole = not options.quick and set(options.peers) == set(cases.PEERS)
    store(result, options.output, tables.ENGINE_METRICS, whole)


if __name__ == "__main__":
    command.run(main)
