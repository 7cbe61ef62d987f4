"""A run's folder: its number, its loggers, its checkpoints, and going on in it.

lightning_logs/version_N/
    config.yaml  metrics.csv  samples.txt  events...  checkpoints/{best,last}.ckpt
"""

import contextlib
import shutil
import signal
import textwrap
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger

from gptlit import checkpoint
from gptlit.assets import leftovers, write_atomically
from gptlit.messages import UsageError
from gptlit.records import Curves, Table, cut
from gptlit.saving import BestCheckpoint, RunCheckpoint

T = TypeVar("T")


def on_rank_zero() -> bool:
    """Whether this process is the one that writes; true where there is only one."""
    return rank_zero_only.rank == 0


def as_list(value: Any) -> list[Any]:
    """A Trainer's option that is none, one or a list of things, as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def kill_others(trainer: L.Trainer) -> None:
    """End the processes that this one has launched, which wait for what it can't do."""
    if trainer.strategy.launcher is not None:
        trainer.strategy.launcher.kill(signal.SIGKILL)


def part() -> None:
    """Let all processes of a finished run leave together.

    One that goes while another still talks can make gloo abort it, with all its work done.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def refusing(function: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """Call a function of Lightning's, whose refusals of options become a UsageError."""
    try:
        return function(*arguments, **options)
    except UsageError:
        raise
    except (MisconfigurationException, ValueError, TypeError) as error:
        if not _is_refusal(error):
            raise
        raise UsageError(f"--trainer: {textwrap.shorten(str(error), 240)}") from error


def _is_refusal(error: BaseException) -> bool:
    """Whether it was raised by Lightning itself rather than by something it called."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return "lightning" in Path(frames[-1][0].f_code.co_filename).parts


def claim(root: Path) -> Path:
    """Make and return the next free version_N under `root`; safe against others doing so.

    On ranks other than 0 nothing is made: what rank 0 claimed is what counts.
    """
    number = 1 + max((checkpoint.version_number(run) for run in root.glob("version_*")), default=-1)
    while True:
        run = root / f"version_{number}"
        if not on_rank_zero():
            return run
        try:
            run.mkdir(parents=True)
        except FileExistsError:
            if not run.is_dir():
                raise
            number += 1
        else:
            return run


def of_checkpoint(path: Path) -> Path | None:
    """The run's folder that a checkpoint lies in, or None if it lies elsewhere."""
    folder = path.absolute().parent
    if folder.name != "checkpoints" or checkpoint.version_number(folder.parent) < 0:
        return None
    # as the user wrote it, where that names the folder
    return path.parent.parent if path.parent.name == folder.name else folder.parent


class RunFolder:
    """The folder of a run that begins, or goes on in its own.

    Args:
        root: Where new runs are made.
        start: The checkpoint to go on from; its run's folder is gone on in.
        step: The step that the checkpoint was saved at.
    """

    KEPT = ("config.yaml", "hparams.yaml", "metrics.csv", "samples.txt")

    def __init__(self, root: Path, start: Path | None = None, step: int = 0) -> None:
        own = start and of_checkpoint(start)
        self.claimed = own is None
        self.path = own or claim(root)
        self.resumed_step = None if own is None else step
        kept = [self.path / name for name in self.KEPT]
        self._before = {path: path.read_bytes() for path in kept if path.is_file()}

    def undo(self) -> None:
        """Leave what was there before, for a run in which nothing was trained."""
        if not on_rank_zero():
            return
        if self.claimed:
            shutil.rmtree(self.path)
            with contextlib.suppress(OSError):
                self.path.parent.rmdir()  # if this would have been the first run
        for path, content in self._before.items():
            write_atomically(path, content)

    def loggers(self) -> list[Logger]:
        """What writes metrics.csv and TensorBoard's events into the folder.

        A run that goes on keeps what was logged up to its checkpoint; the rest will be logged
        again.
        """
        place: dict[str, Any] = {"name": self.path.parent.name, "version": self.path.name}
        root = self.path.parent.parent
        table, curves = Table(root, **place), Curves(root, self.resumed_step or 0, **place)
        if self.resumed_step is not None and on_rank_zero():
            names = cut(self.path / "metrics.csv", self.resumed_step)
            for once in (table.once, curves.once):
                once.step, once.names = self.resumed_step - 1, set(names)
        return [table, curves]

    def checkpoints(
        self, monitor: str, snapshot_every: int, keep_snapshots: int
    ) -> list[Checkpoint]:
        """What saves best.ckpt by `monitor`, last.ckpt, and step_N.ckpt if asked for."""
        folder = self.path / "checkpoints"
        for left in leftovers(folder, ".ckpt") if on_rank_zero() else []:
            left.unlink()
        return [
            BestCheckpoint(folder, monitor),
            RunCheckpoint(folder, snapshot_every, keep_snapshots),
        ]
