"""Stops a run early, by a signal, by time or by patience, so that a resume continues exactly."""

import contextlib
import os
import signal
import time
from datetime import timedelta
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.trainer.states import TrainerFn

from gptlit import signals
from gptlit.messages import is_first_process, opt
from gptlit.training import loop_state
from gptlit.training.loop_state import has_stepped, is_over

# causes of a stop; a signal's is 128 + its number, and wins over the others
NOTHING, TIME, SIGNAL = 0, 1, 128
NAMES = {
    TIME: opt("trainer.max_time"),
    **{SIGNAL + number: name for number, name in signals.NAMES.items()},
}
MAX_STEPS_TO_END = 10  # steps whose time a run has to end, if longer than `signals.LIMIT_S`


class Stopping(Timer):
    """Stops a run after the current optimizer step, on a signal or after `max_time`.

    | stopped during           | the run ends                                        | exit code |
    | ------------------------ | --------------------------------------------------- | --------- |
    | a step                   | after it, with all its batches accumulated          | see below |
    | a validation             | at once; a resume repeats the whole validation      |           |
    | the writing of a sample  | when that is written and the checkpoint saved       |           |
    | the last validation      | after it, as it would have anyway                   | 0         |

    The exit code is 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP and 0 for `max_time`. A second
    Ctrl-C ends the run at once without saving. A second SIGTERM or SIGHUP leaves it
    `signals.LIMIT_S` seconds, or ten times its slowest step if that is longer. All processes of a
    run end after the same step, whichever of them received the signal.

    `RunCheckpoint` saves, and Lightning leaves its loops as after SIGTERM, with all metrics logged.
    Lightning's own handler would stop between two batches of a step, and its `Timer` would run an
    extra validation. Signals of jobs that SLURM requeues are left to Lightning.

    Args:
        max_time: Duration as for Lightning's `Timer`, but counted anew after a resume.
    """

    def __init__(self, max_time: str | timedelta | dict[str, int] | None = None) -> None:
        super().__init__(max_time, verbose=False)
        self.cause = NOTHING
        self.last_signal = NOTHING  # also one that came too late to stop the run
        self._left_to_lightning: set[int] = set()
        self._progress_at = time.monotonic()
        self._longest_pause = 0.0  # seconds between two batches

    def state_dict(self) -> dict[str, Any]:
        return {}

    def on_fit_start(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        """Do nothing: Timer would restore the time that is left."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        cluster = loop_state.cluster_environment(trainer)
        if isinstance(cluster, SLURMEnvironment) and cluster.auto_requeue:
            self._left_to_lightning = {signal.SIGTERM}
        else:
            # replaces Lightning's handler, which restores this one after the fit
            signals.install(signal.SIGINT)
        self._progress_at = time.monotonic()
        signals.delegate(self._on_signal)

    def _on_signal(self, number: int) -> None:
        if number in self._left_to_lightning:
            return
        if self.last_signal and number == signal.SIGINT:
            signals.end_at_once(number)
        self.last_signal = number
        if number == signal.SIGINT and is_first_process():
            # the signal may have interrupted print()
            with contextlib.suppress(OSError):
                message = "stopping after this step; press Ctrl-C again to stop at once"
                os.write(2, f"\ngptlit: {message}\n".encode())

    def _record_progress(self) -> None:
        now = time.monotonic()
        self._longest_pause = max(self._longest_pause, now - self._progress_at)
        self._progress_at = now
        signals.state.limit = max(signals.LIMIT_S, MAX_STEPS_TO_END * self._longest_pause)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        self._record_progress()
        if has_stepped(trainer):
            self._stop_if_asked(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        self._record_progress()
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._stop_if_asked(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._stop_if_asked(trainer)

    def _stop_if_asked(self, trainer: L.Trainer) -> None:
        if is_over(trainer) or self.cause:
            return
        left = self.time_remaining()
        by_time = TIME if left is not None and left <= 0 else NOTHING
        self.cause = SIGNAL + self.last_signal if self.last_signal else by_time
        if trainer.world_size > 1:
            cause = torch.tensor(self.cause, device=trainer.strategy.root_device)
            self.cause = int(trainer.strategy.reduce(cause, reduce_op="max"))
        if self.cause:
            loop_state.stop_as_by_sigterm(trainer)

    @property
    def exit_code(self) -> int:
        """Exit code of the process: 128 + the number of the signal, as in shells; or 0."""
        return self.cause if self.cause > TIME else 0


class Patience(EarlyStopping):
    """Ends a run when val/loss has not improved in several validations.

    A resumed run continues the count, with its current patience.

    Args:
        patience: Number of validations in a row without improvement that end the run.
    """

    def __init__(self, patience: int) -> None:
        super().__init__("val/loss", patience=patience, check_on_train_epoch_end=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({**state_dict, "patience": self.patience})
