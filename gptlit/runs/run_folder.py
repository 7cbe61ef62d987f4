"""A run's folder: its number, its loggers, its checkpoints, and going on in it.

lightning_logs/version_N/
    config.yaml  metrics.csv  samples.txt  events...  checkpoints/{best,last}.ckpt
"""

import contextlib
import shutil
from pathlib import Path
from typing import Any, NoReturn

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from gptlit.checkpoints import checkpoint
from gptlit.files import leftovers, locked, write_atomically
from gptlit.messages import UsageError, opt
from gptlit.runs.loggers import METRICS, Curves, Records, Table, cut, logs_from, restore
from gptlit.runs.saving import BestCheckpoint, RunCheckpoint
from gptlit.training import processes

CONFIG = "config.yaml"
LOCK = ".lock"


def claim(root: Path) -> Path:
    """Make and return the next free version_N under `root`; safe against others doing so.

    On ranks other than 0 nothing is made: what rank 0 claimed is what counts.
    """
    number = 1 + max((checkpoint.version_number(run) for run in root.glob("version_*")), default=-1)
    while True:
        run = root / f"version_{number}"
        if not processes.on_rank_zero():
            return run
        try:
            run.mkdir(parents=True)
        except FileExistsError:
            if not run.is_dir():
                raise
            number += 1
        else:
            return run


def make_room(path: Path) -> Path | None:
    """Let a run begin anew in the place of one that can't be resumed.

    Args:
        path: The folder of the old run, which is removed, but renamed where it holds a checkpoint
            or a logged figure.

    Returns:
        The new name of a renamed folder.
    """
    if not any(path.rglob("*.ckpt")) and not logs_from(path / METRICS, 0):
        shutil.rmtree(path)
        return None
    number = 1
    while (aside := path.with_name(f"{path.name}.old{number}")).exists():
        number += 1
    return path.rename(aside)


def of_checkpoint(path: Path) -> Path | None:
    """The run's folder that a checkpoint lies in, or None if it lies elsewhere."""
    folder = path.absolute().parent
    if folder.name != checkpoint.CHECKPOINTS or not checkpoint.is_run(folder.parent):
        return None
    # as the user wrote it, where that names the folder
    return path.parent.parent if path.parent.name == folder.name else folder.parent


def alone(path: Path, instead: str) -> contextlib.AbstractContextManager[None]:
    """Lock a folder, so that no other process trains in it.

    Args:
        path: Path of the folder, which exists.
        instead: What to do instead of waiting, for the message.

    Raises:
        UsageError: Another process holds the lock.
    """

    def refuse() -> NoReturn:
        raise UsageError(
            f"{path}: another process is training in this folder; wait until it ends, or {instead}"
        )

    if not processes.on_rank_zero():
        return contextlib.nullcontext()
    return locked(path / LOCK, refuse, remove=True)


class RunFolder:
    """The folder of a run that begins, or goes on in its own.

    Args:
        root: Where new runs are made.
        start: The checkpoint to go on from; its run's folder is gone on in.
        step: The step that the checkpoint was saved at.
        place: The folder of a new run, instead of one under `root`.
    """

    KEPT = (CONFIG, "hparams.yaml", "metrics.csv", "samples.txt")

    def __init__(
        self, root: Path, start: Path | None = None, step: int = 0, place: Path | None = None
    ) -> None:
        own = start and of_checkpoint(start)
        self.claimed = own is None
        if own is None and place is not None:
            place.mkdir(parents=True, exist_ok=True)
        self.path = own or place or claim(root)
        self.resumed_step = None if own is None else step
        # what the checkpoint has kept of the files, of which a crash can have left a part
        self.records: dict[str, Any] | None = None
        kept = [self.path / name for name in self.KEPT]
        self._before = {path: path.read_bytes() for path in kept if path.is_file()}
        self._saved_before = self._checkpoints()

    def _checkpoints(self) -> dict[Path, int]:
        """All checkpoint files in the folder, with the time of their last change in ns."""
        return {path: path.stat().st_mtime_ns for path in self.path.rglob("*.ckpt")}

    def alone(self) -> contextlib.AbstractContextManager[None]:
        """As the function of that name."""
        return alone(self.path, f"start a new run from a checkpoint by {opt('model.init_from')}")

    def undo(self) -> None:
        """Restore what was there before, unless the folder holds a result of the run.

        The files decide, whatever this process has counted: other processes may have trained.
        """
        if not processes.on_rank_zero() or self._has_results():
            return
        if self.claimed:
            shutil.rmtree(self.path)
            with contextlib.suppress(OSError):
                self.path.parent.rmdir()  # if this would have been the first run
        for path, content in self._before.items():
            write_atomically(path, content)

    def _has_results(self) -> bool:
        """Whether a checkpoint was saved, or a figure logged, since the run began or resumed."""
        first_step = self.resumed_step or 0
        return self._checkpoints() != self._saved_before or logs_from(
            self.path / METRICS, first_step
        )

    def loggers(self) -> list[Logger]:
        """What writes metrics.csv and TensorBoard's events into the folder.

        A run that goes on keeps what was logged up to its checkpoint; the rest will be logged
        again.
        """
        place: dict[str, Any] = {"name": self.path.parent.name, "version": self.path.name}
        root = self.path.parent.parent
        table, curves = Table(root, **place), Curves(root, self.resumed_step or 0, **place)
        if self.resumed_step is not None and processes.on_rank_zero():
            if self.records is not None:
                restore(self.path, self.records, self.resumed_step)
            names = cut(self.path / METRICS, self.resumed_step)
            for once in (table.once, curves.once):
                once.step, once.names = self.resumed_step - 1, set(names)
        return [table, curves]

    def checkpoints(self, monitor: str, snapshot_every: int, keep_snapshots: int) -> list[Callback]:
        """What saves best.ckpt by `monitor`, last.ckpt, and step_N.ckpt if asked for."""
        folder = self.path / "checkpoints"
        for left in leftovers(folder, ".ckpt") if processes.on_rank_zero() else []:
            left.unlink()
        return [
            Records(self.path),
            BestCheckpoint(folder, monitor),
            RunCheckpoint(folder, snapshot_every, keep_snapshots),
        ]
