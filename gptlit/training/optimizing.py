"""From gradients to steps: the optimizer, its schedule, clipping, the average of the weights."""

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_

from gptlit.model.gpt import GPT
from gptlit.optim import muon, optimizers
from gptlit.optim.ema import Average
from gptlit.optim.gradients import Gradients
from gptlit.optim.update_ratios import UpdateRatios
from gptlit.steps.captured_step import CapturedStep
from gptlit.steps.losses import RunningLoss
from gptlit.steps.step_hooks import CapturedHooks
from gptlit.training import fsdp2, run_length
from gptlit.training.compiled_steps import CompiledSteps
from gptlit.training.options import ModelOptions


class Optimizing(CapturedHooks):
    """A LightningModule that steps by a recipe, with one gradient norm per step."""

    net: GPT
    options: ModelOptions
    compiled: CompiledSteps
    train_loss: RunningLoss
    average: Average | None

    def __init__(self) -> None:
        super().__init__()
        self.gradients = Gradients()
        self.update_ratios: UpdateRatios | None = None  # of the steps that are logged
        self.saved_average: tuple[dict[str, Tensor], int, bool] | None = None  # of the checkpoint

    def configure_optimizers(self) -> Any:
        options, trainer = self.options, self.trainer
        fsdp2.check_whole(trainer.strategy, options.optimizer, options.ema)
        optimizer = self._new_optimizer()
        if options.ema:
            self.average = Average(self.net, options.ema)
            if self.saved_average is not None:
                self.average.load(*self.saved_average)
                self.average.is_kept |= options.ema_keep == "average"
                self.saved_average = None
        self.captured = None
        if self.compiled.choice.captures:
            failed = functools.partial(self.compiled.capturing_failed, trainer)
            self.captured = CapturedStep(self._captured_losses, optimizer, self.average, failed)
        elif self.average is not None:
            # in the step itself, so that all hooks after it see the updated average
            optimizer.register_step_post_hook(self.average.update)
        factor = run_length.schedule(options, trainer)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def _new_optimizer(self) -> torch.optim.Optimizer:
        return optimizers.build(self, self.options, fused=self.can_fuse())

    def can_fuse(self) -> bool:
        """Whether the optimizer may compute a whole step in one kernel.

        In 16-mixed it may not: it would unscale the gradients after they are clipped. In bf16-mixed
        there is no scale, and only clipping by Lightning is refused; see
        `configure_gradient_clipping`.
        """
        trainer = self.trainer
        clips_itself = trainer.gradient_clip_algorithm in (None, "norm") and not isinstance(
            trainer.strategy, fsdp2.SHARDING
        )
        return trainer.strategy.root_device.type in muon.FUSED and (
            trainer.precision == "32-true" or (trainer.precision == "bf16-mixed" and clips_itself)
        )

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        every = self.trainer.log_every_n_steps
        if every and not (self.global_step + 1) % every:
            self.log("optim/grad_norm", self.gradients.norm(optimizer))
            # the learning rate of the option lr: with muon the first group has another
            self.log("optim/lr", optimizer.param_groups[-1]["lr"])
            if self.options.optimizer == "muon":
                self.log("optim/muon_lr", optimizer.param_groups[0]["lr"])
            if self.update_ratios is not None:
                self.update_ratios.begin()

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        by_norm = gradient_clip_algorithm in (None, "norm")
        if self.captured is not None:
            self.captured.clip = gradient_clip_val
        elif not by_norm or isinstance(self.trainer.strategy, fsdp2.SHARDING):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val and gradient_clip_val > 0:
            # as Lightning does, but also for a fused step, and without computing the norm again
            norm = self.gradients.norm(optimizer)
            clip_grads_with_norm_(optimizers.parameters(optimizer), gradient_clip_val, norm)
        self.gradients.take_norm()

    def _captured_losses(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the minimised loss and the plain one, which is added to the epoch's at once."""
        minimised, loss = self.compiled.objective(self.net, inputs, targets)
        self.train_loss.add(loss.detach(), targets)
        return minimised, loss
