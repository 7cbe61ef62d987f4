"""The data of a chart: points, series, and axes with ticks at round numbers."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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
        colour: Index of its colour; by default that of the series in its chart.
        faint: Draw thin and pale lines.
        width: Width of the lines in pixels.
        ringed: Draw each point as a ring, which shows what is below it.
        sign: Character of its marked points in text.
    """

    name: str
    points: Sequence[Point]
    joined: bool = True
    marked: bool = True
    dashed: bool = False
    colour: int | None = None
    faint: bool = False
    width: float = 2.0
    ringed: bool = False
    sign: str = "o"


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


@dataclass(frozen=True)
class Panel:
    """Series over a pair of axes; panels below each other share the x axis of the last one.

    Args:
        height: Height of the plot, relative to that of other panels.
    """

    series: Sequence[Series]
    x: Axis
    y: Axis
    height: float = 1.0


def number(value: float, digits: int = 4) -> str:
    """Format a number in few characters: 0.0003, 3e-05, 64, 1.2M."""
    size = abs(value)
    for scale, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if scale <= size < 1e15 and (size >= 1e4 or scale > 1e3):
            return f"{value / scale:.{digits - 1}g}{letter}"
    return f"{value:.{digits}g}"


def axis(
    label: str, values: Iterable[float], log: bool, own_ticks: bool = False, wanted: int = 6
) -> Axis:
    """Return an axis that covers all values, with ticks at round numbers.

    Args:
        label: Title of the axis.
        values: Finite values, positive for a logarithmic axis.
        log: Make the axis logarithmic.
        own_ticks: Put the ticks at the values themselves, if these are few.
        wanted: About how many ticks a linear axis has.
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
        ticks = _round_numbers(low, high, wanted)
    while len(ticks) < 2:
        ticks, wanted = _round_numbers(low, high, wanted), wanted + 1
    if own_ticks and len(distinct) <= MOST_OWN_TICKS:
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


def _round_numbers(low: float, high: float, wanted: int) -> list[float]:
    rough = (high - low) / wanted
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(each * scale for each in (1, 2, 5, 10) if each * scale >= rough)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _round_in_decades(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1,) if len(decades) > 6 else (1, 3) if len(decades) > 3 else (1, 2, 5)
    return [float(f"{step}e{decade}") for decade in decades for step in steps]
