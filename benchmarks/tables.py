"""`python -m benchmarks.tables`: write the committed timings into README.md and the docs.

The blocks between the marks `speed` (README.md), `bench-engine`, `bench-digits` and `bench-train`
(the benchmarks' page) are generated from metrics/bench_{engine,digits,train}.json, and the
accuracies over seeds from metrics/{seeds,convnets}.json. `make bench-engine`, `make bench-digits`
and `make bench-train` do the same after they have written their metrics.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.digits_cases import MAMBA, PEERS
from pipeline.common import command
from pipeline.common.generated_tables import write_table
from pipeline.common.timings import IMPLEMENTATIONS, TIMES, format_ratio, format_value
from pipeline.series.trainings import plus_minus

ENGINE_METRICS = Path("metrics/bench_engine.json")
DIGITS_METRICS = Path("metrics/bench_digits.json")
TRAINING_METRICS = Path("metrics/bench_train.json")
README = Path("README.md")
DOCS = Path("docs/benchmarks.md")

Metrics = Mapping[str, Any]


def blocks() -> list[tuple[Path, str, str]]:
    """Return (document, name of the marks, Markdown) of each block, from the committed metrics."""
    engine = json.loads(ENGINE_METRICS.read_text(encoding="utf-8"))
    training = json.loads(TRAINING_METRICS.read_text(encoding="utf-8"))
    return [
        (README, "speed", speed_block(engine, training)),
        (DOCS, "bench-engine", _fenced(engine_machine(engine), engine_tables(engine))),
        (DOCS, "bench-digits", digits_block()),
        (DOCS, "bench-train", _fenced(training_machine(training), training_tables(training))),
    ]


def write_blocks() -> None:
    """Write all blocks into their documents.

    Raises:
        ValueError: a document lacks the marks of a block.
    """
    for document, name, block in blocks():
        write_table(document, name, block)


def _fenced(machine: str, tables: str) -> str:
    return f"{machine}:\n\n```text\n{tables}\n```\n"


def speed_block(engine: Metrics, training: Metrics) -> str:
    """Return the README's table: our times, and how many times as long others take."""
    us, ratio, ms = engine["us_per_image"]["engine"], engine["ratio"], training["step_ms"]
    lines = [
        f"| {engine['cpu']} | one image | batch of 100, per image | training step |",
        "|---|---:|---:|---:|",
        f"| ours | {format_value(us['b1'])} µs | {format_value(us['b100'])} µs "
        f"| {format_value(ms['ours'])} ms |",
    ]
    others = ("pytorch_eager", "torch_compile", "onnxruntime", "pytorch_cpu_kernel")
    for name in (*others, "mambapy", "transformers"):
        inference = ratio.get(name, {})
        step = training["ratio"].get("reference" if name == "pytorch_eager" else name)
        times = [inference.get(load) for load in ("b1", "b100")] + [step]
        lines.append(_row([IMPLEMENTATIONS[name], *(format_ratio(x) if x else "" for x in times)]))
    return "\n".join(lines) + "\n"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def engine_machine(result: Metrics) -> str:
    """Return machine, revision and rounds of `make bench-engine`, in one line."""
    isa = f", {result['isa'].upper()}" if result.get("isa") else ""
    return (
        f"{result['cpu']}{isa}, {result['threads']} threads, revision {result['git']}, "
        f"{result['rounds']} rounds, load average {result['load_1m']} at the start"
    )


def engine_tables(result: Metrics) -> str:
    """Return both models' timings and what was measured of the engine alone, as plain text."""
    parts = [
        _engine_table("tied A", result["us_per_image"], result["ratio"], result["p99_us"]),
        _engine_table("free A", result["free_a"], result["free_a_ratio"], result["free_a_p99_us"]),
    ]
    for model, key in (("tied A", "did_not_finish"), ("free A", "free_a_did_not_finish")):
        for peer, reason in result[key].items():
            parts.append(f"{peer}, {model}: did not finish: {reason}")
    facts = [f"{'largest difference of a logit':<52}{result['max_logit_difference']:>12.1e}"]
    if result.get("load_us") is not None:
        facts += [f"{label:<52}{value:>12,}" for label, value in _engine_facts(result)]
    return "\n\n".join([*parts, "\n".join(facts)])


def _engine_table(model: str, us: Metrics, ratio: Metrics, p99: Metrics) -> str:
    loads = next(iter(us.values()))
    header = "".join(f"{load:>12}{'x engine':>10}{'p99':>12}" for load in loads)
    lines = [model, f"{'us per image':<20}{header}"]
    for peer in us:
        cells = ""
        for load, value in us[peer].items():
            times = f"{ratio[peer][load]:.2f}" if peer in ratio else ""
            cells += f"{value:>12,.1f}{times:>10}{p99[peer][load]:>12,.1f}"
        lines.append(f"{peer:<20}{cells}")
    return "\n".join(lines)


def _engine_facts(result: Metrics) -> list[tuple[str, float]]:
    limit = result["limit"]
    return [
        ("open and check the model file (us)", result["load_us"]),
        *(
            (f"{kind} image, tied A, batch of 100 (us)", value)
            for kind, value in result["image_us"].items()
        ),
        ("./mamba, stripped (KB)", result["binary_kb"]),
        ("./mamba, peak memory on one image (KB)", result["peak_rss_kb"]),
        ("matrix products, tied A, batch of 100 (GFLOP/s)", result["gflops"]),
        ("one core's multiply-adds (GFLOP/s)", limit["fma_gflops"]),
        ("one exponential (ns)", limit["exp2_ns"]),
        *(
            (f"{model} A, {label}", limit[model][key])
            for model in ("tied", "free")
            for label, key in (
                ("products at that rate (us)", "products_us"),
                ("exponentials at that rate (us)", "exponentials_us"),
                ("engine / sum of both", "engine_of_limit"),
            )
        ),
    ]


