"""`make bench-train`: time a training step of ours and of other implementations.

A step is forward, loss, backward, clipping, AdamW and averaging (EMA), without data loading. All
implementations train the same model from the same weights.
"""

from __future__ import annotations

import argparse
import functools
import logging
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import harness, tables
from benchmarks import train_cases as cases
from benchmarks.harness import Answer, BenchError, Limits, Rounds, significant
from benchmarks.options import above_zero, add_common, store
from mnist_mamba.config import ModelConfig
from pipeline.common import command
from pipeline.common.machine import usable_cores

logger = logging.getLogger(__name__)

SECTIONS = ("main", "long", "memory", "epoch")
WORKER = (sys.executable, "-m", "benchmarks.train_worker")
LOSS_TOLERANCE = 1e-4

Measure = Callable[[cases.TrainCase], Answer]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = command.parser(
        (__doc__ or "").strip(),
        ["make bench-train", "python -m benchmarks.train_step --only main --peers ours,reference"],
    )
    add_common(parser, cases.PEERS, rounds=5)
    add = parser.add_argument
    add(
        "--long-rounds",
        type=command.positive,
        default=2,
        help="rounds with 784 tokens (default: %(default)s)",
    )
    add("--only", choices=SECTIONS, help="measure one section")
    add("--threads", type=command.positive, default=usable_cores(), help="default: all cores")
    add(
        "--memory-gb",
        type=above_zero,
        default=10.0,
        help="limit of a worker (default: %(default)g)",
    )
    add("--time-s", type=above_zero, default=180.0, help="limit of a worker (default: %(default)g)")
    options = parser.parse_args(argv)
    if options.quick:
        options.rounds = options.long_rounds = 1
    return options


def measure_case(case: cases.TrainCase, limits: Limits) -> Answer:
    """Run one case in a process of its own; raises what `harness.run_worker` raises."""
    return harness.run_worker(WORKER, case.to_spec(), limits)


def compare(
    model: ModelConfig,
    batch: int,
    steps: cases.Steps,
    rounds: int,
    options: argparse.Namespace,
    measure: Measure,
) -> dict[str, Any]:
    """Time all peers and the matrix products on one model and return the section's metrics.

    Raises:
        BenchError: ours did not finish, or a peer computes something else.
    """

    def measure_peer(name: str) -> Answer:
        return measure(cases.make_case(name, model, batch, options.threads, steps[name]))

    names = [name for name in (*options.peers, cases.MATMUL) if name in steps]
    found = harness.run_rounds(measure_peer, names, rounds)
    if "ours" in found.unfinished:
        raise BenchError(f"ours did not finish: {found.unfinished['ours']}")
    check_losses(found)
    return {"length": model.length, "rounds": rounds, **section_metrics(found)}


def check_losses(found: Rounds) -> None:
    """Check that all peers had the same loss in their first step, on the whole batch.

    Raises:
        DifferentWorkError: a loss differs by more than rounding.
    """
    losses = {
        name: answer["first_loss"]
        for name, answers in found.answers.items()
        for answer in answers
        if name != cases.MATMUL
    }
    first = next(iter(losses.values()), 0.0)
    for name, loss in losses.items():
        if not abs(loss - first) <= LOSS_TOLERANCE * abs(first):
            raise harness.DifferentWorkError(
                f"{name}: the first step's loss is {loss:.6f}, expected {first:.6f} as of "
                f"{next(iter(losses))}: {name} computes something else"
            )


def section_metrics(found: Rounds) -> dict[str, Any]:
    """Return medians over the rounds, ratios to ours, and memory."""
    medians = {
        name: statistics.median(answer["step_ms"] for answer in answers)
        for name, answers in found.answers.items()
    }
    matmul_ms = medians.pop(cases.MATMUL, None)
    peers = {name: found.answers[name] for name in medians}
    ours_ms = medians.get("ours")
    return {
        "step_ms": {name: significant(value, 4) for name, value in medians.items()},
        "ratio": {
            name: significant(value / ours_ms)
            for name, value in medians.items()
            if ours_ms is not None and name != "ours"
        },
        "matmul_ms": None if matmul_ms is None else significant(matmul_ms, 4),
        "peak_rss_mb": {name: _largest(answers, "peak_rss_mb") for name, answers in peers.items()},
        "above_start_mb": {
            name: _largest(answers, "above_start_mb") for name, answers in peers.items()
        },
        "round_ms": {
            name: [significant(answer["step_ms"], 4) for answer in answers]
            for name, answers in found.answers.items()
        },
        "did_not_finish": found.unfinished,
    }


