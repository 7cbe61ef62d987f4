"""A comparison of runs as lines of text for a terminal, and as Markdown."""

import itertools
import re
from collections.abc import Iterator, Sequence

from gptlit.charts.text import Signs
from gptlit.reports import figure
from gptlit.reports.comparison import Comparison, Row, Sample
from gptlit.terminal import align_columns, printable, shortened, width, wrapped

CHART = (100, 20)  # columns and rows of curves, at most
LONGEST_CELL = 28  # columns
NARROWEST = 8
GAP = 2  # columns between two cells
LOWEST = "*"


def plain(compared: Comparison, columns: int | None, signs: Signs) -> Iterator[str]:
    """Yield the lines of a report for a terminal.

    Args:
        compared: The comparison.
        columns: Width of the terminal; None for lines of any length.
        signs: Characters that it has.
    """
    names = compared.names
    tables = [compared.figures, *([compared.options] if compared.options else [])]
    if columns is not None and any(len(_parts(names, each, columns)) > 1 for each in tables):
        short = _short_names(compared)
        legend = align_columns([*zip(short, names, strict=True)], left=(0, 1))
        yield from (*(shortened(line, columns) for line in legend), "")
        names = short
    yield from _table(names, compared.figures, columns)
    if any(row.best for row in compared.figures):
        yield f"{LOWEST} lowest"
    if compared.options:
        yield from ("", "Options that differ:", "")
        yield from _table(names, compared.options, columns)
    for each in compared.notes:
        yield from ("", *_wrapped(each, columns))
    if compared.figure is not None:
        yield from ("", f"{compared.figure.metric}:")
        yield from figure.text(compared.figure, min(columns or CHART[0], CHART[0]), CHART[1], signs)
    for sample in compared.samples:
        for name, text, source in _texts(compared, sample):
            yield from ("", *_wrapped(f"{name} ({source})", columns))
            if text:
                yield from _wrapped(f"{sample.prompt}{text}".strip("\n"), columns)


def _short_names(compared: Comparison) -> Sequence[str]:
    """Return the letters that the curves have, or numbers where a run has no curve."""
    n = len(compared.names)
    has_all = compared.figure is not None and len(compared.figure.runs) == n
    return figure.LETTERS[:n] if has_all else [str(index) for index in range(1, n + 1)]


def _wrapped(text: str, columns: int | None) -> list[str]:
    return printable(text).split("\n") if columns is None else wrapped(text, columns)


def _texts(compared: Comparison, sample: Sample) -> Iterator[tuple[str, str, str]]:
    return zip(compared.names, sample.texts, sample.sources, strict=True)


def _table(names: Sequence[str], rows: Sequence[Row], columns: int | None) -> Iterator[str]:
    """Yield the lines of a table, in parts of as many runs as fit."""
    first = ["", *(row.name for row in rows)]
    for index, part in enumerate(_parts(names, rows, columns)):
        yield from [""] * (index > 0)
        yield from align_columns([*zip(first, *part, strict=True)])


def _parts(
    names: Sequence[str], rows: Sequence[Row], columns: int | None
) -> list[Sequence[list[str]]]:
    """Return the columns of each part of a table: a name and the cells below it."""
    runs = [[name, *(_marked(row, index) for row in rows)] for index, name in enumerate(names)]
    if columns is None:
        return [runs]
    left = columns - max(width(row.name) for row in rows)
    longest = max(NARROWEST, min(LONGEST_CELL, left - GAP))
    runs = [[shortened(cell, longest) for cell in run] for run in runs]
    parts: list[Sequence[list[str]]] = []
    while runs:
        ends = itertools.accumulate(GAP + max(map(width, run)) for run in runs)
        fitting = max(1, sum(end <= left for end in ends))
        parts.append(runs[:fitting])
        runs = runs[fitting:]
    return parts


def _marked(row: Row, index: int) -> str:
    return f"{row.cells[index]}{LOWEST if index in row.best else ' ' if row.best else ''}"


# ---------------------------------------------------------------------- Markdown


def markdown(compared: Comparison, signs: Signs) -> Iterator[str]:
    """Yield the lines of a report in Markdown, with the curves as a chart of text."""
    yield from (f"# {compared.title}", "")
    for each in compared.notes:
        yield from (escaped(each), "")
    yield from ("## Figures", "", *_markdown_table(compared.names, compared.figures), "")
    if any(row.best for row in compared.figures):
        yield from ("Bold: the lowest. Losses are in nats per token.", "")
    if compared.options:
        yield from ("## Options that differ", "")
        yield from (*_markdown_table(compared.names, compared.options), "")
    if compared.figure is not None:
        chart = figure.text(compared.figure, *CHART, signs)
        yield from ("## Curves", "", *fenced("\n".join(chart)), "")
    if compared.samples:
        yield from ("## Samples", "")
    for sample in compared.samples:
        shown = f"`{printable(sample.prompt, one_line=True)}`" if sample.prompt else "no text"
        yield from (f"### After {shown}", "")
        for name, text, source in _texts(compared, sample):
            yield from (f"**{escaped(name)}** ({escaped(source)})", "")
            yield from (*fenced(printable(sample.prompt + text)), "") if text else ()


def escaped(text: str) -> str:
    """Escape the signs of Markdown in a text."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", text)


def fenced(text: str) -> list[str]:
    """Return a block of text, with a fence that doesn't stand in it."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}text", *text.strip("\n").split("\n"), fence]


def _markdown_table(names: Sequence[str], rows: Sequence[Row]) -> Iterator[str]:
    yield f"| | {' | '.join(map(escaped, names))} |"
    yield f"| --- |{' ---: |' * len(names)}"
    for row in rows:
        cells = (
            f"**{escaped(cell)}**" if index in row.best else escaped(cell)
            for index, cell in enumerate(row.cells)
        )
        yield f"| {escaped(row.name)} | {' | '.join(cells)} |"