def digits_block() -> str:
    """Return plot and tables of the committed `make bench-digits`, or that there is none."""
    if not DIGITS_METRICS.is_file():
        return "No results yet: run `make bench-digits`.\n"
    result = json.loads(DIGITS_METRICS.read_text(encoding="utf-8"))
    plot = "![Accuracy against time per image](../plots/bench_digits.png)"
    return f"{plot}\n\n{digits_tables(result, accuracies())}\n"


def accuracies() -> dict[str, Any]:
    """Return the committed test accuracies of the default model and the convolutional networks.

    Each network has the mean and standard deviation over seeds, and its number of parameters.
    """
    found: dict[str, Any] = {}
    for name in ("seeds", "convnets"):
        path = Path("metrics") / f"{name}.json"
        runs = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.is_file() else {}
        found |= {MAMBA: runs["default"]} if "default" in runs else runs
    return found


def digits_tables(result: Metrics, accuracies: Metrics) -> str:
    """Return a Markdown table for each machine of `make bench-digits`."""
    parts = []
    for machine, section in result["machines"].items():
        parts.append(
            f"{machine}, revision {section['git']}, {section['rounds']} rounds, load average "
            f"{section['load_1m']} at the start; largest difference of a logit "
            f"{section['max_logit_difference']:.1e}:"
        )
        lines = [
            "| network | parameters | runs in | test accuracy | one image, µs | p99 "
            f"| {TIMES} engine | batch of 100, per image, µs |",
            "|---|---:|---|---:|---:|---:|---:|---:|",
        ]
        lines += [_digits_row(peer, section, accuracies) for peer in PEERS]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _digits_row(name: str, section: Metrics, accuracies: Metrics) -> str:
    """Return a peer's row: its times, or why it has none."""
    peer, accuracy = PEERS[name], accuracies.get(PEERS[name].network)
    runtime = IMPLEMENTATIONS[peer.runtime] + (", early exit" if peer.exits else "")
    cells = [peer.network, f"{accuracy['params']:,}" if accuracy else "", runtime]
    cells.append(plus_minus(accuracy, ".2%") if accuracy else "")
    if name not in section["us_per_image"]:
        reason = section["did_not_finish"].get(name, "not measured")
        return _row([*cells, reason.replace("|", "\\|"), "", "", ""])
    us, engine = section["us_per_image"][name], section["us_per_image"].get("engine")
    cells += [format_value(us["b1"]), format_value(section["p99_us"][name]["b1"])]
    cells.append(format_ratio(us["b1"] / engine["b1"]) if engine else "")
    return _row([*cells, format_value(us["b100"])])


def training_machine(result: Metrics) -> str:
    """Return machine, software and revision of `make bench-train`, in one line."""
    return (
        f"{result['cpu']}, {result['threads']} threads, torch {result['torch']}, "
        f"revision {result['git']}, load average {result['load_1m']} at the start"
    )


def training_tables(result: Metrics) -> str:
    """Return all sections that were measured, as plain text."""
    sections = [section for section in (result, result.get("long", {})) if "step_ms" in section]
    parts = [_training_table(section) for section in sections]
    if "memory" in result:
        parts.append(_memory_table(result["memory"]))
    if "epoch" in result:
        epoch = result["epoch"]
        parts.append(
            f"an epoch of {epoch['steps']} steps: steps {epoch['steps_s']} s, data "
            f"{epoch['data_s']} s, evaluation {epoch['evaluation_s']} s; data and evaluation take "
            f"{epoch['beside_steps']:.1%}; {epoch['images_per_s']:,.0f} images/s"
        )
    return "\n\n".join(parts)


def _training_table(section: Metrics) -> str:
    lines = [
        f"{section['length']} tokens per image, median of {section['rounds']} rounds",
        f"{'':<18}{'step (ms)':>12}{'x ours':>10}{'peak RSS (MB)':>16}{'above start':>14}",
    ]
    for name, step_ms in section["step_ms"].items():
        ratio = 1.0 if name == "ours" else section["ratio"].get(name)
        lines.append(
            f"{name:<18}{step_ms:>12,.1f}{'' if ratio is None else f'{ratio:.2f}':>10}"
            f"{section['peak_rss_mb'][name]:>16,}{section['above_start_mb'][name]:>14,}"
        )
    if (matmul_ms := section["matmul_ms"]) is not None:
        ours_ms = section["step_ms"].get("ours")
        ratio = "" if ours_ms is None else f"{matmul_ms / ours_ms:.2f}"
        lines.append(f"{'matrix products':<18}{matmul_ms:>12,.1f}{ratio:>10}")
    for name, reason in section["did_not_finish"].items():
        lines.append(f"{name:<18}did not finish: {reason}")
    return "\n".join(lines)


def _memory_table(memory: Metrics) -> str:
    lines = [f"{'memory of ours':<24}{'peak RSS (MB)':>16}{'above start':>14}"]
    for name, above in memory["above_start_mb"].items():
        lines.append(f"{name:<24}{memory['peak_rss_mb'][name]:>16,}{above:>14,}")
    lines.append(
        f"above start: x {memory['batch_x2']:.2f} with twice the batch, "
        f"x {memory['state_x4']:.2f} with four times the states"
    )
    return "\n".join(lines)


def main() -> None:
    """Write all blocks from the committed metrics; measure nothing."""
    command.parser((__doc__ or "").strip(), ["python -m benchmarks.tables"]).parse_args()
    write_blocks()


if __name__ == "__main__":
    command.run(main)
