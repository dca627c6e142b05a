"""Plots: the choice of their images, and the figures that they show."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from pipeline.common import plots
from pipeline.common.plots import MUTED, RIGHT, WRONG, even_choice


def test_too_many_images_are_chosen_evenly_over_the_classes() -> None:
    labels = np.array([7, 7, 7, 7, 2, 7, 2, 2, 9], np.uint8)
    assert even_choice(labels, 5).tolist() == [0, 1, 4, 6, 8]
    assert even_choice(labels, 6).tolist() == [0, 1, 2, 4, 6, 8]
    assert even_choice(np.repeat(np.arange(10, dtype=np.uint8), 50), 60).size == 60


def test_all_images_that_fit_are_chosen_in_order() -> None:
    labels = np.array([7, 7, 2, 9, 7], np.uint8)
    assert even_choice(labels, 5).tolist() == [0, 1, 2, 3, 4]
    assert even_choice(labels[:0], 5).tolist() == []


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[Figure]]:
    """The figures that were saved, in place of their files' pixels."""
    figures: list[Figure] = []

    def save(figure: Figure, path: Path, **_: Any) -> None:
        Path(path).write_bytes(b"png")
        figures.append(figure)

    monkeypatch.setattr(Figure, "savefig", save)
    monkeypatch.chdir(tmp_path)
    yield figures
    assert Path("plot.png").read_bytes() == b"png"


def one_hot(predictions: list[int], confidences: list[float], n: int = 3) -> Any:
    """Return probabilities [n_images, n] with these largest ones."""
    rest = (1 - np.array(confidences)) / (n - 1)
    probabilities = np.repeat(rest[:, None], n, axis=1)
    probabilities[np.arange(len(predictions)), predictions] = confidences
    return probabilities


PLOT = Path("plot.png")
IMAGES = np.zeros((6, 2, 2), np.uint8)
NAMES = ["0", "1", "2"]
LABELS = np.array([1, 0, 1, 2, 0, 2], np.uint8)
FOUND = one_hot([1, 2, 1, 2, 1, 2], [0.99, 0.62, 0.5, 0.7, 0.8, 0.95])


def same_colour(a: Any, b: Any) -> bool:
    return mpl.colors.to_rgba(a) == mpl.colors.to_rgba(b)


@pytest.mark.parametrize("values", [[0.5], [0.0, 0.0], [1.0, 0.0], [3e-5, 2.0, 1.0]])
@pytest.mark.parametrize("validated", [True, False])
def test_curves_have_error_loss_and_rate(
    drawn: list[Figure], values: list[float], validated: bool
) -> None:
    points = [
        {"epoch": epoch, "lr": value, "train_accuracy": value, "train_loss": 2 * value}
        | dict.fromkeys(("val_accuracy", "val_loss"), 0.25 if validated else None)
        for epoch, value in enumerate(values, start=1)
    ]
    plots.draw_curves(PLOT, points)
    (figure,) = drawn
    shown = {axes.get_title(): axes.lines for axes in figure.axes}
    assert list(shown) == ["error rate", "cross-entropy", "learning rate"]
    error, *_ = shown["error rate"][::-1]
    np.testing.assert_allclose(error.get_xydata(), [(i + 1, 1 - v) for i, v in enumerate(values)])
    assert [len(lines) for lines in shown.values()] == [1 + validated, 1 + validated, 1]
    if validated:
        assert set(shown["error rate"][0].get_ydata()) == {0.75}
    (rate,) = shown["learning rate"]
    assert rate.get_label() == f"lr, at the end {values[-1]:.3g}"
    figure.canvas.draw()


def test_a_confusion_matrix_counts_labels_by_row_and_predictions_by_column(
    drawn: list[Figure], monkeypatch: pytest.MonkeyPatch
) -> None:
    plots.draw_confusion(PLOT, LABELS, FOUND.argmax(axis=1), NAMES)
    (axes,) = drawn[0].axes
    shown = {text.get_position(): text.get_text() for text in axes.texts if text.get_text()}
    assert shown == {(2, 0): "1", (1, 0): "1", (1, 1): "2", (2, 2): "2"}  # (column, row)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted by the C engine", "label")
    assert [tick.get_text() for tick in axes.get_yticklabels()] == NAMES
    monkeypatch.setattr(plots, "MAX_COUNTED", 2)
    plots.draw_confusion(PLOT, LABELS, FOUND.argmax(axis=1), NAMES)
    assert not drawn[1].axes[0].texts


