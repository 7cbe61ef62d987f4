"""The figures that a run logs, and the check that what callbacks monitor is among them."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    LambdaCallback,
    LearningRateMonitor,
)

from gptlit.messages import UsageError, did_you_mean, note
from gptlit.training import processes

OF_STEPS = ("optim/lr", "optim/grad_norm", "speed/step_ms", "speed/tokens_per_s")
OF_VALIDATIONS = ("val/loss", "val/perplexity", "val/bits_per_byte", "val/gap")


def logged(trainer: Any, has_validation: bool) -> list[str]:
    """Names of the figures that a fit logs, where it is long enough to come to them.

    Args:
        trainer: Lightning's, or its options.
        has_validation: Whether the text has a validation split.
    """
    if trainer.barebones:
        return []
    names = ["train/loss", "train/loss_epoch"]
    if trainer.log_every_n_steps:
        names += OF_STEPS
    if trainer.limit_val_batches != 0 or trainer.overfit_batches:
        names += ["train/loss_eval", *(OF_VALIDATIONS if has_validation else ())]
    return names


def check_monitored(callbacks: Sequence[Callback], names: Sequence[str]) -> None:
    """Find a callback that monitors a figure which is never logged, before training.

    Where callbacks of the user's own may log figures too, it is only noted.

    Args:
        callbacks: Of the run; gptlit's own know what is logged.
        names: The figures that are logged.

    Raises:
        UsageError: names the callback, the figure and the nearest one that is logged.
    """
    for callback in callbacks:
        monitor = None if _is_gptlits(callback) else getattr(callback, "monitor", None)
        if not isinstance(monitor, str) or monitor in names:
            continue
        if monitor.startswith("lr-") and _any(callbacks, LearningRateMonitor):
            continue
        message = (
            f"--trainer.callbacks.monitor {monitor}: {type(callback).__name__} waits for it, and "
            f"this run logs {', '.join(names) or 'nothing'}.{did_you_mean(monitor, names)}"
        )
        if getattr(callback, "strict", True) and not _may_log(callbacks):
            raise UsageError(message)
        if processes.on_rank_zero():
            note(f"warning: {message}")


def check_in_time(trainer: Any, steps_per_epoch: int, run_length: int | None) -> None:
    """Find an EarlyStopping that looks at its figure before that is logged for the first time.

    Args:
        trainer: Lightning's, about to fit.
        steps_per_epoch: Optimizer steps of an epoch.
        run_length: Optimizer steps of the whole run; None if it has no end.

    Raises:
        UsageError: names the figure, and the steps at which it is logged and looked at.
    """
    if trainer.fast_dev_run:
        return  # nothing stops early
    every: dict[str, int] = dict.fromkeys(OF_STEPS, trainer.log_every_n_steps)
    every["train/loss_epoch"] = steps_per_epoch
    for callback in trainer.callbacks:
        if not isinstance(callback, EarlyStopping) or not every.get(callback.monitor):
            continue  # what is never logged was found before
        of_epochs = callback.monitor == "train/loss_epoch"
        logged_at = _next(trainer.global_step, every[callback.monitor])
        looked_at, too_late = run_length or logged_at, False
        if not callback._check_on_train_epoch_end and (interval := _steps_to_validation(trainer)):
            looked_at = min(looked_at, _next(trainer.global_step, interval))
            # a validation after an epoch's last step comes before the figures of the epoch
            too_late = of_epochs and looked_at == logged_at
        if callback.strict and (logged_at > looked_at or too_late):
            raise UsageError(
                f"--trainer.callbacks.monitor {callback.monitor}: EarlyStopping looks at it at "
                f"step {looked_at}, and it is first logged at step {logged_at}; "
                + ("give check_on_train_epoch_end true and a run of whole epochs, or " * of_epochs)
                + "monitor val/loss or train/loss_eval"
            )


def _next(step: int, every: int) -> int:
    return (step // every + 1) * every


def _steps_to_validation(trainer: Any) -> int:
    """Optimizer steps between two validations by steps; 0 where they go by epochs or time."""
    interval = trainer.val_check_interval
    by_steps = trainer.check_val_every_n_epoch is None and isinstance(interval, int)
    return interval // trainer.accumulate_grad_batches if by_steps else 0


def _is_gptlits(callback: Callback) -> bool:
    """Whether a callback is one of gptlit's own."""
    return type(callback).__module__.startswith(f"{__package__}.")


def _any(callbacks: Sequence[Callback], kind: type[Callback]) -> bool:
    return any(isinstance(each, kind) for each in callbacks)


def _may_log(callbacks: Sequence[Callback]) -> bool:
    """Whether one of them may log figures that only its author knows."""
    return _any(callbacks, LambdaCallback) or any(
        not _is_gptlits(each) and not type(each).__module__.startswith("lightning.")
        for each in callbacks
    )
