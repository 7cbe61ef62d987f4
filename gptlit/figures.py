"""The figures that a run logs, and the check that what callbacks monitor is among them."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch.callbacks import Callback, LambdaCallback, LearningRateMonitor

from gptlit import runs
from gptlit.messages import UsageError, did_you_mean, note

OF_STEPS = ("optim/lr", "optim/grad_norm", "speed/step_ms", "speed/tokens_per_s")
OF_VALIDATIONS = ("val/loss", "val/perplexity", "val/bits_per_byte", "val/gap")


def logged(trainer: Any, has_validation: bool) -> list[str]:
    """Names of the figures that a fit logs, where it is long enough to come to them.

    Args:
        trainer: Lightning's, of the run.
        has_validation: Whether the text has a validation split.
    """
    if trainer.barebones:
        return []
    names = ["train/loss", "train/loss_epoch"]
    if trainer.log_every_n_steps:
        names += OF_STEPS
    if trainer.limit_val_batches:
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
        if runs.on_rank_zero():
            note(f"warning: {message}")


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
