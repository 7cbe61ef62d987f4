"""A comparison of runs as one HTML file that needs no other file."""

from collections.abc import Iterator, Sequence
from html import escape

from gptlit.charts.layout import N_COLOURS
from gptlit.charts.svg import svg
from gptlit.charts.themes import Theme
from gptlit.reports import figure
from gptlit.reports.comparison import Comparison, Row, Sample
from gptlit.reports.page import document
from gptlit.terminal import printable

STYLE = """\
*{box-sizing:border-box}
body{margin:0 auto;padding:1.25rem clamp(.75rem,3vw,2rem) 3rem;max-width:80rem;
font:15px/1.5 system-ui,sans-serif;color:var(--text);background:var(--background);
--soft:color-mix(in srgb,var(--text) 72%,var(--background))}
h1{font-size:1.35rem;margin:0 0 .5rem}
main{display:flex;flex-wrap:wrap;gap:0 2.5rem}
section{min-width:0;max-width:100%}
section:has(svg){flex:1 1 32rem;max-width:min(100%,48rem)}
h2{font-size:1.05rem;margin:1.75rem 0 .5rem}
h3{font-size:.95rem;margin:1.25rem 0 .5rem}
.note{border-left:3px solid var(--1);padding:.1rem 0 .1rem .7rem;margin:.4rem 0}
.soft{color:var(--soft);font-size:.87rem;margin:.3rem 0}
.wide{overflow-x:auto}
:focus-visible{outline:2px solid var(--0);outline-offset:1px}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .7rem;text-align:right;white-space:nowrap;border-bottom:1px solid var(--grid)}
th{font-weight:600}
tbody th{font-weight:normal;color:var(--soft)}
tr>:first-child{text-align:left;padding-left:0;position:sticky;left:0;background:var(--background)}
@media (max-width:40rem){th,td{padding:.25rem .35rem}tbody th{white-space:normal}}
.best{font-weight:bold;color:var(--2)}
.key{display:inline-block;width:.7em;height:.7em;border-radius:2px;margin-right:.4em}
svg{display:block;width:100%;min-width:32rem;height:auto}
.samples{display:grid;gap:1rem;align-items:start;grid-template-columns:repeat(auto-fit,minmax(min(100%,17rem),1fr))}
article{border:1px solid var(--grid);border-radius:10px;padding:.7rem .9rem;min-width:0}
article h4{margin:0;font-size:.95rem;overflow-wrap:anywhere}
article .text{margin:.5rem 0 0;white-space:pre-wrap;overflow-wrap:anywhere;
font:13px/1.5 ui-monospace,"DejaVu Sans Mono",Menlo,monospace}
article b{color:var(--soft);font-weight:normal}"""


def html(compared: Comparison, theme: Theme = "auto") -> str:
    """Return the page of a comparison."""
    return document(compared.title, STYLE, "\n".join(_body(compared, theme)), theme)


def _body(compared: Comparison, theme: Theme) -> Iterator[str]:
    yield f"<h1>{escape(compared.title)}</h1>"
    yield from (f'<p class="note">{escape(each)}</p>' for each in compared.notes)
    yield "<main>"
    if compared.figure is not None:
        picture = svg(figure.picture(compared.figure), theme)
        yield _section("Curves", _scrolled("Curves", picture))
    about = '<p class="soft">Losses are in nats per token. Bold and green: the lowest.</p>'
    yield _section("Figures", _table(compared, compared.figures, "Figures") + about)
    if compared.options:
        name = "Options that differ"
        yield _section(name, _table(compared, compared.options, name))
    else:
        yield _section("Options", "<p>No options differ, other than those of the machine.</p>")
    yield "</main>"
    if compared.samples:
        yield "<h2>Samples</h2>"
    for sample in compared.samples:
        yield from _samples(compared, sample)


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{title}</h2>\n{content}\n</section>"


def _scrolled(label: str, content: str) -> str:
    """Return content that can be wider than the page, and is then scrolled, also by keyboard."""
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{label}">\n{content}\n</div>\n'
    )


def _named(compared: Comparison, name: str) -> str:
    """Return a run's name, after the colour of its curve if it has one."""
    labels = [run.label for run in compared.figure.runs] if compared.figure else []
    if name not in labels:
        return escape(name)
    colour = f"background:var(--{labels.index(name) % N_COLOURS})"
    return f'<span class="key" style="{colour}"></span>{escape(name)}'


def _table(compared: Comparison, rows: Sequence[Row], label: str) -> str:
    heads = "".join(f'<th scope="col">{_named(compared, name)}</th>' for name in compared.names)
    lines = "\n".join(map(_line, rows))
    head = f"<thead><tr><td></td>{heads}</tr></thead>"
    return _scrolled(label, f"<table>\n{head}\n<tbody>\n{lines}\n</tbody></table>")


def _line(row: Row) -> str:
    marks = [' class="best"' if index in row.best else "" for index in range(len(row.cells))]
    pairs = zip(row.cells, marks, strict=True)
    cells = "".join(f"<td{mark}>{escape(cell)}</td>" for cell, mark in pairs)
    return f'<tr><th scope="row">{escape(row.name)}</th>{cells}</tr>'


def _samples(compared: Comparison, sample: Sample) -> Iterator[str]:
    shown = f"After “{printable(sample.prompt, one_line=True)}”" if sample.prompt else "No prompt"
    yield f'<h3>{escape(shown)}</h3>\n<div class="samples">'
    for name, text, source in zip(compared.names, sample.texts, sample.sources, strict=True):
        prompt = f"<b>{escape(printable(sample.prompt))}</b>" if text else ""
        yield (
            f'<article><h4>{_named(compared, name)}</h4><p class="soft">{escape(source)}</p>'
            f'<p class="text">{prompt}{escape(printable(text))}</p></article>'
        )
    yield "</div>"
