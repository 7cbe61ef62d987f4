"""Stops a run when the loss or a gradient is not finite, before anything is saved."""

import math
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from gptlit import plain_data
from gptlit.messages import RunError, UsageError, note, opt
from gptlit.optim.optimizers import total_norm
from gptlit.training.loop_state import has_stepped
from gptlit.training.module import LitGPT

MIN_LOSS = 1.0  # nats; a rise below it is not a divergence
CHECK_EVERY = 50  # steps, if nothing is logged


class NotFinite(RunError):
    """The loss, a gradient or a weight is not finite."""


@dataclass(frozen=True)
class Step:
    """An optimizer step that is not checked yet: its norm and loss are still on the device."""

    number: int
    lr: float
    norm: Tensor
    loss: Tensor


class Guard(Callback):
    """Stops a run with an error when its loss or gradients become NaN or infinite.

    The gradient norm and loss of each step stay on the device until metrics are logged, a
    validation begins or a checkpoint is saved, so that no step waits for them and no checkpoint has
    non-finite values. In 16-bit mixed precision only the loss is checked, since its scaler skips
    steps with infinite gradients.

    Args:
        skip_nonfinite: Number of non-finite steps of a run to skip instead of stopping; weights and
            optimizer don't change, and each step waits for its gradient norm.
        diverged: Warn once when the mean loss since the last logging is this many times the lowest
            such mean, which counts as at least 1 nat; 0 for never.
    """

    def __init__(self, skip_nonfinite: int = 0, diverged: float = 1.5) -> None:
        if skip_nonfinite < 0:
            raise UsageError("must be 0 or more", "guard.skip_nonfinite", skip_nonfinite)
        if diverged and not 1 < diverged < math.inf:
            raise UsageError("must be above 1, or 0 for never", "guard.diverged", diverged)
        self.skip_nonfinite = skip_nonfinite
        self.diverged = diverged
        self._norm: Tensor | None = None  # of the current step, unless it is skipped
        self._lr = 0.0
        self._steps: list[Step] = []  # since the last check
        self._norm_before = math.nan
        self._losses: list[float] = []  # since the last logging
        self._lowest = math.inf
        self._has_warned = False
        self._skipped = 0

    def state_dict(self) -> dict[str, Any]:
        return {
            "losses": self._losses + [float(step.loss) for step in self._steps],
            "lowest": self._lowest,
            "told": self._has_warned,  # the key in checkpoints of 0.1.0
            "skipped": self._skipped,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        plain_data.check(list[float], state_dict["losses"], "callbacks.Guard.losses")
        self._losses = list(state_dict["losses"])
        self._lowest = state_dict["lowest"]
        self._has_warned = state_dict["told"]
        self._skipped = state_dict["skipped"]

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        # the last group has the rate of the option lr: Muon's own group comes first
        self._lr = float(optimizer.param_groups[-1]["lr"])
        assert isinstance(pl_module, LitGPT)
        self._norm = norm = pl_module.gradients.norm(optimizer)
        may_skip = self._skipped < self.skip_nonfinite and not _has_scaler(trainer)
        if may_skip and not norm.isfinite():
            self._skipped, self._norm = self._skipped + 1, None
            pl_module.gradients.drop(optimizer)  # so that moments and decay don't change either
            if trainer.is_global_zero:
                note(
                    f"warning: step {trainer.global_step + 1}: gradient norm {norm:.3g}; skipped "
                    f"({self._skipped} of at most {self.skip_nonfinite})"
                )

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if not has_stepped(trainer):
            return
        if self._norm is not None:
            loss = outputs["loss"]  # of the step's last batch
            if (n_batches := trainer.accumulate_grad_batches) > 1:
                loss = loss * n_batches  # Lightning has divided it
            self._steps.append(Step(trainer.global_step, self._lr, self._norm, loss))
        if trainer.global_step % (trainer.log_every_n_steps or CHECK_EVERY) == 0:
            self._check(trainer)
            self._warn_if_risen(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._check(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for name in ("val/loss", "train/loss_eval"):
            loss = float(trainer.callback_metrics.get(name, 0.0))
            if trainer.state.fn == TrainerFn.FITTING and not math.isfinite(loss):
                raise self._error(trainer, f"{name} is {loss}")

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._check(trainer)
        if not total_norm(p.detach() for p in pl_module.parameters()).isfinite():
            raise self._error(trainer, "the weights are not finite")

    def _error(self, trainer: L.Trainer, problem: str) -> NotFinite:
        return NotFinite(
            f"step {trainer.global_step}: {problem} at learning rate {self._lr:.3g}; "
            f"{_advice(trainer)}"
        )

    def _check(self, trainer: L.Trainer) -> None:
        """Fetch the norms and losses of all steps since the last check from the device.

        Raises:
            NotFinite: The message names the first step that is not finite.
        """
        steps, self._steps = self._steps, []
        if not steps:
            return
        norms = torch.stack([step.norm for step in steps]).tolist()
        losses = torch.stack([step.loss for step in steps]).tolist()
        assert isinstance(trainer.lightning_module, LitGPT)
        trainer.lightning_module.train_loss.fetch()  # now, since the device has been waited for
        checked = zip(losses, losses if _has_scaler(trainer) else norms, strict=True)
        are_finite = [all(map(math.isfinite, pair)) for pair in checked]
        stops = not all(are_finite)
        if trainer.world_size > 1:  # each rank has a loss of its own
            stops = trainer.strategy.reduce_boolean_decision(stops, all=False)
        if not stops:
            self._losses += losses
            self._norm_before = norms[-1]
            return
        if all(are_finite):
            raise NotFinite(f"the loss in another process is not finite; {_advice(trainer)}")
        bad = are_finite.index(False)
        before = norms[bad - 1] if bad else self._norm_before
        what = "the gradient" if math.isfinite(losses[bad]) else "the loss"
        previous = "" if math.isnan(before) else f" after {before:.3g}"
        raise NotFinite(
            f"step {steps[bad].number}: {what} is not finite (loss {losses[bad]:.4g}, gradient "
            f"norm {norms[bad]:.3g}{previous}, learning rate {steps[bad].lr:.3g}); "
            f"{_advice(trainer)}, or {opt('guard.skip_nonfinite')} 3"
        )

    def _warn_if_risen(self, trainer: L.Trainer) -> None:
        """Warn once if the mean loss since the last logging is far above the lowest."""
        losses, self._losses = self._losses, []
        if not losses:
            return
        mean = math.fsum(losses) / len(losses)
        lowest = max(self._lowest, MIN_LOSS)
        if self.diverged and not self._has_warned and mean > self.diverged * lowest < math.inf:
            self._has_warned = True
            if trainer.is_global_zero:
                note(
                    f"warning: step {trainer.global_step}: the loss rose from "
                    f"{self._lowest:.3f} to {mean:.3f}; the run may be diverging; "
                    f"{_advice(trainer)}"
                )
        self._lowest = min(self._lowest, mean)


def _has_scaler(trainer: L.Trainer) -> bool:
    return getattr(trainer.precision_plugin, "scaler", None) is not None


def _advice(trainer: L.Trainer) -> str:
    """Return options to try against values that are not finite."""
    tips = [f"a lower {opt('model.lr')}", f"a longer {opt('model.warmup_steps')}"]
    if not trainer.gradient_clip_val or trainer.gradient_clip_val > 1:
        tips.append(f"{opt('trainer.gradient_clip_val')} 1")
    if str(trainer.precision).startswith("16"):
        tips.append(f"{opt('trainer.precision')} 32-true")
    return f"try {' or '.join([', '.join(tips[:-1]), tips[-1]])}"
