"""How a run computes: the threads of a CPU, and the precision of float32 products on a GPU."""

import contextlib
import time
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from gptlit.messages import note, opt
from gptlit.steps import losses
from gptlit.training import threads
from gptlit.training.module import LitGPT
from gptlit.training.threads import Threads

KEY = "gptlit_threads"  # in checkpoints
PASS_SECONDS = 0.05  # about the time of a pass on one thread
FIRST_TOKENS = 32


class ThreadChoice(Callback):
    """Chooses the number of threads of a fit in one process on a CPU, before its first step.

    Where other programs use the CPUs, threads wait for each other: two threads on two busy CPUs
    can take 16 times as long as one. So a pass like those of the run's steps is timed with the
    number that the machine allows, and with halves of it.

    Results depend on the number of threads in their last bits. A resumed run therefore computes
    with as many as before, and a deterministic one with as many as the machine allows.

    Args:
        threads: The number that the machine allows, or that the user has chosen.
        before: The number in the checkpoint that the run resumes; None for a new run.
    """

    def __init__(self, threads: Threads, before: Any = None) -> None:
        self.threads = threads
        # from a larger machine, the number does not apply
        is_usable = isinstance(before, int) and 0 < before <= threads.n
        self.before: int | None = before if is_usable else None

    def _applies_to(self, trainer: L.Trainer) -> bool:
        return trainer.strategy.root_device.type == "cpu" and trainer.world_size == 1

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._applies_to(trainer) or self.threads.is_given or self.threads.n == 1:
            return
        if not torch.are_deterministic_algorithms_enabled():
            assert isinstance(pl_module, LitGPT)
            numbers = {*threads.candidates(self.threads.n), self.before or 1}
            self.choose(threads.compare(stand_in(trainer, pl_module), sorted(numbers)))
        torch.set_num_threads(self.threads.n)

    def choose(self, seconds: dict[int, float]) -> None:
        """Choose a number of threads by the seconds that a pass takes with each."""
        allowed = self.threads.n
        preferred = self.before or allowed
        best = threads.fastest(seconds, preferred)
        times = f"a step takes about {seconds[preferred] / seconds[best]:.1f} times as long"
        if self.before is not None:
            self.threads = Threads(self.before, "as before the resume")
            if best != self.before:
                note(
                    f"{times} with {self.before} threads, as before the resume, as with {best}; "
                    f"{opt('threads')} {best} is faster, but changes the last bits of the results"
                )
        elif best != allowed:
            self.threads = Threads(best, f"{times} with {allowed}")
            note(f"{times} with {allowed} threads as with {best}; {opt('threads')} {best} is used")

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._applies_to(trainer):
            checkpoint[KEY] = torch.get_num_threads()


def stand_in(
    trainer: L.Trainer, module: LitGPT, clock: Callable[[], float] = time.perf_counter
) -> Callable[[], None]:
    """Return a forward and backward pass like those of a run's steps, which changes nothing.

    Its batch is smaller than the run's if one thread would take more than PASS_SECONDS.
    """
    net, text = module.net, module.text
    parameters = [each for each in net.parameters() if each.requires_grad]
    idx = torch.zeros(text.batch_size, text.block_size, dtype=torch.int64)  # (B, T)

    def forward_backward(part: torch.Tensor) -> None:
        with torch.random.fork_rng(devices=[]):
            with trainer.precision_plugin.forward_context():
                loss, _ = losses.of_batch(net, part, part)
            torch.autograd.grad(loss, parameters, allow_unused=True)

    first = idx[:1, :FIRST_TOKENS]
    torch.set_num_threads(1)
    forward_backward(first)  # warms up
    began = clock()
    forward_backward(first)
    n_tokens = int(first.numel() * PASS_SECONDS / max(clock() - began, 1e-9))
    if n_tokens < text.block_size:
        idx = idx[:1, : max(n_tokens, FIRST_TOKENS)]
    else:
        idx = idx[: n_tokens // text.block_size]
    return lambda: forward_backward(idx)


def use_tf32(accelerator: Any, held: contextlib.ExitStack) -> str:
    """Let a CUDA GPU compute float32 products in TF32, unless the user has chosen otherwise.

    Args:
        accelerator: The option of the Trainer.
        held: Restores PyTorch's setting when it is closed.

    Returns:
        The end of a line that describes the precision.
    """
    if accelerator not in ("auto", "gpu", "cuda") or not torch.cuda.is_available():
        return ""
    if torch.get_float32_matmul_precision() != "highest":
        return ""
    torch.set_float32_matmul_precision("high")
    held.callback(torch.set_float32_matmul_precision, "highest")
    return "; products of float32 in TF32"
