"""Loss curves, read from runs of gptlit, TensorBoard's event files and CSVs of any tool."""

import csv
import io
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gptlit.charts.axes import Point
from gptlit.checkpoints import run_paths
from gptlit.corpora import inputs
from gptlit.messages import UsageError, opt
from gptlit.reports import folders, options
from gptlit.reports.options import Options
from gptlit.runs import metrics_file

EVENTS = "events.out.tfevents."
XAxis = Literal["step", "tokens", "epoch", "minutes"]
# names of columns and tags, in small letters with _ for other signs; the first that is found counts
NAMES: dict[str, tuple[str, ...]] = {
    "step": ("step", "steps", "global_step", "trainer_global_step", "iteration", "iterations",
             "iter", "iters", "it", "update", "updates", "train_step", "batch"),
    "epoch": ("epoch", "epochs", "train_epoch", "current_epoch"),
    "tokens": ("tokens", "tokens_seen", "n_tokens", "num_tokens", "total_tokens", "train_tokens",
               "num_input_tokens_seen", "train_num_input_tokens_seen"),
    "minutes": ("minutes", "min"),
    "seconds": ("seconds", "wall_time", "time", "elapsed", "runtime", "time_s", "elapsed_s"),
    "loss": ("train_loss", "loss", "training_loss", "loss_train", "loss_training", "trn_loss",
             "train_loss_step", "loss_step", "losses_train", "train_loss_epoch", "value"),
    "val_loss": ("val_loss", "valid_loss", "validation_loss", "eval_loss", "loss_val",
                 "loss_valid", "loss_validation", "loss_eval", "losses_val", "dev_loss",
                 "val_loss_epoch", "test_loss"),
    "lr": ("lr", "learning_rate", "optim_lr", "train_lr", "train_learning_rate", "lr_adamw",
           "lr_adam", "lr_sgd"),
}  # fmt: skip
Row = dict[str, float]


@dataclass(frozen=True)
class Log:
    """The values that a run has logged.

    Args:
        name: Name of the run.
        rows: Values by name, those of NAMES, with minutes instead of seconds, and of gptlit's runs
            val_bits, in bits per byte.
        options: Options of the run; empty where they are unknown.
    """

    name: str
    rows: Sequence[Row]
    options: Options = field(default_factory=dict)

    def points(self, name: str, x: XAxis) -> list[Point]:
        """Return the finite values of a metric over an axis, in the axis's order."""
        found = {row[x]: row[name] for row in self.rows if x in row and name in row}
        return [Point(*pair) for pair in sorted(found.items())]

    def in_bits(self) -> "Log":
        """Return the log with bits per byte as its validation loss, and no training loss."""
        kept = [
            {n: v for n, v in row.items() if n not in ("loss", "val_loss")} for row in self.rows
        ]
        for row in kept:
            if "val_bits" in row:
                row["val_loss"] = row.pop("val_bits")
        return Log(self.name, kept, self.options)

    def has(self, x: XAxis) -> bool:
        """Whether a loss was logged together with a value of an axis."""
        return any(x in row and ("loss" in row or "val_loss" in row) for row in self.rows)


def read(name: str, columns: Mapping[str, str]) -> list[Log]:
    """Return the logs of a run, of all runs in a folder, or of a file.

    Args:
        name: Path; of a folder in lightning_logs its name is enough, and last is the newest run.
        columns: Names of columns or tags by their meaning, a name of NAMES; others are guessed.

    Raises:
        UsageError: There is no loss to be found.
    """
    path = resolved(name)
    if path.is_file():
        if path.name.startswith(EVENTS):
            return [_events(path, path.parent.name, columns)]
        if path.name == run_paths.METRICS and _is_own(path.parent):
            return [of_run(path.parent, str(path.parent))]
        return [_table(path, path.stem, columns)]
    found = list(_in_folder(path, columns))
    if not found:
        raise UsageError(
            f"{name}: holds no {run_paths.METRICS} and no event files of TensorBoard; give the "
            "folder of a run that has logged a loss"
        )
    return found


