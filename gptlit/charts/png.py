"""Charts as PNG images, by Pillow, which tensorboard depends on; its font needs no file."""

import io
import itertools
import math
from collections.abc import Iterator, Sequence

from PIL import Image, ImageDraw, ImageFont

from gptlit.charts.layout import Colour, Disc, Line, Picture, Place, Text
from gptlit.charts.themes import Theme, colour_of

SCALE = 2  # pixels of the image per pixel of the picture, for sharp text
OVERSAMPLED = 2  # drawn so many times larger still, since Pillow's lines have no smooth edges
DASH, SPACE = 6.0, 4.0
FAINT = 0.35  # opacity


def png(picture: Picture, theme: Theme = "auto", scale: int = SCALE) -> bytes:
    """Return a picture as a PNG image of `scale` times its size; "auto" is light."""
    return _Drawing(picture, theme, scale).encoded()


class _Drawing:
    def __init__(self, picture: Picture, theme: Theme, scale: int) -> None:
        self.theme = theme
        self.factor = scale * OVERSAMPLED
        size = picture.width * self.factor, picture.height * self.factor
        self.image = Image.new("RGB", size, colour_of("background", theme))
        self.draw = ImageDraw.Draw(self.image)
        for shape in picture.shapes:
            if isinstance(shape, Line):
                self._line(shape)
            elif isinstance(shape, Disc):
                self._disc(shape)
        self.image = self.image.resize(
            (picture.width * scale, picture.height * scale), Image.Resampling.BOX
        )
        self.factor = scale
        for shape in picture.shapes:
            if isinstance(shape, Text):
                self._text(shape)

    def encoded(self) -> bytes:
        # a palette makes the file a third as large
        file = io.BytesIO()
        self.image.quantize(128, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
        return file.getvalue()

    def _colour(self, colour: Colour, faint: bool = False) -> tuple[int, ...]:
        own, behind = (_rgb(colour_of(each, self.theme)) for each in (colour, "background"))
        share = FAINT if faint else 1.0
        return tuple(round(share * a + (1 - share) * b) for a, b in zip(own, behind, strict=True))

    def _line(self, line: Line) -> None:
        colour, width = self._colour(line.colour, line.faint), round(line.width * self.factor)
        for places in _dashes(line.places) if line.dashed else [line.places]:
            scaled = [(x * self.factor, y * self.factor) for x, y in places]
            self.draw.line(scaled, colour, width, joint="curve")

    def _disc(self, disc: Disc) -> None:
        (x, y), radius, factor = disc.place, disc.radius, self.factor
        box = [
            (x - radius) * factor,
            (y - radius) * factor,
            (x + radius) * factor,
            (y + radius) * factor,
        ]
        if disc.ring:
            self.draw.ellipse(box, outline=self._colour(disc.colour), width=2 * factor)
        else:
            rim = self._colour("background")
            self.draw.ellipse(box, self._colour(disc.colour), rim, width=factor)

    def _text(self, text: Text) -> None:
        font = ImageFont.load_default(text.size * self.factor)
        stroke = 0.4 * self.factor if text.bold else 0
        colour = self._colour("text")
        anchor = {"start": "ls", "middle": "ms", "end": "rs"}[text.anchor]
        x, y = (value * self.factor for value in text.place)
        if not text.turned:
            ImageDraw.Draw(self.image).text(
                (x, y), text.text, colour, font, anchor, stroke_width=stroke
            )
            return
        # turned about its anchor, in the middle of a square layer
        side = 2 * math.ceil(font.getlength(text.text) + text.size * self.factor)
        layer = Image.new("L", (side, side))
        ImageDraw.Draw(layer).text((side / 2, side / 2), text.text, 255, font, anchor)
        layer = layer.rotate(-text.turned, Image.Resampling.BICUBIC)
        self.image.paste(colour, (round(x - side / 2), round(y - side / 2)), layer)


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[place : place + 2], 16) for place in (1, 3, 5))


def _dashes(places: Sequence[Place]) -> Iterator[list[Place]]:
    """Yield the dashes along a line."""
    dash, left, is_drawn = [places[0]], DASH, True
    for (x1, y1), (x2, y2) in itertools.pairwise(places):
        length, done = math.hypot(x2 - x1, y2 - y1), 0.0
        while length - done > left:
            done += left
            place = (x1 + (x2 - x1) * done / length, y1 + (y2 - y1) * done / length)
            if is_drawn:
                yield [*dash, place]
            dash, is_drawn = [place], not is_drawn
            left = DASH if is_drawn else SPACE
        left -= length - done
        dash.append((x2, y2))
    if is_drawn:
        yield dash
