"""Heat maps, and texts on shaded grounds, as small PNG images by NumPy and Pillow.

An image has a palette of its own from the start, which makes it quick to draw and to encode.
"""

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

N_COLOURS, N_GREYS = 224, 32  # of the palette: those of values, then white to black for text
# stops of a palette, from 0 to 1
BLUES = ((255, 255, 255), (163, 205, 232), (0, 114, 178), (0, 38, 66))
DIVERGING = ((0, 70, 120), (120, 180, 220), (255, 255, 255), (240, 170, 110), (170, 60, 0))
ORANGES = ((255, 255, 255), (253, 218, 190), (232, 130, 60))  # dark text is legible on all of them
SIZE = 10  # of text in pixels
GAP = 6  # between maps
TEXT_WIDTH = 760  # of a shaded text
LINE = 18
# signs that the font has
LINE_BREAK, SPACE = "\\n", "·"


class Png(NamedTuple):
    """An encoded image and its size in pixels."""

    content: bytes
    width: int
    height: int


class Label(NamedTuple):
    """A text, and its place by Pillow's anchor, such as lm for the middle of its left edge."""

    x: float
    y: float
    text: str
    anchor: str = "lm"


def colours(stops: Sequence[tuple[int, ...]], n: int) -> np.ndarray:
    """Return (n, 3) colours that go evenly through the stops."""
    places = np.linspace(0, len(stops) - 1, n)
    channels = [
        np.interp(places, range(len(stops)), channel) for channel in zip(*stops, strict=True)
    ]
    return np.stack(channels, axis=1).round().astype(np.uint8)


def maps(
    values: np.ndarray,
    names: Sequence[str],
    rows: str,
    columns: str,
    numbers: Sequence[int],
    cell: int = 8,
) -> Png:
    """Draw square maps in rows and columns, with the names of their places along the edges.

    Args:
        values: (rows, columns, n, n), from 0 to 1; in a map the first place is at the top left.
        names: n names.
        rows: Name of a row of maps, before its number.
        columns: Name of a column of maps, before its number from 0.
        numbers: Number of each row of maps.
        cell: Size of a value in pixels.
    """
    n_rows, n_columns, n, _ = values.shape
    side, font = n * cell + GAP, ImageFont.load_default(SIZE - 1)
    left = round(max(map(font.getlength, names))) + 10
    right, top, bottom = 50, 2 * SIZE + 4, left
    indices = np.full((top + n_rows * side + bottom, left + n_columns * side + right), N_COLOURS)
    shades = indices_of(values).repeat(cell, axis=2).repeat(cell, axis=3)
    labels = []
    for row in range(n_rows):
        y = top + row * side
        labels.append(Label(left + n_columns * side, y + n * cell / 2, f"{rows} {numbers[row]}"))
        labels += [
            Label(left - 4, y + (place + 0.5) * cell, name, "rm")
            for place, name in enumerate(names)
        ]
        for column in range(n_columns):
            x = left + column * side
            # a grey frame
            indices[y - 1 : y + n * cell + 1, x - 1 : x + n * cell + 1] = N_COLOURS + 8
            indices[y : y + n * cell, x : x + n * cell] = shades[row, column]
    for column in range(n_columns):
        labels.append(Label(left + column * side, SIZE, f"{columns} {column}"))
    upright = [
        Label(left + column * side + (place + 0.5) * cell, top + n_rows * side, name)
        for column in range(n_columns)
        for place, name in enumerate(names)
    ]
    return _image(indices, BLUES, labels, upright)


