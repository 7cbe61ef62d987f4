"""A figure as one HTML file, with a table of the runs, that needs no other file."""

from html import escape

from gptlit.charts.axes import number
from gptlit.charts.svg import svg
from gptlit.charts.themes import THEMES, Theme
from gptlit.reports.figure import LABELS, Drawn, Figure, picture

STYLE = """\
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;%s}
svg{width:100%%;height:auto}
table{border-collapse:collapse;margin-top:1rem}
th,td{padding:.25rem .8rem .25rem 0;text-align:right}
th:first-child,td:first-child{text-align:left}
tr{border-bottom:1px solid %s}"""


def html(figure: Figure, theme: Theme = "auto") -> str:
    """Return a page with a figure and the last and best losses of its runs."""
    heads = ["run", LABELS[figure.x], "train/loss, last", "val/loss, last", "val/loss, best", "at"]
    rows = [heads, *(_row(run) for run in figure.runs)]
    table = "\n".join(_line(row, "td" if index else "th") for index, row in enumerate(rows))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{escape(figure.title)}</title>
<style>
{_style(theme)}
</style>
</head>
<body>
{svg(picture(figure), theme)}<table>
{table}
</table>
</body>
</html>
"""


def _style(theme: Theme) -> str:
    def of(name: str) -> str:
        colours = THEMES[name]
        paint = f"color:{colours['text']};background:{colours['background']}"
        return STYLE % (paint, colours["grid"])

    if theme != "auto":
        return of(theme)
    return f"{of('light')}\n@media (prefers-color-scheme: dark){{\n{of('dark')}\n}}"


def _row(run: Drawn) -> list[str]:
    ends = [max((p.x for p in points), default=0.0) for points in (run.train, run.val)]
    losses = [f"{points[-1].y:.4f}" if points else "-" for points in (run.train, run.val)]
    best = [f"{run.best.y:.4f}", number(run.best.x)] if run.best else ["-", "-"]
    return [run.label, number(max(ends)), *losses, *best]


def _line(cells: list[str], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"
