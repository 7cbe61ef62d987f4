"""HTML files that need no other file: their frame and colours, and the page of a figure."""

from html import escape

from gptlit.charts.axes import number
from gptlit.charts.svg import svg
from gptlit.charts.themes import THEMES, Theme
from gptlit.reports.figure import LABELS, Drawn, Figure, picture

ALLOWED = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
STYLE = """\
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;
color:var(--text);background:var(--background)}
svg{width:100%;height:auto}
table{border-collapse:collapse;margin-top:1rem}
th,td{padding:.25rem .8rem .25rem 0;text-align:right}
th:first-child,td:first-child{text-align:left}
tr{border-bottom:1px solid var(--grid)}"""


def html(figure: Figure, theme: Theme = "auto") -> str:
    """Return a page with a figure and the last and best losses of its runs."""
    heads = ["run", LABELS[figure.x], "train/loss, last", "val/loss, last", "val/loss, best", "at"]
    rows = [heads, *(_row(run) for run in figure.runs)]
    table = "\n".join(_line(row, "td" if index else "th") for index, row in enumerate(rows))
    body = f"{svg(picture(figure), theme)}<table>\n{table}\n</table>"
    return document(figure.title, STYLE, body, theme)


def document(title: str, style: str, body: str, theme: Theme = "auto") -> str:
    """Return an HTML document, which may load nothing, whatever the texts in it are.

    Args:
        title: Title, as text.
        style: CSS; the colours of THEMES are its variables, such as var(--text) and var(--0).
        body: HTML of the body.
        theme: light, dark, or auto for the one that the viewer prefers.
    """
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="{ALLOWED}"/>
<title>{escape(title)}</title>
<style>
{_colours(theme)}
{style}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def _colours(theme: Theme) -> str:
    """Return the colours of a theme as variables of CSS."""

    def of(name: str) -> str:
        variables = "".join(f"--{role}:{colour};" for role, colour in THEMES[name].items())
        return f":root{{color-scheme:{name};{variables}}}"

    if theme != "auto":
        return of(theme)
    return f"{of('light')}\n@media (prefers-color-scheme: dark){{{of('dark')}}}"


def _row(run: Drawn) -> list[str]:
    ends = [max((p.x for p in points), default=0.0) for points in (run.train, run.val)]
    losses = [f"{points[-1].y:.4f}" if points else "-" for points in (run.train, run.val)]
    best = [f"{run.best.y:.4f}", number(run.best.x)] if run.best else ["-", "-"]
    return [run.label, number(max(ends)), *losses, *best]


def _line(cells: list[str], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"
