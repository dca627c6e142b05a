"""Plots of data, training, predictions, mistakes, calibration, robustness, accuracy against cost.

Each `draw_` function writes a PNG to `path`. Images are drawn as they are: 0 is black.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

from mnist_mamba.atomic_write import replacing
from mnist_mamba.metrics import confidence_bins, expected_calibration_error

mpl.use("Agg")
mpl.rcParams["text.parse_math"] = False  # a class may be named $5
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

Images = NDArray[np.uint8]
"""[n, height, width] or [n, height, width, channels]."""
Labels = NDArray[np.uint8]
"""[n]."""
Probabilities = NDArray[np.floating[Any]]
"""[n, n_classes], the C engine's."""

RIGHT, WRONG, MUTED = "#1a7f4b", "#c0392b", "#b8bec7"
"""Colours of all plots."""
MAX_COUNTED = 20
"""Largest number of classes whose confusion matrix shows numbers."""
MAX_MISCLASSIFIED = 60
"""Largest number of misclassified images in one plot."""
EXAMPLES_PER_CLASS = 10
"""Number of images in a row of `draw_rows`."""
MAX_ROWS = 32
"""Number of rows above which `draw_rows` starts another column of rows, of fewer images."""
MAX_TITLE = 14
"""Number of characters of a class name that a plot shows."""
UNITS = {"shift": "% of sides", "rotate": "degrees", "scale": "% of size"}
"""Units of the robustness tests' strengths; all others are in %."""


def _save(path: Path, figure: Any) -> None:
    with replacing(path) as temporary:
        # Without date and version, so that equal inputs give an equal file.
        figure.savefig(temporary, dpi=110, format="png", metadata={"Software": None})
    plt.close(figure)


def _margins(height: float, top: float) -> dict[str, float]:
    """Return the margins of a figure, `top` inches above; a constrained layout takes a second."""
    return {"left": 0.01, "right": 0.99, "bottom": 0.2 / height, "top": 1 - top / height}


def _show(axes: Any, image: NDArray[np.uint8]) -> None:
    """Draw an image in grey or colour; of two channels the first."""
    shown = image[..., 0] if image.shape[2:] == (2,) else image
    axes.imshow(shown, cmap="gray", vmin=0, vmax=255)


def _short(name: str) -> str:
    return name if len(name) <= MAX_TITLE else f"{name[: MAX_TITLE - 1]}…"


def _are_long(names: Sequence[str]) -> bool:
    """Return whether a title with these names needs a line for each part."""
    return max(map(len, names)) > 3


