"""Values of several runs side by side: figures, options that differ, curves."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptlit.charts import smoothing
from gptlit.checkpoints import run_paths
from gptlit.messages import UsageError
from gptlit.reports import curves, figure, folders, options
from gptlit.reports.curves import Log, XAxis
from gptlit.reports.figure import Figure
from gptlit.reports.folders import Summary
from gptlit.reports.options import Options
from gptlit.reports.runs import minutes
from gptlit.runs import metrics_file
from gptlit.terminal import count_of

TOKENIZER = "data.tokenizer"
# options that change which text is validated on
OF_THE_TEXT = ("data.cleaning", "data.column", "data.corpus", "data.encoding", "data.jsonl_field",
               "data.path", "data.split_by", "data.test_fraction", "data.val_")  # fmt: skip
UNKNOWN = "-"


@dataclass(frozen=True)
class Compared:
    """A run and what its files say.

    Args:
        folder: Its folder.
        name: Its name in the report.
        summary: Its summary, as `gptlit runs` has it.
        options: Its options.
        rows: Rows of metrics.csv.
        log: Its curves; None if it has logged no loss.
    """

    folder: Path
    name: str
    summary: Summary
    options: Options
    rows: Sequence[metrics_file.Row]
    log: Log | None

    def values(self, metric: str) -> list[tuple[int, float]]:
        """Return the finite values of a metric, with the number of steps before each."""
        found = [(int(row["step"]) + 1, float(row[metric])) for row in self.rows if row.get(metric)]
        return [(step, value) for step, value in found if math.isfinite(value)]

    def best(self, metric: str) -> tuple[int, float] | None:
        """Return the lowest value of a metric and its step, the first of equal ones."""
        return min(self.values(metric), key=lambda pair: pair[1], default=None)


@dataclass(frozen=True)
class Row:
    """A line of a table: a name, and a cell for each run.

    Args:
        name: Its name.
        cells: Its cells.
        best: Indices of the cells that are marked as the lowest.
    """

    name: str
    cells: Sequence[str]
    best: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Sample:
    """Texts that runs have written after the same prompt.

    Args:
        prompt: The prompt.
        texts: A text of each run, without the prompt; empty where there is none.
        sources: The file of each, and its step; or the reason why there is no text.
    """

    prompt: str
    texts: Sequence[str]
    sources: Sequence[str]


@dataclass(frozen=True)
class Comparison:
    """All that a report shows.

    Args:
        names: Names of the runs.
        figures: Rows of figures.
        options: Rows of the options that differ.
        notes: Sentences on what can't be compared.
        figure: Curves of the runs that have any; None if there is none.
        samples: Texts by prompt.
    """

    names: Sequence[str]
    figures: Sequence[Row]
    options: Sequence[Row]
    notes: Sequence[str]
    figure: Figure | None
    samples: Sequence[Sample] = field(default_factory=list)

    @property
    def title(self) -> str:
        """The number of runs."""
        return f"{count_of(len(self.names), 'run')} compared"


def find(names: Sequence[str]) -> list[Compared]:
    """Return the runs that names stand for: a run's folder, or a folder of runs.

    Raises:
        UsageError: There is no such run, or there are fewer than two or too many.
    """
    found: dict[Path, tuple[str, ...]] = {}  # names of each, the shortest first
    for name in names:
        path = curves.resolved(name, "gptlit compare")
        runs = [path] if path.is_file() or folders.is_run(path) else _runs_in(path)
        if path.is_file() or not runs:
            reason = "is not a run's folder, nor a folder of runs"
            raise UsageError(f"{name}: {reason}; gptlit runs lists those in lightning_logs")
        for run in runs:
            inner = str(run.relative_to(path)) if run != path else str(Path(name))
            found.setdefault(run.resolve(), (run.name, inner, str(run)))
    most = len(figure.LETTERS)
    if not 2 <= len(found) <= most:
        reason = f"needs two runs or more, {most} at most"
        raise UsageError(f"gptlit compare: {reason}, not {len(found)}; gptlit runs lists the runs")
    ways = [*zip(*found.values(), strict=True)]
    chosen = next((way for way in ways if len({*way}) == len(way)), ways[-1])
    return [_read(*pair) for pair in zip(found, chosen, strict=True)]


def _runs_in(folder: Path) -> list[Path]:
    return [path for path, is_run in folders.find(folder) if is_run]


def _read(folder: Path, name: str) -> Compared:
    try:
        own = options.of_run(folder)
    except UsageError:
        own = {}
    _, rows = metrics_file.read(folder / run_paths.METRICS)
    summary = folders.summarise(folder, name)
    has_loss = any(row.get(name) for row in rows for name in ("train/loss", "val/loss"))
    log = curves.of_run(folder, summary.name) if has_loss else None
    return Compared(folder, summary.name, summary, own, rows, log)


def compare(runs: Sequence[Compared], x: XAxis | None = None) -> Comparison:
    """Compare runs, without samples.

    Args:
        runs: Two runs or more.
        x: Unit of the curves' x axis; None for the first that all have.

    Raises:
        UsageError: A run has no curve over `x`.
    """
    varied = _varied(runs)
    in_bits = any(name.startswith(TOKENIZER) for name in varied)
    return Comparison(
        [run.name for run in runs],
        _figures(runs, in_bits),
        [Row(name, [_shown(run, name) for run in runs]) for name in varied],
        _notes(runs, varied, in_bits),
        _curves(runs, x, in_bits),
    )


def _varied(runs: Sequence[Compared]) -> list[str]:
    """Return the options that differ, in the order of the groups that `gptlit runs` has."""
    known = [run for run in runs if run.options]
    names = dict.fromkeys(name for run in known for name in run.options)
    varied = [n for n in names if len({repr(run.options.get(n)) for run in known}) > 1]
    return [name for name, _ in sorted(dict.fromkeys(varied, None).items(), key=folders.by_group)]


def _shown(run: Compared, name: str) -> str:
    if name not in run.options:
        return UNKNOWN
    return options.shown(run.options[name]) or '""'


def _notes(runs: Sequence[Compared], varied: Sequence[str], in_bits: bool) -> list[str]:
    notes = []
    if in_bits:
        notes.append(
            "The runs have different tokenizers: losses in nats per token do not compare, bits per "
            "byte do."
        )
    if texts := [name for name in varied if name.startswith(OF_THE_TEXT)]:
        notes.append(
            f"The runs differ in {', '.join(texts)}, so they may be validated on different texts, "
            "whose losses do not compare."
        )
    for run in runs:
        if run.summary.state != "finished":
            why = f" ({run.summary.problem})" if run.summary.problem else ""
            notes.append(f"{run.name} is {run.summary.state}{why}.")
    return notes


def _figures(runs: Sequence[Compared], in_bits: bool) -> list[Row]:
    def row(name: str, cell: Callable[[Compared], str | None]) -> Row:
        return Row(name, [cell(run) or UNKNOWN for run in runs])

    def lowest(name: str, metric: str, marked: bool) -> Row:
        best = [run.best(metric) for run in runs]
        cells = [UNKNOWN if found is None else f"{found[1]:.4f}" for found in best]
        known = [cell for cell in cells if cell != UNKNOWN]
        least = min(known, key=float, default="")
        marks = (index for index, cell in enumerate(cells) if cell == least)
        return Row(name, cells, frozenset(marks if marked and len(known) > 1 else ()))

    def last(metric: str) -> Callable[[Compared], str | None]:
        return lambda run: f"{found[-1][1]:.4f}" if (found := run.values(metric)) else None

    rows = [
        row("config", lambda run: run.summary.config),
        row("tokenizer", _tokenizer),
        row("state", lambda run: run.summary.state),
        row("parameters", lambda run: _counted(run.summary.parameters)),
        row("steps", lambda run: _counted(run.summary.steps)),
        row("tokens", _tokens),
        row("minutes", lambda run: minutes(run.summary.minutes)),
        row("tokens/s", _speed),
        row("train/loss, last", last("train/loss")),
        row("val/loss, last", last("val/loss")),
        lowest("val/loss, best", "val/loss", marked=not in_bits),
        row("at step", lambda run: _counted(found[0]) if (found := run.best("val/loss")) else None),
        lowest("val/bits_per_byte, best", "val/bits_per_byte", marked=True),
    ]
    return [each for each in rows if {*each.cells} != {UNKNOWN}]


def _counted(value: int | None) -> str | None:
    return None if value is None else f"{value:,}"


def _tokenizer(run: Compared) -> str | None:
    found: Any = {
        name.removeprefix(f"{TOKENIZER}."): value
        for name, value in run.options.items()
        if name.startswith(TOKENIZER)
    }
    kind = found.get("kind") or found.get(TOKENIZER)
    if kind == "bpe":
        return f"bpe:{found.get('vocab_size')}"
    return f"tiktoken:{found.get('encoding')}" if kind == "tiktoken" else kind


def _tokens(run: Compared) -> str | None:
    seen = [row["tokens"] for row in run.log.rows if "tokens" in row] if run.log else []
    return f"{max(seen):,.0f}" if seen else None


def _speed(run: Compared) -> str | None:
    speeds = [value for _, value in run.values("speed/tokens_per_s")]
    return f"{statistics.median(speeds):,.0f}" if speeds else None


def _curves(runs: Sequence[Compared], x: XAxis | None, in_bits: bool) -> Figure | None:
    logs = [run.log for run in runs if run.log is not None]
    if in_bits:
        logs = [log for log in map(Log.in_bits, logs) if log.has("step")]
    if not logs:
        return None
    made = figure.make(logs, [log.name for log in logs], x, smoothing.parse("auto"), lr=not in_bits)
    if in_bits:
        return dataclasses.replace(made, y="bits per byte", metric="val/bits_per_byte")
    return made
