"""Warns of overfitting: val/loss rises, or is far above the loss on the training text."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from gptlit.messages import opt
from gptlit.training import loop_state

RISE = 0.1  # nats above the lowest validation loss
TIMES = 2  # validations in a row
GAP = 1.0  # nats between val/loss and the loss on the training text
ADVICE = (
    f"try more text, {opt('model.dropout')} 0.2, a smaller model or "
    f"{opt('early_stopping.patience')} 3"
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
    """

    lowest: float = math.inf
    lowest_at: int = 0
    last: float = math.inf
    last_gap: float = 0.0
    n_above: int = 0
    has_warned: bool = False

    def add(self, step: int, loss: float, gap: float) -> bool:
        """Add the results of a validation; return whether to warn now, once in a run."""
        if loss < self.lowest:
            self.lowest, self.lowest_at = loss, step
        self.last, self.last_gap = loss, gap
        self.n_above = self.n_above + 1 if self._is_risen else 0
        warns = not self.has_warned and (self.n_above >= TIMES or gap > GAP)
        self.has_warned = self.has_warned or warns
        return warns

    @property
    def _is_risen(self) -> bool:
        # without a gap the loss on the training text rises too: training is unstable
        return self.last >= self.lowest + RISE and self.last_gap > 0

    @property
    def finding(self) -> str:
        """Describe the last validation's overfitting; "" if there is none."""
        if math.isinf(self.lowest):
            return ""
        if self._is_risen:
            return (
                f"the model overfits: val/loss is {self.last:.4f} (gap {self.last_gap:+.4f}) and "
                f"was {self.lowest:.4f} at step {self.lowest_at:,} (best.ckpt)"
            )
        if self.last_gap > GAP:
            return (
                f"the model overfits: val/loss {self.last:.4f} is {self.last_gap:.4f} above the "
                "loss on the training text"
            )
        return ""


class Overfitting(Callback):
    """Warns once when val/loss was RISE above its lowest in TIMES validations, or val/gap > GAP.

    `Report` prints the warning, and the run's summary repeats a finding that is still true.
    """

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
        self.warning = f"warning: {self.history.finding}; {ADVICE}" if warns else ""
