"""Confusion, charts and comparisons that the report derives from the metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.common.timings import IMPLEMENTATIONS
from pipeline.report import charts
from pipeline.report.files import SOURCES, Metrics, ReportError
from pipeline.series.trainings import load_series

TemplateContext = dict[str, Any]


def confusion(predictions: Sequence[Mapping[str, str]], scores: Metrics) -> TemplateContext:
    """Return the confusion matrix, the confused pairs by frequency, and each class's mistakes.

    Raises:
        ReportError: metrics/eval.json counts other mistakes.
    """
    counts = Counter((row["label"], row["predicted"]) for row in predictions)
    missed = Counter(row["label"] for row in predictions if row["label"] != row["predicted"])
    correct, n = counts.total() - missed.total(), counts.total()
    if (correct, n) != (scores["correct"], scores["n_test"]):
        source = SOURCES["predictions"]
        raise ReportError(
            f"{source.path} has {correct:,} of {n:,} correct, metrics/eval.json has "
            f"{scores['correct']:,} of {scores['n_test']:,}: run `{source.command}` to write both"
        )
    wrong = [(label, read, n) for (label, read), n in counts.items() if label != read]
    pairs = sorted(wrong, key=lambda pair: (-pair[2], *pair[:2]))
    return {"counts": counts, "pairs": pairs, "missed": missed}


def curves(epochs: Sequence[Metrics]) -> TemplateContext:
    """Return charts and a table of error, loss and learning rate by epoch."""
    splits = {"validation": "val", "training": "train"}
    if any(epoch["val_loss"] is None for epoch in epochs):
        del splits["validation"]
    errors = {
        name: [1 - epoch[f"{split}_accuracy"] for epoch in epochs] for name, split in splits.items()
    }
    losses = {name: [epoch[f"{split}_loss"] for epoch in epochs] for name, split in splits.items()}
    rates = [epoch["lr"] for epoch in epochs]
    return {
        "validated": "validation" in splits,
        "charts": {
            "Error rate": charts.learning_curve("Error rate", errors, percentage=True),
            "Cross-entropy": charts.learning_curve("Cross-entropy", losses, percentage=False),
            "Learning rate": charts.learning_curve("Learning rate", {"rate": rates}, False),
        },
        "columns": [
            "epoch",
            *(f"{name} {metric}" for metric in ("error", "loss") for name in splits),
            "learning rate",
        ],
        "rows": list(zip(*errors.values(), *losses.values(), rates, strict=True)),
    }


def progress(name: str, runs: Mapping[str, Metrics]) -> TemplateContext | None:
    """Return how many trainings of a series are done; None if all are."""
    series = load_series(name)
    done = {run: len(runs[run]["trainings"]) if run in runs else 0 for run in series.runs}
    n_done, total = sum(done.values()), len(series.seeds) * len(series.runs)
    if n_done >= total:
        return None
    missing = [run for run, n in done.items() if n == 0]
    return {"done": n_done, "total": total, "missing": missing}


def study(runs: Mapping[str, Metrics], speed: Mapping[str, Any] | None) -> TemplateContext:
    """Return the runs, the most accurate first, and the Pareto front of accuracy and time."""
    us = speed["us_per_image"] if speed else {}
    accuracies = {name: run["val_accuracy"] for name, run in runs.items()}
    front = pareto_front(
        {name: (us[name]["b100"], accuracies[name]["mean"]) for name in us.keys() & runs.keys()}
    )
    return {
        "us": us,
        "front": front,
        "chart": charts.tradeoff(accuracies, us, front, front | {"base"}) if front else None,
        "runs": sorted(runs.items(), key=lambda item: (-item[1]["val_accuracy"]["mean"], item[0])),
        "progress": progress("study", runs),
    }


def pareto_front(points: Mapping[str, tuple[float, float]]) -> set[str]:
    """Return the names of (cost, value) for which no other point costs no more and is worth more.

    A point that costs less and is worth the same also excludes another.
    """
    return {
        name
        for name, (cost, value) in points.items()
        if not any(x <= cost and y >= value and (x, y) != (cost, value) for x, y in points.values())
    }


def compared(
    values: Mapping[str, float], ours: str, unfinished: Mapping[str, str]
) -> list[TemplateContext]:
    """Return implementations, the fastest first, with their ratio to ours and to the slowest."""
    rows: list[TemplateContext] = [
        {
            "name": IMPLEMENTATIONS.get(name, name),
            "ours": name == ours,
            "value": value,
            "share": value / max(values.values()),
            "ratio": value / values[ours],
        }
        for name, value in sorted(values.items(), key=lambda item: item[1])
    ]
    return rows + [
        {"name": IMPLEMENTATIONS.get(name, name), "unfinished": reason}
        for name, reason in unfinished.items()
    ]


def compared_by_load(
    us: Mapping[str, Metrics], loads: Mapping[str, str], unfinished: Mapping[str, str]
) -> dict[str, list[TemplateContext]]:
    """Return `compared` rows of microseconds per image for each load, by the load's title."""
    return {
        title: compared(
            {name: row[load] for name, row in us.items() if load in row}, "engine", unfinished
        )
        for load, title in loads.items()
    }