def test_predictions_begin_with_each_class_and_go_on_with_the_least_certain(
    drawn: list[Figure],
) -> None:
    plots.draw_predictions(PLOT, IMAGES, LABELS, FOUND, NAMES, columns=3)
    (figure,) = drawn
    pictures = [axes for axes in figure.axes if axes.images]
    titles = [axes.get_title() for axes in pictures]
    # First images of classes 0, 1 and 2, then the others by confidence.
    firsts, others = ["2  62.0% (is 0)", "1  99.0%", "2  70.0%"], ["1  50.0%", "1  80.0% (is 0)"]
    assert titles == [*firsts, *others, "2  95.0%"]
    wrong = ["is" in title for title in titles]
    colours = [axes.title.get_color() for axes in pictures]
    assert [same_colour(colour, WRONG) for colour in colours] == wrong
    assert [same_colour(colour, RIGHT) for colour in colours] == [not one for one in wrong]
    bars = [axes for axes in figure.axes if axes.patches]
    heights = [patch.get_height() for patch in bars[0].patches]
    np.testing.assert_allclose(heights, FOUND[1])
    marked = [same_colour(patch.get_facecolor(), WRONG) for patch in bars[0].patches]
    assert marked == [False, False, True]


def test_classes_are_shown_by_name_in_any_script(drawn: list[Figure]) -> None:
    names = ["$5 and $10", "café", "a name of many characters"]
    plots.draw_confusion(PLOT, LABELS, FOUND.argmax(axis=1), names)
    plots.draw_predictions(PLOT, IMAGES, LABELS, FOUND, names)
    plots.draw_misclassified(PLOT, IMAGES, LABELS, FOUND, names)
    short = ["$5 and $10", "café", "a name of man…"]
    confusion, predictions, mistakes = drawn
    for ticks in (confusion.axes[0].get_xticklabels(), confusion.axes[0].get_yticklabels()):
        assert [tick.get_text() for tick in ticks] == short
    assert predictions.axes[0].get_title() == "a name of man…\n62.0%\n(is $5 and $10)"
    assert mistakes.axes[0].get_title() == "$5 and $10\nread as café\n#4"
    for figure in drawn:
        figure.canvas.draw()  # $ does not begin a formula


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_images_are_drawn_as_they_are(drawn: list[Figure], channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 2, channels), dtype=np.uint8)
    images = images[..., 0] if channels == 1 else images
    plots.draw_predictions(PLOT, images, LABELS, FOUND, NAMES)
    plots.draw_misclassified(PLOT, images, LABELS, FOUND, NAMES)
    plots.draw_rows(PLOT, [("a", images)], "title")
    expected = images[..., 0] if channels == 2 else images
    for figure, first in zip(drawn[:2], (1, 4), strict=True):
        shown = next(axes.images[0] for axes in figure.axes if axes.images)
        np.testing.assert_array_equal(shown.get_array(), expected[first])
        assert (shown.get_cmap().name, *shown.get_clim()) == ("gray", 0, 255)
    sheet = drawn[2].axes[0].images[0].get_array()
    np.testing.assert_array_equal(sheet[:3, :2], expected[0])
    assert (sheet[3] == 255).all()


@pytest.mark.parametrize(("n", "blocks"), [(1, 1), (32, 1), (33, 2), (256, 8)])
def test_each_row_of_images_has_its_name(drawn: list[Figure], n: int, blocks: int) -> None:
    rows = [(f"class {i}", np.full((i % 12, 2, 5), i, np.uint8)) for i in range(n)]
    plots.draw_rows(PLOT, rows, "title")
    (figure,) = drawn
    assert len(figure.axes) == blocks
    names = [tick.get_text() for axes in figure.axes for tick in axes.get_yticklabels()]
    assert names == [name for name, _ in rows]
    heights = [axes.images[0].get_array().shape[0] for axes in figure.axes]
    assert sum(heights) == 3 * n


