"""Where the lines, discs and texts of a chart lie in a picture, in pixels."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from gptlit.charts.axes import Axis, Panel, Series

WIDTH, HEIGHT = 720, 450
LEFT, RIGHT, TOP, BOTTOM = 78, 24, 48, 62  # margins of the plots
GAP = 16  # between two panels
SLANT = 25  # degrees, of tick labels too long to be written side by side
LONGEST_NAME = 28  # characters
CHARACTER = 6.7  # mean width of a character 12 pixels high
KEY_HEIGHT = 18  # of a line of the legend
N_COLOURS = 7

# "text", "axis", "grid" or "background"; a number for the colour of a series
Colour = Literal["text", "axis", "grid", "background"] | int
Place = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """Straight lines that join places."""

    places: Sequence[Place]
    colour: Colour
    width: float = 1.0
    dashed: bool = False
    faint: bool = False


@dataclass(frozen=True)
class Disc:
    """A disc with a rim in the background's colour, or a ring."""

    place: Place
    radius: float
    colour: Colour
    ring: bool = False


@dataclass(frozen=True)
class Text:
    """A line of text; `turned` in degrees clockwise."""

    place: Place
    text: str
    anchor: Literal["start", "middle", "end"] = "start"
    size: int = 12
    bold: bool = False
    turned: float = 0.0


Shape = Line | Disc | Text


@dataclass(frozen=True)
class Picture:
    """Shapes in the order in which they are drawn."""

    width: int
    height: int
    shapes: Sequence[Shape]


@dataclass(frozen=True)
class _Frame:
    """Maps values of a panel to pixels; the fields are the edges of the plot."""

    panel: Panel
    right: float
    top: float
    bottom: float

    def place(self, x: float, y: float) -> Place:
        across = self.panel.x.place(x) * (self.right - LEFT)
        return LEFT + across, self.bottom - self.panel.y.place(y) * (self.bottom - self.top)


def arrange(title: str, panels: Sequence[Panel], about: str = "") -> Picture:
    """Arrange panels below each other, with a legend of all their series on the right.

    Args:
        title: Title of the picture.
        panels: Panels; the ticks of the last one's x axis are labelled.
        about: Smaller text below the title.
    """
    named = [each for panel in panels for each in panel.series if each.name]
    longest = max((len(_cut(each.name)) for each in named), default=0)
    right = WIDTH - RIGHT - (longest * CHARACTER + 46 if longest else 0)
    top = TOP + 12.0 * bool(about)
    first_key = top + 10
    # a long legend makes a taller picture
    height = max(HEIGHT, math.ceil(first_key + KEY_HEIGHT * len(named)) + BOTTOM)
    bottom = float(height - BOTTOM)
    x = panels[-1].x
    slanted = _are_slanted(x, right)
    if slanted:
        longest = max(len(_cut(text)) for _, text in x.ticks)
        bottom -= longest * CHARACTER * math.sin(math.radians(SLANT))
    space = bottom - top - GAP * (len(panels) - 1)
    shapes: list[Shape] = [Text((LEFT, 26), _fitted(title, 8.5), size=15, bold=True)]
    if about:
        shapes.append(Text((LEFT, 44), _fitted(about, CHARACTER)))
    shares = sum(panel.height for panel in panels)
    names: list[tuple[Series, int]] = []
    for panel in panels:
        end = top + space * panel.height / shares
        frame = _Frame(panel, right, top, end)
        shapes += _grid(frame, panel is panels[-1], slanted, height)
        for index, each in enumerate(panel.series):
            colour = (index if each.colour is None else each.colour) % N_COLOURS
            shapes += _drawn(each, colour, frame)
            if each.name:
                names.append((each, colour))
        top = end + GAP
    for index, (each, colour) in enumerate(names):
        shapes += _in_legend(each, colour, right + 14, first_key + KEY_HEIGHT * index)
    return Picture(WIDTH, height, shapes)


def _fitted(text: str, character: float) -> str:
    most = int((WIDTH - LEFT - RIGHT) / character)
    return text if len(text) <= most else text[: most - 1] + "…"


def _are_slanted(x: Axis, right: float) -> bool:
    """Whether the names along an axis are too long to be written side by side."""
    names = [text for value, text in x.ticks if isinstance(value, int)]  # of `named_axis`
    return any((len(name) + 1) * CHARACTER * len(names) > right - LEFT for name in names)


def _cut(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _grid(frame: _Frame, is_last: bool, slanted: bool, height: int) -> Iterator[Shape]:
    """Yield both axes with their ticks and labels."""
    x, y, right, bottom = frame.panel.x, frame.panel.y, frame.right, frame.bottom
    last_up = math.inf
    for value, text in y.ticks:
        _, up = frame.place(x.low, value)
        yield Line([(LEFT, up), (right, up)], "grid")
        if last_up - up > 12:
            yield Text((LEFT - 8, up + 4), text, "end")
            last_up = up
    last_end = 0.0  # right edge of the last label
    for value, text in x.ticks:
        across, _ = frame.place(value, y.low)
        half = len(text) * CHARACTER / 2
        yield Line([(across, frame.top), (across, bottom)], "grid")
        if not is_last:
            continue
        yield Line([(across, bottom), (across, bottom + 4)], "axis")
        if slanted:
            yield Text((across + 4, bottom + 16), _cut(text), "end", turned=-SLANT)
        elif across - half > last_end:
            yield Text((across, bottom + 18), text, "middle")
            last_end = across + half + 4
    yield Line([(LEFT, frame.top), (LEFT, bottom)], "axis")
    yield Line([(LEFT, bottom), (right, bottom)], "axis")
    if is_last:
        yield Text(((LEFT + right) / 2, height - 18), x.label, "middle", size=13)
    yield Text((20, (frame.top + bottom) / 2), y.label, "middle", size=13, turned=-90)


def _drawn(series: Series, colour: int, frame: _Frame) -> Iterator[Shape]:
    if series.joined and len(series.points) > 1:
        places = [frame.place(point.x, point.y) for point in series.points]
        yield Line(places, colour, series.width, series.dashed, series.faint)
    for point in series.points if series.marked or series.ringed else []:
        across, up = frame.place(point.x, point.y)
        if point.error:
            low, high = (frame.place(point.x, point.y + sign * point.error)[1] for sign in (-1, 1))
            yield Line([(across, low), (across, high)], colour, 1.5)
            for end in (low, high):
                yield Line([(across - 4, end), (across + 4, end)], colour, 1.5)
        yield Disc((across, up), 7 if series.ringed else 4, colour, series.ringed)


def _in_legend(series: Series, colour: int, x: float, y: float) -> Iterator[Shape]:
    yield Text((x + 27, y), _cut(series.name))
    if series.joined:
        places = [(x, y - 4), (x + 20, y - 4)]
        yield Line(places, colour, series.width, series.dashed, series.faint)
    if series.marked or series.ringed:
        yield Disc((x + 10, y - 4), 6 if series.ringed else 4, colour, series.ringed)
