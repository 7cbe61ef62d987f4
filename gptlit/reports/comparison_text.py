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


def plain(compared: Comparison, columns: int, signs: Signs) -> Iterator[str]:
    """Yield the lines of a report for a terminal.

    Args:
        compared: The comparison.
        columns: Width of the terminal.
        signs: Characters that it has.
    """
    yield from _table(compared.names, compared.figures, columns)
    if any(row.best for row in compared.figures):
        yield f"{LOWEST} lowest"
    if compared.options:
        yield from ("", "Options that differ:", "")
        yield from _table(compared.names, compared.options, columns)
    for each in compared.notes:
        yield from ("", *wrapped(each, columns))
    if compared.figure is not None:
        yield from ("", f"{compared.figure.metric}:")
        yield from figure.text(compared.figure, min(columns, CHART[0]), CHART[1], signs)
    for sample in compared.samples:
        for name, text, source in _texts(compared, sample):
            yield from ("", *wrapped(f"{name} ({source})", columns))
            if text:
                yield from wrapped(f"{sample.prompt}{text}".strip("\n"), columns)


def _texts(compared: Comparison, sample: Sample) -> Iterator[tuple[str, str, str]]:
    return zip(compared.names, sample.texts, sample.sources, strict=True)


def _table(names: Sequence[str], rows: Sequence[Row], columns: int) -> Iterator[str]:
    """Yield a table, in parts of as many runs as fit."""
    first = ["", *(row.name for row in rows)]
    left = columns - max(map(width, first))  # for the cells of runs
    longest = max(NARROWEST, min(LONGEST_CELL, left - GAP))
    runs = [
        [shortened(cell, longest) for cell in (name, *(_marked(row, index) for row in rows))]
        for index, name in enumerate(names)
    ]
    while runs:
        ends = itertools.accumulate(GAP + max(map(width, run)) for run in runs)
        fitting = max(1, sum(end <= left for end in ends))
        part, runs = runs[:fitting], runs[fitting:]
        yield from align_columns([*zip(first, *part, strict=True)])
        if runs:
            yield ""


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
