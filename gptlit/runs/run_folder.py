"""The folder of a run: its number, lock, loggers and checkpoints.

lightning_logs/version_N/
    config.yaml  metrics.csv  samples.txt  run.json  events...  checkpoints/{best,last}.ckpt
"""

import contextlib
import json
import math
import shutil
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from gptlit.checkpoints import run_paths
from gptlit.checkpoints.run_paths import CONFIG, LOCK, METRICS, STATE
from gptlit.files import leftovers, locked, write_atomically
from gptlit.flat_options import Options
from gptlit.messages import UsageError, opt
from gptlit.runs import metrics_file
from gptlit.runs.loggers import SAMPLES, Curves, Records, Table, logs_from, restore
from gptlit.runs.saving import BestCheckpoint, RunCheckpoint
from gptlit.training import processes
from gptlit.training.logged_metrics import MINUTES
from gptlit.training.module import LitGPT

# last values of metrics that TensorBoard compares runs by, of the first one that was logged
FINAL = {
    "final/train_loss": ("train/loss_eval", "train/loss"),
    "final/val_loss": ("val/loss",),
    "final/tokens": ("train/tokens",),
}


def claim(root: Path) -> Path:
    """Make the next free version_N under `root`, also while other processes do so, and return it.

    Only rank 0 makes a folder; the path on other ranks isn't used.
    """
    number = 1 + max((run_paths.version_number(run) for run in root.glob("version_*")), default=-1)
    while True:
        run = root / f"version_{number}"
        try:
            if processes.on_rank_zero():
                run.mkdir(parents=True)
            return run
        except FileExistsError:
            if not run.is_dir():
                raise
            number += 1


def make_room(path: Path) -> Path | None:
    """Move the folder of a run that can't be resumed out of the way of a new one.

    Returns:
        New path of a folder with checkpoints or metrics; None for another, which is removed.
    """
    if not any(path.rglob("*.ckpt")) and not logs_from(path / METRICS, 0):
        shutil.rmtree(path)
        return None
    number = 1
    while (aside := path.with_name(f"{path.name}.old{number}")).exists():
        number += 1
    return path.rename(aside)


def of_checkpoint(path: Path) -> Path | None:
    """Return the folder of the run that a checkpoint is in; None if it isn't in one."""
    folder = path.absolute().parent
    if folder.name != run_paths.CHECKPOINTS or not run_paths.is_run(folder.parent):
        return None
    # relative if the user's path is
    return path.parent.parent if path.parent.name == folder.name else folder.parent


def lock(path: Path, instead: str) -> contextlib.AbstractContextManager[None]:
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


class Recorder(Callback):
    """Records in a run's folder that it is running; `run_end.train` records how it ends."""

    def __init__(self, folder: "RunFolder") -> None:
        self.folder = folder

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.folder.record("running", trainer, pl_module)


