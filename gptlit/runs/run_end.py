"""The end of a run: its summary, the commands that resume and use it, and its errors."""

import contextlib
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities.exceptions import SIGTERMException

from gptlit import signals, terminal
from gptlit.charts import text
from gptlit.charts.axes import Panel, Point, Series, axis
from gptlit.charts.smoothing import Smoothing
from gptlit.checkpoints import adapters, checkpoint, run_paths
from gptlit.checkpoints.run_paths import METRICS, State
from gptlit.messages import RunError, UsageError, note
from gptlit.runs import metrics_file, user_parts
from gptlit.runs.build import Run
from gptlit.runs.stopping import NAMES, SIGNAL, Patience, Stopping
from gptlit.streams import only_shown
from gptlit.terminal import duration
from gptlit.training import overfitting, processes
from gptlit.training.divergence import NotFinite
from gptlit.training.overfitting import Overfitting

CURVE_COLUMNS, CURVE_ROWS = 72, 8


@contextlib.contextmanager
def interruptible(trainer: L.Trainer) -> Iterator[None]:
    """Raise KeyboardInterrupt after Ctrl-C, where Lightning raises SystemExit."""
    try:
        with signals.as_raised():
            yield
    except SystemExit as exit_:
        by_signal = isinstance(exit_, SIGTERMException)  # Stopping raised it, after a whole step
        if by_signal or trainer.state.status != TrainerStatus.INTERRUPTED:
            raise
        raise KeyboardInterrupt from None


class NothingToTrain(UsageError):
    """The resumed run is already complete."""


def train(run: Run) -> None:
    """Train a run to its end, and print how it ended.

    Raises:
        NothingToTrain: The resumed run is already complete.
        UsageError: Lightning refuses its options.
        KeyboardInterrupt: A second Ctrl-C.
        RunError: The loss is not finite, or a disk is full.
        SystemExit: A signal stopped the run.
    """
    assert run.stopping is not None
    first_step, began = run.plan.first_step, time.monotonic()
    with only_shown(), run.undone_if_untrained():
        _fit(run, run.stopping)
        if run.trainer.global_step == first_step:
            raise _nothing_to_train(run.trainer)
    _record(run, "interrupted" if run.stopping.exit_code else "finished")
    if processes.on_rank_zero() and run.folder is not None:
        _write_adapter(run.folder.path, run.model.options.init_from)
    user_parts.note_profile(run.trainer.profiler)
    if processes.on_rank_zero():
        columns = terminal.columns_of(sys.stdout)
        if run.folder is not None and columns is not None:
            with only_shown():
                print("\n".join(loss_curve(run.folder.path / METRICS, columns)), flush=True)
        note(summary(run, time.monotonic() - began))
    processes.leave_together()
    if processes.on_rank_zero() and run.stopping.exit_code:
        raise SystemExit(run.stopping.exit_code)


def _record(run: Run, state: State) -> None:
    if run.folder is not None:
        run.folder.record(state, run.trainer, run.model)


def _write_adapter(folder: Path, base: str | None) -> None:
    """Write the LoRA adapter of a run's best checkpoint to its folder; nothing without LoRA."""
    path = folder / run_paths.CHECKPOINTS / "best.ckpt"
    if not path.is_file():
        return  # the run saves otherwise
    content = checkpoint.read(path)
    if not (config := checkpoint.config_of(content)).lora_r:
        return
    shutil.rmtree(folder / run_paths.ADAPTER, ignore_errors=True)  # of the run's earlier part
    adapters.write(config, checkpoint.check_weights(content), folder / run_paths.ADAPTER, base)


def _nothing_to_train(trainer: L.Trainer) -> NothingToTrain:
    """Return the error that names the limit which ended a run before its first step."""
    step, epoch = trainer.global_step, trainer.current_epoch
    reason = f"nothing to train: step {step} already reaches it; give a larger number"
    if 0 <= trainer.max_steps <= step:
        return NothingToTrain(reason, "trainer.max_steps", trainer.max_steps)
    if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= epoch:
        return NothingToTrain(reason, "trainer.max_epochs", trainer.max_epochs)
    return NothingToTrain(f"nothing to train: the run ended at step {step}, where it began")


