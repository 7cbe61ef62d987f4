"""torch.compile for training steps: where it pays off, and what happens where it fails."""

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import lightning as L
import torch
from torch import Tensor

from gptlit.messages import UsageError, note
from gptlit.model import cost
from gptlit.model.gpt import GPT
from gptlit.training import run_length

COMPILERS = {"darwin": "clang++", "win32": "cl"}  # elsewhere g++
CPU_FLOPS = 65e9  # a second, of a training step, whatever the CPU: a run's choice is no machine's
CPU_GAIN = 0.03  # of a step's time
CPU_SECONDS = 60.0  # of compiling
CUDA_STEPS = 5000
Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Choice:
    """Whether to compile, and why."""

    compiles: bool
    reason: str


class CompiledSteps:
    """Computes logits in training steps, by a compiled net where that is chosen.

    Validations and samples, whose batches have many shapes, don't use it.

    Args:
        option: The option `model.compile`.
    """

    def __init__(self, option: bool | Literal["auto"]) -> None:
        self.option = option
        self.choice = Choice(False, "as given")
        self.forward: Forward | None = None  # compiled at its first call; None for the net itself

    def choose(
        self, trainer: L.Trainer, net: GPT, batch_size: int, before: bool | None = None
    ) -> None:
        """Decide by the option whether a fit compiles; other stages never do.

        Args:
            trainer: The run's Trainer.
            net: The net to compile.
            batch_size: Windows in a batch of a device.
            before: Whether the run compiled before it was resumed; None for a new run.

        Raises:
            UsageError: the option is true and there is no compiler.
        """
        if trainer.state.fn != "fit":
            return
        device = trainer.strategy.root_device.type
        if self.option == "auto":
            windows = batch_size * trainer.accumulate_grad_batches
            per_window = cost.training_flops_per_token(net) * net.config.block_size
            self.choice = choose(
                device,
                run_length.steps_of_run(trainer),
                windows * per_window,
                compiler=has_compiler(),
                before=before,
            )
        else:
            self.choice = Choice(self.option, "as given")
            check(self.option, device)
        self.forward = None
        if self.choice.compiles:
            self.compile(net)

    def compile(self, net: GPT, mode: str | None = None) -> None:
        """Compile a net at the first training step, by a mode of torch.compile."""
        # a function of the net, since a compiled module would give the weights other names
        self.forward = torch.compile(lambda idx: net(idx), mode=mode)
        if self.option == "auto":
            self.forward = or_eager(self.forward, net, self._failed)

    def _failed(self) -> None:
        self.choice = Choice(False, "it failed")


def has_compiler() -> bool:
    """Whether the C++ compiler that torch.compile needs on a CPU is installed."""
    return shutil.which(_compiler()) is not None


def _compiler() -> str:
    # as PyTorch chooses it
    return os.environ.get("CXX") or COMPILERS.get(sys.platform, "g++")


def check(option: bool | str, device: str) -> None:
    """Refuse to compile where that can't work.

    Raises:
        UsageError: the option is true, on a CPU without a compiler.
    """
    if option is True and device == "cpu" and not has_compiler():
        raise UsageError(
            f"needs the C++ compiler {_compiler()} on a CPU, which was not found; "
            "install it, name another in the environment variable CXX, or use auto or false",
            "model.compile",
            True,
        )


def choose(
    device: str, n_steps: int | None, flops: float, *, compiler: bool, before: bool | None = None
) -> Choice:
    """Decide what the option `model.compile` auto means for a run.

    The results of a compiled step differ in their last bits, so a resumed run does as before.

    On a CPU compiling must save twice the time that it takes. Measured on one thread of two shared
    cores, torch 2.13 (layers x width, cold cache): 2 x 64, 6% of a step for 28 s; 4 x 128, 7% for
    71 s; 6 x 192, nothing clear for 88 s. CPU_GAIN and CPU_SECONDS lie between, and an eager step
    does CPU_FLOPS on both cores: compiling pays off in runs of more than an hour there. On CUDA it
    does from CUDA_STEPS steps on: NOT measured, for lack of a GPU.

    Args:
        device: Type of the device.
        n_steps: Optimizer steps of the whole run; None where it has no planned end.
        flops: FLOPs of a step.
        compiler: Whether there is a C++ compiler.
        before: Whether the run compiled before it was resumed; None for a new run.
    """
    can = device == "cuda" or (device == "cpu" and compiler)
    if not can:
        return Choice(False, "no C++ compiler" if device == "cpu" else f"not on {device}")
    if before is not None:
        return Choice(before, "as before the resume")
    if n_steps is None:
        return Choice(False, "the length of the run is unknown")
    if device == "cuda":
        pays, least = n_steps >= CUDA_STEPS, CUDA_STEPS
    else:
        pays = n_steps * flops / CPU_FLOPS * CPU_GAIN >= 2 * CPU_SECONDS
        least = round(2 * CPU_SECONDS / CPU_GAIN * CPU_FLOPS / flops)
    return Choice(pays, f"compiling pays off after about {least:,} steps; the run has {n_steps:,}")


def or_eager(compiled: Forward, eager: Forward, failed: Callable[[], None]) -> Forward:
    """A function that calls `compiled`, or `eager` after compiling has failed at the first call.

    Args:
        compiled: Function that compiles when it is first called.
        eager: The same function, not compiled.
        failed: Called when compiling fails.
    """
    works: bool | None = None

    def forward(idx: Tensor) -> Tensor:
        nonlocal works
        if works is None:
            try:
                logits, works = compiled(idx), True
                return logits
            except Exception as error:  # whatever is wrong with the compiler or its tools
                works = False
                (why, *_) = str(error).strip().splitlines() or [""]
                note(f"warning: torch.compile failed ({type(error).__name__}: {why}); not compiled")
                failed()
        return compiled(idx) if works else eager(idx)

    return forward