def _largest(answers: Sequence[Answer], key: str) -> int:
    return round(max(float(answer[key]) for answer in answers))


def memory_growth(
    model: ModelConfig, batch: int, options: argparse.Namespace, measure: Measure
) -> dict[str, Any]:
    """Measure our peak memory with the batch doubled, the states quadrupled, and both.

    Raises:
        BenchError: a measurement did not finish.
    """
    sizes = {
        f"batch_{b}_state_{n}": (b, n)
        for b in (batch, 2 * batch)
        for n in (model.d_state, 4 * model.d_state)
    }

    def measure_size(name: str) -> Answer:
        b, n = sizes[name]
        larger = ModelConfig.from_dict({**model.to_dict(), "d_state": n})
        return measure(cases.make_case("ours", larger, b, options.threads, (1, 1)))

    found = harness.run_rounds(measure_size, tuple(sizes), 1)
    for name, reason in found.unfinished.items():
        raise BenchError(f"memory of ours, {name}: did not finish: {reason}")
    above = {name: answers[0]["above_start_mb"] for name, answers in found.answers.items()}
    base, more_states, more_images, _ = above.values()
    return {
        "peak_rss_mb": {
            name: _largest(answers, "peak_rss_mb") for name, answers in found.answers.items()
        },
        "above_start_mb": {name: round(value) for name, value in above.items()},
        "batch_x2": significant(more_images / base),
        "state_x4": significant(more_states / base),
    }


def epoch_profile(bench: cases.Bench, options: argparse.Namespace, measure: Measure) -> Answer:
    """Profile an epoch; `beside_steps` is the share of data work and evaluation.

    Raises:
        UnfinishedError: the worker did not finish.
    """
    case = cases.make_case(
        cases.EPOCH, bench.main, bench.batch, options.threads, (0, bench.epoch_steps)
    )
    answer = measure(case)
    parts = {name: answer[name] for name in ("data_s", "steps_s", "evaluation_s")}
    other_s = parts["data_s"] + parts["evaluation_s"]
    return {
        "steps": bench.epoch_steps,
        **{name: significant(value) for name, value in parts.items()},
        "images_per_s": significant(answer["images_per_s"]),
        "beside_steps": significant(other_s / sum(parts.values())),
    }


def run_all(options: argparse.Namespace, measure: Measure) -> dict[str, Any]:
    """Measure the chosen sections and return the content of the metrics file."""
    versions: set[str] = set()

    def measure_and_log(case: cases.TrainCase) -> Answer:
        answer = measure(case)
        versions.add(answer["torch"])
        logger.info("%s: %.1f ms", case.peer, answer["step_ms"])
        return answer

    where = harness.machine()
    bench = cases.QUICK if options.quick else cases.FULL
    wanted = SECTIONS if options.only is None else (options.only,)
    result: dict[str, Any] = {}
    if "main" in wanted:
        result |= compare(
            bench.main, bench.batch, bench.main_steps, options.rounds, options, measure_and_log
        )
    if "long" in wanted:
        result["long"] = compare(
            bench.long, bench.batch, bench.long_steps, options.long_rounds, options, measure_and_log
        )
    if "memory" in wanted and "ours" in options.peers:
        result["memory"] = memory_growth(bench.main, bench.batch, options, measure_and_log)
    if "epoch" in wanted and "ours" in options.peers:
        result["epoch"] = epoch_profile(bench, options, measure_and_log)
    return {
        **result,
        "batch": bench.batch,
        "memory_limit_gb": options.memory_gb,
        "time_limit_s": options.time_s,
        "threads": options.threads,
        "torch": ", ".join(sorted(versions)),
        **where,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the tables, and write the metrics; see `options.store` for where."""
    options = parse(argv)
    limits = Limits(memory_gb=options.memory_gb, time_s=options.time_s)
    result = run_all(options, functools.partial(measure_case, limits=limits))
    print(f"{tables.training_machine(result)}\n\n{tables.training_tables(result)}")
    whole = not options.quick and options.only is None and set(options.peers) == set(cases.PEERS)
    store(result, options.output, tables.TRAINING_METRICS, whole)


if __name__ == "__main__":
    command.run(main)
