"""What the report says of the results: each function makes a section of a file's content."""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mnist_mamba.data.idx import read_images
from pipeline.common import paths
from pipeline.common.content_key import file_md5
from pipeline.common.plots import MAX_MISCLASSIFIED, UNITS
from pipeline.release import published
from pipeline.report import charts
from pipeline.report.files import PREDICTIONS, ReportError, data_uri
from pipeline.series.trainings import Series

Content = dict[str, Any]
"""Of a metrics file, as json.loads gives it."""
View = dict[str, Any]
"""What the template shows: texts, and shares of 1 that become lengths and shades."""

TIMES, PLUS_MINUS = "\N{MULTIPLICATION SIGN}", "\N{PLUS-MINUS SIGN}"

PEERS = {
    "engine": "C engine",
    "engine_all_threads": "C engine, all threads",
    "engine_avx2": "C engine, AVX2 alone",
    "engine_scalar": "C engine, no vectors",
    "pytorch_eager": "PyTorch, eager",
    "torch_compile": "torch.compile",
    "pytorch_cpu_kernel": "PyTorch, our C kernel",
    "onnxruntime": "ONNX Runtime",
    "ours": "our C kernel",
    "ours_tied": "our C kernel, tied A",
    "reference": "plain PyTorch loop",
    "mambapy": "mambapy",
    "mambapy_kept": "mambapy, our memory settings",
    "transformers": "transformers",
    "transformers_kept": "transformers, our memory settings",
}
"""How a person says what a file calls a peer of its timings."""


def percent(fraction: float, digits: int = 2) -> str:
    """99.57%."""
    return f"{fraction:.{digits}%}"


def figure(value: float) -> str:
    """A measured value with three figures, more where it has them before the point."""
    return (
        f"{value:,.{max(0, 2 - math.floor(math.log10(value)))}f}"
        if 0 < value < 1e3
        else (f"{value:,.0f}")
    )


def times(ratio: float) -> str:
    """A ratio with its sign."""
    return (figure(ratio) if ratio >= 1 else f"{ratio:.2f}") + TIMES


def headline(scores: Content) -> View:
    """The accuracy and what the engine is held to."""
    correct, n = scores["correct"], scores["n_test"]
    low, high = published.interval(correct, n)
    return {
        "accuracy": percent(scores["accuracy"]),
        "interval": f"{percent(low)} to {percent(high)}",
        "confidence": percent(published.CONFIDENCE, 0),
        "correct": f"{correct:,}",
        "wrong": f"{n - correct:,}",
        "n": f"{n:,}",
        "parameters": f"{scores['model']['parameters']:,}",
        "kilobytes": f"{scores['model']['file_bytes'] / 1e3:,.0f}",
        "bytes": f"{scores['model']['file_bytes']:,}",
        "mismatches": f"{scores['parity']['prediction_mismatches']:,}",
        "logit": f"{scores['parity']['max_abs_logit_diff']:.1e}",
        "classes": len(scores["per_class"]),
        "nll": f"{scores['nll']:.4f}",
        "ece": f"{scores['ece']:.4f}",
    }


def wrong_predictions(rows: Sequence[Mapping[str, str]], scores: Content) -> list[View]:
    """The mistakes of plots/predictions.csv, by label, by what was said, by index.

    Raises:
        ReportError: they are not those that metrics/eval.json counts.
    """
    order = {name: place for place, name in enumerate(scores["per_class"])}
    wrong = [
        {"index": int(row["index"]), "label": row["label"], "said": row["predicted"]}
        for row in rows
        if row["label"] != row["predicted"]
    ]
    found, expected = (len(rows) - len(wrong), len(rows)), (scores["correct"], scores["n_test"])
    if found != expected:
        raise ReportError(
            f"{PREDICTIONS.path} has {found[0]:,} of {found[1]:,} right, metrics/eval.json "
            f"{expected[0]:,} of {expected[1]:,}: `{PREDICTIONS.command}` makes both"
        )
    return sorted(wrong, key=lambda one: (order[one["label"]], order[one["said"]], one["index"]))


def confusion(rows: Sequence[Mapping[str, str]], classes: Sequence[str]) -> View:
    """The matrix, its mistakes shaded by how many there are, and the most frequent of them."""
    counts = Counter((row["label"], row["predicted"]) for row in rows)
    pairs = [(a, b) for a in classes for b in classes if a != b]
    most = max((counts[pair] for pair in pairs), default=0)
    matrix = [
        {
            "label": label,
            "cells": [
                {
                    "count": f"{counts[label, said]:,}" if counts[label, said] else "",
                    "right": label == said,
                    # The weakest shade must still be seen.
                    "shade": f"{0.12 + 0.43 * counts[label, said] / most:.2f}"
                    if label != said and counts[label, said]
                    else "",
                }
                for said in classes
            ],
        }
        for label in classes
    ]
    # A stable sort: pairs of the same count stay in the order of the classes.
    frequent = [pair for pair in sorted(pairs, key=lambda pair: -counts[pair]) if counts[pair]]
    return {
        "classes": list(classes),
        "rows": matrix,
        "frequent": [{"label": a, "said": b, "count": counts[a, b]} for a, b in frequent[:5]],
        "pairs": len(frequent),
    }