def resolved(name: str, command: str = "gptlit plot") -> Path:
    """Return the folder or file that a name stands for: a path, or a name in lightning_logs.

    Args:
        name: The name; last is the newest run that has logged a loss.
        command: Command that reads it, for messages.

    Raises:
        UsageError: There is no such run, folder or file.
    """
    if name == "last" and not Path(name).exists():
        runs = run_paths.RUNS
        found = [path for path, is_run in folders.find(runs) if is_run] if runs.is_dir() else []
        logged = [path for path in found if (path / run_paths.METRICS).is_file()]
        if not logged:
            reason = f"no run in {runs} has logged a loss; train one with gptlit fit"
            raise UsageError(f"{name}: {reason}, or give a path")
        return max(logged, key=run_paths.began_at)
    path = Path(name).expanduser()
    inputs.refuse_endless(path, command)
    for place in (path, run_paths.RUNS / path):
        if place.exists():
            return place
    raise UsageError(
        f"{name}: no such run, folder or CSV; give a path, or the name of a folder in "
        f"{run_paths.RUNS}, which gptlit runs lists"
    )


def _in_folder(path: Path, columns: Mapping[str, str]) -> Iterable[Log]:
    table = path / run_paths.METRICS
    if _is_own(path):
        yield of_run(path, path.name)
    elif table.is_file():
        yield _table(table, path.name, columns)
    elif any(path.glob(f"{EVENTS}*")):
        yield _events(path, path.name, columns)
    else:
        for folder in sorted(filter(Path.is_dir, path.iterdir())):
            yield from _in_folder(folder, columns)


# ---------------------------------------------------------------------- runs of gptlit


def _is_own(folder: Path) -> bool:
    names = metrics_file.read(folder / run_paths.METRICS)[0]
    return bool({"train/loss", "val/loss"} & {*names}) and (folder / run_paths.CONFIG).is_file()


def of_run(folder: Path, name: str) -> Log:
    """Return the log of a run of gptlit."""
    _, logged = metrics_file.read(folder / run_paths.METRICS)
    try:
        own = options.of_run(folder)
    except UsageError:
        own = {}  # the curves are whole without them
    at_end = {"train/loss": "loss", "val/loss": "val_loss", "val/bits_per_byte": "val_bits"}
    at_end |= {"optim/lr": "lr"}
    per_epoch = _steps_per_epoch(logged)
    per_step = _tokens_per_step(logged)
    ms = metrics_file.mean(logged, "speed/step_ms")
    rows, minutes, before = [], 0.0, 0
    for row in logged:
        step = int(row["step"]) + 1  # steps are logged from 0
        ms = float(row.get("speed/step_ms") or ms)
        minutes, before = minutes + max(0, step - before) * ms / 60e3, max(before, step)
        values = {other: float(row[name]) for name, other in at_end.items() if row.get(name)}
        axes = {"step": step, "epoch": step / per_epoch, "tokens": step * per_step}
        rows.append(_finite(axes | {"minutes": minutes} | values))
    return Log(name, rows, own)


def _tokens_per_step(rows: Sequence[Mapping[str, str]]) -> float:
    """Return the tokens of a step, also of a run of an earlier version, by its speeds."""
    if counted := [row for row in rows if row.get("train/tokens")]:
        return float(counted[-1]["train/tokens"]) / (int(counted[-1]["step"]) + 1)
    timed = [
        float(row["speed/tokens_per_s"]) * float(row["speed/step_ms"]) / 1e3
        for row in rows
        if row.get("speed/tokens_per_s") and row.get("speed/step_ms")
    ]
    return round(statistics.median(timed)) if timed else math.nan


def _steps_per_epoch(rows: Sequence[Mapping[str, str]]) -> float:
    """Return the steps of an epoch, from the first row that was logged at the end of one."""
    for row in rows:
        if row.get("train/loss_epoch") and row.get("epoch"):
            return (int(row["step"]) + 1) / (int(float(row["epoch"])) + 1)
    return math.nan


