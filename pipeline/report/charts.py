"""Charts of the report: matplotlib's SVG, as inline elements in the page's colours."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from io import StringIO
from typing import Any
from xml.etree import ElementTree as ET

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from pipeline.common.plots import MUTED, RIGHT, plot_tradeoff

WIDTH = 3.6
"""Width of a chart (inches): little more than a phone's, so that its text stays readable there."""
INK, GRID, SECOND = "#1d1f22", "#dedad2", "#5a5f66"
CSS = {RIGHT: "--ours", MUTED: "--other", INK: "--ink", GRID: "--rule", SECOND: "--soft"}
"""CSS variables that replace the colours in the SVG, so that charts follow light and dark mode."""
STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GRID,
    "axes.labelcolor": SECOND,
    "text.color": INK,
    "xtick.color": SECOND,
    "ytick.color": SECOND,
    "xtick.bottom": False,
    "ytick.left": False,
    "ytick.minor.left": False,
    "grid.color": GRID,
}
SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
ET.register_namespace("", SVG)
ET.register_namespace("xlink", XLINK)


def percent(value: float, _position: float | None = None) -> str:
    """Format a fraction as a short percentage: 0.5%, 99.45%."""
    return f"{100 * value:.{2 if value < 0.1 else 4}g}%"


def short(value: float, _position: float | None = None) -> str:
    """Format a value with at most two significant digits."""
    return f"{value:.2g}"


def learning_curve(title: str, lines: Mapping[str, Sequence[float]], percentage: bool) -> Markup:
    """Return lines over the epochs; the scale is logarithmic if values span a factor of 10."""
    with mpl.rc_context(STYLE):
        figure, axes = _chart(WIDTH, 2.5)
        form = percent if percentage else short
        for colour, (name, values) in zip((RIGHT, SECOND), lines.items(), strict=False):
            label = f"{name}, at the end {form(values[-1])}"
            axes.plot(range(1, len(values) + 1), values, color=colour, label=label)
        shown = [value for values in lines.values() for value in values]
        if max(shown) > 10 * min(shown) > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(form)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel("epoch")
        axes.grid(axis="y")
        axes.legend(frameon=False)
        return to_svg(figure, f"{title} by epoch")


def seed_strips(runs: Mapping[str, Mapping[str, Any]]) -> Markup:
    """Return a dot for each training's accuracy; a line is the mean, its band one deviation."""
    with mpl.rc_context(STYLE):
        figure, axes = _chart(WIDTH, 0.6 + 0.45 * len(runs))
        titles = {}
        for row, (name, run) in enumerate(runs.items()):
            mean, std = run["mean"], run["std"] or 0
            axes.barh(row, 2 * std, left=mean - std, height=0.5, color=RIGHT, alpha=0.16)
            axes.plot([mean, mean], [row - 0.35, row + 0.35], color=RIGHT)
            for seed, value in enumerate(run["test_accuracy"]):
                gid = f"{name} {seed}"
                axes.plot(value, row, "o", color=RIGHT, alpha=0.75, gid=gid)
                titles[gid] = f"{name}: {value:.2%}"
        axes.set_yticks(range(len(runs)), list(runs))
        axes.invert_yaxis()
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(percent)
        axes.grid(axis="x")
        return to_svg(figure, "test accuracy of each seed", titles)


def tradeoff(
    accuracies: Mapping[str, Mapping[str, Any]],
    speed: Mapping[str, Mapping[str, float]],
    front: Container[str],
    named: Container[str],
) -> Markup:
    """Return validation accuracy against time per image, with the Pareto front highlighted."""
    with mpl.rc_context(STYLE):
        figure, axes = _chart(1.5 * WIDTH, 3.6)
        plot_tradeoff(axes, accuracies, speed, front, named)
        axes.set_ylabel("validation accuracy (%)")
        titles = {
            run: f"{run}: {accuracies[run]['mean']:.2%}, {us['b100']:.4g} µs"
            for run, us in speed.items()
            if run in accuracies
        }
        return to_svg(figure, "accuracy against time", titles)


def _chart(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_visible(False)
    axes = figure.subplots()
    axes.patch.set_visible(False)
    axes.set_axisbelow(True)
    return figure, axes


def to_svg(figure: Figure, label: str, titles: Mapping[str, str] | None = None) -> Markup:
    """Return a figure as an SVG element for a page that has several.

    Args:
        figure: the chart; its colours in CSS become the page's variables.
        label: a description for screen readers; different labels keep the charts' ids apart.
        titles: tooltips, by the artist's gid.
    """
    buffer = StringIO()
    with mpl.rc_context({"svg.hashsalt": label}):
        figure.savefig(
            buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    # The style would apply to the whole page.
    text = re.sub("<style.*?</style>", "", buffer.getvalue(), flags=re.DOTALL)
    for colour, variable in CSS.items():
        text = text.replace(colour, f"var({variable})")
    svg = ET.fromstring(text)
    for name in ("width", "height", "version"):
        del svg.attrib[name]
    svg.attrib |= {"class": "chart", "role": "img", "aria-label": label}
    for group in svg.iter(f"{{{SVG}}}g"):
        # The groups' ids repeat from chart to chart.
        if title := (titles or {}).get(group.attrib.pop("id", "")):
            group.insert(0, ET.Element(f"{{{SVG}}}title"))
            group[0].text = title
    # ElementTree escapes every text and attribute.
    return Markup(ET.tostring(svg, encoding="unicode"))
