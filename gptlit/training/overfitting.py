"""Notices overfitting: the validation loss rises, or is far above that on the training text."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from gptlit.messages import opt

RISE = 0.1  # nats above the lowest validation loss
TIMES = 2  # validations in a row
GAP = 1.0  # nats between the validation loss and that on the training text
ADVICE = (
    f"try more text, {opt('model.dropout')} 0.2, a smaller model or "
    f"{opt('early_stopping.patience')} 3"
)


@dataclass
class Seen:
    """What the validations of a run have shown so far.

    Args:
        lowest: The lowest val/loss.
        lowest_at: Its step.
        last: The last val/loss.
        last_gap: The last val/gap.
        n_above: Validations in a row with val/loss RISE or more above the lowest, and above that on
            the training text.
        has_warned: Whether a warning was given.
    """

    lowest: float = math.inf
    lowest_at: int = 0
    last: float = math.inf
    last_gap: float = 0.0
    n_above: int = 0
    has_warned: bool = False

    def add(self, step: int, loss: float, gap: float) -> bool:
        """Take a validation's figures into account; whether to warn now, once in a run."""
        if loss < self.lowest:
            self.lowest, self.lowest_at = loss, step
        self.last, self.last_gap = loss, gap
        self.n_above = self.n_above + 1 if self._is_risen else 0
        warns = not self.has_warned and (self.n_above >= TIMES or gap > GAP)
        self.has_warned = self.has_warned or warns
        return warns

    @property
    def _is_risen(self) -> bool:
        # where the training text is no better predicted either, training is unstable instead
        return self.last >= self.lowest + RISE and self.last_gap > 0

    @property
    def finding(self) -> str:
        """What the last validation shows; "" if the model doesn't overfit."""
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
    """Has a warning, once, when val/loss was RISE above its lowest in TIMES validations, or
    val/gap is above GAP. `Report` prints it; the end of the run repeats what is still so."""

    def __init__(self) -> None:
        self.seen = Seen()
        self.warning = ""  # of the last validation

    @property
    def state_key(self) -> str:
        # names what is monitored, so that another validation text makes it begin anew
        return self._generate_state_key(monitor="val/loss")

    def state_dict(self) -> dict[str, Any]:
        return asdict(self.seen)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seen = Seen(**state_dict)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        figures = trainer.callback_metrics
        if trainer.state.fn != "fit" or trainer.sanity_checking or "val/loss" not in figures:
            return
        loss, gap = (figures[f"val/{name}"].item() for name in ("loss", "gap"))
        warns = self.seen.add(trainer.global_step, loss, gap)
        self.warning = f"warning: {self.seen.finding}; {ADVICE}" if warns else ""
