"""Pictures of what the engine sees and says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

from mnist_mamba.atomic_write import replacing
from mnist_mamba.metrics import confidence_bins, expected_calibration_error

mpl.use("Agg")
from matplotlib import pyplot as plt

Images = NDArray[np.uint8]
Labels = NDArray[np.uint8]
Probabilities = NDArray[np.floating[Any]]

RIGHT, WRONG, MUTED = "#1a7f4b", "#c0392b", "#b8bec7"
MAX_MISCLASSIFIED = 60


def _save(path: Path, figure: Any) -> None:
    with replacing(path) as temporary:
        # No date or version inside, so that the same figures give the same file.
        figure.savefig(temporary, dpi=110, format="png", metadata={"Software": None})
    plt.close(figure)


def draw_predictions(
    path: Path, images: Images, labels: Labels, probabilities: Probabilities, columns: int = 8
) -> None:
    """The first image of each class and then the least certain ones, each with its probabilities.

    images (n, height, width), labels (n,), probabilities (n, n_classes).
    """
    firsts = [int(np.flatnonzero(labels == label)[0]) for label in np.unique(labels)]
    doubtful = [
        int(i) for i in np.argsort(probabilities.max(axis=1), kind="stable") if i not in firsts
    ]
    shown = (firsts + doubtful)[: 2 * columns]
    rows = -(-len(shown) // columns)
    figure, grid = plt.subplots(
        2 * rows,
        columns,
        figsize=(1.25 * columns, 2.15 * rows),
        gridspec_kw={"height_ratios": [2.2, 1] * rows},
        squeeze=False,
        layout="constrained",
    )
    for axes in grid.flat:
        axes.set_axis_off()
    for place, i in enumerate(shown):
        row, column = divmod(place, columns)
        predicted = int(probabilities[i].argmax())
        colour = RIGHT if predicted == labels[i] else WRONG
        picture, bars = grid[2 * row][column], grid[2 * row + 1][column]
        picture.imshow(images[i], cmap="gray_r", vmin=0, vmax=255)
        said = f"{predicted}  {probabilities[i].max():.1%}"
        if predicted != labels[i]:
            said += f" (is {labels[i]})"
        picture.set_title(said, fontsize=9, color=colour)
        classes = np.arange(probabilities.shape[1])
        bars.set_axis_on()
        colours = [colour if c == predicted else MUTED for c in classes]
        bars.bar(classes, probabilities[i], color=colours)
        bars.set_ylim(0, 1)
        bars.set_yticks([])
        bars.set_xticks(classes if len(classes) <= 12 else [])
        bars.tick_params(labelsize=6, length=0, pad=1)
        for side in ("top", "left", "right"):
            bars.spines[side].set_visible(False)
    _save(path, figure)


def draw_misclassified(
    path: Path, images: Images, labels: Labels, probabilities: Probabilities, columns: int = 10
) -> None:
    """Every image that was got wrong (at most 60, the surest mistakes first); shapes as above."""
    predictions = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predictions != labels)
    wrong = wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")]
    shown = wrong[:MAX_MISCLASSIFIED]
    rows = max(1, -(-len(shown) // columns))
    size = (1.1 * columns, 1.5 * rows + 0.5)
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, i in zip(grid.flat, shown, strict=False):
        axes.imshow(images[i], cmap="gray_r", vmin=0, vmax=255)
        axes.set_title(f"is {labels[i]}, said {predictions[i]}\n#{i}", fontsize=7)
    more = f", the {len(shown)} surest shown" if len(shown) < len(wrong) else ""
    figure.suptitle(f"{len(wrong)} of {len(labels)} test images got wrong{more}", fontsize=11)
    _save(path, figure)


def draw_reliability(path: Path, probabilities: Probabilities, labels: Labels, bins: int) -> None:
    """How often the engine is right when it is so sure, and how often it is.

    probabilities (n, n_classes), labels (n,).
    """
    found = confidence_bins(probabilities, labels, bins)
    some = found.size > 0
    x = found.confidence[some] / found.size[some]
    figure, (curve, counts) = plt.subplots(
        2,
        1,
        figsize=(6, 6.5),
        sharex=True,
        gridspec_kw={"height_ratios": [3, 1]},
        layout="constrained",
    )
    curve.plot([0, 1], [0, 1], color=MUTED, linestyle="--", label="as sure as right")
    curve.plot(x, found.correct[some] / found.size[some], "o-", color=RIGHT, label="C engine")
    error = expected_calibration_error(probabilities, labels, bins)
    curve.set_title(f"expected calibration error {error:.4f}", fontsize=10)
    curve.set_ylabel("fraction right")
    curve.legend()
    counts.bar((np.arange(bins) + 0.5) / bins, found.size, width=0.9 / bins, color=MUTED)
    counts.set_yscale("symlog")
    counts.set_ylim(bottom=0)
    counts.set_ylabel("images")
    counts.set_xlabel("probability of the class that is predicted")
    _save(path, figure)


UNITS = {"shift": "% of sides", "rotate": "degrees", "scale": "% of size"}


def draw_robustness(path: Path, accuracy: float, table: Mapping[str, Mapping[str, float]]) -> None:
    """Accuracy of each row of images made harder, beside that on the images as they are."""
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
        axes.set_title(f"{name}, {UNITS.get(name, '%')}", fontsize=9)
        axes.set_ylim(0, 109)
    for axes in grid[:, 0]:
        axes.set_ylabel("accuracy, %")
    _save(path, figure)


def draw_tradeoff(
    path: Path,
    accuracies: Mapping[str, Mapping[str, Any]],
    speed: Mapping[str, Mapping[str, float]],
    images: str,
    marked: str,
) -> None:
    """Accuracy of runs on some images against what their model costs the C engine.

    Args:
        accuracies: mean and std (or None) by run.
        speed: microseconds an image by run and load.
        images: which the accuracy is of, for the axis.
        marked: the run that stands out.
    """
    figure, axes = plt.subplots(figsize=(9, 6), layout="constrained")
    for name in sorted(accuracies.keys() & speed.keys()):
        accuracy = accuracies[name]
        x, y = speed[name]["b100"], 100 * accuracy["mean"]
        colour = RIGHT if name == marked else MUTED
        bar = None if accuracy["std"] is None else 100 * accuracy["std"]
        axes.errorbar(x, y, yerr=bar, fmt="o", color=colour, capsize=2)
        axes.annotate(name, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.set_xlabel("µs an image in the C engine (batch 100, one thread)")
    axes.set_ylabel(f"{images} accuracy, % (mean ± deviation of the seeds)")
    axes.grid(alpha=0.3)
    _save(path, figure)
