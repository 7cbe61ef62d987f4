"""What a study found, as a table for a terminal, as results.csv, and as charts."""

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
from gptlit.study.spec import FIGURES, METRICS, Settings, Setup, Study, short_names, told
from gptlit.terminal import duration, padded, shortened, width, wrapped

MOST_SERIES = 16  # in a legend
CURVE_POINTS = 60
LONGEST_CELL = 40
COUNTS = ("parameters", "tokens", "step")


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    Args:
        setup: The run.
        figures: By name: METRICS, as far as known, after its "step"; FIGURES; "seconds" of its
            steps alone. None of it where the run failed.
        curve: The metric after each step at which the run was validated.
        failed: Why it has no figures, in a line.
        text: Which text it was validated on, "" where unknown.
    """

    setup: Setup
    figures: Mapping[str, float] = field(default_factory=dict)
    curve: Mapping[int, float] = field(default_factory=dict)
    failed: str = ""
    text: str = ""


@dataclass(frozen=True)
class Row:
    """The outcomes of one setting, one for each seed; those that failed aside."""

    settings: Settings
    outcomes: Sequence[Outcome]

    def mean(self, figure: str) -> float:
        """Of the runs that have the figure; not a number where none has."""
        values = self._values(figure)
        return statistics.fmean(values) if values else math.nan

    def spread(self, figure: str) -> float:
        """The standard deviation, estimated from two runs or more (n - 1); 0 of one."""
        values = self._values(figure)
        return statistics.stdev(values) if len(values) > 1 else 0.0

    def _values(self, figure: str) -> list[float]:
        return [each.figures[figure] for each in self.outcomes if figure in each.figures]


def rows(study: Study, outcomes: Sequence[Outcome]) -> list[Row]:
    """Settings that have an outcome, the best first."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if not outcome.failed:
            groups.setdefault(repr(outcome.setup.settings), []).append(outcome)
    found = [Row(group[0].setup.settings, group) for group in groups.values()]
    return sorted(found, key=lambda row: row.mean(study.metric))


# ---------------------------------------------------------------------- the table


def table(study: Study, outcomes: Sequence[Outcome], room: int) -> str:
    """A study in lines of at most `room` columns: settings, the best first, then what failed."""
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
    cells = {short[name]: told(value) for name, value in row.settings.items()}
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
    widths = {
        name: max(width(name), *(width(row.get(name, "-")) for row in cells)) for name in names
    }
    if sum(widths.values()) + 2 * (len(names) - 1) > room:
        paragraphs = [", ".join(f"{name} {text}" for name, text in row.items()) for row in cells]
        return list(itertools.chain(*(wrapped(each, room) for each in paragraphs)))
    lines = []
    for row in [{name: name for name in names}, *cells]:
        padding = [padded(row.get(n, "-"), widths[n], right=n != "setting") for n in names]
        lines.append("  ".join(padding).rstrip())
    return lines


def warnings(study: Study, outcomes: Sequence[Outcome]) -> Iterator[str]:
    """What speaks against comparing the runs."""
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
    """A line for each run: its settings, its figures, and why it has none."""
    options = list(dict.fromkeys(itertools.chain(*(each.setup.settings for each in outcomes))))
    names = [*METRICS, "step", *FIGURES, "seconds"]
    seed = ["seed"] if study.seeds != [None] else []
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", *options, *seed, *names, "failed"])
    for each in outcomes:
        settings = [
            told(each.setup.settings[n]) if n in each.setup.settings else "" for n in options
        ]
        figures = [each.figures.get(name, "") for name in names]
        seeded = [each.setup.seed] if seed else []
        writer.writerow([each.setup.name, *settings, *seeded, *figures, each.failed])
    return text.getvalue()


# ---------------------------------------------------------------------- charts


def plots(study: Study, outcomes: Sequence[Outcome]) -> dict[str, str]:
    """SVG documents by file name: the metric over what was varied, and over the steps."""
    found = [row for row in rows(study, outcomes) if not math.isnan(row.mean(study.metric))]
    if not found:
        return {}
    drawn = {"curves.svg": _curves(study, found)}
    if study.power_law is None and study.x is None and study.search and len(study.search.over) > 1:
        # several options at once: a cloud of points over each
        short = short_names(list(study.search.over))
        return drawn | {
            f"plot_{short[name]}.svg": _over(study, found, name) for name in study.search.over
        }
    return drawn | {"plot.svg": _over(study, found, study.power_law or study.x or _main(found))}


