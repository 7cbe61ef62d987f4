"""A run's folder: its number, its loggers, its checkpoints, and going on in it.

lightning_logs/version_N/
    config.yaml  metrics.csv  samples.txt  events...  checkpoints/{best,last}.ckpt
"""

import contextlib
import os
import shutil
import signal
import textwrap
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from gptlit import checkpoint
from gptlit.assets import leftovers, write_atomically
from gptlit.messages import RunError, UsageError
from gptlit.records import METRICS, Curves, Records, Table, cut, logs_from, restore
from gptlit.saving import BestCheckpoint, RunCheckpoint

T = TypeVar("T")

CONFIG = "config.yaml"
LAUNCHER = "GPTLIT_LAUNCHER"  # the environment variable with the process id of rank 0
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")  # gloo's


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


def end_with_launcher() -> None:
    """Let this process end when the one that launched it for a share of the work has.

    One whose launcher was killed before all had met would wait half an hour for it. A process
    that was started by hand, or by a cluster, isn't watched.
    """
    if "LOCAL_RANK" not in os.environ:
        os.environ[LAUNCHER] = str(os.getpid())  # for those that Lightning launches from here
        return
    by_torchrun = torch.distributed.is_torchelastic_launched()
    launcher = os.getppid() if by_torchrun else int(os.environ.get(LAUNCHER, 0))
    if launcher and launcher != os.getpid():
        Thread(target=_watch, args=(launcher,), daemon=True).start()


def _watch(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(1)
    os._exit(1)  # the main thread may be waiting where no exception reaches it


@contextlib.contextmanager
def telling_of_lost_ranks() -> Iterator[None]:
    """Say in one line that another process has ended, where this one can't go on without.

    Raises:
        RunError: instead of the error of whatever was waited for.
    """
    try:
        yield
    except RuntimeError as error:
        if not any(sign in str(error) for sign in LOST):
            raise
        raise RunError(
            "another process of the run has ended, and what it said stands above; a fit goes on "
            "from what it saved by gptlit fit --ckpt_path last"
        ) from error


def new_trainer(**options: Any) -> L.Trainer:
    """A Trainer; what Lightning refuses becomes a UsageError.

    Raises:
        UsageError: options or parts that don't go together.
    """
    try:
        return refusing(L.Trainer, **options)
    except RuntimeError as error:
        if not _is_refusal(error):
            raise
        raise UsageError(f"--trainer: {textwrap.shorten(str(error), 240)}") from error


def refusing(function: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """Call a function of Lightning's, whose refusals of options become a UsageError."""
    try:
        return function(*arguments, **options)
    except UsageError:
        raise
    except (MisconfigurationException, ValueError, TypeError, ModuleNotFoundError) as error:
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


@contextlib.contextmanager
def alone(path: Path, instead: str) -> Iterator[None]:
    """Be the only process that trains in a folder; the system frees a killed one's hold.

    Where the system or a network's file system knows no such hold, nothing is checked.

    Args:
        path: The folder, which is there.
        instead: What to do other than wait, for the message.

    Raises:
        UsageError: another process does.
    """
    try:
        import fcntl
    except ImportError:  # on Windows
        fcntl = None  # type: ignore[assignment]  # a module elsewhere
    if fcntl is None or not on_rank_zero():
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UsageError(
                    f"{path}: another process is training in it; wait for its end, or {instead}"
                ) from error
        yield
    finally:
        os.close(descriptor)


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
        return alone(self.path, "begin a run of its own from a checkpoint by --model.init_from")

    def undo(self) -> None:
        """Restore what was there before, unless the folder holds a result of the run.

        The files decide, whatever this process has counted: other processes may have trained.
        """
        if not on_rank_zero() or self._has_results():
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
        if self.resumed_step is not None and on_rank_zero():
            if self.records is not None:
                restore(self.path, self.records, self.resumed_step)
            names = cut(self.path / METRICS, self.resumed_step)
            for once in (table.once, curves.once):
                once.step, once.names = self.resumed_step - 1, set(names)
        return [table, curves]

    def checkpoints(self, monitor: str, snapshot_every: int, keep_snapshots: int) -> list[Callback]:
        """What saves best.ckpt by `monitor`, last.ckpt, and step_N.ckpt if asked for."""
        folder = self.path / "checkpoints"
        for left in leftovers(folder, ".ckpt") if on_rank_zero() else []:
            left.unlink()
        return [
            Records(self.path),
            BestCheckpoint(folder, monitor),
            RunCheckpoint(folder, snapshot_every, keep_snapshots),
        ]