def test_mistakes_are_counted_and_named_the_most_confident_first(
    drawn: list[Figure], monkeypatch: pytest.MonkeyPatch
) -> None:
    plots.draw_misclassified(PLOT, IMAGES, LABELS, FOUND, NAMES)
    monkeypatch.setattr(plots, "MAX_MISCLASSIFIED", 1)
    plots.draw_misclassified(PLOT, IMAGES, LABELS, FOUND, NAMES)
    titles = [[axes.get_title() for axes in figure.axes if axes.images] for figure in drawn]
    assert titles == [["0 read as 1\n#4", "0 read as 2\n#1"], ["0 read as 1\n#4"]]
    assert [figure.get_suptitle() for figure in drawn] == [
        "2 of 6 test images misclassified",
        "2 of 6 test images misclassified, 1 shown, evenly by class",
    ]


def test_a_reliability_diagram_has_accuracy_over_confidence(drawn: list[Figure]) -> None:
    plots.draw_reliability(PLOT, FOUND, LABELS, bins=5)
    curve, counts = drawn[0].axes
    # Bins from 0.4, 0.6 and 0.8: images 2, then 1 and 3, then 0, 4 and 5.
    points = np.array(curve.lines[1].get_xydata())
    expected = [(0.5, 1), (0.66, 0.5), ((0.99 + 0.8 + 0.95) / 3, 2 / 3)]
    np.testing.assert_allclose(points, expected)
    error = abs(0.5 - 1) + abs(1.32 - 1) + abs(2.74 - 2)
    assert curve.get_title() == f"expected calibration error {error / 6:.4f}"
    assert [patch.get_height() for patch in counts.patches] == [0, 0, 1, 2, 3]
    centres = [patch.get_x() + patch.get_width() / 2 for patch in counts.patches]
    np.testing.assert_allclose(centres, [0.1, 0.3, 0.5, 0.7, 0.9])


def test_robustness_is_in_percent_with_its_strengths_and_units(drawn: list[Figure]) -> None:
    table = {"shift": {"5": 0.99, "10": 0.5}, "rotate": {"30": 0.25}, "noise": {"40": 0.125}}
    plots.draw_robustness(PLOT, 0.97, table)
    axes = drawn[0].axes
    titles = [one.get_title() for one in axes[:3]]
    assert titles == ["shift (% of sides)", "rotate (degrees)", "noise (%)"]
    for one, row in zip(axes, table.values(), strict=False):
        assert [patch.get_height() for patch in one.patches] == [100 * v for v in row.values()]
        assert [label.get_text() for label in one.get_xticklabels()] == list(row)
        assert set(one.lines[0].get_ydata()) == {97}


def test_a_tradeoff_shows_time_in_batches_of_100_and_accuracy_in_percent(
    drawn: list[Figure],
) -> None:
    accuracies = {
        "base": {"mean": 0.75, "std": 0.125},
        "other": {"mean": 0.5, "std": None},
        "not timed": {"mean": 0.25, "std": None},
    }
    speed = {"base": {"b1": 1.0, "b100": 150.0}, "other": {"b1": 2.0, "b100": 90.0}, "gone": {}}
    plots.draw_tradeoff(PLOT, accuracies, speed, "validation", marked="base")
    (axes,) = drawn[0].axes
    assert {text.get_text(): text.xy for text in axes.texts} == {
        "base": (150, 75),
        "other": (90, 50),
    }
    points = [(*bar[0].get_xydata()[0], bar[0].get_color()) for bar in axes.containers]
    assert points == [(150, 75, RIGHT), (90, 50, MUTED)]
    assert axes.get_ylabel().startswith("validation accuracy (%)")
    ends = [segment for bar in axes.collections for segment in bar.get_segments()]
    np.testing.assert_allclose(ends, [[[150, 62.5], [150, 87.5]]])
