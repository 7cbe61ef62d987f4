"""Warns of overfitting: val/loss rises or doesn't improve, or is far above the training loss."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from gptlit.messages import opt
from gptlit.training import loop_state
from gptlit.training.module import LitGPT
from gptlit.training.options import ModelOptions

RISE = 0.1  # nats above the lowest validation loss
TIMES = 2  # validations in a row
GAP = 1.0  # nats between val/loss and the loss on the training text
STALE = 10  # validations in a row without a lower val/loss, while the gap grows
RAISED = ("dropout", "token_dropout", "weight_decay")  # options of the model


def advice(options: ModelOptions) -> str:
    """Name the options of a run that overfits, with their values, and which way to change them."""
    now = [f"{opt(f'model.{name}')} ({getattr(options, name):g})" for name in RAISED]
    return (
        f"raise {', '.join(now[:-1])} or {now[-1]}, or the size of the text; or lower "
        f"{opt('model.n_embd')} ({options.n_embd}) or {opt('trainer.max_steps')}; "
        f"{opt('early_stopping.patience')} {STALE} ends such a run"
    )


@dataclass
class LossHistory:
    """The lowest and the last loss of a run's validations, and whether the model overfits.

    Args:
        lowest: Lowest val/loss.
        lowest_at: Step of the lowest val/loss.
        last: Last val/loss.
        last_gap: Last val/gap.
        n_above: Number of validations in a row with val/loss RISE or more above the lowest, and
            above the loss on the training text.
        has_warned: Whether the run has warned.
        n_since_lowest: Number of validations after that of the lowest val/loss.
        gap_at_lowest: val/gap with the lowest val/loss; infinite if an older version saved none.
    """

    lowest: float = math.inf
    lowest_at: int = 0
    last: float = math.inf
    last_gap: float = 0.0
    n_above: int = 0
    has_warned: bool = False
    n_since_lowest: int = 0
    gap_at_lowest: float = math.inf

    def add(self, step: int, loss: float, gap: float) -> bool:
        """Add the results of a validation; return whether to warn now, once in a run."""
        self.n_since_lowest += 1
        if loss < self.lowest:
            self.lowest, self.lowest_at = loss, step
            self.n_since_lowest, self.gap_at_lowest = 0, gap
        self.last, self.last_gap = loss, gap
        self.n_above = self.n_above + 1 if self._is_risen else 0
        found = self.n_above >= TIMES or gap > GAP or self._is_stale
        warns = found and not self.has_warned
        self.has_warned = self.has_warned or warns
        return warns

    @property
    def _is_risen(self) -> bool:
        # without a gap the loss on the training text rises too: training is unstable
        return self.last >= self.lowest + RISE and self.last_gap > 0

    @property
    def _is_stale(self) -> bool:
        return self.n_since_lowest >= STALE and self.last_gap > self.gap_at_lowest

    @property
    def finding(self) -> str:
        """Describe the last validation's overfitting; "" if there is none."""
        if math.isinf(self.lowest):
            return ""
        if self._is_risen:
            found = f"val/loss is {self.last:.4f} (gap {self.last_gap:+.4f})"
        elif self.last_gap > GAP:
            found = (
                f"val/loss {self.last:.4f} is {self.last_gap:.4f} above the loss on the training "
                "text"
            )
        elif self._is_stale:
            found = (
                f"val/loss has not improved for {self.n_since_lowest} validations, and the gap "
                f"grew from {self.gap_at_lowest:+.4f} to {self.last_gap:+.4f}"
            )
        else:
            return ""
        return (
            f"the model overfits: {found}; best.ckpt keeps step {self.lowest_at:,}, with val/loss "
            f"{self.lowest:.4f}"
        )


class Overfitting(Callback):
    """Warns once when the `LossHistory` of a run shows overfitting.

    `Report` prints the warning, and the run's summary repeats a finding that is still true.
    """

    ADDED_STATE = ("n_since_lowest", "gap_at_lowest")  # which older checkpoints don't have

    def __init__(self) -> None:
        self.history = LossHistory()
        self.warning = ""  # of the last validation

    @property
    def state_key(self) -> str:
        # names the metric, so that a resume with another validation text starts anew
        return loop_state.state_key(self, monitor="val/loss")

    def state_dict(self) -> dict[str, Any]:
        return asdict(self.history)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = LossHistory(**state_dict)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        metrics = trainer.callback_metrics
        if trainer.state.fn != "fit" or trainer.sanity_checking or "val/loss" not in metrics:
            return
        loss, gap = (metrics[f"val/{name}"].item() for name in ("loss", "gap"))
        warns = self.history.add(trainer.global_step, loss, gap)
        assert isinstance(pl_module, LitGPT)
        finding, what_to_change = self.history.finding, advice(pl_module.options)
        self.warning = f"warning: {finding}; {what_to_change}" if warns else ""
