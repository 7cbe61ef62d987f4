"""The colours of charts, on a light and on a dark background."""

from typing import Literal

Theme = Literal["auto", "light", "dark"]

# Okabe and Ito's palette for colour-blind readers, without its yellow; on a dark background lighter
LIGHT = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
DARK = ("#4da9e0", "#ff8b45", "#2fc79b", "#e6a3c6", "#93d3f7", "#f2bb4e", "#ffffff")
THEMES: dict[str, dict[str, str]] = {
    "light": {"background": "#ffffff", "text": "#333333", "axis": "#333333", "grid": "#e8e8e8"}
    | {str(index): colour for index, colour in enumerate(LIGHT)},
    "dark": {"background": "#16191d", "text": "#d8dadd", "axis": "#9aa0a6", "grid": "#2b3036"}
    | {str(index): colour for index, colour in enumerate(DARK)},
}


def colour_of(name: object, theme: Theme) -> str:
    """Return the colour of a role, or of a series by its number; "auto" is light."""
    return THEMES["dark" if theme == "dark" else "light"][str(name)]