def per_class(scores: Content) -> list[View]:
    """Each class with what was missed of it."""
    missed = {
        name: round(row["support"] * (1 - row["recall"]))
        for name, row in scores["per_class"].items()
    }
    most = max(1, *missed.values()) if missed else 1
    return [
        {
            "name": name,
            "support": f"{row['support']:,}",
            "missed": f"{missed[name]:,}",
            "share": missed[name] / most,
            **{key: percent(row[key]) for key in ("recall", "precision", "f1")},
        }
        for name, row in scores["per_class"].items()
    ]


def tiles(wrong: Sequence[View], test_md5: str) -> View | None:
    """Pictures of the mistakes; None if the test images are not here, or are others.

    More than MAX_MISCLASSIFIED are thinned out evenly, so that every class stays.
    """
    file = paths.images(paths.PREPARED, "test")
    if not file.is_file() or file_md5(file) != test_md5:
        return None
    images = read_images(file)
    places = np.linspace(0, len(wrong) - 1, min(len(wrong), MAX_MISCLASSIFIED)).round().astype(int)
    shown = [wrong[place] for place in places]
    return {
        "height": images.shape[1],
        "width": images.shape[2],
        "images": [{**one, "png": data_uri(_png(images[one["index"]]))} for one in shown],
    }


def _png(image: NDArray[np.uint8]) -> bytes:
    """Ink on nothing: black of this opacity, so that the page's colour is the paper."""
    ink = Image.fromarray(np.stack([np.zeros_like(image), image], axis=-1), "LA")
    buffer = io.BytesIO()
    ink.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def curves(points: Sequence[Content]) -> View:
    """Loss, error and learning rate over the epochs; validation only where there was one."""
    validated = all(point["val_loss"] is not None for point in points)
    parts = (
        (("validation", "val"), ("training", "train")) if validated else (("training", "train"),)
    )
    losses = {name: [float(p[f"{key}_loss"]) for p in points] for name, key in parts}
    errors = {name: [1 - float(p[f"{key}_accuracy"]) for p in points] for name, key in parts}
    rates = {"rate": [float(point["lr"]) for point in points]}
    return {
        "validated": validated,
        "charts": [
            {"title": title, "svg": charts.line_chart(f"{title} by epoch", lines, form, "epoch")}
            for title, lines, form in (
                ("Images got wrong", errors, _short_percent),
                ("Cross-entropy", losses, _short),
                ("Learning rate", rates, _short),
            )
        ],
        "columns": [*(f"{name} {what}" for what in ("error", "loss") for name, _ in parts), "rate"],
        "rows": [
            [
                *(percent(errors[name][i]) for name, _ in parts),
                *(f"{losses[name][i]:.4f}" for name, _ in parts),
                f"{rates['rate'][i]:.2e}",
            ]
            for i in range(len(points))
        ],
    }


def training(metrics: Content) -> View:
    """What train.json says of validation."""
    val = metrics.get("val")
    return {
        "epochs": metrics["epochs"],
        "accuracy": val and percent(val["accuracy"]),
        "best_accuracy": val and percent(val["best_accuracy"]),
        "best_epoch": val and val["best_epoch"],
    }


def robustness(scores: Content) -> list[View]:
    """Accuracy by kind and strength of what was done to the images."""
    return [
        {
            "name": name,
            "unit": UNITS.get(name, "%"),
            "rows": [
                {"name": strength, "value": percent(accuracy, 1), "share": accuracy}
                for strength, accuracy in row.items()
            ],
        }
        for name, row in scores["robustness"].items()
        if row
    ]


def seeds(results: Content, wanted: Series | None) -> View:
    """Mean and deviation of each configuration, and each seed's accuracy."""
    strips = [
        charts.Strip(name, run["test_accuracy"], run["mean"], run["std"])
        for name, run in results.items()
    ]
    by_seed = [
        {one["seed"]: percent(one["test_accuracy"]) for one in run["trainings"]}
        for run in results.values()
    ]
    label = "test accuracy of each seed: " + "; ".join(
        f"{strip.name}: {', '.join(percent(value) for value in strip.values)}" for strip in strips
    )
    return {
        "svg": charts.strips(label, strips, _short_percent) if strips else "",
        "columns": [
            {
                "name": name,
                "parameters": f"{run['params']:,}",
                "mean": percent(run["mean"]),
                "std": "" if run["std"] is None else percent(run["std"]),
            }
            for name, run in results.items()
        ],
        "rows": [
            {"seed": seed, "accuracies": [run.get(seed, "") for run in by_seed]}
            for seed in sorted(set().union(*by_seed))
        ],
        "progress": _progress(results, wanted),
    }


def _progress(results: Mapping[str, Content], wanted: Series | None) -> View | None:
    """How much of a series is done; None if all of it is, or nobody says what it has."""
    if wanted is None:
        return None
    done = {name: len(results[name]["trainings"]) if name in results else 0 for name in wanted.runs}
    total = len(wanted.seeds) * len(wanted.runs)
    if sum(done.values()) >= total:
        return None
    never = [name for name, n in done.items() if n == 0]
    return {"done": sum(done.values()), "total": total, "never": never}


