"""Small charts as inline SVG. Colours are classes of style.css, so that they follow the page's.

Each is drawn 320 units wide, a phone's width, so that its text keeps its size there; wider pages
put several side by side.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from markupsafe import Markup

WIDTH = 320
LEFT, TOP, BOTTOM = 40, 14, 34
"""Room for the tick labels, and above the highest one."""

Form = Callable[[float], str]


@dataclass(frozen=True)
class Axis:
    """Values from low to high, drawn between two places."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Where a value is drawn."""
        low, high, value = ((math.log(v) if self.log else v) for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values on it, at most so many."""
        if self.log and len(found := _log_ticks(self.low, self.high, most)) > 1:
            return found
        step = _round_up((self.high - self.low) / (most - 1))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(i * step, 12) for i in range(first, last + 1)]


def axis(values: Sequence[float], start: float, end: float, log: bool = False) -> Axis:
    """An axis that holds all values with a little room; never of no length."""
    low, high = min(values), max(values)
    if log:
        room = (high / low) ** 0.06 if high > low else 2.0
        return Axis(low / room, high * room, start, end, log)
    room = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    return Axis(low - room, high + room, start, end)


def line_chart(
    label: str, lines: Mapping[str, Sequence[float]], form: Form, x_label: str
) -> Markup:
    """Lines over 1, 2, 3 and so on, each with its name and last value at its end.

    The scale is logarithmic unless a value is 0 or less. The first line is drawn strongest.
    """
    height, right = 220, WIDTH - 78
    bottom = height - BOTTOM
    values = [value for line in lines.values() for value in line]
    longest = max(len(line) for line in lines.values())
    y = axis(values, bottom, TOP, log=min(values) > 0)
    x = Axis(1, max(2, longest), LEFT + 6, right)
    svg = _svg(label, height)
    _grid(svg, y, right, form)
    for tick in (tick for tick in x.ticks(5) if tick == int(tick)):
        _text(svg, x.at(tick), bottom + 14, f"{tick:g}", "tick", "middle")
    _text(svg, (LEFT + right) / 2, height - 4, x_label, "tick", "middle")
    heights = _apart([y.at(line[-1]) for line in lines.values()], 30, bottom - 13)
    for number, (name, line) in enumerate(lines.items()):
        points = [(x.at(i), y.at(value)) for i, value in enumerate(line, start=1)]
        kind = f"line line-{number}"
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        _add(svg, "polyline", points=path, kind=kind)
        _add(svg, "circle", cx=points[-1][0], cy=points[-1][1], r=3, kind=f"dot dot-{number}")
        _text(svg, right + 8, heights[number], name, f"name name-{number}")
        _text(svg, right + 8, heights[number] + 13, form(line[-1]), f"value name-{number}")
    return _markup(svg)


@dataclass(frozen=True)
class Strip:
    """Values of one kind, their mean and its deviation."""

    name: str
    values: Sequence[float]
    mean: float
    std: float | None


def strips(label: str, rows: Sequence[Strip], form: Form) -> Markup:
    """A dot for each value on one scale for all rows; a bar is the mean, its band a deviation."""
    row_height, right = 52, WIDTH - 20
    bottom = TOP + row_height * len(rows)
    ends = [row.mean + side * (row.std or 0) for row in rows for side in (-1, 1)]
    x = axis([*ends, *(value for row in rows for value in row.values)], 12, right)
    svg = _svg(label, bottom + 24)
    for tick in x.ticks(5):
        _add(svg, "line", x1=x.at(tick), x2=x.at(tick), y1=TOP, y2=bottom, kind="grid")
        _text(svg, x.at(tick), bottom + 16, form(tick), "tick", "middle")
    for number, row in enumerate(rows):
        top = TOP + number * row_height
        middle = top + 32
        _text(svg, 12, top + 10, row.name, "name")
        if row.std:
            width = x.at(row.mean + row.std) - x.at(row.mean - row.std)
            place = {"x": x.at(row.mean - row.std), "y": middle - 9, "rx": 2}
            _add(svg, "rect", **place, width=width, height=18, kind="band")
        mean = x.at(row.mean)
        _add(svg, "line", x1=mean, x2=mean, y1=middle - 11, y2=middle + 11, kind="mean")
        for value in row.values:
            dot = _add(svg, "circle", cx=x.at(value), cy=middle, r=4.5, kind="dot dot-0 seen")
            _add(dot, "title").text = form(value)
    return _markup(svg)


@dataclass(frozen=True)
class Point:
    """Something that costs x and is worth y."""

    name: str
    x: float
    y: float
    best: bool
    named: bool
    """Whether the name stands beside it, and not just in the text that a pointer brings up."""


def scatter(label: str, points: Sequence[Point], labels: tuple[str, str], form: Form) -> Markup:
    """Worth against cost: better is further up and left."""
    height, right = 260, WIDTH - 12
    bottom = height - BOTTOM
    x = axis([point.x for point in points], LEFT + 6, right)
    y = axis([point.y for point in points], bottom, TOP + 16)
    svg = _svg(label, height)
    _grid(svg, y, right, form)
    _text(svg, 0, 10, labels[1], "tick")
    for tick in x.ticks():
        _text(svg, x.at(tick), bottom + 14, f"{tick:g}", "tick", "middle")
    _text(svg, (LEFT + right) / 2, height - 4, labels[0], "tick", "middle")
    for point in points:
        number, place = 0 if point.best else 1, (x.at(point.x), y.at(point.y))
        dot = _add(svg, "circle", cx=place[0], cy=place[1], r=4, kind=f"dot dot-{number}")
        _add(dot, "title").text = f"{point.name}: {form(point.y)}, {point.x:.4g}"
        if point.named:
            # A long name to the right of a dot that stands there would leave the chart.
            side, anchor = (8, "start") if place[0] < WIDTH / 2 else (-8, "end")
            _text(svg, place[0] + side, place[1] + 4, point.name, f"name name-{number}", anchor)
    return _markup(svg)


def unbeaten(points: Mapping[str, tuple[float, float]]) -> set[str]:
    """Names of (cost, worth) for which no other costs no more and is worth more, or the reverse."""
    return {
        name
        for name, (cost, worth) in points.items()
        if not any(x <= cost and y >= worth and (x, y) != (cost, worth) for x, y in points.values())
    }


def _grid(svg: ET.Element, y: Axis, right: float, form: Form) -> None:
    for tick in y.ticks():
        _add(svg, "line", x1=LEFT, x2=right, y1=y.at(tick), y2=y.at(tick), kind="grid")
        _text(svg, LEFT - 6, y.at(tick) + 4, form(tick), "tick", "end")


def _svg(label: str, height: float) -> ET.Element:
    view = f"0 0 {WIDTH} {height:g}"
    return ET.Element(
        "svg", {"viewBox": view, "role": "img", "aria-label": label, "class": "chart"}
    )


def _add(parent: ET.Element, name: str, *, kind: str = "", **attributes: float | str) -> ET.Element:
    written = {
        key: value if isinstance(value, str) else f"{value:.1f}"
        for key, value in attributes.items()
    }
    return ET.SubElement(parent, name, {**({"class": kind} if kind else {}), **written})


def _text(
    parent: ET.Element, x: float, y: float, text: str, kind: str, anchor: str = "start"
) -> None:
    element = _add(parent, "text", x=x, y=y, kind=kind)
    element.set("text-anchor", anchor)
    element.text = text


def _markup(svg: ET.Element) -> Markup:
    # ElementTree has escaped every text and attribute.
    return Markup(ET.tostring(svg, encoding="unicode"))


def _round_up(step: float) -> float:
    """The next of 1, 2, 5, 10, 20, ..."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= step * (1 - 1e-9))


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    """1, 2, 5, 10, ... between them; only powers of ten where those are too many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1, 3), (1,)):
        found = [round(d * 10.0**e, 12) for e in decades for d in digits]
        found = [tick for tick in found if low <= tick <= high]
        if len(found) <= most:
            break
    return found


def _apart(places: Sequence[float], distance: float, lowest: float) -> list[float]:
    """The places, moved up to the lowest allowed, and to a distance from the one below."""
    moved = list(places)
    order = sorted(range(len(places)), key=lambda i: -places[i])
    moved[order[0]] = min(moved[order[0]], lowest)
    for below, above in itertools.pairwise(order):
        moved[above] = min(moved[above], moved[below] - distance)
    return moved