class RunFolder:
    """The folder of a new or a resumed run.

    Args:
        root: Folder of new runs.
        start: Path of the checkpoint to resume from; the resumed run stays in its folder.
        step: Step of the checkpoint.
        records: Copies in the checkpoint, from which the resumed run's files are restored.
        place: Folder of a new run, instead of version_N under `root`.
        options: Options of the run, for TensorBoard.
    """

    RESTORED = (CONFIG, "hparams.yaml", METRICS, SAMPLES, STATE)

    def __init__(
        self,
        root: Path,
        start: Path | None = None,
        step: int = 0,
        records: dict[str, Any] | None = None,
        place: Path | None = None,
        options: Options | None = None,
    ) -> None:
        resumed = start and of_checkpoint(start)
        self.is_new = resumed is None
        if self.is_new and place is not None:
            place.mkdir(parents=True, exist_ok=True)
        self.path = resumed or place or claim(root)
        self.resumed_step = None if self.is_new else step
        self.records = records
        self.options = options or {}
        self.curves: Curves | None = None  # the logger, if there is one
        # the loggers restore event files before a fit can be refused
        events = self.path.glob("events.out.tfevents.*")
        paths = [*(self.path / name for name in self.RESTORED), *events]
        self._before = {path: path.read_bytes() for path in paths if path.is_file()}
        self._checkpoints_before = self._checkpoints()

    def _checkpoints(self) -> dict[Path, int]:
        """Return the modification time in ns of each checkpoint in the folder."""
        return {path: path.stat().st_mtime_ns for path in self.path.rglob("*.ckpt")}

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Lock the folder; see the function `lock`."""
        return lock(self.path, f"start a new run from a checkpoint by {opt('model.init_from')}")

    def undo(self) -> None:
        """Restore the folder as it was before the run, unless this or another process trained."""
        if not processes.on_rank_zero() or self._has_results():
            return
        if self.is_new:
            shutil.rmtree(self.path)
            with contextlib.suppress(OSError):
                self.path.parent.rmdir()  # the folder of runs, if this was the first
        for path, content in self._before.items():
            write_atomically(path, content)

    def _has_results(self) -> bool:
        """Whether a checkpoint was saved or a metric logged since the start or the resume."""
        is_saved = self._checkpoints() != self._checkpoints_before
        return is_saved or logs_from(self.path / METRICS, self.resumed_step or 0)

    def record(self, state: run_paths.State, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Write run.json: the state of the run, its steps and its model's parameters."""
        assert isinstance(module, LitGPT)
        if trainer.is_global_zero:
            content = {
                "state": state,
                "step": trainer.global_step,
                "parameters": module.net.num_parameters(),
            }
            with contextlib.suppress(OSError):  # a full disk, which the saving of weights reports
                write_atomically(self.path / STATE, json.dumps(content).encode())
            if state != "running" and self.curves is not None:
                figures = self._figures(trainer.global_step, module)
                self.curves.log_end(figures, trainer.global_step, state == "finished")

    def _figures(self, n_steps: int, module: LitGPT) -> dict[str, float]:
        """Return the figures by which TensorBoard compares runs, from metrics.csv."""
        _, rows = metrics_file.read(self.path / METRICS)
        last = {name: float(value) for row in rows for name, value in row.items() if value}
        figures = {"final/parameters": float(module.net.num_parameters())}
        scored = [row for row in rows if row.get("val/loss")]
        if scored:
            best = min(scored, key=lambda row: float(row["val/loss"]))
            figures["best/step"] = int(best["step"]) + 1.0
            for name in ("loss", "bits_per_byte"):
                if best.get(f"val/{name}"):  # preferences have no bits
                    figures[f"best/val_{name}"] = float(best[f"val/{name}"])
        for name, sources in FINAL.items():
            if source := next((each for each in sources if each in last), None):
                figures[name] = last[source]
        minutes = n_steps * metrics_file.mean(rows, "speed/step_ms") / 60e3
        return figures if math.isnan(minutes) else figures | {MINUTES: minutes}

    def loggers(self) -> list[Logger]:
        """Make the loggers of metrics.csv and of TensorBoard's events.

        A resumed run keeps what was logged up to its checkpoint, and logs the rest again.
        """
        place: dict[str, Any] = {"name": self.path.parent.name, "version": self.path.name}
        root = self.path.parent.parent
        table = Table(root, **place)
        curves = Curves(root, self.resumed_step or 0, self.options, **place)
        if self.resumed_step is not None and processes.on_rank_zero():
            names = restore(self.path, self.records, self.resumed_step, self.options)
            for logger in (table, curves):
                logger.unlogged.step, logger.unlogged.names = self.resumed_step - 1, set(names)
        self.curves = curves
        return [table, curves]

    def checkpoints(self, monitor: str, snapshot_every: int, keep_snapshots: int) -> list[Callback]:
        """Make the callbacks that save best.ckpt by `monitor`, last.ckpt, and snapshots."""
        folder = self.path / run_paths.CHECKPOINTS
        for left in leftovers(folder, ".ckpt") if processes.on_rank_zero() else []:
            left.unlink()
        return [
            Records(self.path),
            BestCheckpoint(folder, monitor),
            RunCheckpoint(folder, snapshot_every, keep_snapshots),
        ]
