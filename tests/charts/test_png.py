"""Images show the colours of series where their points are."""

import io
import itertools
import math

import pytest
from PIL import Image

from gptlit.charts.axes import Panel, Point, Series, axis
from gptlit.charts.layout import HEIGHT, WIDTH, Disc, Line, Picture, arrange
from gptlit.charts.png import DASH, SCALE, SPACE, _dashes, png
from gptlit.charts.themes import Theme, colour_of

POINTS = [Point(0, 1), Point(1, 3), Point(2, 2)]


def picture() -> Picture:
    x, y = axis("x", [0, 2], False), axis("y", [1, 3], False)
    return arrange("title", [Panel([Series("a", POINTS), Series("b", POINTS[:1])], x, y)])


def pixel(image: Image.Image, x: float, y: float) -> str:
    red, green, blue = image.convert("RGB").getpixel((round(x * SCALE), round(y * SCALE)))
    return f"#{red:02x}{green:02x}{blue:02x}"


@pytest.mark.parametrize("theme", ["light", "dark", "auto"])
def test_pixels(theme: Theme) -> None:
    drawn = picture()
    image = Image.open(io.BytesIO(png(drawn, theme)))
    assert image.size == (SCALE * WIDTH, SCALE * HEIGHT)
    assert pixel(image, 2, 2) == colour_of("background", theme)
    discs = [shape for shape in drawn.shapes if isinstance(shape, Disc)]
    assert pixel(image, *discs[1].place) == colour_of(0, theme)
    assert pixel(image, *discs[-1].place) == colour_of(1, theme)
    (x1, y1), (x2, y2) = next(
        shape.places[:2] for shape in drawn.shapes if isinstance(shape, Line) and shape.width == 2
    )
    assert pixel(image, (x1 + x2) / 2, (y1 + y2) / 2) == colour_of(0, theme)


def test_dashes_keep_their_lengths_around_corners() -> None:
    dashes = list(_dashes([(0, 0), (8, 0), (8, 22)]))
    lengths = [sum(math.dist(a, b) for a, b in itertools.pairwise(dash)) for dash in dashes]
    assert lengths == pytest.approx([DASH, DASH, DASH])
    assert dashes[1][0] == pytest.approx((8, DASH + SPACE - 8))
