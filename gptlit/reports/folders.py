"""Folders of runs, found and summarised from config.yaml, metrics.csv, run.json and the lock."""

import dataclasses
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict

from gptlit import plain_data
from gptlit.checkpoints import run_paths
from gptlit.files import is_locked
from gptlit.messages import UsageError
from gptlit.reports import options
from gptlit.reports.options import Options
from gptlit.runs import metrics_file
from gptlit.terminal import printable

BEST = "val/loss"
GROUPS = ("model", "seed_everything", "data", "trainer")  # whose options are shown first
DEPTH = 2  # folders of runs may hold studies, which hold runs


def by_group(option: tuple[str, Any]) -> int:
    """Return a key that sorts pairs of an option's name and value by their group."""
    group = option[0].partition(".")[0]
    return GROUPS.index(group) if group in GROUPS else len(GROUPS)


class _Recorded(TypedDict):
    state: run_paths.State
    step: int
    parameters: int


@dataclass(frozen=True)
class Summary:
    """A run in one line.

    Args:
        name: Path of its folder, from the folder of runs.
        when: Unix time of its beginning, in seconds.
        config: Name of the config from which its options differ least.
        differs: Options that differ from that config.
        parameters: Number of the model's parameters; None where it isn't recorded.
        steps: Number of optimizer steps.
        best: Lowest val/loss, in nats per token; None if there was no validation.
        minutes: Time of its steps, without validations; None if none was logged.
        state: running, finished, interrupted, diverged, or broken.
        problem: Why it is broken.
    """

    name: str
    when: float
    state: run_paths.State | Literal["broken"]
    config: str = ""
    differs: Options = field(default_factory=dict)
    parameters: int | None = None
    steps: int = 0
    best: float | None = None
    minutes: float | None = None
    problem: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the fields as JSON's types, with the time in ISO 8601."""
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(self.when))
        return dataclasses.asdict(self) | {"when": when}


def find(root: Path, depth: int = DEPTH) -> Iterator[tuple[Path, bool]]:
    """Yield the folders in a folder, and whether each is that of a run.

    Folders that hold runs, such as a study's, are searched instead of being yielded.
    """
    for folder in sorted(filter(Path.is_dir, root.iterdir())):
        try:
            is_own = is_run(folder)
            within = [] if is_own or depth < 2 else list(find(folder, depth - 1))
        except OSError:  # not readable by this user
            is_own, within = False, []
        if any(found for _, found in within):
            yield from within
        else:
            yield folder, is_own


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run, also of one that has saved nothing yet."""
    names = (run_paths.CONFIG, run_paths.METRICS)
    return run_paths.is_run(folder) or any((folder / name).is_file() for name in names)


def summarise(folder: Path, name: str, configs: tuple[str, ...] = ()) -> Summary:
    """Summarise a run; one whose files can't be read is broken.

    Args:
        folder: Folder of the run.
        name: Name in the table.
        configs: Further configs to compare its options with.
    """
    name = printable(name, one_line=True)
    try:
        return _summarise(folder, name, configs)
    except (UsageError, OSError) as error:
        problem = getattr(error, "strerror", None) or str(error)
        return Summary(name, folder.stat().st_mtime, "broken", problem=problem)


def _summarise(folder: Path, name: str, configs: tuple[str, ...]) -> Summary:
    own = options.of_run(folder)
    config, differs = options.nearest_config(own, configs)
    _, rows = metrics_file.read(folder / run_paths.METRICS)
    noted = recorded(folder)
    losses = [float(row[BEST]) for row in rows if row.get(BEST)]
    finite = [loss for loss in losses if math.isfinite(loss)]
    logged = max((int(row["step"]) + 1 for row in rows), default=0)
    # a killed run has recorded the step at which it began
    steps = max(logged, noted.get("step", 0))
    minutes = steps * metrics_file.mean(rows, "speed/step_ms") / 60e3
    return Summary(
        name,
        run_paths.began_at(folder)[0],
        _state(folder, noted, losses, steps, own.get("trainer.max_steps")),
        config,
        dict(sorted(differs.items(), key=by_group)),
        noted.get("parameters"),
        steps,
        min(finite, default=None),
        None if math.isnan(minutes) else minutes,
    )


def recorded(folder: Path) -> dict[str, Any]:
    """Return what a run recorded of itself; nothing for runs of earlier versions."""
    try:
        content = json.loads((folder / run_paths.STATE).read_text(encoding="utf-8"))
        plain_data.check(_Recorded, content, "")
    except (OSError, ValueError):
        return {}
    return content


def _state(
    folder: Path, noted: dict[str, Any], losses: list[float], steps: int, max_steps: Any
) -> run_paths.State:
    if is_locked(folder / run_paths.LOCK):
        return "running"
    if losses and not math.isfinite(losses[-1]):
        return "diverged"
    if noted.get("state", "running") != "running":
        return noted["state"]
    # killed, or made by an earlier version
    return "finished" if isinstance(max_steps, int) and 0 < max_steps <= steps else "interrupted"
