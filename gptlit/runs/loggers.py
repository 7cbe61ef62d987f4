"""Loggers of metrics.csv and TensorBoard, and the restoration of their files by a resumed run.

Each metric is logged once per step, also by a run that was killed and resumed.
"""

import itertools
import re
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import lightning as L
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.core.saving import save_hparams_to_yaml
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard import summary

from gptlit.checkpoints.run_paths import METRICS
from gptlit.files import write_atomically
from gptlit.flat_options import Options
from gptlit.runs import event_files, metrics_file
from gptlit.runs.metrics_file import Row
from gptlit.training.logged_metrics import TIMED

KEY = "gptlit_records"  # of the copies in a checkpoint
SAMPLES = "samples.txt"
FIGURES = ("figures/", "weights/")  # prefixes of images and histograms, which have no copies
MAX_BYTES = 1 << 28  # of a decompressed copy, which may come from a foreign checkpoint


class Image(Protocol):
    """An encoded image, and its size in pixels."""

    @property
    def content(self) -> bytes: ...
    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...


Images = dict[str, Image]  # by their tags


class _Unlogged:
    """Selects the metrics of the current step that aren't logged yet.

    A run that was killed after a save logs metrics of that step again when it is resumed, with
    equal values.
    """

    def __init__(self) -> None:
        self.step = -1
        self.names: set[str] = set()

    def select(self, metrics: Mapping[str, Any], step: int) -> dict[str, Any]:
        if step != self.step:
            self.step, self.names = step, set()
        new = {name: value for name, value in metrics.items() if name not in self.names}
        self.names |= set(new)
        return new


class _Writer(ExperimentWriter):
    """Lightning's writer, which continues an existing table and never leaves a broken one."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self.metrics_keys = metrics_file.read(Path(self.metrics_file_path))[0]

    def _check_log_dir_exists(self) -> None:
        """Do nothing: Lightning would delete the table."""

    def save(self) -> None:
        path = Path(self.metrics_file_path)
        if metrics_file.is_cut(path):
            # a full disk cut the last row, which is written again
            metrics_file.write(path, *metrics_file.read(path))
        super().save()

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        path = Path(self.metrics_file_path)
        metrics_file.write(path, fieldnames, metrics_file.read(path)[1])


class Table(CSVLogger):
    """Logs metrics.csv: one row for the metrics that are logged together, with epoch and step."""

    def __init__(self, root: Path, **options: Any) -> None:
        super().__init__(root, **options)
        self.unlogged = _Unlogged()
        self._beside: tuple[int, Mapping[str, float]] = (-1, {})

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            self._experiment = _Writer(self.log_dir)
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        assert step is not None
        epoch = {"epoch": metrics["epoch"]} if "epoch" in metrics else {}  # in each row
        values = {name: value for name, value in metrics.items() if name != "epoch"}
        if self._beside[0] == step:
            values |= self._beside[1]
            self._beside = (-1, {})
        if new := self.unlogged.select(values, step):
            super().log_metrics(new | epoch, step)

    def log_beside(self, metrics: Mapping[str, float], step: int) -> None:
        """Log metrics in the row of a step that is logged next."""
        self._beside = step, metrics


class Curves(TensorBoardLogger):
    """Logs TensorBoard's events.

    Args:
        root: Directory above the logger's name, as `save_dir` of TensorBoardLogger.
        n_steps: Number of steps whose events a resumed run keeps.
        hparams: Options of the run for TensorBoard's HParams tab, which finds the figures to
            compare runs by among all scalars.
        **options: `name` and `version` of TensorBoardLogger.
    """

    def __init__(self, root: Path, n_steps: int, hparams: Options, **options: Any) -> None:
        super().__init__(root, default_hp_metric=False, **options)
        self.n_steps = n_steps
        self._run_options = hparams
        self.unlogged = _Unlogged()
        self._saved_hparams: dict[str, Any] | None = None

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        assert step is not None
        super().log_metrics(self.unlogged.select(metrics, step), step)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            Path(self.log_dir).mkdir(parents=True, exist_ok=True)
            # TensorBoard ignores the first purge mark of a run, so a new run writes one too
            self._experiment = event_files.Writer(log_dir=self.log_dir, purge_step=self.n_steps)
            if not self.n_steps:  # `restore` writes them for a resumed run
                self._add(event_files.session_start(self._run_options), 0)
        return self._experiment

    def _add(self, summary: Any, step: int) -> None:
        event = Event(step=step, wall_time=time.time(), summary=summary)
        self.experiment.file_writer.add_event(event)

    @rank_zero_only
    def log_figures(self, images: Images, values: Mapping[str, Tensor], step: int) -> None:
        """Log images, and histograms of values, that aren't logged yet; and write the events."""
        wanted = self.unlogged.select({**images, **values}, step)
        for tag, image in images.items():
            if tag in wanted:
                encoded = Summary.Image(
                    height=image.height,
                    width=image.width,
                    colorspace=3,
                    encoded_image_string=image.content,
                )
                self._add(Summary(value=[Summary.Value(tag=tag, image=encoded)]), step)
        for tag, tensor in values.items():
            if tag in wanted:
                self.experiment.add_histogram(tag, tensor.float().cpu(), step)
        self.experiment.flush()

    @rank_zero_only
    def log_end(self, figures: Mapping[str, float], n_steps: int, is_finished: bool) -> None:
        """Log figures of the whole run after its last step; a run that is resumed drops them."""
        for name, value in figures.items():
            self.experiment.add_scalar(name, value, n_steps)
        if is_finished:
            self._add(event_files.session_end(), n_steps)
        self.experiment.flush()

    @rank_zero_only
    def save(self) -> None:
        """Flush the events, and write hparams.yaml atomically."""
        self.experiment.flush()
        path = Path(self.log_dir) / self.NAME_HPARAMS_FILE
        if self._saved_hparams != self.hparams or not path.is_file():
            with tempfile.TemporaryDirectory() as folder:
                whole = Path(folder) / path.name
                save_hparams_to_yaml(whole, self.hparams)
                write_atomically(path, whole.read_bytes())
            self._saved_hparams = dict(self.hparams)


