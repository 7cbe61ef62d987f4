"""A study's results as a table for the terminal, with remarks, and as results.csv."""

import csv
import io
import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from gptlit.study import power_law
from gptlit.study.spec import COSTS, METRICS, Settings, Setup, Study, short_names
from gptlit.terminal import align_columns, duration, format_value, shortened, width, wrapped
from gptlit.training.logged_metrics import COMPARED_METRICS

LONGEST_CELL = 40
COUNTS = ("parameters", "tokens", "step")


@dataclass(frozen=True)
class Outcome:
    """The results of a run.

    Args:
        setup: The run.
        results: Values by name: those of METRICS that were logged, the "step" at which they were,
            COSTS, and "seconds" of training steps. Empty if the run failed.
        curve: The metric by the number of steps before each validation.
        failed: Why there are no results, in one line; "" if there are.
        text: Identity of the validation text, "" where unknown.
    """

    setup: Setup
    results: Mapping[str, float] = field(default_factory=dict)
    curve: Mapping[int, float] = field(default_factory=dict)
    failed: str = ""
    text: str = ""


@dataclass(frozen=True)
class Row:
    """The outcomes of one setting, one for each seed, without those that failed."""

    settings: Settings
    outcomes: Sequence[Outcome]

    def mean(self, name: str) -> float:
        """Return the mean over the runs that have the result; NaN if none has."""
        values = self._values(name)
        return statistics.fmean(values) if values else math.nan

    def spread(self, name: str) -> float:
        """Return the sample standard deviation (n - 1); 0 for a single run."""
        values = self._values(name)
        return statistics.stdev(values) if len(values) > 1 else 0.0

    def _values(self, name: str) -> list[float]:
        return [each.results[name] for each in self.outcomes if name in each.results]


def grouped(study: Study, outcomes: Sequence[Outcome]) -> list[Row]:
    """Group successful outcomes by setting, the best first."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if not outcome.failed:
            groups.setdefault(repr(outcome.setup.settings), []).append(outcome)
    rows = [Row(group[0].setup.settings, group) for group in groups.values()]
    return sorted(rows, key=lambda row: row.mean(study.metric))


def table(study: Study, outcomes: Sequence[Outcome], columns: int) -> str:
    """Format a study in lines of at most so many columns: settings, best first, then failures."""
    rows = grouped(study, outcomes)
    at = "the last validation of each run" if study.at == "end" else "the best validation of each"
    n_done = sum(len(row.outcomes) for row in rows)
    head = f"{study.metric} at {at}, the lowest first; {n_done} of {len(outcomes)} runs"
    cells = [_cells(study, row) for row in rows]
    if len(cells) > 1:
        # a count that is the same for all is in the head, not in a column
        for name in [name for name in cells[0] if name in COUNTS]:
            if len({row[name] for row in cells}) == 1:
                head += f", {name} {cells[0][name]}"
                cells = [{key: row[key] for key in row if key != name} for row in cells]
    lines = wrapped(head, columns)
    if cells:
        lines += ["", *_aligned(cells, columns)]
    failures = [f"{each.setup.name}: {each.failed}" for each in outcomes if each.failed]
    if failures:
        lines += ["", *itertools.chain(*(wrapped(line, columns) for line in failures))]
    return "\n".join(lines) + "\n"


def _cells(study: Study, row: Row) -> dict[str, str]:
    short = short_names(row.settings)
    cells = {short[name]: format_value(value) for name, value in row.settings.items()}
    cells[study.metric] = f"{row.mean(study.metric):.4f}"
    if max(len(study.seeds), len(study.teacher_seeds)) > 1:
        is_one = len(row.outcomes) == 1
        cells["± sd"] = "-" if is_one else f"{row.spread(study.metric):.4f}"
        cells["n"] = str(len(row.outcomes))
    for name in COUNTS:
        if not math.isnan(row.mean(name)):
            cells[name] = f"{row.mean(name):,.0f}"
    seconds = row.mean("seconds")
    return cells | {"time": "-" if math.isnan(seconds) else duration(seconds)}


def _aligned(cells: Sequence[dict[str, str]], columns: int) -> list[str]:
    """Align rows below the names of their columns; if that is too wide, make each a paragraph."""
    cells = [{name: shortened(text, LONGEST_CELL) for name, text in row.items()} for row in cells]
    names = list(dict.fromkeys(itertools.chain(*cells)))
    lines = align_columns(
        [names, *([row.get(name, "-") for name in names] for row in cells)],
        left=[index for index, name in enumerate(names) if name == "setting"],
    )
    if max(map(width, lines)) > columns:
        paragraphs = [", ".join(f"{name} {text}" for name, text in row.items()) for row in cells]
        return list(itertools.chain(*(wrapped(each, columns) for each in paragraphs)))
    return lines


def warnings(study: Study, outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yield the reasons why the runs cannot be compared directly."""
    successful = [each for each in outcomes if not each.failed]
    varied = set().union(*(study.values(each.setup.settings) for each in successful))
    per_token = study.metric != "val/bits_per_byte"
    if per_token and any(name.startswith("data.tokenizer") for name in varied):
        yield (
            f"{study.metric} is per token, and the tokenizers differ: compare by "
            "metric: val/bits_per_byte"
        )
    if len({each.text for each in successful} - {""}) > 1:
        yield "the runs were validated on different texts, or on different parts of one"


