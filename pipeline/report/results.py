"""Tables that the report derives from the metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from markupsafe import Markup

from pipeline.common.plots import UNITS
from pipeline.common.timings import IMPLEMENTATIONS, format_ratio, format_value
from pipeline.report.files import SOURCES, Metrics, ReportError
from pipeline.series.trainings import load_series, plus_minus

TemplateContext = dict[str, Any]


def percent(fraction: float, digits: int = 2) -> str:
    """Format a fraction as a percentage, NaN as nothing."""
    return "" if pd.isna(fraction) else f"{fraction:.{digits}%}"


def html(table: pd.DataFrame, corner: str) -> Markup:
    """Return a table of texts and whole numbers as HTML; `corner` is the title of its rows."""
    table = table.rename_axis(index=None, columns=corner)
    with pd.option_context("display.max_colwidth", None):
        return Markup(table.to_html(border=0, na_rep=""))


def confusion(predictions: Sequence[Mapping[str, str]], scores: Metrics) -> TemplateContext:
    """Return the confusion matrix, the confused pairs by frequency, and each class's metrics.

    Raises:
        ReportError: metrics/eval.json counts other mistakes.
    """
    names, images = list(scores["per_class"]), pd.DataFrame(predictions)
    counts = pd.crosstab(images["label"], images["predicted"])
    correct = int((images["label"] == images["predicted"]).sum())
    if (correct, len(images)) != (scores["correct"], scores["n_test"]):
        source = SOURCES["predictions"]
        raise ReportError(
            f"{source.path} has {correct:,} of {len(images):,} correct, metrics/eval.json has "
            f"{scores['correct']:,} of {scores['n_test']:,}: run `{source.command}` to write both"
        )
    pairs = counts.stack().sort_values(ascending=False, kind="stable")
    wrong = {pair: n for pair, n in pairs.items() if pair[0] != pair[1] and n}
    counts = counts.reindex(index=names, columns=names, fill_value=0)
    classes = pd.DataFrame.from_dict(scores["per_class"], orient="index")
    rates = classes[["recall", "precision", "f1"]].map(percent)
    rates.insert(0, "mistakes", counts.sum(axis=1) - [counts.loc[name, name] for name in names])
    rates.insert(1, "of", classes["support"])
    return {
        "matrix": html(counts.astype(object).replace(0, ""), "label \\ prediction"),
        "pairs": wrong,
        "classes": html(rates, "class"),
    }


def curves(points: Sequence[Metrics]) -> pd.DataFrame:
    """Return error, loss and learning rate by epoch; no validation columns without its images."""
    epochs = pd.DataFrame([dict(point) for point in points]).set_index("epoch")
    for split in ("val", "train"):
        epochs[f"{split}_error"] = 1 - epochs.pop(f"{split}_accuracy").astype(float)
    return epochs.dropna(axis="columns", how="all")


def robustness(table: Mapping[str, Mapping[str, float]]) -> Markup:
    """Return a table of the accuracy by strength of each kind of change."""
    rows = {
        f"{kind} ({UNITS.get(kind, '%')})": ", ".join(
            f"{strength}: {percent(accuracy, 1)}" for strength, accuracy in row.items()
        )
        for kind, row in table.items()
    }
    return html(pd.DataFrame({"strength: accuracy": rows}), "change")


def seeds(runs: Mapping[str, Metrics]) -> Markup:
    """Return a table of each training's accuracy by seed and run, with means and deviations."""
    accuracies = pd.DataFrame(
        {
            name: {one["seed"]: one["test_accuracy"] for one in run["trainings"]}
            for name, run in runs.items()
        }
    )
    table = accuracies.sort_index().map(percent)
    table.loc["mean"] = {name: plus_minus(run, ".2%") for name, run in runs.items()}
    table.loc["parameters"] = {name: f"{run['params']:,}" for name, run in runs.items()}
    return html(table, "seed")


def progress(name: str, runs: Mapping[str, Metrics]) -> str | None:
    """Return how many trainings of a series are done, as a sentence; None if all are."""
    series = load_series(name)
    done = [run for run in series.runs if run in runs for _ in runs[run]["trainings"]]
    total = len(series.seeds) * len(series.runs)
    if len(done) >= total:
        return None
    missing = ", ".join(run for run in series.runs if run not in done)
    none = f", none of {missing}" if missing else ""
    return f"{len(done)} of {total} trainings are done{none}; make {name} continues."


def study(runs: Mapping[str, Metrics], speed: Mapping[str, Any] | None) -> Markup:
    """Return a table of the runs, the most accurate first, with the Pareto front marked."""
    us = {name: load["b100"] for name, load in (speed["us_per_image"] if speed else {}).items()}
    accuracy = {name: run["val_accuracy"]["mean"] for name, run in runs.items()}
    front = pareto_front({name: (us[name], accuracy[name]) for name in us.keys() & runs.keys()})
    rows = {
        name: {
            "accuracy": plus_minus(runs[name]["val_accuracy"], ".2%"),
            "loss": plus_minus(runs[name]["val_loss"], ".4f"),
            "µs per image": format_value(us[name]) if name in us else "",
            "Pareto front": "yes" if name in front else "",
            "parameters": f"{runs[name]['parameters']:,}",
            "changes": ", ".join(f"{key}={value}" for key, value in runs[name]["changes"].items()),
        }
        for name in sorted(runs, key=lambda name: (-accuracy[name], name))
    }
    return html(pd.DataFrame.from_dict(rows, orient="index"), "run")


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
    columns: Mapping[str, Mapping[str, float]], ours: str, unfinished: Mapping[str, str]
) -> Markup:
    """Return a table of implementations, the fastest first, with their multiples of our time.

    Args:
        columns: times by the title of a load, then by implementation.
        ours: the implementation that the others are compared with.
        unfinished: reasons why implementations were not timed.
    """
    times = pd.DataFrame({title: dict(values) for title, values in columns.items()})
    times = times.sort_values(list(times), kind="stable")
    cells = times.map(lambda value: "" if pd.isna(value) else format_value(value))
    others = times.index != ours
    ratios = (times / times.loc[ours])[others]
    cells[others] += ratios.map(lambda x: "" if pd.isna(x) else f" ({format_ratio(x)})")
    for name, reason in unfinished.items():
        cells.loc[name] = [reason] + [""] * (len(columns) - 1)
    return html(cells.rename(index=IMPLEMENTATIONS), "implementation")


def by_load(
    us: Mapping[str, Metrics], loads: Mapping[str, str], unfinished: Mapping[str, str]
) -> Markup:
    """Return `compared` of microseconds per image by implementation and load that was timed."""
    columns = {
        title: times
        for load, title in loads.items()
        if (times := {name: row[load] for name, row in us.items() if load in row})
    }
    return compared(columns, "engine", unfinished)