def _finite(values: Mapping[str, float]) -> Row:
    return {name: value for name, value in values.items() if math.isfinite(value)}


# ---------------------------------------------------------------------- other tools


def _table(path: Path, name: str, columns: Mapping[str, str]) -> Log:
    """Read a CSV of any tool, with commas, semicolons or tabs."""
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    head = text.partition("\n")[0]
    delimiter = max(",;\t", key=head.count)
    try:
        lines = [line for line in csv.reader(io.StringIO(text), delimiter=delimiter) if line]
    except csv.Error as error:
        raise UsageError(f"{path}: not a CSV ({error})") from error
    names, *cells = lines or [[]]
    if not cells:
        raise UsageError(f"{path}: has no rows below the names of its columns")
    found = _chosen(path, [each.strip() for each in names], columns, "column")
    places = {meaning: [each.strip() for each in names].index(n) for meaning, n in found.items()}
    rows = [
        {m: _number(line[place]) for m, place in places.items() if place < len(line)}
        for line in cells
    ]
    if "step" not in found and "epoch" not in found:
        names_of_axes = " or ".join(f"{opt('columns')} {each}=NAME" for each in ("step", "epoch"))
        raise UsageError(f"{path}: has no column of steps; name one by {names_of_axes}")
    return Log(name, _with_minutes(rows))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _with_minutes(rows: Iterable[Row]) -> list[Row]:
    """Return the finite values of rows; seconds and Unix times become minutes as well."""
    finite = [_finite(row) for row in rows]
    since = min((row["seconds"] for row in finite if "seconds" in row), default=0.0)
    since = since if since > 1e8 else 0.0
    for row in finite:
        if "seconds" in row:
            row.setdefault("minutes", (row["seconds"] - since) / 60)
    return finite


def _chosen(
    path: Path, names: Sequence[str], columns: Mapping[str, str], kind: str
) -> dict[str, str]:
    """Return the name of a column or tag for each meaning that is found.

    Raises:
        UsageError: A named one doesn't exist, or there is no loss.
    """
    listed = ", ".join(names[:20])
    for meaning, name in columns.items():
        if name not in names:
            reason = f"{path} has no such {kind}; it has {listed}"
            raise UsageError(reason, "columns", f"{meaning}={name}")
    plain = {re.sub(r"\W+", "_", name.lower()).strip("_"): name for name in reversed(names)}
    found = dict(columns)
    for meaning, known in NAMES.items():
        if match := next((plain[each] for each in known if each in plain), None):
            found.setdefault(meaning, match)
    if not {"loss", "val_loss"} & found.keys():
        raise UsageError(
            f"{path}: has no {kind} that is known as a loss; name one by {opt('columns')} "
            f"loss=NAME; it has {listed or 'none'}"
        )
    return found


def _events(path: Path, name: str, columns: Mapping[str, str]) -> Log:
    """Read event files of TensorBoard, scalars of both kinds."""
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(path), size_guidance={"tensors": 0})
    accumulator.Reload()
    try:
        tags = sorted(accumulator.PluginTagToContent("scalars"))
    except KeyError:
        tags = []
    found = _chosen(path, tags, {n: c for n, c in columns.items() if n != "step"}, "tag")
    began = math.inf
    rows: dict[int, Row] = {}
    times: dict[int, float] = {}
    for meaning, tag in found.items():
        for event in accumulator.Tensors(tag):
            value = _scalar(event.tensor_proto)
            rows.setdefault(event.step, {"step": event.step})[meaning] = value
            times.setdefault(event.step, event.wall_time)
            began = min(began, event.wall_time)
    for step, row in rows.items():
        row.setdefault("minutes", (times[step] - began) / 60)
    return Log(name, [_finite(rows[step]) for step in sorted(rows)])


def _scalar(tensor: Any) -> float:
    from tensorboard.util import tensor_util

    return float(tensor_util.make_ndarray(tensor))
