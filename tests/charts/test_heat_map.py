"""Heat maps and shaded texts: each value has its colour in its place."""

import io

import numpy as np
import pytest
from PIL import Image

from gptlit.charts import heat_map
from gptlit.charts.heat_map import Png


def pixels(png: Png) -> np.ndarray:
    image = Image.open(io.BytesIO(png.content))
    assert image.size == (png.width, png.height)
    return np.asarray(image.convert("RGB")).astype(int)


def place_of(picture: np.ndarray, colour: tuple[int, ...]) -> list[tuple[int, int]]:
    return [(int(y), int(x)) for y, x in np.argwhere((picture == colour).all(axis=2))]


def test_a_map_has_its_values_in_rows_and_columns() -> None:
    values = np.zeros((2, 3, 4, 4))
    values[1, 2, 3, 1] = 1.0
    empty, one = (
        heat_map.maps(each, [*"abcd"], "layer", "head", [0, 5]) for each in (values * 0, values)
    )
    dark = place_of(pixels(one), heat_map.BLUES[-1])
    assert len(dark) == 64  # a cell
    assert not place_of(pixels(empty), heat_map.BLUES[-1])
    (top, left), side = dark[0], 4 * 8 + heat_map.GAP
    values[1, 2, 3, 1], values[0, 0, 0, 0] = 0.0, 1.0
    first = place_of(
        pixels(heat_map.maps(values, [*"abcd"], "layer", "head", [0, 5])), heat_map.BLUES[-1]
    )[0]
    assert (top - first[0], left - first[1]) == (side + 3 * 8, 2 * side + 8)
    assert np.array_equal(pixels(empty)[:14], pixels(one)[:14])  # names of the columns


def test_a_matrix_has_signs_and_a_limit() -> None:
    picture = pixels(heat_map.matrix(np.array([[-1.0, 0.0], [2.0, 0.5]]), 1.0, "t", "x", "y"))
    cell = 384 // 2
    lowest, highest = (place_of(picture, heat_map.DIVERGING[end]) for end in (0, -1))
    assert len(lowest) == len(highest) == cell * cell
    assert (highest[0][0] - lowest[0][0], highest[0][1]) == (cell, lowest[0][1])
    y, x = lowest[0]
    assert min(picture[y, x + cell]) > 250  # 0 is white
    red, _, blue = picture[y + cell, x + cell]
    assert red > blue


def test_a_shaded_text_breaks_lines_where_the_text_does() -> None:
    pieces = ["one", "two\\n", "three"]
    picture = pixels(heat_map.shaded(pieces, [0.0, 0.0, 1.0], "t"))
    darkest = place_of(picture, heat_map.ORANGES[-1])
    assert min(x for _, x in darkest) == 8
    assert min(y for y, _ in darkest) == 2 * heat_map.LINE + 6
    long = heat_map.shaded(["word·"] * 60, [0.5] * 60, "t")
    assert long.width == heat_map.TEXT_WIDTH
    assert long.height == pytest.approx(picture.shape[0] + heat_map.LINE, abs=2 * heat_map.LINE)


@pytest.mark.parametrize("n", [2, 224])
def test_colours_go_through_all_stops(n: int) -> None:
    found = heat_map.colours(heat_map.BLUES, n)
    assert tuple(found[0]) == heat_map.BLUES[0]
    assert tuple(found[-1]) == heat_map.BLUES[-1]
