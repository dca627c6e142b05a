"""Pictures of what the engine sees and says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

from mnist_mamba.files import replacing

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