def study(results: Content, speed: Content | None, wanted: Series | None) -> View:
    """The runs, the most accurate first, and accuracy against cost where both are known."""
    runs = results["runs"]
    us = speed["us_per_image"] if speed else {}
    known = {
        name: (float(us[name]["b100"]), float(run["val_accuracy"]["mean"]))
        for name, run in runs.items()
        if name in us
    }
    best = charts.unbeaten(known)
    points = [
        charts.Point(name, *place, best=name in best, named=name in best or name == "base")
        for name, place in known.items()
    ]
    labels = ("µs an image in the C engine, 100 a call", "validation accuracy")
    return {
        "svg": charts.scatter("accuracy against cost", points, labels, _short_percent)
        if points
        else "",
        "params": ", ".join(f"{key}={json.dumps(v)}" for key, v in results["params"].items()),
        "cpu": speed and speed["cpu"],
        "rows": [
            {
                "name": name,
                "best": name in best,
                "changes": [f"{key}={json.dumps(v)}" for key, v in run["changes"].items()],
                "parameters": f"{run['parameters']:,}",
                "accuracy": _spread(run["val_accuracy"], percent),
                "loss": _spread(run["val_loss"], "{:.4f}".format),
                "us": figure(us[name]["b100"]) if name in us else "",
            }
            for name, run in sorted(
                runs.items(), key=lambda item: (-item[1]["val_accuracy"]["mean"], item[0])
            )
        ],
        "progress": _progress(runs, wanted),
    }


def _spread(value: Content, form: charts.Form) -> str:
    deviation = "" if value["std"] is None else f" {PLUS_MINUS} {form(value['std'])}"
    return form(value["mean"]) + deviation


def bars(values: Mapping[str, float], ours: str, unfinished: Mapping[str, str]) -> list[View]:
    """Peers from the fastest on, each with its share of the slowest and its multiple of ours."""
    most = max(values.values())
    rows = [
        {
            "name": PEERS.get(name, name),
            "ours": name == ours,
            "value": figure(value),
            "share": value / most,
            "ratio": times(value / values[ours]),
        }
        for name, value in sorted(values.items(), key=lambda item: item[1])
    ]
    return rows + [{"name": PEERS.get(name, name), "why": why} for name, why in unfinished.items()]


def benchmark(figures: Content) -> View:
    """The shipped model beside PyTorch."""
    us = figures["us_per_image"]
    loads = [("b1", "One image a call"), ("b100", "100 images a call")]
    return {
        "us": f"{us['engine']['b1']:,.0f}",
        "cpu": figures["cpu"],
        "load_us": figure(figures["load_us"]),
        "loads": [
            {"title": title, "rows": bars(_column(us, key), "engine", {})} for key, title in loads
        ],
    }


def _column(table: Mapping[str, Mapping[str, float]], load: str) -> dict[str, float]:
    return {name: row[load] for name, row in table.items() if load in row}


def bench_engine(figures: Content) -> View:
    """The frozen benchmark model beside other implementations, with tied and with free A."""
    loads = [
        ("b1", "One image a call, one thread"),
        ("b100", "100 images a call, one thread"),
        ("b1000", f"1,000 images a call, all {figures['threads']} threads"),
    ]
    tables = [
        ("tied", "us_per_image", "did_not_finish"),
        ("free", "free_a", "free_a_did_not_finish"),
    ]
    return {
        **{
            kind: [
                {
                    "title": title,
                    "rows": bars(
                        _column(figures[key], load), "engine", figures.get(unfinished, {})
                    ),
                }
                for load, title in loads
            ]
            for kind, key, unfinished in tables
        },
        "machine": f"{figures['cpu']}, {figures['isa'].upper()}, {figures['threads']} threads",
        "git": figures["git"],
        "logit": f"{figures['max_logit_difference']:.1e}",
        "load_us": figure(figures["load_us"]),
        "memory": f"{figures['peak_rss_kb'] / 1024:.1f}",
        "binary": figure(figures["binary_kb"]),
    }


def bench_train(figures: Content) -> View:
    """A training step beside other implementations; pixel by pixel too where that was timed."""
    sections = [figures, *([figures["long"]] if "long" in figures else [])]
    return {
        "sections": [
            {
                "length": section["length"],
                "rows": bars(section["step_ms"], "ours", section["did_not_finish"]),
            }
            for section in sections
        ],
        "images_per_s": f"{figures['epoch']['images_per_s']:,.0f}" if "epoch" in figures else None,
        "batch": figures["batch"],
        "machine": f"{figures['cpu']}, {figures['threads']} threads, torch {figures['torch']}",
        "git": figures["git"],
    }


def _short(value: float) -> str:
    return f"{value:.2g}"


def _short_percent(fraction: float) -> str:
    """Of ticks: 0.5%, 99.45%."""
    return f"{100 * fraction:.{2 if fraction < 0.1 else 4}g}%"
