"""Charts as SVG documents.

Importing it and drawing take 0.05 s; matplotlib takes 2.0 s (and slows `import lightning`, where
torchmetrics imports it, from 2.7 to 3.2 s), altair 1.4 s; plotly's export needs Chrome.
"""

from collections.abc import Sequence
from html import escape

from gptlit.charts.axes import Axis, Panel, Series
from gptlit.charts.layout import Colour, Disc, Line, Picture, Place, Shape, Text, arrange
from gptlit.charts.themes import THEMES, Theme, colour_of

DASHES = ' stroke-dasharray="6 4"'
FAINT = ' stroke-opacity="0.35"'


def chart(title: str, series: Sequence[Series], x: Axis, y: Axis, theme: Theme = "auto") -> str:
    """Return a chart of one panel as an SVG document."""
    return svg(arrange(title, [Panel(series, x, y)]), theme)


def svg(picture: Picture, theme: Theme = "auto") -> str:
    """Return a picture as an SVG document.

    Args:
        picture: The picture.
        theme: light, dark, or auto for the one that the viewer prefers (light if unknown).
    """
    width, height = picture.width, picture.height
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="Helvetica, Arial, sans-serif" '
        'font-size="12">',
        *([_dark_style()] if theme == "auto" else []),
        f'<rect width="{width}" height="{height}" {_paint(theme, fill="background")}/>',
        *(_drawn(shape, theme) for shape in picture.shapes),
    ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _dark_style() -> str:
    """Return rules that replace the light colours where the viewer prefers dark ones."""
    rules = "".join(
        f".f-{name}{{fill:{value}}}.s-{name}{{stroke:{value}}}"
        for name, value in THEMES["dark"].items()
    )
    return f"<style>@media (prefers-color-scheme: dark){{{rules}}}</style>"


def _paint(theme: Theme, **colours: Colour) -> str:
    """Return the attributes that paint a shape's area (`fill`) and its lines (`stroke`)."""
    names = " ".join(f"{attribute[0]}-{colour}" for attribute, colour in colours.items())
    classes = [f'class="{names}"'] if theme == "auto" else []
    values = (f'{attribute}="{colour_of(each, theme)}"' for attribute, each in colours.items())
    return " ".join([*values, *classes])


def _drawn(shape: Shape, theme: Theme) -> str:
    if isinstance(shape, Text):
        return _text(shape, theme)
    if isinstance(shape, Disc):
        return _disc(shape, theme)
    return _line(shape, theme)


def _text(text: Text, theme: Theme) -> str:
    x, y = text.place
    turn = f' transform="rotate({text.turned:g} {x:.1f} {y:.1f})"' if text.turned else ""
    weight = ' font-weight="bold"' if text.bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{text.anchor}" font-size="{text.size}"'
        f"{weight}{turn} {_paint(theme, fill='text')}>{escape(text.text)}</text>"
    )


def _disc(disc: Disc, theme: Theme) -> str:
    x, y = disc.place
    head = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{disc.radius:g}"'
    if disc.ring:
        return f'{head} fill="none" stroke-width="2" {_paint(theme, stroke=disc.colour)}/>'
    return f"{head} {_paint(theme, fill=disc.colour, stroke='background')}/>"


def _line(line: Line, theme: Theme) -> str:
    style = (
        f'{_paint(theme, stroke=line.colour)} stroke-width="{line.width:g}"'
        f"{DASHES if line.dashed else ''}{FAINT if line.faint else ''}"
    )
    if len(line.places) == 2:
        (x1, y1), (x2, y2) = line.places
        return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {style}/>'
    return f'<polyline points="{_path(line.places)}" fill="none" {style}/>'


def _path(places: Sequence[Place]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
