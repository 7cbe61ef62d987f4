"""Charts of text: dots are where points are, and lines fit the terminal."""

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptlit.charts.axes import Axis, Panel, Point, Series, axis
from gptlit.charts.text import Signs, draw, signs_of
from gptlit.terminal import width

UNIT = Axis("y", 0, 1, False, [(0, "0"), (1, "1")])
DIAGONAL = [Point(0, 0), Point(1, 1)]


def plain(line: str) -> str:
    return re.sub(r"\x1b\[\d+m", "", line)


def test_a_diagonal_in_braille() -> None:
    panel = Panel([Series("", DIAGONAL, marked=False)], UNIT, UNIT)
    first, second, frame, ticks, _ = draw([panel], 7, 2, Signs())
    # 8 by 8 dots, one in each column: (0, 7), (1, 6), ...
    assert (first, second) == (" 1┤  ⡠⠊", " 0┤⡠⠊")
    assert frame == "  └┬──┬"
    assert ticks.split() == ["0", "1"]


def test_a_diagonal_in_ascii() -> None:
    panel = Panel([Series("", DIAGONAL, marked=False, sign=".")], UNIT, UNIT)
    lines = draw([panel], 7, 4, Signs(braille=False))
    assert lines[:4] == [" 1|   .", "  |  .", "  | .", " 0|."]
    assert lines[4] == "  ++--+"
    assert all(line.isascii() for line in lines)


def test_marks_are_above_lines_and_rings_above_marks() -> None:
    series = [
        Series("", DIAGONAL, sign="A"),
        Series("", [Point(1, 1)], joined=False, marked=False, ringed=True, colour=0),
    ]
    lines = draw([Panel(series, UNIT, UNIT)], 7, 2, Signs())
    assert lines[:2] == [" 1┤  ⡠*", " 0┤A⠊"]


def test_the_legend_shows_signs_as_they_are_drawn() -> None:
    series = [
        Series("train", DIAGONAL, marked=False, sign="."),
        Series("val", DIAGONAL, sign="A"),
        Series("best", [Point(1, 1)], joined=False, marked=False, ringed=True),
    ]
    panel = Panel(series, UNIT, UNIT)
    for signs, expected in (
        (Signs(), "⠤⠤⠤ train  ⠤A⠤ val  * best"),
        (Signs(braille=False), ". train  A val  * best"),
    ):
        assert draw([panel], 50, 4, signs)[-1].strip() == expected


def test_faint_series_are_left_out() -> None:
    series = [Series("noise", [Point(0, 1), Point(1, 0)], faint=True), Series("", DIAGONAL)]
    alone = draw([Panel([Series("", DIAGONAL)], UNIT, UNIT)], 20, 5, Signs())
    assert draw([Panel(series, UNIT, UNIT)], 20, 5, Signs()) == alone


def test_colours_change_nothing_but_colours() -> None:
    panel = Panel([Series("a", DIAGONAL), Series("b", [Point(0, 1), Point(1, 0)])], UNIT, UNIT)
    without, coloured = (draw([panel], 30, 6, Signs(colour=each)) for each in (False, True))
    assert [plain(line) for line in coloured] == without
    assert "\x1b[36m" in coloured[-1]
    assert "\x1b[33m" in coloured[-1]


@given(
    losses=st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=30),
    columns=st.integers(30, 120),
    rows=st.integers(4, 30),
    braille=st.booleans(),
    log=st.booleans(),
)
def test_no_line_is_too_long(
    losses: list[float], columns: int, rows: int, braille: bool, log: bool
) -> None:
    points = [Point(step + 1, loss) for step, loss in enumerate(losses)]
    x = axis("optimizer step", [p.x for p in points], log)
    y = axis("loss", losses, log)
    series = [Series("a long name of a series, which is cut in a narrow terminal", points)]
    lines = draw([Panel(series, x, y), Panel(series, x, y, 0.3)], columns, rows, Signs(braille))
    assert max(map(width, lines)) <= columns
    assert abs(len(lines) - rows) <= 8
    text = "".join(lines)
    assert text.count("o") >= 1
    assert text.isascii() != braille


@pytest.mark.parametrize(
    ("encoding", "braille"), [("utf-8", True), ("ascii", False), ("latin-1", False)]
)
def test_ascii_where_the_encoding_has_no_braille(encoding: str, braille: bool) -> None:
    assert signs_of(io.TextIOWrapper(io.BytesIO(), encoding)) == Signs(braille, colour=False)
