"""Checks that the metrics which callbacks monitor are logged, and logged in time."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    LambdaCallback,
    LearningRateMonitor,
)

from gptlit.messages import UsageError, did_you_mean, note
from gptlit.training import loop_state, processes
from gptlit.training.logged_metrics import STEP_METRICS


def check_monitored(callbacks: Sequence[Callback], names: Sequence[str]) -> None:
    """Refuse a callback that monitors a metric which is never logged.

    Where a user's callback may log metrics of its own, warn instead.

    Args:
        callbacks: Callbacks of the run.
        names: Metrics that the run logs.

    Raises:
        UsageError: The message names the callback, the metric and the nearest logged one.
    """
    for callback in callbacks:
        monitor = None if is_from("gptlit", callback) else getattr(callback, "monitor", None)
        if not isinstance(monitor, str) or monitor in names:
            continue
        if monitor.startswith("lr-") and _any(callbacks, LearningRateMonitor):
            continue
        error = UsageError(
            f"{type(callback).__name__} monitors it, but this run logs "
            f"{', '.join(names) or 'nothing'}.{did_you_mean(monitor, names)}",
            "trainer.callbacks.monitor",
            monitor,
        )
        if getattr(callback, "strict", True) and not _may_log(callbacks):
            raise error
        if processes.on_rank_zero():
            note(f"warning: {error}")


def check_in_time(trainer: Any, steps_per_epoch: int, run_length: int | None) -> None:
    """Refuse an EarlyStopping that reads its metric before the metric is first logged.

    Args:
        trainer: Lightning's Trainer, about to fit.
        steps_per_epoch: Number of optimizer steps per epoch.
        run_length: Number of optimizer steps of the whole run; None if it has no end.

    Raises:
        UsageError: The message names the metric and the steps at which it is logged and read.
    """
    if trainer.fast_dev_run:
        return
    every: dict[str, int] = dict.fromkeys(STEP_METRICS, trainer.log_every_n_steps)
    every["train/loss_epoch"] = steps_per_epoch
    for callback in trainer.callbacks:
        if not isinstance(callback, EarlyStopping) or not every.get(callback.monitor):
            continue  # check_monitored refuses metrics that are never logged
        per_epoch = callback.monitor == "train/loss_epoch"
        logged_at = _next(trainer.global_step, every[callback.monitor])
        read_at, too_late = run_length or logged_at, False
        if not loop_state.checks_on_epoch_end(callback) and (
            interval := _steps_to_validation(trainer)
        ):
            read_at = min(read_at, _next(trainer.global_step, interval))
            # a validation after an epoch's last step precedes the metrics of the epoch
            too_late = per_epoch and read_at == logged_at
        if callback.strict and (logged_at > read_at or too_late):
            raise UsageError(
                f"EarlyStopping reads it at step {read_at}, but it is first logged at step "
                f"{logged_at}; "
                + ("set check_on_train_epoch_end true in a run of whole epochs, or " * per_epoch)
                + "monitor val/loss or train/loss_eval",
                "trainer.callbacks.monitor",
                callback.monitor,
            )


def _next(step: int, every: int) -> int:
    return (step // every + 1) * every


def _steps_to_validation(trainer: Any) -> int:
    """Optimizer steps between two validations; 0 where epochs or time decide."""
    interval = trainer.val_check_interval
    by_steps = trainer.check_val_every_n_epoch is None and isinstance(interval, int)
    return interval // trainer.accumulate_grad_batches if by_steps else 0


def is_from(package: str, callback: Callback) -> bool:
    """Whether a callback's class is defined in a package."""
    return type(callback).__module__.partition(".")[0] == package


def _any(callbacks: Sequence[Callback], kind: type[Callback]) -> bool:
    return any(isinstance(each, kind) for each in callbacks)


def _may_log(callbacks: Sequence[Callback]) -> bool:
    """Whether one of the callbacks may log metrics that only its author can name."""
    return _any(callbacks, LambdaCallback) or any(
        not is_from("gptlit", each) and not is_from("lightning", each) for each in callbacks
    )
