"""What a run logs, each figure once: a table, metrics.csv, and curves for TensorBoard."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from gptlit.assets import write_atomically

Row = dict[str, str]


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
        self.metrics_keys = _read(Path(self.metrics_file_path))[0]

    def _check_log_dir_exists(self) -> None:
        """Nothing: Lightning's deletes the table."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        path = Path(self.metrics_file_path)
        _write(path, fieldnames, _read(path)[1])


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

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        assert step is not None
        super().log_metrics(self.once.new(metrics, step), step)


def cut(path: Path, n_steps: int) -> set[str]:
    """Take from a table what was logged after a run's first steps.

    Args:
        path: Of metrics.csv.
        n_steps: Which rows stay; steps are logged from 0, and a validation under the number of
            the step that went before it.

    Returns:
        The figures that were logged of the last of these steps.
    """
    header, rows = _read(path)
    kept = [row for row in rows if int(row["step"]) < n_steps]
    if len(kept) < len(rows):
        _write(path, header, kept)
    of_last = [row for row in kept if int(row["step"]) == n_steps - 1]
    return {name for row in of_last for name, value in row.items() if value}


def logs_from(path: Path, first_step: int) -> bool:
    """Whether a table has a row of that step, counted from 0, or of a later one."""
    return any(int(row["step"]) >= first_step for row in _read(path)[1])


def _read(path: Path) -> tuple[list[str], list[Row]]:
    """The columns and the rows of a table; of one that isn't there, none."""
    if not path.is_file():
        return [], []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        # a row that a full disk cut short has no step any more
        rows = [row for row in reader if (row.get("step") or "").isdigit()]
        return list(reader.fieldnames or []), rows


def _write(path: Path, header: Sequence[str], rows: Sequence[Row]) -> None:
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, header)
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, table.getvalue().encode())
