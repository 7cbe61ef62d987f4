"""A watch on loss and gradients: what is no number ends a run before it is saved."""

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

LOWEST = 1.0  # nats: a loss that grows by half below it is no divergence
LOOK_EVERY = 50  # steps, where nothing is logged


class NotFinite(RunError):
    """Loss, gradients or weights are no longer numbers."""


@dataclass(frozen=True)
class Step:
    """An optimizer step whose figures are still on the device."""

    number: int
    lr: float
    norm: Tensor
    loss: Tensor


class Guard(Callback):
    """Ends a run by a message when its loss or gradients become NaN or infinite.

    Each step's gradient norm and loss stay on the device until figures are logged, a validation
    begins or a checkpoint is saved: no step waits for them, and what is saved is finite. Under
    16-bit mixed precision infinite gradients are expected now and then, and its scaler skips
    such steps; there the loss alone is watched.

    Args:
        skip_nonfinite: Skip up to so many such steps of a run instead, weights and optimizer
            left as they are; each step then waits for its gradient norm.
        diverged: Warn, once, when the loss since it was last logged is on average so many times
            the lowest such mean, which counts as 1 nat at least; 0 for never.
    """

    def __init__(self, skip_nonfinite: int = 0, diverged: float = 1.5) -> None:
        if skip_nonfinite < 0:
            raise UsageError("must be 0 or more", "guard.skip_nonfinite", skip_nonfinite)
        if diverged and not 1 < diverged < math.inf:
            raise UsageError("must be above 1, or 0 for never", "guard.diverged", diverged)
        self.skip_nonfinite = skip_nonfinite
        self.diverged = diverged
        self._norm: Tensor | None = None  # of the step that is being made, unless it is skipped
        self._lr = 0.0
        self._steps: list[Step] = []  # not looked at yet
        self._norm_before = math.nan
        self._losses: list[float] = []  # since they were last logged
        self._lowest = math.inf
        self._told = False
        self._skipped = 0

    def state_dict(self) -> dict[str, Any]:
        return {
            "losses": self._losses + [float(step.loss) for step in self._steps],
            "lowest": self._lowest,
            "told": self._told,
            "skipped": self._skipped,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        plain_data.check(list[float], state_dict["losses"], "callbacks.Guard.losses")
        self._losses = list(state_dict["losses"])
        self._lowest = state_dict["lowest"]
        self._told = state_dict["told"]
        self._skipped = state_dict["skipped"]

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self._lr = float(optimizer.param_groups[-1]["lr"])  # that of --model.lr, also by Muon
        assert isinstance(pl_module, LitGPT)
        self._norm = norm = pl_module.gradients.norm(optimizer)
        may_skip = self._skipped < self.skip_nonfinite and not _has_scaler(trainer)
        if may_skip and not norm.isfinite():
            self._skipped, self._norm = self._skipped + 1, None
            pl_module.gradients.drop(optimizer)  # which leaves moments and decay alone as well
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
            # of the batches that a step accumulates the last one's, which Lightning has divided
            loss = outputs["loss"] * trainer.accumulate_grad_batches
            self._steps.append(Step(trainer.global_step, self._lr, self._norm, loss))
        if trainer.global_step % (trainer.log_every_n_steps or LOOK_EVERY) == 0:
            self._look(trainer)
            self._compare(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._look(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for name in ("val/loss", "train/loss_eval"):
            loss = float(trainer.callback_metrics.get(name, 0.0))
            if trainer.state.fn == TrainerFn.FITTING and not math.isfinite(loss):
                raise NotFinite(
                    f"step {trainer.global_step}: {name} is {loss} at learning rate "
                    f"{self._lr:.3g}; {_advice(trainer)}"
                )

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._look(trainer)
        if not total_norm(p.detach() for p in pl_module.parameters()).isfinite():
            raise NotFinite(
                f"step {trainer.global_step}: the weights are not finite at learning rate "
                f"{self._lr:.3g}; {_advice(trainer)}"
            )

    def _look(self, trainer: L.Trainer) -> None:
        """Fetch the figures of all steps since the last look from the device, at once.

        Raises:
            NotFinite: names the first step whose figures aren't.
        """
        steps, self._steps = self._steps, []
        if not steps:
            return
        norms = torch.stack([step.norm for step in steps]).tolist()
        losses = torch.stack([step.loss for step in steps]).tolist()
        watched = zip(losses, losses if _has_scaler(trainer) else norms, strict=True)
        finite = [all(map(math.isfinite, figures)) for figures in watched]
        bad = None if all(finite) else finite.index(False)
        found = bad is not None
        if trainer.world_size > 1:  # a loss is its rank's own
            found = trainer.strategy.reduce_boolean_decision(found, all=False)
        if not found:
            self._losses += losses
            self._norm_before = norms[-1]
            return
        if bad is None:
            raise NotFinite(f"the loss in another process is not finite; {_advice(trainer)}")
        before = norms[bad - 1] if bad else self._norm_before
        what = "the gradient" if math.isfinite(losses[bad]) else "the loss"
        previous = "" if math.isnan(before) else f" after {before:.3g}"
        raise NotFinite(
            f"step {steps[bad].number}: {what} is not finite (loss {losses[bad]:.4g}, gradient "
            f"norm {norms[bad]:.3g}{previous}, learning rate {steps[bad].lr:.3g}); "
            f"{_advice(trainer)}, or {opt('guard.skip_nonfinite')} 3"
        )

    def _compare(self, trainer: L.Trainer) -> None:
        """Warn of a loss that goes up instead of down."""
        losses, self._losses = self._losses, []
        if not losses:
            return
        mean = math.fsum(losses) / len(losses)
        lowest = max(self._lowest, LOWEST)
        if self.diverged and not self._told and mean > self.diverged * lowest < math.inf:
            self._told = True
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
    """What to try against numbers that grow too large."""
    tips = [f"a lower {opt('model.lr')}", f"a longer {opt('model.warmup_steps')}"]
    if not trainer.gradient_clip_val or trainer.gradient_clip_val > 1:
        tips.append(f"{opt('trainer.gradient_clip_val')} 1")
    if str(trainer.precision).startswith("16"):
        tips.append(f"{opt('trainer.precision')} 32-true")
    return f"try {' or '.join([', '.join(tips[:-1]), tips[-1]])}"
