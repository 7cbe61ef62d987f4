"""Checks that the metrics that callbacks monitor are logged, and logged in time."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch.callbacks import Callback, EarlyStopping, LambdaCallback, LearningRateMonitor

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
    # a callback of the user's can log metrics that only its author can name
    may_log = any(
        isinstance(each, LambdaCallback) or not is_from(each, "gptlit", "lightning")
        for each in callbacks
    )
    logs_rates = any(isinstance(each, LearningRateMonitor) for each in callbacks)
    for callback in callbacks:
        monitor = None if is_from(callback, "gptlit") else getattr(callback, "monitor", None)
        if not isinstance(monitor, str) or monitor in names:
            continue
        if logs_rates and monitor.startswith("lr-"):
            continue
        error = UsageError(
            f"{type(callback).__name__} monitors it, but this run logs "
            f"{', '.join(names) or 'nothing'}.{did_you_mean(monitor, names)}",
            "trainer.callbacks.monitor",
            monitor,
        )
        if getattr(callback, "strict", True) and not may_log:
            raise error
        if processes.on_rank_zero():
            note(f"warning: {error}")


def check_in_time(trainer: Any, steps_per_epoch: int, run_length: int | None) -> None:
    """Refuse an EarlyStopping that reads its metric before the metric is first logged.

    Args:
        trainer: Lightning's Trainer at the start of a fit.
        steps_per_epoch: Number of optimizer steps per epoch.
        run_length: Number of optimizer steps of the whole run; None if it has no end.

    Raises:
        UsageError: The message names the metric and the steps at which it is logged and read.
    """
    if trainer.fast_dev_run:
        return
    intervals: dict[str, int] = dict.fromkeys(STEP_METRICS, trainer.log_every_n_steps)
    intervals["train/loss_epoch"] = steps_per_epoch
    for callback in trainer.callbacks:
        if not isinstance(callback, EarlyStopping) or not callback.strict:
            continue
        if not (interval := intervals.get(callback.monitor)):
            continue  # check_monitored refuses metrics that are never logged
        per_epoch = callback.monitor == "train/loss_epoch"
        logged_at = _next_multiple(interval, trainer.global_step)
        read_at, too_late = run_length or logged_at, False
        validation_interval = _steps_between_validations(trainer)
        if validation_interval and not loop_state.checks_on_epoch_end(callback):
            read_at = min(read_at, _next_multiple(validation_interval, trainer.global_step))
            # a validation after an epoch's last step precedes the metrics of the epoch
            too_late = per_epoch and read_at == logged_at
        if logged_at > read_at or too_late:
            raise UsageError(
                f"EarlyStopping reads it at step {read_at}, but it is first logged at step "
                f"{logged_at}; "
                + ("set check_on_train_epoch_end true in a run of whole epochs, or " * per_epoch)
                + "monitor val/loss or train/loss_eval",
                "trainer.callbacks.monitor",
                callback.monitor,
            )


def _next_multiple(interval: int, step: int) -> int:
    return (step // interval + 1) * interval


def _steps_between_validations(trainer: Any) -> int:
    """Return the optimizer steps between two validations; 0 if epochs or the time decide."""
    interval = trainer.val_check_interval
    by_steps = trainer.check_val_every_n_epoch is None and isinstance(interval, int)
    return interval // trainer.accumulate_grad_batches if by_steps else 0


def is_from(callback: Callback, *packages: str) -> bool:
    """Whether a callback's class is defined in one of the packages."""
    return type(callback).__module__.partition(".")[0] in packages
