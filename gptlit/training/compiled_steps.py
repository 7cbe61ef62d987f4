"""Whether a run compiles its training steps, and the compiled steps."""

from typing import Literal

import lightning as L
import torch

from gptlit.model import cost
from gptlit.model.gpt import GPT
from gptlit.steps import compiling
from gptlit.training import run_length
from gptlit.training.user_batches import batches_of


class CompiledSteps:
    """Chooses whether a run compiles its training steps, and compiles the net for them.

    Validations and samples, whose batches have many shapes, are not compiled.

    Args:
        option: The option `model.compile`.
    """

    def __init__(self, option: bool | Literal["auto"]) -> None:
        self.option = option
        self.choice = compiling.Choice(False, "as given")
        # compiles when first called; None: use the net itself
        self.forward: compiling.Forward | None = None

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
        self.forward = None
        if self.choice.compiles:
            self.compile(net)

    def compile(self, net: GPT, mode: str | None = None) -> None:
        """Compile a net at the first training step, in a mode of torch.compile."""
        # a function that calls the net: a compiled module would rename the weights
        self.forward = torch.compile(lambda idx: net(idx), mode=mode)
        if self.option == "auto":
            self.forward = compiling.or_eager(self.forward, net, self._failed)

    def _failed(self) -> None:
        self.choice = compiling.Choice(False, "it failed")