def matrix(values: np.ndarray, limit: float, title: str, across: str, down: str) -> Png:
    """Draw a matrix, blue for negative and orange for positive values.

    Args:
        values: (rows, columns)
        limit: Absolute value of the darkest colours.
        title: Title above.
        across: Name of the columns, below.
        down: Name of the rows, above.
    """
    cell = max(1, 384 // max(values.shape))
    shades = indices_of(values / limit / 2 + 0.5).repeat(cell, axis=0).repeat(cell, axis=1)
    height, width = shades.shape
    left, top = 8, 3 * LINE
    indices = np.full((top + height + LINE, max(width + 2 * left, 300)), N_COLOURS)
    indices[top : top + height, left : left + width] = shades
    labels = [
        Label(left, LINE / 2, title),
        Label(left, 1.5 * LINE, f"from {-limit:.2g} (blue) to {limit:.2g} (orange)"),
        Label(left, 2.5 * LINE, f"{down}: 0 to {len(values) - 1}, downwards"),
        Label(left, top + height + LINE / 2, f"{across}: 0 to {values.shape[1] - 1}"),
    ]
    return _image(indices, DIVERGING, labels, [])


def shaded(pieces: Sequence[str], shades: Sequence[float], title: str) -> Png:
    """Write pieces of a text side by side, each on a ground of its shade, from 0 to 1.

    A line ends where it is full, and after a piece that ends with LINE_BREAK.
    """
    font = ImageFont.load_default(SIZE + 2)
    x, y, labels, boxes = 8.0, LINE + 6.0, [], []
    for piece, shade in zip(pieces, indices_of(np.array(shades)), strict=True):
        width = font.getlength(piece) + 1
        if x + width > TEXT_WIDTH - 8:
            x, y = 8.0, y + LINE
        boxes.append((round(x), round(y), round(x + width), int(shade)))
        labels.append(Label(x, y + LINE / 2, piece))
        x += width
        if piece.endswith(LINE_BREAK):
            x, y = 8.0, y + LINE
    indices = np.full((round(y) + LINE + 8, TEXT_WIDTH), N_COLOURS)
    for left, top, right, shade in boxes:
        indices[top : top + LINE - 1, left:right] = shade
    return _image(indices, ORANGES, [Label(8, LINE / 2, title), *labels], [], SIZE + 2)


def indices_of(values: np.ndarray) -> np.ndarray:
    """Return the places of values from 0 to 1 among the palette's colours."""
    return (values.clip(0, 1) * (N_COLOURS - 1)).round().astype(np.uint8)


def _image(
    indices: np.ndarray,
    stops: Sequence[tuple[int, ...]],
    labels: Sequence[Label],
    upright: Sequence[Label],
    size: int = SIZE - 1,
) -> Png:
    """Write labels over (height, width) places in the palette, and encode the image.

    Args:
        indices: Places in the palette.
        stops: Stops of the palette's colours.
        labels: Texts from left to right.
        upright: Texts from top to bottom.
        size: Size of the texts in pixels.
    """
    height, width = indices.shape
    ink = Image.new("L", (width, height))
    _write(ink, labels, size)
    if upright:
        # turned by a quarter about the corner, so that a text runs downwards
        turned = Image.new("L", (height, width))
        _write(turned, [Label(y, width - x, text, anchor) for x, y, text, anchor in upright], size)
        ink.paste(255, mask=turned.transpose(Image.Transpose.ROTATE_270))
    opacity = np.asarray(ink)
    # of text on a coloured ground, only the full strokes
    on_white = (opacity > 0) & (indices >= N_COLOURS)
    greys = N_COLOURS + opacity // (256 // N_GREYS)
    drawn = np.where(on_white | (opacity > 100), np.where(on_white, greys, 255), indices)
    image = Image.fromarray(drawn.astype(np.uint8), "P")
    palette = np.concatenate([colours(stops, N_COLOURS), colours(((255,) * 3, (0,) * 3), N_GREYS)])
    image.putpalette(palette.tobytes())
    file = io.BytesIO()
    image.save(file, "PNG")
    return Png(file.getvalue(), width, height)


def _write(ink: Image.Image, labels: Sequence[Label], size: int) -> None:
    font = ImageFont.load_default(size)
    draw = ImageDraw.Draw(ink)
    for x, y, text, anchor in labels:
        draw.text((x, y), text, 255, font, anchor)
