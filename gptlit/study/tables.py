"""A study's results as a table for the terminal, as results.csv, and as charts."""

import csv
import io
import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gptlit import charts
from gptlit.charts import Axis, Point, Series
from gptlit.study import power_law
from gptlit.study.spec import (
    COSTS,
    METRICS,
    Settings,
    Setup,
    Study,
    setting_label,
    short_names,
)
from gptlit.terminal import align_columns, duration, format_value, shortened, width, wrapped

MOST_SERIES = 16  # in a legend
CURVE_POINTS = 60
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
        """Mean over the runs that have the result; NaN where none has."""
        values = self._values(name)
        return statistics.fmean(values) if values else math.nan

    def spread(self, name: str) -> float:
        """Sample standard deviation (n - 1); 0 for a single run."""
        values = self._values(name)
        return statistics.stdev(values) if len(values) > 1 else 0.0

    def _values(self, name: str) -> list[float]:
        return [each.results[name] for each in self.outcomes if name in each.results]


def rows(study: Study, outcomes: Sequence[Outcome]) -> list[Row]:
    """Group successful outcomes by setting, the best first."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if not outcome.failed:
            groups.setdefault(repr(outcome.setup.settings), []).append(outcome)
    found = [Row(group[0].setup.settings, group) for group in groups.values()]
    return sorted(found, key=lambda row: row.mean(study.metric))


def table(study: Study, outcomes: Sequence[Outcome], room: int) -> str:
    """Format a study in lines of at most `room` columns: settings, best first, then failures."""
    found = rows(study, outcomes)
    at = "the last validation of each run" if study.at == "end" else "the best validation of each"
    done = sum(len(row.outcomes) for row in found)
    head = f"{study.metric} at {at}, the lowest first; {done} of {len(outcomes)} runs"
    cells = [_cells(study, row) for row in found]
    same = {
        name: cells[0][name]
        for name in (cells[0] if len(cells) > 1 else {})
        if name in COUNTS and len({each[name] for each in cells}) == 1
    }
    head += "".join(f", {name} {value}" for name, value in same.items())
    cells = [{name: each[name] for name in each if name not in same} for each in cells]
    lines = wrapped(head, room)
    if cells:
        lines += ["", *_aligned(cells, room)]
    failures = [f"{each.setup.name}: {each.failed}" for each in outcomes if each.failed]
    lines += ["", *itertools.chain(*(wrapped(line, room) for line in failures))] if failures else []
    return "\n".join(lines) + "\n"


def _cells(study: Study, row: Row) -> dict[str, str]:
    short = short_names(row.settings)
    cells = {short[name]: format_value(value) for name, value in row.settings.items()}
    cells[study.metric] = f"{row.mean(study.metric):.4f}"
    if len(study.seeds) > 1:
        is_one = len(row.outcomes) == 1
        cells["± sd"] = "-" if is_one else f"{row.spread(study.metric):.4f}"
        cells["n"] = str(len(row.outcomes))
    for name in COUNTS:
        if not math.isnan(row.mean(name)):
            cells[name] = f"{row.mean(name):,.0f}"
    seconds = row.mean("seconds")
    return cells | {"time": "-" if math.isnan(seconds) else duration(seconds)}


def _aligned(cells: Sequence[dict[str, str]], room: int) -> list[str]:
    """Rows below their heads, or, where there is no room for that, a paragraph for each."""
    cells = [{name: shortened(text, LONGEST_CELL) for name, text in row.items()} for row in cells]
    names = list(dict.fromkeys(itertools.chain(*cells)))
    lines = align_columns(
        [names, *([row.get(name, "-") for name in names] for row in cells)],
        left=[index for index, name in enumerate(names) if name == "setting"],
    )
    if max(map(width, lines)) > room:
        paragraphs = [", ".join(f"{name} {text}" for name, text in row.items()) for row in cells]
        return list(itertools.chain(*(wrapped(each, room) for each in paragraphs)))
    return lines


def warnings(study: Study, outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Reasons why the runs can not be compared directly."""
    known = [each for each in outcomes if not each.failed]
    varied = set().union(*(study.values(each.setup.settings) for each in known))
    per_token = study.metric != "val/bits_per_byte"
    if per_token and any(name.startswith("data.tokenizer") for name in varied):
        yield (
            f"{study.metric} is per token, and the tokenizers differ: compare by "
            "metric: val/bits_per_byte"
        )
    if len({each.text for each in known} - {""}) > 1:
        yield "the runs were validated on different texts, or on different parts of one"


def as_csv(study: Study, outcomes: Sequence[Outcome]) -> str:
    """Format results.csv: a row for each run, with its settings and results, or why it failed."""
    options = list(dict.fromkeys(itertools.chain(*(each.setup.settings for each in outcomes))))
    names = [*METRICS, "step", *COSTS, "seconds"]
    seed = ["seed"] if study.seeds != [None] else []
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", *options, *seed, *names, "failed"])
    for each in outcomes:
        settings = [
            format_value(each.setup.settings[n]) if n in each.setup.settings else ""
            for n in options
        ]
        results = [each.results.get(name, "") for name in names]
        seeded = [each.setup.seed] if seed else []
        writer.writerow([each.setup.name, *settings, *seeded, *results, each.failed])
    return text.getvalue()


# ---------------------------------------------------------------------- charts