def _fit(run: Run, stopping: Stopping) -> None:
    """Call `trainer.fit`, and name the resume command in the errors that end it."""
    trainer, options = run.trainer, run.model.options
    folder = run.folder.path if run.folder else None
    try:
        with interruptible(trainer):
            settings = {"datamodule": run.data, "ckpt_path": run.options.ckpt_path}
            processes.refusing(trainer.fit, run.model, **settings)
    except SIGTERMException:
        # SLURM's signal, which Lightning handles
        stopping.cause = stopping.cause or SIGNAL + signal.SIGTERM
    except KeyboardInterrupt:
        step = trainer.global_step + 1
        raise KeyboardInterrupt(f"stopped in step {step}{_resume_hint(folder)}") from None
    except RunError as error:
        processes.leave_together()  # the error is raised in all processes
        if not processes.on_rank_zero():
            raise SystemExit(0) from None  # the run's exit code is that of rank 0
        diverged = isinstance(error, NotFinite)
        if diverged:
            _record(run, "diverged")
        slower = diverged and options.min_lr <= options.lr / 2
        options_now = f" --model.lr {options.lr / 2:g}" if slower else ""
        raise RunError(f"{error}{_resume_hint(folder, options_now)}") from error
    except OSError as error:
        if trainer.global_step == run.plan.first_step or not error.strerror:
            raise
        processes.kill_others(trainer)
        where = f": {error.filename}" if error.filename else ""
        raise RunError(f"{error.strerror}{where}{_resume_hint(folder)}") from error


def _resume_hint(folder: Path | None, options: str = "") -> str:
    saved = folder and _newest_checkpoint(folder / run_paths.CHECKPOINTS / "last.ckpt")
    if not saved:
        return "; nothing was saved"
    path, content = saved
    return f"; {_command('fit', path, options)} resumes from step {content['global_step']}"


def _newest_checkpoint(last: Path) -> tuple[Path, dict[str, Any]] | None:
    """Read last.ckpt, or the newest other checkpoint of a run that has no last.ckpt yet."""
    with contextlib.suppress(UsageError):
        return last, checkpoint.read(last)
    return checkpoint.newest_whole(last)


def _command(verb: str, path: Path, options: str = "") -> str:
    return f"gptlit {verb} --ckpt_path {shlex.quote(str(path))}{options}"


def loss_curve(table: Path, columns: int) -> list[str]:
    """Draw the losses of a metrics.csv as lines of text; none if there are too few.

    Args:
        table: Path of the metrics.csv.
        columns: Width of the terminal.
    """
    train, val = (metrics_file.by_step(table, name) for name in ("train/loss", "val/loss"))
    if len(train) < 2:
        return []
    smoothed = zip(train, Smoothing("auto").apply([*train.values()]), strict=True)
    series = [Series("train/loss", [Point(*pair) for pair in smoothed], marked=False, sign=".")]
    if val:
        series.append(Series("val/loss", [Point(*pair) for pair in val.items()]))
    points = [point for each in series for point in each.points]
    x = axis("step", [point.x for point in points], log=False)
    y = axis("loss", [point.y for point in points], log=False)
    width = min(columns - 1, CURVE_COLUMNS)
    return text.draw([Panel(series, x, y)], width, CURVE_ROWS, text.signs_of(sys.stdout))


def summary(run: Run, seconds: float) -> str:
    """Describe a finished run in a few lines: why it ended, its checkpoints, and how to use them.

    Args:
        run: The run.
        seconds: Duration of the fit in seconds.
    """
    head, longer = _how_it_ended(run)
    folder = run.folder and run.folder.path / run_paths.CHECKPOINTS
    paths = [folder / f"{name}.ckpt" for name in ("best", "last")] if folder else []
    saved = [path for path in paths if path.exists()]
    rows = {path.stem: f"{checkpoint.evaluation(checkpoint.read(path))}, {path}" for path in saved}
    if saved:
        rows["resume"] = _command("fit", saved[-1], longer)
        rows["write"] = _command("predict", saved[0])
    if run.model.options.lora_r and run.folder:
        rows["adapter"] = str(run.folder.path / run_paths.ADAPTER)
    for callback in run.trainer.callbacks:
        if isinstance(callback, Overfitting) and (finding := callback.history.finding):
            rows["note"] = f"{finding}; {overfitting.advice(run.model.options)}"
    rows["time"] = duration(seconds)
    return "\n".join([head, *(f"  {name:<8}{value}" for name, value in rows.items())])


def _how_it_ended(run: Run) -> tuple[str, str]:
    """Return why a run ended, and the options by which a resume trains for longer."""
    trainer, stopping = run.trainer, run.stopping
    step, patience = f"{trainer.global_step:,}", trainer.early_stopping_callback
    if stopping and stopping.cause:
        return f"stopped by {NAMES[stopping.cause]} after step {step}", ""
    if trainer.should_stop and isinstance(patience, Patience):
        why = f"{patience.monitor} did not improve in {patience.wait_count} validations"
        longer = f" --early_stopping.patience {2 * patience.patience}"
        return f"done at step {step}: {why}", longer
    longer = ""
    if 0 < trainer.max_steps <= trainer.global_step:
        longer = f" --trainer.max_steps {2 * trainer.max_steps}"
    elif trainer.max_epochs is not None and trainer.max_epochs > 0:
        longer = f" --trainer.max_epochs {2 * trainer.max_epochs}"
    return f"done at step {step}", longer
