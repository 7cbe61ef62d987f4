"""Whether a run compiles its training steps, and the compiled steps."""

import functools
from typing import Literal

import lightning as L
import torch
from torch import Tensor

from gptlit.model import cost
from gptlit.model.gpt import GPT
from gptlit.steps import compiling, losses
from gptlit.steps.distillation import Teachers
from gptlit.training import run_length
from gptlit.training.user_batches import batches_of


class CompiledSteps:
    """Computes the loss of a run's training steps, compiled if the run chooses so.

    Validations and samples, whose batches have many shapes, are not compiled.

    Args:
        option: The option `model.compile`.
        label_smoothing: As in `losses.objective`.
        z_loss: As in `losses.objective`.
    """

    def __init__(
        self, option: bool | Literal["auto"], label_smoothing: float = 0.0, z_loss: float = 0.0
    ) -> None:
        self.option = option
        self.choice = compiling.Choice(False, "as given")
        self._of_batch = functools.partial(
            losses.of_batch, label_smoothing=label_smoothing, z_loss=z_loss
        )
        self._compiled: compiling.Objective | None = None  # compiles when first called

    def learn_from(self, teachers: Teachers) -> None:
        """Add the divergence from teachers to the objective; to be called before `choose`."""
        self._of_batch = functools.partial(self._of_batch, teachers=teachers)

    def objective(self, net: GPT, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the objective and the plain loss of a batch, as `losses.of_batch` does."""
        if self._compiled is not None:
            return self._compiled(inputs, targets)
        return self._of_batch(net, inputs, targets)

    def choose(self, trainer: L.Trainer, net: GPT, before: bool | None = None) -> None:
        """Decide by the option whether a fit compiles; other stages never do.

        Args:
            trainer: Trainer of the run.
            net: Net to compile.
            before: Whether the run compiled before it was resumed; None for a new run.

        Raises:
            UsageError: The option is true and there is no compiler.
        """
        if trainer.state.fn != "fit":
            return
        device = trainer.strategy.root_device.type
        if self.option == "auto":
            windows = batches_of(trainer).batch_size * trainer.accumulate_grad_batches
            tokens = windows * net.config.block_size  # of one device
            flops = tokens * cost.training_flops_per_token(net)
            n_steps = run_length.steps_of_run(trainer)
            self.choice = compiling.choose(
                device, n_steps, flops, compiler=compiling.has_compiler(), before=before
            )
        else:
            compiling.check(self.option, device)
            self.choice = compiling.Choice(self.option, "as given")
        self._compiled = None
        if self.choice.compiles:
            self.compile(net)

    def compile(self, net: GPT, mode: str | None = None) -> None:
        """Compile a net at the first training step, in a mode of torch.compile."""
        # a function that calls the net: a compiled module would rename the weights
        eager = functools.partial(self._of_batch, net)
        self._compiled = torch.compile(eager, mode=mode)
        if self.option == "auto":
            self._compiled = compiling.or_eager(self._compiled, eager, self._failed)

    def _failed(self) -> None:
        self.choice = compiling.Choice(False, "it failed")