def _main(found: Sequence[Row]) -> str:
    """Of what differs, what a plot has along its axis: the first option that is a number."""
    values = {name: [row.settings.get(name) for row in found] for name in found[0].settings}
    varied = [name for name in values if len({repr(v) for v in values[name]}) > 1] or list(values)
    numeric = [name for name in varied if all(map(_is_number, values[name]))]
    return (numeric or varied or ["parameters"])[0]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _over(study: Study, found: Sequence[Row], name: str) -> str:
    """The metric over an option or a figure; what else differs are lines of their own."""
    values: list[Any] = [study.values(row.settings).get(name) for row in found]
    if name in FIGURES:
        values = [row.mean(name) for row in found]
    has_axis = all(map(_is_number, values))
    names = list(dict.fromkeys(map(told, values)))
    at = [float(value if has_axis else names.index(told(value))) for value in values]
    groups: dict[str, list[tuple[float, Row]]] = {}
    is_cloud = name in FIGURES or study.search is not None
    for place, row in sorted(zip(at, found, strict=True), key=lambda pair: pair[0]):
        # an option that comes with a setting says which it is
        own = {name} if name in row.settings else {name, "setting"}
        rest = {} if is_cloud else {n: v for n, v in row.settings.items() if n not in own}
        groups.setdefault(_label(rest), []).append((place, row))
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
        x = charts.axis(name, at, log=charts.wants_log(at), own_ticks=name not in FIGURES)
    if study.power_law and (law := fitted_law(study, found)):
        series = [Series(metric, series[0].points, joined=False), _of_law(law, at)]
    y = _heights(metric, series)
    return charts.chart(study.path.stem, series, x, y)


def _label(settings: Settings) -> str:
    short = short_names(settings)
    return ", ".join(
        told(value) if name == "setting" else f"{short[name]} {told(value)}"
        for name, value in settings.items()
    )


def _heights(label: str, series: Sequence[Series]) -> Axis:
    points = [point for each in series for point in each.points]
    ends = [point.y + sign * point.error for point in points for sign in (-1, 1)]
    return charts.axis(label, ends, log=False)


def _curves(study: Study, found: Sequence[Row]) -> str:
    """The metric's mean over the seeds at each step at which all were validated."""
    series = []
    for row in found[:MOST_SERIES]:
        curves = [each.curve for each in row.outcomes]
        steps = sorted(set.intersection(*(set(curve) for curve in curves)))
        points = [Point(s, statistics.fmean(curve[s] for curve in curves)) for s in steps]
        series.append(Series(_label(row.settings), points, marked=len(points) == 1))
    x = charts.axis("step", [p.x for each in series for p in each.points], log=False)
    return charts.chart(study.path.stem, series, x, _heights(study.metric, series))


# ---------------------------------------------------------------------- the power law


def fitted_law(study: Study, found: Sequence[Row]) -> power_law.PowerLaw | None:
    """That of the metric in the study's figure, each run a point; None of fewer than two sizes."""
    assert study.power_law is not None
    points = [
        (each.figures[study.power_law], each.figures[study.metric])
        for row in found
        for each in row.outcomes
        if study.metric in each.figures
    ]
    if len({size for size, _ in points}) < 2:
        return None
    return power_law.fit([size for size, _ in points], [loss for _, loss in points])


def told_of_law(study: Study, outcomes: Sequence[Outcome]) -> Iterator[str]:
    """A power law in words, and what is to be held against it."""
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
            f"E is taken as 0: fewer than {power_law.LEAST_FOR_FLOOR} different {name} can't tell "
            "it from A and alpha"
        )
    elif not law.floor:
        yield "E is at its bound, 0: these runs don't show where the loss would end"
    if law.bounded:
        yield "alpha is at an end of what is searched: these runs follow no power law"


def _of_law(law: power_law.PowerLaw, at: Sequence[float]) -> Series:
    low, high = min(at), max(at)
    sizes = [low * (high / low) ** (i / (CURVE_POINTS - 1)) for i in range(CURVE_POINTS)]
    name = f"{law.floor:.3g} + {law.scale:.3g} / N^{law.alpha:.3g}"
    return Series(name, [Point(n, law(n)) for n in sizes], marked=False, dashed=True)