def as_csv(study: Study, outcomes: Sequence[Outcome]) -> str:
    """Format results.csv: a row for each run, with its settings and results, or why it failed."""
    options = list(dict.fromkeys(itertools.chain(*(each.setup.settings for each in outcomes))))
    # few runs log these two
    left_out = {*COMPARED_METRICS}.difference(*(each.results for each in outcomes))
    metrics = [name for name in METRICS if name not in left_out]
    names = [*metrics, "step", *COSTS, "seconds"]
    seed = ["seed"] if any(each.setup.seed is not None for each in outcomes) else []
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", *options, *seed, *names, "failed"])
    for outcome in outcomes:
        setup, values = outcome.setup, outcome.setup.settings
        settings = [format_value(values[name]) if name in values else "" for name in options]
        seeds = [setup.seed] if seed else []
        results = [outcome.results.get(name, "") for name in names]
        writer.writerow([setup.name, *settings, *seeds, *results, outcome.failed])
    return text.getvalue()


def fitted_law(study: Study, rows: Sequence[Row]) -> power_law.PowerLaw | None:
    """Fit the metric against the study's cost, a point per run; None for fewer than two sizes."""
    assert study.power_law is not None
    points = [
        (each.results[study.power_law], each.results[study.metric])
        for row in rows
        for each in row.outcomes
        if study.metric in each.results
    ]
    if len({size for size, _ in points}) < 2:
        return None
    return power_law.fit([size for size, _ in points], [loss for _, loss in points])


def describe_law(study: Study, outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Describe the fitted power law and its limitations, a sentence each."""
    law, name = fitted_law(study, grouped(study, outcomes)), study.power_law
    if law is None:
        yield f"no power law: it needs runs of two or more different {name}"
        return
    yield (
        f"{study.metric} = E + A / {name} ^ alpha: E {law.floor:.4g}, A {law.scale:.4g}, alpha "
        f"{law.alpha:.4g}; root mean square residual {law.residual:.2g}, {law.n_points} runs"
    )
    if not law.has_floor:
        yield (
            f"E is assumed to be 0: it cannot be estimated from fewer than "
            f"{power_law.LEAST_FOR_FLOOR} different {name}"
        )
    elif not law.floor:
        yield "E is at its bound, 0: these runs do not determine the irreducible loss"
    if law.bounded:
        yield "alpha is at a bound of its search range: these runs do not follow a power law"
