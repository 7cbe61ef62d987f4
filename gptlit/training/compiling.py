"""Whether torch.compile pays, and what to do where it fails."""

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from gptlit.messages import UsageError, note

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


def has_compiler() -> bool:
    """Whether there is the C++ compiler that torch.compile needs on a CPU."""
    return shutil.which(_compiler()) is not None


def _compiler() -> str:
    """The one that PyTorch calls."""
    return os.environ.get("CXX") or COMPILERS.get(sys.platform, "g++")


def check(option: bool | str, device: str) -> None:
    """Refuse to compile where that can't work.

    Raises:
        UsageError: `--model.compile true` on a CPU without a compiler.
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
    """What `--model.compile auto` means for a run.

    A compiled step's results differ in their last bits: a run that goes on does as it did before.

    On a CPU compiling must win back twice what it takes. Measured on one thread of two shared
    cores, torch 2.13 (layers x width, cold cache): 2 x 64, 6% of a step for 28 s; 4 x 128, 7% for
    71 s; 6 x 192, nothing clear for 88 s. CPU_GAIN and CPU_SECONDS lie between, and an eager step
    does CPU_FLOPS on both cores: so a run pays that takes more than an hour there. On CUDA a run
    of CUDA_STEPS does: NOT measured, for lack of a GPU.

    Args:
        device: Its type.
        n_steps: Of the whole run; None where it has no planned end.
        flops: Of a step.
        compiler: Whether there is a C++ compiler.
        before: What the run did so far, if it goes on.
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
    """`compiled`, and from its failure at the first call on `eager`.

    Args:
        compiled: Compiles when it is called first.
        eager: The same, not compiled.
        failed: Called once, when it does.
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
