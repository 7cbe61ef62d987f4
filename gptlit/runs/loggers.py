"""What a run logs, each figure once: a table, metrics.csv, and curves for TensorBoard."""

import re
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.core.saving import save_hparams_to_yaml
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from tensorboard.compat.proto.event_pb2 import Event
from torch.utils.tensorboard import summary

from gptlit.files import write_atomically
from gptlit.runs import event_files, metrics_file
from gptlit.runs.metrics_file import Row

KEY = "gptlit_records"  # in a checkpoint
METRICS, SAMPLES = "metrics.csv", "samples.txt"
MOST = 1 << 28  # bytes, however well a stranger has compressed more
TIMED = "speed/"  # another time at each run, so that it has no part in a checkpoint


class _Once:
    """Which figures of the step at hand are logged already.

    A run that was killed between a save and what it logged next logs some of it again when it
    goes on. It is the same to the last bit, so the first one stays.
    """

    def __init__(self) -> None:
        self.step = -1
        self.names: set[str] = set()

    def new(self, figures: Mapping[str, Any], step: int) -> dict[str, Any]:
        if step != self.step:
            self.step, self.names = step, set()
        found = {name: value for name, value in figures.items() if name not in self.names}
        self.names |= set(found)
        return found


class _Writer(ExperimentWriter):
    """Lightning's, going on with a table that is there, and never without a whole one."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self.metrics_keys = metrics_file.read(Path(self.metrics_file_path))[0]

    def _check_log_dir_exists(self) -> None:
        """Nothing: Lightning's deletes the table."""

    def save(self) -> None:
        path = Path(self.metrics_file_path)
        if metrics_file.is_cut(path):
            # a full disk has cut a row, which is tried again
            metrics_file.write(path, *metrics_file.read(path))
        super().save()

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        path = Path(self.metrics_file_path)
        metrics_file.write(path, fieldnames, metrics_file.read(path)[1])


class Table(CSVLogger):
    """metrics.csv; a row has the figures that were logged together, and their epoch and step."""

    def __init__(self, root: Path, **options: Any) -> None:
        super().__init__(root, **options)
        self.once = _Once()

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            self._experiment = _Writer(self.log_dir)
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        assert step is not None
        # every row tells its epoch
        if new := self.once.new({k: v for k, v in metrics.items() if k != "epoch"}, step):
            super().log_metrics(new | {k: v for k, v in metrics.items() if k == "epoch"}, step)


class Curves(TensorBoardLogger):
    """TensorBoard's events.

    Args:
        root: As for Lightning's logger.
        n_steps: How many steps' events, of a run that goes on, are to stay.
        **options: As for Lightning's logger.
    """

    def __init__(self, root: Path, n_steps: int = 0, **options: Any) -> None:
        # TensorBoard heeds the second such mark of a run and all after it, so that the first
        # process has to make one too
        super().__init__(root, default_hp_metric=False, purge_step=n_steps, **options)
        self.once = _Once()
        self._saved_hparams: dict[str, Any] | None = None

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        assert step is not None
        super().log_metrics(self.once.new(metrics, step), step)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            Path(self.log_dir).mkdir(parents=True, exist_ok=True)
            self._experiment = event_files.Writer(log_dir=self.log_dir, **self._kwargs)
        return self._experiment

    @rank_zero_only
    def save(self) -> None:
        """Bring the events to the disk, and hparams.yaml, which is whole or not there."""
        self.experiment.flush()
        path = Path(self.log_dir) / self.NAME_HPARAMS_FILE
        if self._saved_hparams != self.hparams or not path.is_file():
            with tempfile.TemporaryDirectory() as folder:
                whole = Path(folder) / path.name
                save_hparams_to_yaml(whole, self.hparams)
                write_atomically(path, whole.read_bytes())
            self._saved_hparams = dict(self.hparams)


def cut(path: Path, n_steps: int) -> set[str]:
    """Take from a table what was logged after a run's first steps.

    Args:
        path: Of metrics.csv.
        n_steps: Which rows stay; steps are logged from 0, and a validation under the number of
            the step that went before it.

    Returns:
        The figures that were logged of the last of these steps.
    """
    header, rows = metrics_file.read(path)
    kept = [row for row in rows if int(row["step"]) < n_steps]
    metrics_file.write(path, header, kept)
    of_last = [row for row in kept if int(row["step"]) == n_steps - 1]
    return {name for row in of_last for name, value in row.items() if value}


def logs_from(path: Path, first_step: int) -> bool:
    """Whether a table has a row of that step, counted from 0, or of a later one."""
    return any(int(row["step"]) >= first_step for row in metrics_file.read(path)[1])


def as_markdown(sample: str) -> str:
    """A sample for TensorBoard's text tab: indented by four, Markdown keeps lines and spaces."""
    return "\n".join(f"    {line}" for line in sample.split("\n"))


class Records(Callback):
    """Lets a checkpoint hold what its run had logged and written, so that it can be restored.

    Args:
        folder: Of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if not trainer.is_global_zero:
            return
        header, rows = metrics_file.read(self.folder / METRICS)
        for row in rows:
            row.update({name: "" for name in row if name.startswith(TIMED)})
        samples = self.folder / SAMPLES
        checkpoint[KEY] = {
            METRICS: zlib.compress(metrics_file.as_csv(header, rows)),
            SAMPLES: zlib.compress(samples.read_bytes() if samples.is_file() else b""),
        }


def _unpacked(kept: Mapping[str, Any], name: str) -> bytes:
    try:
        return zlib.decompressobj().decompress(kept[name], MOST)
    except (KeyError, TypeError, zlib.error):
        return b""  # a checkpoint that something else has written


def restore(folder: Path, kept: Mapping[str, Any], n_steps: int) -> None:
    """Complete what a run has logged and written, of which a crash can have left a part.

    Args:
        folder: Of the run.
        kept: As `Records` has it in the checkpoint that the run is resumed from.
        n_steps: The checkpoint's step.
    """
    header, rows = metrics_file.read(folder / METRICS)
    known_header, known = metrics_file.parse(_unpacked(kept, METRICS))
    rows = [row for row in rows if int(row["step"]) < n_steps]
    # both are the beginnings of the same table
    rows += known[len(rows) :]
    metrics_file.write(folder / METRICS, sorted({*header, *known_header}), rows)
    samples, path = _unpacked(kept, SAMPLES), folder / SAMPLES
    if samples and (not path.is_file() or path.stat().st_size < len(samples)):
        write_atomically(path, samples)
    events = event_files.logged(folder, n_steps)
    found = {(value.tag, event.step) for event in events for value in event.summary.value}
    missing = {
        (each.value[0].tag, step): Event(step=step, wall_time=time.time(), summary=each)
        for step, each in _summaries(rows, samples.decode(errors="replace"))
        if step < n_steps and (each.value[0].tag, step) not in found
    }
    if missing:
        event_files.rewrite(folder, [*events, *missing.values()])


def _summaries(rows: list[Row], samples: str) -> Iterator[tuple[int, Any]]:
    """What TensorBoard shows of a table and of samples, each with its step as it is logged."""
    for row in rows:
        for name, value in row.items():
            if value and name != "step":
                yield int(row["step"]), summary.scalar(name, float(value))
    _, *parts = re.split(r"^=== step (\d+), .*\n", samples, flags=re.MULTILINE)
    steps = [int(step) for step in parts[::2]]
    for place, (step, text) in enumerate(zip(steps, parts[1::2], strict=True)):
        index = place - steps.index(step)
        yield step - 1, summary.text(f"sample/{index}", as_markdown(text.removesuffix("\n\n")))
