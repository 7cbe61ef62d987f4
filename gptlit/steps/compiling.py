"""torch.compile for training steps: where it pays off, and what happens where it fails."""

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from gptlit.messages import UsageError, note

COMPILERS = {"darwin": "clang++", "win32": "cl"}  # PyTorch's choice; elsewhere g++
# one estimate for all CPUs, so that a run's choice does not depend on the machine; see `choose`
CPU_FLOPS = 65e9  # FLOPs per second of an eager training step
CPU_GAIN = 0.03  # fraction of a step's time that compiling saves
CPU_SECONDS = 60.0  # time that compiling takes
CUDA_STEPS = 5000
CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
# the objective and the plain loss of (B, T) inputs and targets
Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Choice:
    """Whether to compile the net, why, and whether to capture whole steps as CUDA graphs."""

    compiles: bool
    reason: str
    captures: bool = False

    def __str__(self) -> str:
        """The choice and its reason, as in the start block of a run."""
        kind = "yes" if self.compiles else "no"
        if self.captures:
            kind = "graph, compiled" if self.compiles else "graph"
        return f"{kind} ({self.reason})"


def has_compiler() -> bool:
    """Whether the C++ compiler that torch.compile needs on a CPU is installed."""
    return shutil.which(_compiler()) is not None


def _compiler() -> str:
    return os.environ.get("CXX") or COMPILERS.get(sys.platform, "g++")


def keep_compiled_code() -> None:
    """Keep compiled code in the user's cache folder, unless TORCHINDUCTOR_CACHE_DIR names another.

    PyTorch's default is a temporary folder, which a reboot empties, so that all is compiled again.
    """
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(caches, "gptlit", "torchinductor")
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    if folder.is_absolute() and os.access(existing, os.W_OK):
        os.environ.setdefault(CACHE_VARIABLE, str(folder))


def check(option: bool | str, device: str) -> None:
    """Raise a UsageError if the option `model.compile` is true on a CPU without a compiler."""
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
    """Decide whether a run with the option `model.compile` auto compiles.

    A resumed run does as before, since a compiled step's results differ in their last bits.

    On a CPU, compiling must save at least twice the time that it takes. Measured with torch 2.13 on
    one thread of two shared cores with a cold cache (layers x width: time saved per step, time to
    compile): 2 x 64: 6%, 28 s; 4 x 128: 7%, 71 s; 6 x 192: nothing clear, 88 s. CPU_GAIN and
    CPU_SECONDS are between these, so that compiling pays off in runs of more than an hour. The
    threshold on CUDA, CUDA_STEPS, was NOT measured.

    Args:
        device: Type of the device.
        n_steps: Number of optimizer steps of the whole run; None if it has no planned end.
        flops: FLOPs of an optimizer step.
        compiler: Whether there is a C++ compiler.
        before: Whether the run compiled before it was resumed; None for a new run.
    """
    if device == "cpu" and not compiler:
        return Choice(False, "no C++ compiler")
    if device not in ("cpu", "cuda"):
        return Choice(False, f"not on {device}")
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


def or_eager(compiled: Objective, eager: Objective, failed: Callable[[], None]) -> Objective:
    """Return a function that calls `compiled`, or `eager` if compiling fails at the first call.

    Args:
        compiled: Function that compiles when it is first called.
        eager: The same function, not compiled.
        failed: Callback that is called when compiling fails.
    """
    works: bool | None = None

    def objective(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal works
        if works is None:
            try:
                losses, works = compiled(inputs, targets), True
                return losses
            except Exception as error:  # a broken compiler can raise anything
                works = False
                reason, *_ = str(error).strip().splitlines() or [""]
                kind = type(error).__name__
                note(f"warning: torch.compile failed ({kind}: {reason}); not compiled")
                failed()
        return compiled(inputs, targets) if works else eager(inputs, targets)

    return objective
