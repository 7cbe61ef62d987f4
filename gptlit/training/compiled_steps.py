"""Whether a run captures or compiles its training steps, and the compiled steps."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import BaseFinetuning, Callback, ModelPruning
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor

from gptlit.devices import graphs
from gptlit.messages import note, opt
from gptlit.model import cost
from gptlit.model.gpt import GPT
from gptlit.steps import compiling, losses
from gptlit.steps.distillation import Teachers
from gptlit.steps.preferences import Preferences
from gptlit.steps.user_batches import batches_of
from gptlit.training import run_length
from gptlit.training.monitors import is_from

Option = bool | Literal["auto", "graph"]
# hooks between the parts of a step, which a captured step runs at once
CALLBACK_HOOKS = (
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
)
MODULE_HOOKS = (
    *CALLBACK_HOOKS,
    "forward",
    "training_step",
    "backward",
    "optimizer_zero_grad",
    "configure_optimizers",
    "configure_gradient_clipping",
    "optimizer_step",
)


class CompiledSteps:
    """Computes the loss of a run's training steps, compiled if the run chooses so, and chooses
    whether whole steps are captured.

    Validations and samples, whose batches have many shapes, are neither.

    Args:
        option: The option `model.compile`.
        label_smoothing: As in `losses.objective`.
        z_loss: As in `losses.objective`.
    """

    def __init__(self, option: Option, label_smoothing: float = 0.0, z_loss: float = 0.0) -> None:
        self.option = option
        self.choice = compiling.Choice(False, "as given")
        self._of_batch: Callable[..., tuple[Tensor, Tensor]] = functools.partial(
            losses.of_batch, label_smoothing=label_smoothing, z_loss=z_loss
        )
        self._compiled: compiling.Objective | None = None  # compiles when first called

    def learn_from(self, teachers: Teachers) -> None:
        """Add the divergence from teachers to the objective; to be called before `choose`."""
        self._of_batch = functools.partial(self._of_batch, teachers=teachers)

    def prefer(self, preferences: Preferences) -> None:
        """Take the objective of preferences; its steps are neither compiled nor captured."""
        self._of_batch = preferences.of_batch

    def objective(self, net: GPT, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the objective and the plain loss of a batch, as `losses.of_batch` does."""
        if self._compiled is not None:
            return self._compiled(inputs, targets)
        return self._of_batch(net, inputs, targets)

    def choose(self, module: Any, before: bool | None = None) -> None:
        """Decide how the steps of a fit run, and report it where they can't run as wanted.

        Args:
            module: The `LitGPT`, with its net.
            before: Whether the run compiled before it was resumed; None for a new run.

        Raises:
            UsageError: The option is true and there is no compiler.
        """
        if module.trainer.state.fn != "fit":
            return
        compiling.check(self.option, module.trainer.strategy.root_device.type)
        self.choice = self.decide(module, before)
        wants = self.option == "graph" or (self.option == "auto" and _can_capture(module.trainer))
        if module.preferences is None and wants and not self.choice.captures:
            self._note(module.trainer, obstacle(module) or "")
        self._compiled = None
        if self.choice.compiles:
            self.compile(module.net)

    def decide(self, module: Any, before: bool | None = None) -> compiling.Choice:
        """Return how the steps of a fit would run, by the option; see `choose`."""
        trainer, net = module.trainer, module.net
        device = trainer.strategy.root_device.type
        if module.preferences is not None:
            return compiling.Choice(False, "steps of DPO run eagerly")
        if self.option not in ("auto", "graph"):
            return compiling.Choice(bool(self.option), "as given")
        reason = obstacle(module)
        if self.option == "graph":
            if reason is not None:
                return compiling.Choice(False, reason)
            return compiling.Choice(device == "cuda", "as given", captures=True)
        windows = batches_of(trainer).batch_size * trainer.accumulate_grad_batches
        tokens = windows * net.config.block_size  # of one device
        flops = tokens * cost.training_flops_per_token(net)
        n_steps = run_length.steps_of_run(trainer)
        compiler = compiling.has_compiler()
        choice = compiling.choose(device, n_steps, flops, compiler=compiler, before=before)
        return replace(choice, captures=reason is None)

    def compile(self, net: GPT, mode: str | None = None) -> None:
        """Compile a net at the first training step, in a mode of torch.compile."""
        compiling.keep_compiled_code()
        # a function that calls the net: a compiled module would rename the weights
        eager = functools.partial(self._of_batch, net)
        self._compiled = torch.compile(eager, mode=mode)
        if self.option in ("auto", "graph"):
            self._compiled = compiling.or_eager(self._compiled, eager, self._compiling_failed)

    def _compiling_failed(self) -> None:
        self.choice = replace(self.choice, compiles=False, reason="compiling failed")

    def capturing_failed(self, trainer: L.Trainer, reason: str) -> None:
        """Record and report that steps run eagerly after all."""
        self.choice = replace(self.choice, captures=False)
        self._note(trainer, reason)

    def _note(self, trainer: L.Trainer, reason: str) -> None:
        if trainer.is_global_zero:
            note(
                f"warning: {opt('model.compile')} {self.option}: training steps are not captured "
                f"as CUDA graphs: {reason}"
            )


def _can_capture(trainer: L.Trainer) -> bool:
    return trainer.strategy.root_device.type in graphs.BACK_ENDS


def obstacle(module: Any) -> str | None:
    """Return why the steps of a run can't be captured; None if they can.

    Args:
        module: The `LitGPT`, in a fit.
    """
    trainer: L.Trainer = module.trainer
    strategy, plugin = trainer.strategy, trainer.precision_plugin
    if not _can_capture(trainer):
        return f"the device is {strategy.root_device.type}, not cuda"
    if not isinstance(strategy, SingleDeviceStrategy):
        return f"the strategy is {type(strategy).__name__}"
    if type(plugin) not in (Precision, MixedPrecision):
        return f"the precision plugin is {type(plugin).__name__}"
    if trainer.gradient_clip_algorithm == "value":
        return "gradients are clipped by value"
    if not module.can_fuse():
        return f"the precision is {trainer.precision}"
    if module.config.activation_checkpointing and module.config.dropout:
        return "activation checkpointing sets the random state of dropout on the host"
    own = next(kind for kind in type(module).__mro__ if kind.__module__.startswith("gptlit."))
    for name in MODULE_HOOKS:
        if getattr(type(module), name) is not getattr(own, name):
            return f"{type(module).__name__} has a method {name} of its own"
    return next(filter(None, map(_obstacle_of, trainer.callbacks)), None)  # type: ignore[attr-defined]


def _obstacle_of(callback: Callback) -> str | None:
    kind = type(callback).__name__
    if getattr(callback, "skip_nonfinite", 0):
        return f"{opt('guard.skip_nonfinite')} needs the norm of each step on the host"
    if isinstance(callback, BaseFinetuning | ModelPruning):
        return f"the callback {kind} changes what is trained"
    if is_from(callback, "gptlit"):
        return None
    for name in CALLBACK_HOOKS:
        # an attribute of a LambdaCallback is a function, not a method; an idle hook was left out
        hook = getattr(callback, name)
        if hook and getattr(hook, "__func__", None) is not getattr(Callback, name):
            return f"the callback {kind} has a method {name}"
    return None