def logs_from(path: Path, first_step: int) -> bool:
    """Whether a table has a row of a step, counted from 0, or of a later one."""
    return any(int(row["step"]) >= first_step for row in metrics_file.read(path)[1])


def as_markdown(sample: str) -> str:
    """Indent a sample by four spaces, so that Markdown keeps its line breaks and spaces."""
    return "\n".join(f"    {line}" for line in sample.split("\n"))


class Records(Callback):
    """Copies metrics.csv and samples.txt of a run into its checkpoints, for `restore`."""

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


def _unpacked(records: Mapping[str, Any], name: str) -> bytes:
    try:
        return zlib.decompressobj().decompress(records[name], MAX_BYTES)
    except (KeyError, TypeError, zlib.error):
        return b""  # not written by gptlit


def restore(
    folder: Path, records: Mapping[str, Any] | None, n_steps: int, options: Options | None = None
) -> set[str]:
    """Restore a run's metrics, samples and events to those of its first steps.

    A crash can have cut them; later rows of metrics.csv are removed.

    Args:
        folder: Folder of the run.
        records: Copies that `Records` put into the checkpoint to resume from; None if it has none.
        n_steps: Step of the checkpoint. Steps are logged from 0, and a validation is logged with
            the step before it.
        options: Options of the resumed run, which replace those in its event files.

    Returns:
        Names of the metrics and figures logged for the last of the steps.
    """
    header, rows = metrics_file.read(folder / METRICS)
    rows = [row for row in rows if int(row["step"]) < n_steps]
    logged: set[str] = set()
    if records is not None:
        saved_header, saved_rows = metrics_file.parse(_unpacked(records, METRICS))
        saved_rows = [row for row in saved_rows if int(row["step"]) < n_steps]
        header = sorted({*header, *saved_header})
        rows += saved_rows[len(rows) :]  # both tables begin with the same rows
        samples, path = _unpacked(records, SAMPLES), folder / SAMPLES
        if samples and (not path.is_file() or path.stat().st_size < len(samples)):
            write_atomically(path, samples)
        summaries = _summaries(rows, samples.decode(errors="replace"))
        logged = _restore_events(folder, summaries, n_steps, options)
    metrics_file.write(folder / METRICS, header, rows)
    last_rows = [row for row in rows if int(row["step"]) == n_steps - 1]
    return logged | {name for row in last_rows for name, value in row.items() if value}


def _restore_events(
    folder: Path, summaries: Iterable[tuple[int, Any]], n_steps: int, options: Options | None
) -> set[str]:
    """Add the summaries of a run's first steps that its event files lack, and its options.

    Returns:
        Tags of the figures of the last of the steps.
    """
    events = event_files.logged(folder, n_steps)
    if options:
        start = event_files.session_start(options)
        events = [event for event in events if not event_files.differs(event.summary, start)]
        summaries = itertools.chain([(0, start)], summaries)
    logged = {(value.tag, event.step) for event in events for value in event.summary.value}
    missing = {
        (each.value[0].tag, step): Event(step=step, wall_time=time.time(), summary=each)
        for step, each in summaries
        if step < n_steps and (each.value[0].tag, step) not in logged
    }
    if missing:
        event_files.rewrite(folder, [*events, *missing.values()])
    return {tag for tag, step in logged if step == n_steps - 1 and tag.startswith(FIGURES)}


def _summaries(rows: list[Row], samples: str) -> Iterator[tuple[int, Any]]:
    """Yield TensorBoard's summaries of a table and of samples, each with its step from 0."""
    for row in rows:
        for name, value in row.items():
            if value and name != "step":
                yield int(row["step"]), summary.scalar(name, float(value))
    _, *parts = re.split(r"^=== step (\d+), .*\n", samples, flags=re.MULTILINE)
    steps = [int(step) for step in parts[::2]]
    for place, (step, text) in enumerate(zip(steps, parts[1::2], strict=True)):
        index = place - steps.index(step)
        yield step - 1, summary.text(f"sample/{index}", as_markdown(text.removesuffix("\n\n")))
