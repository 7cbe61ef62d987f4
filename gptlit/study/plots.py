"""A study's results as SVG charts: the metric over what was varied, and over steps."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from gptlit.charts.axes import Axis, Point, Series, axis, named_axis, wants_log
from gptlit.charts.svg import chart
from gptlit.study.power_law import PowerLaw
from gptlit.study.spec import COSTS, TEACHER, Study, setting_label, short_names
from gptlit.study.tables import Outcome, Row, fitted_law, grouped
from gptlit.terminal import format_value

MOST_SERIES = 16  # in a legend
CURVE_POINTS = 60


def draw(study: Study, outcomes: Sequence[Outcome]) -> dict[str, str]:
    """Draw SVG charts, by file name: the metric over what was varied, and over steps."""
    rows = [row for row in grouped(study, outcomes) if not math.isnan(row.mean(study.metric))]
    if not rows:
        return {}
    drawn = {"curves.svg": _curves(study, rows)}
    x = study.power_law or study.x
    if x is None and study.search and len(study.search.over) > 1:
        # several options were drawn at once: a scatter plot over each
        for name, short_name in short_names(study.search.over).items():
            drawn[f"plot_{short_name}.svg"] = _over(study, rows, name)
        return drawn
    others = [row for row in rows if row.settings.get("setting") != TEACHER] or rows
    x = x or _plotted_option(others)
    if study.teachers is not None and x not in (*COSTS, "setting"):
        rows = others  # teachers don't have the options that vary
    return drawn | {"plot.svg": _over(study, rows, x)}


def _plotted_option(rows: Sequence[Row]) -> str:
    """Choose the option along a plot's axis: the first numeric one that differs."""
    values = {name: [row.settings.get(name) for row in rows] for name in rows[0].settings}
    varied = [name for name in values if len({repr(v) for v in values[name]}) > 1] or list(values)
    numeric = [name for name in varied if all(map(_is_number, values[name]))]
    return (numeric or varied or ["parameters"])[0]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _over(study: Study, rows: Sequence[Row], name: str) -> str:
    """Draw the metric over an option or a cost, with a line for each value of other options."""
    values: list[Any] = [
        row.mean(name) if name in COSTS else study.values(row.settings).get(name) for row in rows
    ]
    has_axis = all(map(_is_number, values))
    names = list(dict.fromkeys(map(format_value, values)))
    at = [float(value if has_axis else names.index(format_value(value))) for value in values]
    groups: dict[str, list[tuple[float, Row]]] = {}
    is_cloud = name in COSTS or study.search is not None
    for place, row in sorted(zip(at, rows, strict=True), key=lambda pair: pair[0]):
        # an option of a named setting identifies it
        plotted = {name} if name in row.settings else {name, "setting"}
        others = {} if is_cloud else {n: v for n, v in row.settings.items() if n not in plotted}
        groups.setdefault(setting_label(others), []).append((place, row))
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
    x = named_axis(name, names)
    if has_axis:
        x = axis(name, at, log=wants_log(at), own_ticks=name not in COSTS)
    if study.power_law and (law := fitted_law(study, rows)):
        series = [Series(metric, series[0].points, joined=False), _law_curve(law, at)]
    return chart(study.path.stem, series, x, _metric_axis(metric, series))


def _metric_axis(label: str, series: Sequence[Series]) -> Axis:
    points = [point for each in series for point in each.points]
    ends = [point.y + sign * point.error for point in points for sign in (-1, 1)]
    return axis(label, ends, log=False)


def _curves(study: Study, rows: Sequence[Row]) -> str:
    """Draw the metric's mean over seeds, at each step at which all seeds were validated."""
    series = []
    for row in rows[:MOST_SERIES]:
        curves = [each.curve for each in row.outcomes]
        steps = sorted(set.intersection(*(set(curve) for curve in curves)))
        points = [Point(s, statistics.fmean(curve[s] for curve in curves)) for s in steps]
        series.append(Series(setting_label(row.settings), points, marked=len(points) == 1))
    x = axis("step", [p.x for each in series for p in each.points], log=False)
    return chart(study.path.stem, series, x, _metric_axis(study.metric, series))


def _law_curve(law: PowerLaw, at: Sequence[float]) -> Series:
    low, high = min(at), max(at)
    sizes = [low * (high / low) ** (i / (CURVE_POINTS - 1)) for i in range(CURVE_POINTS)]
    name = f"{law.floor:.3g} + {law.scale:.3g} / N^{law.alpha:.3g}"
    return Series(name, [Point(n, law(n)) for n in sizes], marked=False, dashed=True)
