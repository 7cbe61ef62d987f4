"""Charts are well-formed, points are at their places, and names are escaped."""

import re
from collections.abc import Iterator
from xml.etree import ElementTree

import pytest

from gptlit.charts.axes import Axis, Panel, Point, Series, axis, named_axis, number
from gptlit.charts.layout import CHARACTER, HEIGHT, WIDTH, Picture, Text, arrange
from gptlit.charts.svg import chart
from gptlit.charts.themes import THEMES

SVG = "{http://www.w3.org/2000/svg}"


def discs(svg: str) -> list[tuple[float, float]]:
    tree = ElementTree.fromstring(svg)
    return [(float(c.get("cx", "")), float(c.get("cy", ""))) for c in tree.iter(f"{SVG}circle")]


@pytest.mark.parametrize(("log", "middle"), [(False, 55.0), (True, 10.0)])
def test_an_axis_is_linear_or_logarithmic(log: bool, middle: float) -> None:
    made = Axis("x", 10.0 if not log else 1.0, 100.0, log, [])
    assert made.place(made.low) == 0
    assert made.place(made.high) == pytest.approx(1)
    assert made.place(middle) == pytest.approx(0.5)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("values", [[64, 512], [3e-4, 1e-3, 0.1], [2.0], [1.5, 1.5001], [1, 2e6]])
def test_an_axis_has_room_for_all_values_and_two_ticks_or_one_value(
    values: list[float], log: bool
) -> None:
    made = axis("x", values, log)
    assert all(0 < made.place(value) < 1 for value in values)
    ticks = [value for value, _ in made.ticks]
    assert len(ticks) >= min(2, len(set(values)))
    assert all(0 <= made.place(value) <= 1 for value in ticks)
    assert len({label for _, label in made.ticks}) == len(ticks)


@pytest.mark.parametrize("wanted", [2, 6])
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(("low", "high"), [(1.9, 2.4), (1e-9, 0.045), (3e-4, 0.0061), (7, 9e4)])
def test_many_values_have_a_few_round_ticks(
    low: float, high: float, log: bool, wanted: int
) -> None:
    values = [low + (high - low) * share / 999 for share in range(1000)]
    ticks = [value for value, _ in axis("x", values, log, wanted=wanted).ticks]
    assert 2 <= len(ticks) <= 12
    # at most two significant digits more than the range needs
    assert all(float(f"{value:.3g}") == pytest.approx(value, rel=1e-9) for value in ticks)


def test_few_values_are_their_own_ticks() -> None:
    assert [label for _, label in axis("x", [256, 64, 128], True, own_ticks=True).ticks] == [
        "64",
        "128",
        "256",
    ]


@pytest.mark.parametrize(
    ("value", "label"),
    [(0.0003, "0.0003"), (64, "64"), (1000, "1000"), (10_000, "10k"), (811_008, "811k"),
     (3.23e6, "3.23M"), (1.5e-5, "1.5e-05"), (-0.25, "-0.25")],
)  # fmt: skip
def test_numbers_are_short(value: float, label: str) -> None:
    assert number(value) == label


def test_points_lie_where_their_values_say() -> None:
    points = [Point(1, 0.0), Point(10, 1.0), Point(100, 2.0, error=0.5)]
    svg = chart("t", [Series("", points)], Axis("x", 1, 100, True, []), Axis("y", 0, 3, False, []))
    (x0, y0), (x1, y1), (x2, y2) = discs(svg)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)  # y grows downwards on the page
    assert 0 < x0 < x2 < WIDTH
    assert 0 < y2 < y0 < HEIGHT
    bar = re.search(rf'<line x1="{x2:.1f}" y1="([\d.]+)" x2="{x2:.1f}" y2="([\d.]+)"', svg)
    assert bar
    low, high = float(bar[1]), float(bar[2])
    assert low - high == pytest.approx((y0 - y2) / 2, abs=0.2)
    assert (low + high) / 2 == pytest.approx(y2, abs=0.2)


def test_names_are_text_and_not_markup() -> None:
    names = ["<b>&", "a name that is far too long to stand beside any other name"]
    series = [Series("</svg>", [Point(0, 1), Point(1, 2)], joined=False)]
    svg = chart('"<title>"', series, named_axis("x", names), axis("y", [1, 2], False))
    texts = [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    assert {'"<title>"', "<b>&", "</svg>"} <= set(texts)
    assert max(map(len, texts)) < len(names[1])
    assert "polyline" not in svg


def test_colours_follow_the_viewers_preference_unless_a_theme_is_given() -> None:
    x, y = axis("x", [0, 1], False), axis("y", [1, 2], False)
    series = [Series("a", [Point(0, 1), Point(1, 2)])]
    auto, light, dark = (chart("t", series, x, y, each) for each in ("auto", "light", "dark"))
    assert "prefers-color-scheme: dark" in auto
    for name, value in THEMES["dark"].items():
        assert re.search(rf"\.f-{name}{{fill:{value}}}\.s-{name}{{stroke:{value}}}", auto)
        assert value not in light or value == "#ffffff"
    assert THEMES["dark"]["background"] in dark
    assert THEMES["light"]["background"] not in dark
    assert "class=" not in light
    # every painted shape has a class, so that no light colour is left
    shapes = re.findall(r"<(?:rect|text|line|polyline|circle) [^>]*>", auto)
    assert all(re.search(r'class="[fs]-\w+', shape) for shape in shapes)


def boxes(picture: Picture) -> Iterator[tuple[float, float, float, float]]:
    """The edges of each text that isn't turned, by the widths that the layout assumes."""
    for shape in picture.shapes:
        if isinstance(shape, Text) and not shape.turned:
            size = len(shape.text) * CHARACTER * shape.size / 12
            left = shape.place[0] - {"start": 0, "middle": size / 2, "end": size}[shape.anchor]
            yield left, left + size, shape.place[1] - 0.95 * shape.size, shape.place[1]


def assert_apart(picture: Picture) -> None:
    placed = list(boxes(picture))
    for index, (left, right, top, bottom) in enumerate(placed):
        assert 0 <= left <= right <= picture.width + 30  # capitals are wider than the mean
        assert 0 <= top < bottom <= picture.height
        for other in placed[:index]:
            is_apart = (
                left >= other[1] or right <= other[0] or top >= other[3] or bottom <= other[2]
            )
            assert is_apart, (placed[index], other)


def test_labels_that_would_overlap_are_left_out() -> None:
    x = Axis("x", 0, 99, False, [(float(value), f"number {value}") for value in range(100)])
    y = Axis("y", 0, 99, False, [(value, str(value)) for value in range(100)])
    picture = arrange("t", [Panel([Series("", [Point(0, 0), Point(99, 99)])], x, y)])
    assert 30 < len(list(boxes(picture))) < 60
    assert_apart(picture)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("n_runs", [1, 3, 26])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 3e7])
def test_texts_stay_in_the_picture_and_apart(log: bool, n_runs: int, scale: float) -> None:
    points = [Point(scale * step, 5 / step) for step in range(1, 200)]
    series = [Series(f"a rather long name {index}", points) for index in range(n_runs)]
    x = axis("step", [point.x for point in points], log)
    y, rates = axis("loss", [point.y for point in points], log), axis("lr", [0, 0.01], False)
    panels = [Panel(series, x, y), Panel([], x, rates, 0.3)]
    assert_apart(arrange("title " * 50, panels, "about it"))
