"""The figure of `gptlit plot`: panels of losses and learning rates, and the best of each run."""

from collections.abc import Sequence
from dataclasses import dataclass

from gptlit.charts.axes import Panel, Point, Series, axis, number
from gptlit.charts.layout import N_COLOURS, Picture, arrange
from gptlit.charts.smoothing import Smoothing
from gptlit.charts.text import Signs, draw
from gptlit.messages import UsageError
from gptlit.reports.curves import Log, XAxis

LABELS: dict[XAxis, str] = {
    "step": "optimizer step",
    "tokens": "training tokens",
    "epoch": "epoch",
    "minutes": "minutes of training steps",
}
LR_HEIGHT = 0.3  # of the panel of learning rates, relative to that of losses
MOST_MARKED = 40  # validations that are drawn as discs
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # of the runs in a chart of text, at most as many


@dataclass(frozen=True)
class Drawn:
    """A run in a figure: its label and its points."""

    label: str
    train: Sequence[Point]
    val: Sequence[Point]
    lr: Sequence[Point]

    @property
    def best(self) -> Point | None:
        """The point of the lowest validation loss, the first of equal ones."""
        return min(self.val, key=lambda point: point.y, default=None)


@dataclass(frozen=True)
class Figure:
    """Runs in a figure, and how they are drawn.

    Args:
        runs: The runs.
        x: Unit of the x axis.
        smooth: Smoothing of the training losses.
        log: Axes that are logarithmic: "", "x", "y" or "xy".
        lr: Whether learning rates are shown below, where they are known.
        y: Name of the y axis.
        metric: Name of the validation loss.
    """

    runs: Sequence[Drawn]
    x: XAxis
    smooth: Smoothing
    log: str = ""
    lr: bool = True
    y: str = "loss (nats per token)"
    metric: str = "val/loss"

    @property
    def title(self) -> str:
        """The label of a single run, or the number of runs."""
        return self.runs[0].label if len(self.runs) == 1 else f"{len(self.runs)} runs"

    @property
    def about(self) -> str:
        """Explanation of the kinds of lines, where the legend has none."""
        if len(self.runs) == 1:
            return ""
        kinds = [f"thick: {self.metric}"] if any(run.val for run in self.runs) else []
        if any(run.train for run in self.runs):
            kinds.append("thin: train/loss")
            if self._is_smoothed:
                kinds.append("pale: before smoothing")
        return "; ".join([*kinds, f"ring: lowest {self.metric}"] if len(kinds) > 1 else kinds)

    @property
    def _is_smoothed(self) -> bool:
        return any(self.smooth.of(len(run.train)).kind != "none" for run in self.runs)

    def panels(self, only_val: bool = False) -> list[Panel]:
        """Return the panel of losses, and that of learning rates below it.

        Args:
            only_val: Leave out the training losses of runs that have validation losses, where
                lines can't be distinguished.
        """
        series = [
            each
            for index, run in enumerate(self.runs)
            for each in self._losses(run, index, only_val and bool(run.val))
        ]
        series.sort(key=lambda each: not each.faint)  # pale lines below all others
        points = [point for each in series for point in each.points]
        rates = [
            Series("", run.lr, marked=False, colour=index, width=1.5, sign=".")
            for index, run in enumerate(self.runs)
            if run.lr and self.lr
        ]
        across = [point.x for point in points] + [p.x for each in rates for p in each.points]
        x = axis(LABELS[self.x], across, log="x" in self.log)
        y = axis(self.y, [point.y for point in points], log="y" in self.log)
        panels = [Panel(series, x, y)]
        if rates:
            heights = [0.0, *(point.y for each in rates for point in each.points)]
            y = axis("lr", heights, log=False, wanted=2)
            panels.append(Panel(rates, x, y, LR_HEIGHT))
        return panels

    def _losses(self, run: Drawn, index: int, only_val: bool) -> list[Series]:
        is_one = len(self.runs) == 1
        smooth = self.smooth.of(len(run.train))
        found = []
        if run.train and not only_val:
            name = "train/loss" if is_one else "" if run.val else run.label
            points = list(run.train)
            if smooth.kind != "none":
                found.append(Series("", points, marked=False, colour=index, faint=True, width=1))
                values = smooth.apply([point.y for point in points])
                points = [Point(p.x, y) for p, y in zip(points, values, strict=True)]
                name = f"{name}, {smooth}" if is_one else name
            found.append(Series(name, points, marked=False, colour=index, width=1.4, sign="."))
        if run.val:
            marked = len(run.val) <= MOST_MARKED
            colour, sign = (1, "o") if is_one else (index, LETTERS[index])
            name = self.metric if is_one else run.label
            dashed = index >= N_COLOURS  # where colours come again
            found.append(Series(name, run.val, True, marked, dashed, colour, width=2.4, sign=sign))
            assert run.best is not None
            name = f"best {run.best.y:.4f} at {number(run.best.x)}"
            found.append(Series(name, [run.best], False, False, colour=colour, ringed=True))
        return found


def make(
    logs: Sequence[Log],
    labels: Sequence[str],
    x: XAxis | None,
    smooth: Smoothing,
    log: str = "",
    lr: bool = True,
) -> Figure:
    """Make the figure of runs.

    Args:
        logs: Logs of the runs.
        labels: Their labels.
        x: Unit of the x axis; None for the first that all have.
        smooth: Smoothing of the training losses.
        log: Logarithmic axes.
        lr: Whether to show learning rates.

    Raises:
        UsageError: A run has no loss over this axis, or none that is positive for a log axis.
    """
    common = [each for each in LABELS if all(log.has(each) for log in logs)]
    if not common:
        raise UsageError("the runs have no unit of the x axis in common; plot them one by one")
    if x is not None and x not in common:
        lacking = next(log.name for log in logs if not log.has(x))
        reason = f"{lacking} has logged no loss over it; the runs have {', '.join(common)}"
        raise UsageError(reason, "x", x)
    x = x or common[0]
    runs = []
    for each, label in zip(logs, labels, strict=True):
        train, val = (_kept(each.points(name, x), log) for name in ("loss", "val_loss"))
        if not train and not val:
            reason = f"{each.name} has no loss that a logarithmic axis can show"
            raise UsageError(f"{reason}; leave it out", "log", log)
        rates = _kept(each.points("lr", x), log.replace("y", ""))
        runs.append(Drawn(label, train, val, rates))
    return Figure(runs, x, smooth, log, lr)


def _kept(points: Sequence[Point], log: str) -> list[Point]:
    """Return the points that logarithmic axes can show."""
    return [p for p in points if ("x" not in log or p.x > 0) and ("y" not in log or p.y > 0)]


def picture(figure: Figure) -> Picture:
    """Return a figure as a picture, to be written as SVG or PNG."""
    return arrange(figure.title, figure.panels(), figure.about)


def text(figure: Figure, columns: int, rows: int, signs: Signs) -> list[str]:
    """Return a figure as lines of text of at most so many columns."""
    only_val = not signs.colour and len(figure.runs) > 1
    head = [figure.title] if len(figure.runs) == 1 else []
    lines = draw(figure.panels(only_val), columns, rows, signs)
    return [*(signs.cut(line, columns) for line in head), *lines]
