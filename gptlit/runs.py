"""A run's folder: its number, its loggers, its checkpoints, and going on in it.

lightning_logs/version_N/
    config.yaml  metrics.csv  samples.txt  events...  checkpoints/{best,last}.ckpt
"""

import csv
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO

from gptlit import checkpoint
from gptlit.assets import replacing


def on_rank_zero() -> bool:
    """Whether this process is the one that writes; true where there is only one."""
    return rank_zero_only.rank == 0


def as_list(value: Any) -> list[Any]:
    """A Trainer's option that is none, one or a list of things, as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


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
            number += 1
        else:
            return run


def of_checkpoint(path: Path) -> Path | None:
    """The run's folder that a checkpoint lies in, or None if it lies elsewhere."""
    run = path.parent.parent
    inside = path.parent.name == "checkpoints" and checkpoint.version_number(run) >= 0
    return run if inside else None


def loggers(run: Path, resumed_step: int | None) -> list[Logger]:
    """TensorBoard and CSV loggers that write into a run's folder.

    When going on at `resumed_step`, both keep what was logged up to there and drop the rest,
    which will be logged again.
    """
    place: dict[str, Any] = {"name": run.parent.name, "version": run.name}
    purge: dict[str, Any] = {} if resumed_step is None else {"purge_step": resumed_step}
    root = run.parent.parent
    rows = [] if resumed_step is None else _rows_until(run / "metrics.csv", resumed_step)
    tensorboard = TensorBoardLogger(root, default_hp_metric=False, **place, **purge)
    table = CSVLogger(root, flush_logs_every_n_steps=10, **place)
    if rows and on_rank_zero():
        # opening the table deletes the old one; the rows go in again
        for step, figures in rows:
            table.experiment.log_metrics(figures, step)
        table.save()
    return [tensorboard, table]


def _rows_until(path: Path, resumed_step: int) -> list[tuple[int, dict[str, float]]]:
    if not path.is_file():
        return []
    kept = []
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            step = int(row.pop("step"))
            figures = {
                name: int(value) if value.isdigit() else float(value)
                for name, value in row.items()
                if value
            }
            # steps are logged from 0, an evaluation under the step that went before it
            if step < resumed_step:
                kept.append((step, figures))
    return kept


class RunCheckpoint(ModelCheckpoint):
    """`last.ckpt`, real and current: after each validation and at the end of training.

    A run that ended without a validation has no best.ckpt yet; it gets one, so that `best`
    always means something.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(
            folder, filename="last", enable_version_counter=False, save_on_train_epoch_end=False
        )

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        """Save the last step of a run while the loops still stand where they can go on.

        Afterwards Lightning counts the epoch as finished, and a longer run would skip the
        rest of it. A validation that follows saves again.
        """
        final = trainer.should_stop or 0 < trainer.max_steps <= trainer.global_step
        if final and not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
            self._last_global_step_saved = -1

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.fast_dev_run:
            return
        last, best = (Path(self.dirpath or "") / f"{name}.ckpt" for name in ("last", "best"))
        if not trainer.strategy.broadcast(last.exists()):
            trainer.save_checkpoint(last)
        if trainer.is_global_zero and not best.exists():
            shutil.copyfile(last, best)


def checkpoints(run: Path, monitor: str, snapshot_every: int) -> list[ModelCheckpoint]:
    """The callbacks that save best.ckpt by `monitor`, last.ckpt, and step_N.ckpt if asked for."""
    folder = run / "checkpoints"
    best = ModelCheckpoint(
        folder,
        filename="best",
        monitor=monitor,
        enable_version_counter=False,
        save_on_train_epoch_end=False,
    )
    if not snapshot_every:
        return [best, RunCheckpoint(folder)]
    snapshots = ModelCheckpoint(
        folder,
        filename="step_{step}",
        auto_insert_metric_name=False,
        every_n_train_steps=snapshot_every,
        save_top_k=-1,
    )
    return [best, snapshots, RunCheckpoint(folder)]


class DurableCheckpointIO(TorchCheckpointIO):
    """Saves beside the file, brings it to the disk and renames it; never swallows an error.

    Lightning's own goes by way of $TMPDIR, which can be another file system, without fsync,
    and takes a PermissionError for success.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        with replacing(Path(path)) as file:
            torch.save(checkpoint, file)
