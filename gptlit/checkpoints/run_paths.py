"""Folders of runs, and the paths of their checkpoints by the names best and last."""

import re
from pathlib import Path
from typing import Literal

from gptlit.corpora import inputs
from gptlit.messages import UsageError, opt

RUNS = Path("lightning_logs")
ALIASES = ("best", "last")
# in a run's folder
CHECKPOINTS, ADAPTER = "checkpoints", "adapter"
CONFIG, METRICS, STATE, LOCK = "config.yaml", "metrics.csv", "run.json", ".lock"
State = Literal["running", "finished", "interrupted", "diverged"]  # in run.json
RUN_FILES = (CONFIG, METRICS, "hparams.yaml")


def resolve(name: str, runs: Path = RUNS) -> Path:
    """Return the path of a checkpoint: a file's, or that of `best` or `last` of the newest run.

    The newest run is the one that began last, of those that have such a checkpoint.

    Raises:
        UsageError: There is no such file.
    """
    if name not in ALIASES:
        path = Path(name).expanduser()
        inputs.refuse_endless(path, opt("ckpt_path"))
        if not path.is_file():
            reason = "no such file; give a checkpoint's path, or best or last for the newest run's"
            raise UsageError(reason, "ckpt_path", name)
        return path
    checkpoints = list(runs.glob(f"*/{CHECKPOINTS}/{name}.ckpt"))
    if not checkpoints:
        reason = f"no run under {runs.absolute()} has a {name}.ckpt; train one with `gptlit fit`"
        raise UsageError(f"{reason}, or give the path of a checkpoint", "ckpt_path", name)
    return max(checkpoints, key=lambda path: began_at(path.parent.parent))


def began_at(run: Path) -> tuple[float, int, str]:
    """Return a key that orders runs by their beginning: the earliest time of their files, in s.

    The names of event files carry their time, which copies keep.
    """
    files = [path for path in [*run.iterdir(), *run.glob(f"{CHECKPOINTS}/*")] if path.is_file()]
    times = [int(path.stat().st_mtime) for path in files]
    named = [re.match(r"events\.out\.tfevents\.(\d+)", path.name) for path in files]
    return min(times + [int(match[1]) for match in named if match]), version_number(run), run.name


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run, by the files in it."""
    has_files = any((folder / name).is_file() for name in RUN_FILES)
    # runs of earlier versions don't have these files
    has_name = version_number(folder) >= 0
    return (folder / CHECKPOINTS).is_dir() and (has_files or has_name)


def version_number(run: Path) -> int:
    """N of a folder named version_N, -1 of any other."""
    number = run.name.removeprefix("version_")
    return int(number) if number.isdigit() else -1