def draw_rows(path: Path, rows: Sequence[tuple[str, Images]], title: str) -> None:
    """Draw rows of images, each with its name."""
    blocks = [rows[i : i + MAX_ROWS] for i in range(0, len(rows), MAX_ROWS)]
    columns = max(2, EXAMPLES_PER_CLASS // len(blocks))
    height, width, *channels = rows[0][1].shape[1:]
    side = 0.6  # of an image's width, in inches
    size = (len(blocks) * (side * columns + 1.5), side * height / width * len(blocks[0]) + 0.5)
    figure, grid = plt.subplots(1, len(blocks), figsize=size, squeeze=False, layout="constrained")
    for axes, block in zip(grid.flat, blocks, strict=True):
        cells = np.full((len(block), height + 1, columns, width + 1, *channels), 255, np.uint8)
        for cell, (_, images) in zip(cells, block, strict=True):
            for column, image in enumerate(images[:columns]):
                cell[:height, column, :width] = image
        _show(axes, cells.reshape(cells.shape[0] * (height + 1), -1, *channels))
        places = (np.arange(len(block)) + 0.5) * (height + 1) - 1
        axes.set_yticks(places, [name for name, _ in block], fontsize=8)
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    figure.suptitle(title, fontsize=9)
    _save(path, figure)


def draw_curves(path: Path, points: Sequence[Mapping[str, float | None]]) -> None:
    """Draw error rate, cross-entropy and learning rate by epoch; val without values is left out.

    A scale is logarithmic if its values span a factor of 10.

    Args:
        points: values of plots/curves.json, one mapping per epoch.
    """
    names = ("val_accuracy", "train_accuracy", "val_loss", "train_loss", "lr")
    table = {name: np.array([point.get(name) for point in points], float) for name in names}
    charts = {
        "error rate": {"val": 1 - table["val_accuracy"], "train": 1 - table["train_accuracy"]},
        "cross-entropy": {"val": table["val_loss"], "train": table["train_loss"]},
        "learning rate": {"lr": table["lr"]},
    }
    epochs = [point["epoch"] for point in points]
    marker = "o" if len(points) == 1 else None
    figure, grid = plt.subplots(1, 3, figsize=(10, 3), layout="constrained")
    for axes, (title, curves) in zip(grid, charts.items(), strict=True):
        shown = {name: curve for name, curve in curves.items() if not np.isnan(curve).all()}
        for colour, (name, curve) in zip((RIGHT, MUTED), shown.items(), strict=False):
            label = f"{name}, at the end {curve[-1]:.3g}"
            axes.plot(epochs, curve, color=colour, marker=marker, label=label)
        values = np.concatenate(list(shown.values()))
        if np.nanmax(values) > 10 * np.nanmin(values) > 0:
            axes.set_yscale("log")
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        axes.grid(axis="y", alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    _save(path, figure)


def draw_confusion(
    path: Path, labels: Labels, predictions: NDArray[np.intp], names: Sequence[str]
) -> None:
    """Draw the confusion matrix: numbers of images by label (rows) and prediction (columns)."""
    counts = np.zeros((len(names), len(names)), np.intp)
    np.add.at(counts, (labels, predictions), 1)
    figure, axes = plt.subplots(figsize=(7, 6.5), layout="constrained")
    shades = np.log1p(counts)
    axes.imshow(shades, cmap="Greens")
    if len(names) <= MAX_COUNTED:
        for (row, column), n in np.ndenumerate(counts):
            colour = RIGHT if row == column else WRONG
            if shades[row, column] > shades.max() / 2:
                colour = "white"
            axes.text(column, row, f"{n:,}" if n else "", color=colour, ha="center", va="center")
        titles = [_short(name) for name in names]
        axes.set_xticks(range(len(names)), titles, rotation=0 if max(map(len, titles)) < 4 else 90)
        axes.set_yticks(range(len(names)), titles)
    axes.set(xlabel="predicted by the C engine", ylabel="label")
    _save(path, figure)


def draw_predictions(
    path: Path,
    images: Images,
    labels: Labels,
    probabilities: Probabilities,
    names: Sequence[str],
    columns: int = 8,
) -> None:
    """Draw two rows: the first image of each class and the least certain, with probabilities."""
    firsts = [int(np.flatnonzero(labels == label)[0]) for label in np.unique(labels)]
    least_certain = np.argsort(probabilities.max(axis=1), kind="stable")
    shown = (firsts + [int(i) for i in least_certain if i not in firsts])[: 2 * columns]
    rows = -(-len(shown) // columns)
    long = _are_long(names)
    height = (2.6 if long else 2.15) * rows
    space = _margins(height, top=0.6 if long else 0.25)
    figure, grid = plt.subplots(
        2 * rows,
        columns,
        figsize=(1.25 * columns, height),
        gridspec_kw=space | {"height_ratios": [2.2, 1] * rows, "hspace": 0.9 if long else 0.5},
        squeeze=False,
    )
    for axes in grid.flat:
        axes.set_axis_off()
    for place, i in enumerate(shown):
        row, column = divmod(place, columns)
        predicted = int(probabilities[i].argmax())
        colour = RIGHT if predicted == labels[i] else WRONG
        picture, bars = grid[2 * row][column], grid[2 * row + 1][column]
        _show(picture, images[i])
        title = f"{_short(names[predicted])}  {probabilities[i].max():.1%}"
        if predicted != labels[i]:
            title += f"  (is {_short(names[labels[i]])})"
        title = title.replace("  ", "\n") if long else title.replace("  (", " (")
        picture.set_title(title, y=1, fontsize=8 if long else 9, color=colour)
        classes = np.arange(probabilities.shape[1])
        bars.set_axis_on()
        colours = [colour if c == predicted else MUTED for c in classes]
        bars.bar(classes, probabilities[i], color=colours)
        bars.set_ylim(0, 1)
        bars.set_yticks([])
        fits = len(names) <= 12 and max(map(len, names)) <= 2
        bars.set_xticks(*((classes, names) if fits else ([],)))
        bars.tick_params(labelsize=6, length=0, pad=1)
        bars.spines[["top", "left", "right"]].set_visible(False)
    _save(path, figure)


def even_choice(labels: Labels, most: int) -> NDArray[np.intp]:
    """Return up to `most` indices in order, of each class as many and as early ones as possible."""
    rank = np.zeros(len(labels), np.intp)  # within the class
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank[members] = np.arange(len(members))
    return np.sort(np.argsort(rank, kind="stable")[:most])


def draw_misclassified(
    path: Path,
    images: Images,
    labels: Labels,
    probabilities: Probabilities,
    names: Sequence[str],
    columns: int = 10,
) -> None:
    """Draw up to 60 misclassified images, the most confident mistakes first."""
    predictions = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predictions != labels)
    wrong = wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")]
    shown = wrong[even_choice(labels[wrong], MAX_MISCLASSIFIED)]
    rows = max(1, -(-len(shown) // columns))
    long = _are_long(names)
    inches = (1.1 * columns, (1.7 if long else 1.5) * rows + 0.5)
    space = _margins(inches[1], top=0.8) | {"hspace": 0.45}
    figure, grid = plt.subplots(rows, columns, figsize=inches, gridspec_kw=space, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, i in zip(grid.flat, shown, strict=False):
        _show(axes, images[i])
        label, predicted = _short(names[labels[i]]), _short(names[predictions[i]])
        between, size = ("\n", 6) if long else (" ", 7)
        axes.set_title(f"{label}{between}read as {predicted}\n#{i}", y=1, fontsize=size)
    more = f", {len(shown)} shown, evenly by class" if len(shown) < len(wrong) else ""
    figure.suptitle(f"{len(wrong)} of {len(labels)} test images misclassified{more}", fontsize=11)
    _save(path, figure)


def draw_reliability(path: Path, probabilities: Probabilities, labels: Labels, bins: int) -> None:
    """Draw a reliability diagram: accuracy against confidence, with a confidence histogram."""
    found = confidence_bins(probabilities, labels, bins)
    filled = found.size > 0
    x = found.confidence[filled] / found.size[filled]
    figure, (curve, counts) = plt.subplots(
        2,
        1,
        figsize=(6, 6.5),
        sharex=True,
        gridspec_kw={"height_ratios": [3, 1]},
        layout="constrained",
    )
    curve.plot([0, 1], [0, 1], color=MUTED, linestyle="--", label="perfect calibration")
    curve.plot(x, found.correct[filled] / found.size[filled], "o-", color=RIGHT, label="C engine")
    error = expected_calibration_error(probabilities, labels, bins)
    curve.set_title(f"expected calibration error {error:.4f}", fontsize=10)
    curve.set_ylabel("accuracy")
    curve.legend()
    counts.bar((np.arange(bins) + 0.5) / bins, found.size, width=0.9 / bins, color=MUTED)
    counts.set_yscale("symlog")
    counts.set_ylim(bottom=0)
    counts.set_ylabel("images")
    counts.set_xlabel("confidence (probability of the predicted class)")
    _save(path, figure)


def draw_robustness(path: Path, accuracy: float, table: Mapping[str, Mapping[str, float]]) -> None:
    """Draw the accuracy on changed test images; a line marks the accuracy on unchanged ones.

    Args:
        accuracy: fraction of unchanged images classified correctly.
        table: the same fraction by kind of change, then by strength.
    """
    columns = max(1, -(-len(table) // 2))
    figure, grid = plt.subplots(
        2, columns, figsize=(10, 5), sharey=True, squeeze=False, layout="constrained"
    )
    for axes in grid.flat[len(table) :]:
        axes.set_axis_off()
    for axes, (name, row) in zip(grid.flat, table.items(), strict=False):
        axes.axhline(100 * accuracy, color=RIGHT, linewidth=1)
        heights = [100 * value for value in row.values()]
        bars = axes.bar(range(len(row)), heights, tick_label=list(row), color=MUTED, width=0.6)
        axes.bar_label(bars, fmt="%.1f", fontsize=8)
        axes.set_title(f"{name} ({UNITS.get(name, '%')})", fontsize=9)
        axes.set_ylim(0, 109)
    for axes in grid[:, 0]:
        axes.set_ylabel("accuracy (%)")
    _save(path, figure)


def draw_tradeoff(
    path: Path,
    accuracies: Mapping[str, Mapping[str, Any]],
    speed: Mapping[str, Mapping[str, float]],
    split: str,
    marked: str,
) -> None:
    """Draw the accuracy of a series' runs against the time that their models take in the C engine.

    Args:
        accuracies: mean and standard deviation (or None), by run.
        speed: microseconds per image, by run and load.
        split: the images that the accuracy was measured on, for the axis.
        marked: the run to highlight.
    """
    figure, axes = plt.subplots(figsize=(9, 6), layout="constrained")
    for run in sorted(accuracies.keys() & speed.keys()):
        x, y = speed[run]["b100"], 100 * accuracies[run]["mean"]
        std = accuracies[run]["std"]
        error = None if std is None else 100 * std
        axes.errorbar(x, y, error, fmt="o", color=RIGHT if run == marked else MUTED, capsize=2)
        axes.annotate(run, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.set_xlabel("C engine, batch of 100, one thread, per image (µs)")
    axes.set_ylabel(f"{split} accuracy (%), mean ± standard deviation over seeds")
    axes.grid(alpha=0.3)
    _save(path, figure)
