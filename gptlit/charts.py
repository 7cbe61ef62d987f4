"""Draws charts as SVG: lines, points with error bars, linear, logarithmic or named axes.

Importing it and drawing take 0.05 s; matplotlib takes 2.0 s (and slows `import lightning`, where
torchmetrics imports it, from 2.7 to 3.2 s), altair 1.4 s; plotly's export needs Chrome.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

# Okabe and Ito's palette for colour-blind readers, without its yellow
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
WIDTH, HEIGHT = 720, 450
LEFT, RIGHT, TOP, BOTTOM = 78, 24, 48, 62  # margins of the plot
SLANT = 25  # degrees, of tick labels too long to be written side by side
LONGEST_NAME = 28  # characters
CHARACTER = 6.7  # mean width of a character 12 pixels high
MOST_OWN_TICKS = 8
MOST_DIGITS = 17
LOG_FROM = 8.0  # least ratio of the largest to the smallest value of a logarithmic axis


@dataclass(frozen=True)
class Point:
    """A point; an error bar extends `error` above and below it."""

    x: float
    y: float
    error: float = 0.0


@dataclass(frozen=True)
class Series:
    """Points in one colour.

    Args:
        name: Name in the legend; "" leaves the series out of it.
        points: The points, in the order in which lines join them.
        joined: Draw the lines.
        marked: Draw each point as a disc.
        dashed: Draw dashed lines.
    """

    name: str
    points: Sequence[Point]
    joined: bool = True
    marked: bool = True
    dashed: bool = False


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic axis, which maps values from `low` to `high` to 0 to 1.

    Args:
        label: Title of the axis.
        ticks: Values and labels of the ticks.
    """

    label: str
    low: float
    high: float
    log: bool
    ticks: Sequence[tuple[float, str]]

    def place(self, value: float) -> float:
        """Return the position of a value on the axis."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return (value - low) / (high - low)


def number(value: float, digits: int = 4) -> str:
    """Format a number in few characters: 0.0003, 3e-05, 64, 1.2M."""
    size = abs(value)
    for scale, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if scale <= size < 1e15 and (size >= 1e4 or scale > 1e3):
            return f"{value / scale:.{digits - 1}g}{letter}"
    return f"{value:.{digits}g}"


def axis(label: str, values: Iterable[float], log: bool, own_ticks: bool = False) -> Axis:
    """Return an axis that covers all values, with ticks at round numbers.

    Args:
        label: Title of the axis.
        values: Finite values, positive for a logarithmic axis.
        log: Make the axis logarithmic.
        own_ticks: Put the ticks at the values themselves, if these are few.
    """
    distinct = sorted(set(values))
    low, high = distinct[0], distinct[-1]
    if log:
        margin = (high / low) ** 0.06 if high > low else 1.5
        low, high = low / margin, high * margin
        ticks = [v for v in _round_in_decades(low, high) if low <= v <= high]
    else:
        margin = 0.06 * (high - low) or 0.5 * abs(low) or 1.0
        low, high = low - margin, high + margin
        ticks = _round_numbers(low, high)
    if (own_ticks and len(distinct) <= MOST_OWN_TICKS) or len(ticks) < 2:
        ticks = distinct
    for digits in range(4, MOST_DIGITS):
        labels = [number(value, digits) for value in ticks]
        if len(set(labels)) == len(ticks):
            break
    return Axis(label, low, high, log, list(zip(ticks, labels, strict=True)))


def named_axis(label: str, names: Sequence[str]) -> Axis:
    """Return an axis of names, the first at 0, the second at 1, and so on."""
    return Axis(label, -0.5, len(names) - 0.5, False, list(enumerate(names)))


def wants_log(values: Iterable[float]) -> bool:
    """Whether values are positive and spread widely enough for a logarithmic axis."""
    ordered = sorted(values)
    return ordered[0] > 0 and ordered[-1] >= LOG_FROM * ordered[0]


def _round_numbers(low: float, high: float, wanted: int = 6) -> list[float]:
    rough = (high - low) / wanted
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(each * scale for each in (1, 2, 5, 10) if each * scale >= rough)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _round_in_decades(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1,) if len(decades) > 6 else (1, 3) if len(decades) > 3 else (1, 2, 5)
    return [float(f"{step}e{decade}") for decade in decades for step in steps]


@dataclass(frozen=True)
class _Frame:
    """Maps values to pixels; `right` and `bottom` are the ends of the plot."""

    x: Axis
    y: Axis
    right: float
    bottom: float

    def across(self, value: float) -> float:
        return LEFT + self.x.place(value) * (self.right - LEFT)

    def up(self, value: float) -> float:
        return self.bottom - self.y.place(value) * (self.bottom - TOP)


def chart(title: str, series: Sequence[Series], x: Axis, y: Axis) -> str:
    """Return a chart as an SVG document."""
    longest = max(len(_cut(each.name)) for each in series)  # in the legend
    right = WIDTH - RIGHT - (longest * CHARACTER + 46 if longest else 0)
    slanted = _are_slanted(x, right)
    bottom = float(HEIGHT - BOTTOM)
    if slanted:
        longest = max(len(_cut(text)) for _, text in x.ticks)
        bottom -= longest * CHARACTER * math.sin(math.radians(SLANT))
    frame = _Frame(x, y, right, bottom)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" font-family="Helvetica, Arial, sans-serif" '
        'font-size="12" fill="#333">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        _text(LEFT, 26, title, size=15, bold=True),
        *_grid(frame, slanted),
    ]
    legend_y = TOP + 10
    for each, colour in zip(series, itertools.cycle(COLOURS), strict=False):
        parts += _drawn(each, colour, frame)
        if each.name:
            parts += _in_legend(each, colour, right + 14, legend_y)
            legend_y += 18
    return "\n".join([*parts, "</svg>"]) + "\n"


def _are_slanted(x: Axis, right: float) -> bool:
    """Whether the names along an axis are too long to be written side by side."""
    names = [text for value, text in x.ticks if isinstance(value, int)]  # of `named_axis`
    return any((len(name) + 1) * CHARACTER * len(names) > right - LEFT for name in names)


def _cut(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _text(x: float, y: float, text: str, anchor: str = "start", *, size: int = 12,
          bold: bool = False, turned: float = 0) -> str:  # fmt: skip
    turn = f' transform="rotate({turned:g} {x:.1f} {y:.1f})"' if turned else ""
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"{weight}{turn}>'
        f"{escape(text)}</text>"
    )


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
        f'stroke-width="{width:g}"/>'
    )


def _grid(frame: _Frame, slanted: bool) -> list[str]:
    """Draw both axes with their ticks and labels."""
    x, y, right, bottom = frame.x, frame.y, frame.right, frame.bottom
    parts = []
    for value, text in y.ticks:
        up = frame.up(value)
        parts.append(_line(LEFT, up, right, up, "#e4e4e4"))
        parts.append(_text(LEFT - 8, up + 4, text, "end"))
    last_end = 0.0  # right edge of the last label
    for value, text in x.ticks:
        across, half = frame.across(value), len(text) * CHARACTER / 2
        parts.append(_line(across, TOP, across, bottom, "#f0f0f0"))
        parts.append(_line(across, bottom, across, bottom + 4, "#333"))
        if slanted:
            parts.append(_text(across + 4, bottom + 16, _cut(text), "end", turned=-SLANT))
        elif across - half > last_end:
            parts.append(_text(across, bottom + 18, text, "middle"))
            last_end = across + half + 4
    parts.append(_line(LEFT, bottom, right, bottom, "#333"))
    parts.append(_line(LEFT, TOP, LEFT, bottom, "#333"))
    parts.append(_text((LEFT + right) / 2, HEIGHT - 18, x.label, "middle", size=13))
    parts.append(_text(20, (TOP + bottom) / 2, y.label, "middle", size=13, turned=-90))
    return parts


def _joined(series: Series, places: Iterable[tuple[float, float]], colour: str) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dashes = ' stroke-dasharray="6 4"' if series.dashed else ""
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>'


def _drawn(series: Series, colour: str, frame: _Frame) -> list[str]:
    parts = []
    if series.joined and len(series.points) > 1:
        places = [(frame.across(point.x), frame.up(point.y)) for point in series.points]
        parts.append(_joined(series, places, colour))
    for point in series.points if series.marked else []:
        across, up = frame.across(point.x), frame.up(point.y)
        if point.error:
            low, high = (frame.up(point.y + sign * point.error) for sign in (-1, 1))
            parts.append(_line(across, low, across, high, colour, 1.5))
            parts += [_line(across - 4, end, across + 4, end, colour, 1.5) for end in (low, high)]
        parts.append(
            f'<circle cx="{across:.1f}" cy="{up:.1f}" r="4" fill="{colour}" stroke="#fff"/>'
        )
    return parts


def _in_legend(series: Series, colour: str, x: float, y: float) -> list[str]:
    parts = [_text(x + 27, y, _cut(series.name))]
    if series.joined:
        parts.append(_joined(series, [(x, y - 4), (x + 20, y - 4)], colour))
    if series.marked:
        parts.append(f'<circle cx="{x + 10:.1f}" cy="{y - 4}" r="4" fill="{colour}"/>')
    return parts
