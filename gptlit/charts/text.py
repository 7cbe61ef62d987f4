"""Charts as lines of text: in braille characters, of 2 by 4 dots each, or in ASCII."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO

from gptlit.charts.axes import Axis, Panel, Point
from gptlit.terminal import in_colour, shortened, width

BRAILLE = 0x2800  # the character without dots
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # by row and column in a character
COLOURS = (36, 33, 32, 35, 34, 31, 39)  # SGR codes, which a terminal's theme makes legible
MARGIN = 2  # columns between two labels
BEST = "*"


@dataclass(frozen=True)
class Signs:
    """The characters that a terminal has.

    Args:
        braille: Draw lines in braille and frames in box characters, rather than in ASCII.
        colour: Colour series by escape sequences.
    """

    braille: bool = True
    colour: bool = False

    def painted(self, text: str, colour: int | None) -> str:
        """Return a text in the colour of a series."""
        if not self.colour or colour is None:
            return text
        return f"\x1b[{COLOURS[colour % len(COLOURS)]}m{text}\x1b[0m"

    def cut(self, text: str, columns: int) -> str:
        """Cut a text that is wider than a number of columns."""
        cut = shortened(text, columns)
        return cut if self.braille else cut.replace("…", "~")


@dataclass
class _Canvas:
    """Cells of a plot: dots or a character, and the colour of the series drawn last."""

    columns: int
    rows: int
    signs: Signs
    dots: dict[tuple[int, int], int] = field(default_factory=dict)
    characters: dict[tuple[int, int], str] = field(default_factory=dict)
    colours: dict[tuple[int, int], int] = field(default_factory=dict)

    @property
    def scale(self) -> tuple[int, int]:
        """Dots of a cell, across and down."""
        return (2, 4) if self.signs.braille else (1, 1)

    def place(self, panel: Panel, point: Point) -> tuple[int, int]:
        """Return the dot of a point, from the left and from the top."""
        across, down = (
            n * scale - 1 for n, scale in zip((self.columns, self.rows), self.scale, strict=True)
        )
        return round(panel.x.place(point.x) * across), round((1 - panel.y.place(point.y)) * down)

    def dot(self, x: int, y: int, sign: str, colour: int) -> None:
        across, down = self.scale
        cell = x // across, y // down
        self.colours[cell] = colour
        if self.signs.braille:
            self.dots[cell] = self.dots.get(cell, 0) | DOTS[y % down][x % across]
        else:
            self.characters[cell] = sign

    def line(self, begin: tuple[int, int], end: tuple[int, int], sign: str, colour: int) -> None:
        """Draw the dots nearest to a straight line."""
        n_steps = max(abs(end[0] - begin[0]), abs(end[1] - begin[1]), 1)
        for step in range(n_steps + 1):
            x, y = (
                a + math.floor((b - a) * step / n_steps + 0.5)
                for a, b in zip(begin, end, strict=True)
            )
            self.dot(x, y, sign, colour)

    def mark(self, place: tuple[int, int], sign: str, colour: int) -> None:
        across, down = self.scale
        cell = place[0] // across, place[1] // down
        self.characters[cell], self.colours[cell] = sign, colour

    def row(self, y: int) -> str:
        cells = []
        for x in range(self.columns):
            dots = self.dots.get((x, y))
            character = self.characters.get((x, y)) or (chr(BRAILLE + dots) if dots else " ")
            cells.append(self.signs.painted(character, self.colours.get((x, y))))
        return "".join(cells).rstrip()


def draw(panels: Sequence[Panel], columns: int, rows: int, signs: Signs) -> list[str]:
    """Draw panels below each other, with the labels of the last one's x axis and a legend.

    Faint series are left out.

    Args:
        panels: The panels.
        columns: Width in columns, which no line exceeds.
        rows: Number of lines of all plots together, without axes and legend.
        signs: The characters to use.
    """
    left = max(len(text) for panel in panels for _, text in panel.y.ticks) + 1
    shares = sum(panel.height for panel in panels)
    lines: list[str] = []
    for panel in panels:
        own = max(2, round(rows * panel.height / shares))
        lines += _plot(panel, left, columns - left - 1, own, signs)
    lines += _x_axis(panels[-1].x, left, columns, signs)
    return [*lines, *_legend(panels, left + 1, columns, signs)]


def _plot(panel: Panel, left: int, columns: int, rows: int, signs: Signs) -> Iterator[str]:
    canvas = _Canvas(columns, rows, signs)
    shown = [
        (index if each.colour is None else each.colour, each)
        for index, each in enumerate(panel.series)
        if not each.faint
    ]
    for colour, series in shown:
        places = [canvas.place(panel, point) for point in series.points]
        if series.joined:
            for begin, end in zip(places, places[1:] or places, strict=False):
                canvas.line(begin, end, series.sign, colour)
    for colour, series in shown:  # above all lines
        for point in series.points if series.marked or series.ringed else []:
            sign = BEST if series.ringed else series.sign
            canvas.mark(canvas.place(panel, point), sign, colour)
    labels: dict[int, str] = {}
    for value, text in panel.y.ticks:
        labels.setdefault(round((1 - panel.y.place(value)) * (rows - 1)), text)
    if len(panel.y.label) < left:
        labels.setdefault(0, panel.y.label)
    for y in range(rows):
        edge = ("┤" if y in labels else "│") if signs.braille else "|"
        yield f"{labels.get(y, ''):>{left}}{edge}{canvas.row(y)}"


def _x_axis(x: Axis, left: int, columns: int, signs: Signs) -> list[str]:
    space = columns - left - 1
    line, labels = ["─" if signs.braille else "-"] * space, " " * (left + 1)
    for value, text in x.ticks:
        at = round(x.place(value) * (space - 1))
        begin = min(max(left + 1 + at - len(text) // 2, 0), columns - len(text))
        if begin >= len(labels.rstrip()) + MARGIN or not labels.strip():
            labels = labels[:begin].ljust(begin) + text
            line[at] = "┬" if signs.braille else "+"
    corner = "└" if signs.braille else "+"
    if len(labels) + MARGIN + len(x.label) <= columns:
        labels = labels.ljust(columns - len(x.label)) + x.label
        return [" " * left + corner + "".join(line), labels]
    return [" " * left + corner + "".join(line), labels, signs.cut(x.label, columns).rjust(columns)]


def _legend(panels: Sequence[Panel], left: int, columns: int, signs: Signs) -> list[str]:
    """Return the names of series, as many in a line as fit."""
    lines, used = [""], 0
    for panel in panels:
        for index, series in enumerate(panel.series):
            if series.faint or not series.name:
                continue
            colour = index if series.colour is None else series.colour
            sign = series.sign if series.marked or not signs.braille else "⠤"
            sign = BEST if series.ringed else sign
            stroke = "⠤" if series.joined and signs.braille else ""
            name = signs.cut(series.name, columns - left - 4)
            size = width(name) + 3 + len(stroke) * 2
            if used and left + used + MARGIN + size > columns:
                lines, used = [*lines, ""], 0
            key = signs.painted(f"{stroke}{sign}{stroke}", colour)
            gap = " " * (MARGIN if used else left)
            lines[-1] += f"{gap}{key} {name}"
            used += size + MARGIN * bool(used)
    return [line for line in lines if line]


def signs_of(file: IO[str]) -> Signs:
    """Return the characters that a stream can show: ASCII where its encoding has no others."""
    try:
        "⣿┤─".encode(getattr(file, "encoding", None) or "ascii")
        has_braille = True
    except (UnicodeEncodeError, LookupError):
        has_braille = False
    return Signs(has_braille, in_colour(file))
