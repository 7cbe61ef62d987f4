"""How a run ends: what is told of it, the commands that follow from it, and the exit code."""

import contextlib
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities.exceptions import SIGTERMException

from gptlit import signals
from gptlit.checkpoints import checkpoint
from gptlit.messages import RunError, UsageError
from gptlit.runs.stopping import NAMES, SIGNAL, Patience, Stopping
from gptlit.terminal import duration
from gptlit.training import overfitting, processes
from gptlit.training.divergence import NotFinite
from gptlit.training.module import LitGPT
from gptlit.training.overfitting import Overfitting


@contextlib.contextmanager
def interruptible(trainer: L.Trainer) -> Iterator[None]:
    """Let Ctrl-C arrive as such: Lightning makes a SystemExit of it, others make errors.

    Raises:
        KeyboardInterrupt: Ctrl-C.
    """
    try:
        with signals.as_raised():
            yield
    except SystemExit as exit_:
        by_signal = isinstance(exit_, SIGTERMException)  # after a step, as it should be
        if by_signal or trainer.state.status != TrainerStatus.INTERRUPTED:
            raise
        raise KeyboardInterrupt from None


def fit(
    trainer: L.Trainer,
    model: LitGPT,
    stopping: Stopping,
    folder: Path | None,
    trained_before: int,
    **options: Any,
) -> None:
    """`trainer.fit`, up to its end or to where it was asked to stop.

    Args:
        trainer: With `stopping` among its callbacks.
        model: As for `trainer.fit`.
        stopping: Tells afterwards whether the run was asked to stop, and by what.
        folder: Of the run; None if it has none.
        trained_before: Steps made by those who went before.
        **options: As for `trainer.fit`.

    Raises:
        UsageError: Lightning refuses its options.
        KeyboardInterrupt: a second Ctrl-C.
        RunError: the loss is no number, or a disk is full; tells how to go on.
    """
    try:
        with interruptible(trainer):
            processes.refusing(trainer.fit, model, **options)
    except SIGTERMException:
        stopping.cause = stopping.cause or SIGNAL + signal.SIGTERM  # by SLURM, through Lightning
    except KeyboardInterrupt:
        last = _resume_hint(folder)
        raise KeyboardInterrupt(f"stopped in step {trainer.global_step + 1}{last}") from None
    except RunError as error:
        processes.leave_together()  # it ends all processes
        if not processes.on_rank_zero():
            raise SystemExit(0) from None  # of several codes the first one's is that of the run
        slower = isinstance(error, NotFinite) and model.options.min_lr <= model.options.lr / 2
        more = f" --model.lr {model.options.lr / 2:g}" if slower else ""
        raise RunError(f"{error}{_resume_hint(folder, more)}") from error
    except OSError as error:
        if trainer.global_step == trained_before or not error.strerror:
            raise
        processes.kill_others(trainer)
        where = f": {error.filename}" if error.filename else ""
        raise RunError(f"{error.strerror}{where}{_resume_hint(folder)}") from error


def _resume_hint(folder: Path | None, options: str = "") -> str:
    saved = folder and _to_resume(folder / "checkpoints" / "last.ckpt")
    if not saved:
        return "; nothing was saved"
    path, content = saved
    return f"; {_command('fit', path, options)} resumes from step {content['global_step']}"


def _to_resume(last: Path) -> tuple[Path, dict[str, Any]] | None:
    """last.ckpt, or a best.ckpt or step_N.ckpt where the run ended before the first one."""
    with contextlib.suppress(UsageError):
        return last, checkpoint.read(last)
    return checkpoint.newest_whole(last)


def _command(verb: str, path: Path, options: str = "") -> str:
    return f"gptlit {verb} --ckpt_path {shlex.quote(str(path))}{options}"


def closing(trainer: L.Trainer, stopping: Stopping, folder: Path | None, seconds: float) -> str:
    """What has come of a run, a line each: best and last, and the commands that use them.

    Args:
        trainer: After its fit.
        stopping: As for `fit`.
        folder: Of the run; None if it has none.
        seconds: That the fit took.
    """
    head = f"done at step {trainer.global_step:,}"
    more = ""  # what a run that has come to its end needs to go on
    patience = trainer.early_stopping_callback
    if stopping.cause:
        head = f"stopped by {NAMES[stopping.cause]} after step {trainer.global_step:,}"
    elif trainer.should_stop and isinstance(patience, Patience):
        head += f": {patience.monitor} did not improve in {patience.wait_count} validations"
        more = f" --early_stopping.patience {2 * patience.patience}"
    elif 0 < trainer.max_steps <= trainer.global_step:
        more = f" --trainer.max_steps {2 * trainer.max_steps}"
    elif trainer.max_epochs is not None and trainer.max_epochs > 0:
        more = f" --trainer.max_epochs {2 * trainer.max_epochs}"
    paths = [folder / "checkpoints" / f"{name}.ckpt" for name in ("best", "last")] if folder else []
    saved = [path for path in paths if path.exists()]
    rows = {path.stem: f"{checkpoint.evaluation(checkpoint.read(path))}, {path}" for path in saved}
    if saved:
        rows["resume"] = _command("fit", saved[-1], more)
        rows["write"] = _command("predict", saved[0])
    for callback in trainer.callbacks:
        if isinstance(callback, Overfitting) and (finding := callback.seen.finding):
            rows["note"] = f"{finding}; {overfitting.ADVICE}"
    rows["time"] = duration(seconds)
    return "\n".join([head, *(f"  {name:<8}{value}" for name, value in rows.items())])
