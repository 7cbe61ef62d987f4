"""Ending a run before its end, so that going on leaves no trace: by a signal or by time."""

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
from gptlit.training.loop_state import (
    cluster_environment,
    has_stepped,
    is_over,
    stop_as_by_sigterm,
)

# what asks for the end, beside signals, which win: they are 128 and their number
NOTHING, TIME, SIGNAL = 0, 1, 128
NAMES = {
    TIME: opt("trainer.max_time"),
    **{SIGNAL + number: name for number, name in signals.NAMES.items()},
}
LONGEST_STEPS = 10  # that a run has to end in, where they take longer than `signals.LIMIT_S`


class Stopping(Timer):
    """Lets a run end when it is asked to: after the optimizer step in hand, wherever it is.

    | asked while              | the run ends                                        | exit code |
    | ------------------------ | --------------------------------------------------- | --------- |
    | a step is made           | after it, all of its batches accumulated            | see below |
    | validating               | at once: it is made again, whole, by who goes on    |           |
    | writing sample text      | when that is written and the checkpoint saved       |           |
    | the last validation      | as it would have                                    | 0         |

    Ctrl-C ends by exit code 130, SIGTERM by 143, SIGHUP by 129, time by 0. A second Ctrl-C ends at
    once, with nothing saved. A second SIGTERM or SIGHUP gives the run `signals.LIMIT_S` seconds, or
    ten times what the slowest step so far took with all that belongs to it. Of several processes
    all end after the same step, whichever was asked.

    `RunCheckpoint` saves, and Lightning then leaves its loops where it does so for SIGTERM: with
    all figures logged. Its own handler isn't used, since that one leaves between two batches of
    a step, nor is its `Timer`, after which it validates out of turn. Jobs that SLURM puts back
    into its queue are Lightning's, signals and all.

    Args:
        max_time: As for Lightning's `Timer`; of this process alone, so that it counts anew for
            whoever goes on.
    """

    def __init__(self, max_time: str | timedelta | dict[str, int] | None = None) -> None:
        super().__init__(max_time, verbose=False)
        self.cause = NOTHING
        self.asked = NOTHING  # the signal that came, also one that came when all was done
        self._left_to_lightning: set[int] = set()
        self._alive_at = time.monotonic()
        self._longest = 0.0  # seconds between two signs of life

    def state_dict(self) -> dict[str, Any]:
        return {}

    def on_fit_start(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        """Nothing: there is no time left over from before."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        cluster = cluster_environment(trainer)
        if isinstance(cluster, SLURMEnvironment) and cluster.auto_requeue:
            self._left_to_lightning = {signal.SIGTERM}
        else:
            signals.install(
                signal.SIGINT
            )  # in the place of Lightning's, which puts it back after the fit
        self._alive_at = time.monotonic()
        signals.take(self._on_signal)

    def _on_signal(self, number: int) -> None:
        if number in self._left_to_lightning:
            return
        if self.asked and number == signal.SIGINT:
            signals.end_at_once(number)
        self.asked = number
        if number == signal.SIGINT and is_first_process():
            # print() may be what was interrupted
            with contextlib.suppress(OSError):
                os.write(
                    2, b"\ngptlit: stopping after this step; press Ctrl-C again to stop at once\n"
                )

    def _is_alive(self) -> None:
        now = time.monotonic()
        self._longest = max(self._longest, now - self._alive_at)
        self._alive_at = now
        signals.state.limit = max(signals.LIMIT_S, LONGEST_STEPS * self._longest)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        self._is_alive()
        if has_stepped(trainer):
            self._decide(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        self._is_alive()
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._decide(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._decide(trainer)

    def _decide(self, trainer: L.Trainer) -> None:
        if is_over(trainer) or self.cause:
            return
        left = self.time_remaining()
        by_time = TIME if left is not None and left <= 0 else NOTHING
        self.cause = SIGNAL + self.asked if self.asked else by_time
        if trainer.world_size > 1:
            asked = torch.tensor(self.cause, device=trainer.strategy.root_device)
            self.cause = int(trainer.strategy.reduce(asked, reduce_op="max"))
        if self.cause:
            stop_as_by_sigterm(trainer)

    @property
    def exit_code(self) -> int:
        """What the process ends by, as shells have it for signals."""
        return self.cause if self.cause > TIME else 0


class Patience(EarlyStopping):
    """Ends a run whose validations are no longer better than the best before.

    The count goes on where a run goes on; the patience is that of now.

    Args:
        patience: How many validations in a row may bring no improvement.
    """

    def __init__(self, patience: int) -> None:
        super().__init__("val/loss", patience=patience, check_on_train_epoch_end=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({**state_dict, "patience": self.patience})
