"""`gptlit runs`: a table of runs, from their folders."""

import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from gptlit.charts.axes import number
from gptlit.checkpoints import run_paths
from gptlit.cli.configs import find_config
from gptlit.messages import UsageError, note
from gptlit.parser import OneLineErrors, with_environment
from gptlit.reports import folders, options
from gptlit.reports.folders import Summary
from gptlit.terminal import align_columns, columns_of, padded, printable, shortened, width

Sort = Literal[
    "name", "when", "config", "differs", "parameters", "steps", "best", "minutes", "state"
]
LEAST_DIFFERS = 24  # columns of the differences, where they stand in the same line as the rest
# columns from the most to the least important; the others are below them in a narrow terminal
SHORT = ("name", "state", "steps", "best", "min")
LONG = ("name", "when", "config", "params", "steps", "best", "min", "state")
LEFT = ("name", "when", "config", "state", "differs")


def parser() -> OneLineErrors:
    """Return the parser of `gptlit runs`."""
    parser = OneLineErrors(prog="gptlit runs", allow_abbrev=False)
    add = parser.add_argument
    add("folders", nargs="*", type=str, default=None, help="Folders of runs; lightning_logs if none"
        " is given. Runs of studies in them are listed too.")  # fmt: skip
    add("--sort", type=Sort, default="when", help="Column by which runs are sorted, the lowest "
        "first; runs without a value come last.")  # fmt: skip
    add("--reverse", type=bool, nargs="?", const=True, default=False, help="Sort the other way "
        "round.")  # fmt: skip
    add("--config", type=str, default=None, help="Only runs of this config, a shipped one or a "
        "file: those whose options differ least from it.")  # fmt: skip
    add("--format", type=Literal["table", "json"], default="table", help="A table, or a JSON list "
        "with all options that differ from the config.")  # fmt: skip
    return parser


def main(argv: Sequence[str]) -> None:
    """Run `gptlit runs` with these arguments.

    Raises:
        UsageError: An argument is invalid, or a folder can't be read.
    """
    asked = parser().parse_args(with_environment("runs", argv))
    own = (asked.config,) if asked.config else ()
    for name in own:
        find_config(name)  # refuses one that doesn't exist, also where there are no runs
    summaries, others = [], []
    for root in map(Path, asked.folders or [str(run_paths.RUNS)]):
        for path, is_run in _found(root):
            name = str(path if path == root else path.relative_to(root))
            if is_run:
                summaries.append(folders.summarise(path, name, own))
            else:
                others.append(name)
    if own:
        summaries = [each for each in summaries if each.config == Path(asked.config).stem]
    summaries = ordered(summaries, asked.sort, asked.reverse)
    if asked.format == "json":
        print(json.dumps([each.as_json() for each in summaries], indent=1))
        return
    columns = columns_of(sys.stdout)
    # some terminals wrap a line that fills the last column
    for line in table(summaries, columns and columns - 1):
        print(line)
    for other in others:
        note(f"{printable(other, one_line=True)}: is not a run")
    if not summaries:
        note(f"no run{f' of {asked.config}' if own else ''}; train one with gptlit fit")


def _found(root: Path) -> Iterator[tuple[Path, bool]]:
    if not root.is_dir():
        reason = "no such folder; give the folder of runs"
        raise UsageError(f"{root}: {reason}, such as {run_paths.RUNS}, which gptlit fit makes")
    if folders.is_run(root):
        return iter([(root, True)])
    return folders.find(root)


def ordered(summaries: Sequence[Summary], by: Sort, reverse: bool = False) -> list[Summary]:
    """Sort runs by a column, those without a value last; by their beginning where it is equal."""

    def value(summary: Summary) -> Any:
        found = getattr(summary, by)
        return options.label(found) if by == "differs" else found

    # "version_10" after "version_9"
    key = _natural if by in ("name", "config") else lambda value: value
    in_time = sorted(summaries, key=lambda each: (each.when, _natural(each.name)))
    known = [each for each in in_time if value(each) is not None]
    unknown = [each for each in in_time if value(each) is None]
    return [*sorted(known, key=lambda each: key(value(each)), reverse=reverse), *unknown]


def _natural(name: str) -> list[tuple[int, int | str]]:
    parts = re.split(r"(\d+)", name)
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts]


def table(summaries: Sequence[Summary], columns: int | None) -> Iterator[str]:
    """Yield the lines of a table.

    Args:
        summaries: The runs, in order.
        columns: Width of the terminal; None for lines of any length, one for each run.
    """
    if not summaries:
        return
    rows = [_cells(each) for each in summaries]
    names = LONG if columns is None or _width(rows, LONG) <= columns else SHORT
    left = [index for index, name in enumerate(names) if name in LEFT]
    lines = align_columns([names, *([row[name] for name in names] for row in rows)], left)
    used = max(map(width, lines)) + 2
    texts = [_rest(row, names) for row in rows]
    if columns is None or used + LEAST_DIFFERS <= columns:
        for line, text in zip(lines, ["differs from the config by", *texts], strict=True):
            text = text if columns is None else shortened(text, columns - used)
            yield f"{padded(line, used)}{text}".rstrip()
        return
    yield shortened(lines[0], columns)
    for line, text in zip(lines[1:], texts, strict=True):
        yield shortened(line, columns)
        if text:
            yield shortened(f"    {text}", columns)


def _width(rows: Sequence[dict[str, str]], names: Sequence[str]) -> int:
    return max(map(width, align_columns([names, *([row[name] for name in names] for row in rows)])))


def _cells(run: Summary) -> dict[str, str]:
    began = time.localtime(run.when)
    is_this_year = began.tm_year == time.localtime().tm_year
    return {
        "name": run.name,
        "when": time.strftime("%m-%d %H:%M" if is_this_year else "%Y-%m-%d", began),
        "config": run.config or "-",
        "params": "-" if run.parameters is None else number(run.parameters),
        "steps": f"{run.steps:,}",
        "best": "-" if run.best is None else f"{run.best:.4f}",
        "min": minutes(run.minutes) or "-",
        "state": run.state,
        "differs": run.problem or options.label(run.differs),
    }


def minutes(minutes: float | None) -> str:
    """Format a number of minutes; None gives an empty text."""
    if minutes is None:
        return ""
    return f"{minutes:.{2 if minutes < 1 else 1 if minutes < 100 else 0}f}"


def _rest(row: dict[str, str], names: Sequence[str]) -> str:
    """Return what a row doesn't have in its columns: the differences, after all other values."""
    others = [row[name] for name in LONG if name not in names and row[name] != "-"]
    return ": ".join(filter(None, (" ".join(others), row["differs"])))