def plots(study: Study, outcomes: Sequence[Outcome]) -> dict[str, str]:
    """Draw SVG charts, by file name: the metric over what was varied, and over steps."""
    found = [row for row in rows(study, outcomes) if not math.isnan(row.mean(study.metric))]
    if not found:
        return {}
    drawn = {"curves.svg": _curves(study, found)}
    if study.power_law is None and study.x is None and study.search and len(study.search.over) > 1:
        # several options were drawn at once: a scatter plot over each
        short = short_names(list(study.search.over))
        return drawn | {
            f"plot_{short[name]}.svg": _over(study, found, name) for name in study.search.over
        }
    x = study.power_law or study.x or _plotted_option(found)
    return drawn | {"plot.svg": _over(study, found, x)}


def _plotted_option(found: Sequence[Row]) -> str:
    """Choose the option along a plot's axis: the first numeric one that differs."""
    values = {name: [row.settings.get(name) for row in found] for name in found[0].settings}
    varied = [name for name in values if len({repr(v) for v in values[name]}) > 1] or list(values)
    numeric = [name for name in varied if all(map(_is_number, values[name]))]
    return (numeric or varied or ["parameters"])[0]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _over(study: Study, found: Sequence[Row], name: str) -> str:
    """Draw the metric over an option or a cost, with a line for each value of other options."""
    values: list[Any] = [study.values(row.settings).get(name) for row in found]
    if name in COSTS:
        values = [row.mean(name) for row in found]
    has_axis = all(map(_is_number, values))
    names = list(dict.fromkeys(map(format_value, values)))
    at = [float(value if has_axis else names.index(format_value(value))) for value in values]
    groups: dict[str, list[tuple[float, Row]]] = {}
    is_cloud = name in COSTS or study.search is not None
    for place, row in sorted(zip(at, found, strict=True), key=lambda pair: pair[0]):
        # an option of a named setting identifies it
        own = {name} if name in row.settings else {name, "setting"}
        rest = {} if is_cloud else {n: v for n, v in row.settings.items() if n not in own}
        groups.setdefault(setting_label(rest), []).append((place, row))
    metric = study.metric
    series = [
        Series(
            label,
            [Point(place, row.mean(metric), row.spread(metric)) for place, row in group],
            joined=not is_cloud and has_axis,
        )
        for label, group in groups.items()
    ]
    if len(series) > MOST_SERIES:
        series = [Series("", each.points, joined=False) for each in series]
    x = charts.named_axis(name, names)
    if has_axis:
        x = charts.axis(name, at, log=charts.wants_log(at), own_ticks=name not in COSTS)
    if study.power_law and (law := fitted_law(study, found)):
        series = [Series(metric, series[0].points, joined=False), _law_curve(law, at)]
    y = _metric_axis(metric, series)
    return charts.chart(study.path.stem, series, x, y)


def _metric_axis(label: str, series: Sequence[Series]) -> Axis:
    points = [point for each in series for point in each.points]
    ends = [point.y + sign * point.error for point in points for sign in (-1, 1)]
    return charts.axis(label, ends, log=False)


def _curves(study: Study, found: Sequence[Row]) -> str:
    """Draw the metric's mean over seeds, at each step at which all seeds were validated."""
    series = []
    for row in found[:MOST_SERIES]:
        curves = [each.curve for each in row.outcomes]
        steps = sorted(set.intersection(*(set(curve) for curve in curves)))
        points = [Point(s, statistics.fmean(curve[s] for curve in curves)) for s in steps]
        series.append(Series(setting_label(row.settings), points, marked=len(points) == 1))
    x = charts.axis("step", [p.x for each in series for p in each.points], log=False)
    return charts.chart(study.path.stem, series, x, _metric_axis(study.metric, series))


# ---------------------------------------------------------------------- the power law


def fitted_law(study: Study, found: Sequence[Row]) -> power_law.PowerLaw | None:
    """Fit the metric against the study's cost, a point per run; None for fewer than two sizes."""
    assert study.power_law is not None
    points = [
        (each.results[study.power_law], each.results[study.metric])
        for row in found
        for each in row.outcomes
        if study.metric in each.results
    ]
    if len({size for size, _ in points}) < 2:
        return None
    return power_law.fit([size for size, _ in points], [loss for _, loss in points])


def describe_law(study: Study, outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Describe the fitted power law and its limitations, a sentence each."""
    law, name = fitted_law(study, rows(study, outcomes)), study.power_law
    if law is None:
        yield f"no power law: it needs runs of two or more different {name}"
        return
    yield (
        f"{study.metric} = E + A / {name} ^ alpha: E {law.floor:.4g}, A {law.scale:.4g}, alpha "
        f"{law.alpha:.4g}; root mean square residual {law.residual:.2g}, {law.n_points} runs"
    )
    if not law.has_floor:
        yield (
            f"E is assumed to be 0: it can not be estimated from fewer than "
            f"{power_law.LEAST_FOR_FLOOR} different {name}"
        )
    elif not law.floor:
        yield "E is at its bound, 0: these runs do not determine the irreducible loss"
    if law.bounded:
        yield "alpha is at a bound of its search range: these runs do not follow a power law"


def _law_curve(law: power_law.PowerLaw, at: Sequence[float]) -> Series:
    low, high = min(at), max(at)
    sizes = [low * (high / low) ** (i / (CURVE_POINTS - 1)) for i in range(CURVE_POINTS)]
    name = f"{law.floor:.3g} + {law.scale:.3g} / N^{law.alpha:.3g}"
    return Series(name, [Point(n, law(n)) for n in sizes], marked=False, dashed=True)
