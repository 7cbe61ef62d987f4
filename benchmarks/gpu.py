"""A run on a GPU: time to a target loss, best loss, tokens per second, and MFU.

    python benchmarks/gpu.py [--config best_gpu.yaml] [--mode reduce-overhead] [--peak_tflops 989]
    python benchmarks/gpu.py --config tiny.yaml --mode eager --trainer.accelerator cpu

`gptlit fit` trains with validations on the whole split; other options are passed to it. The net is
compiled here, by --mode (default; reduce-overhead, which replays CUDA graphs; max-autotune; eager,
not at all), and a batch is passed through it before the clock starts, so that compilation is timed
separately; --mode fit leaves it to gptlit's --model.compile. Validations are not compiled.

A step is timed from the start of its batch to the start of the next, by CUDA events on a GPU, which
don't wait for it, and by the clock on a CPU. The last step before a validation or the end of an
epoch is not timed, so that validations, samples and saving are in no step's time. "In all" counts
everything after compilation; "training" is the mean of the timed steps times the number of steps.
The text is on the device or in host memory, as gptlit decides.

MFU (Chowdhery et al. 2022, PaLM) is the FLOPs of forward and backward, masked attention counted in
full, divided by the device's peak in dense bfloat16, as published (gptlit/devices/peaks.py), or
--peak_tflops. Without a peak, as on a CPU, it is left out. NOT yet run on a GPU.
"""

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from gptlit.__main__ import main as gptlit
from gptlit.devices import peaks
from gptlit.devices.accelerators import name_of
from gptlit.model import cost
from gptlit.training.module import LitGPT

NANOGPT = 1.4697  # its README, on sampled batches of the validation split
MODES = ["default", "reduce-overhead", "max-autotune", "eager", "fit"]


@dataclass
class Measured:
    """Seconds, sizes and losses of a run."""

    device: str = ""
    compiling: float = 0.0
    in_all: float = 0.0
    n_steps: int = 0
    tokens_per_step: int = 0
    flops_per_token: float = 0.0
    precision: str = ""
    peak_bytes: int = 0  # of memory on a GPU
    steps: list[float] = field(default_factory=list)  # the timed ones
    losses: list[tuple[int, float, float]] = field(default_factory=list)  # step, loss, in_all

    def training(self, n_steps: int) -> float:
        """Seconds of so many steps without validations, samples and saving."""
        return statistics.fmean(self.steps) * n_steps


RUN = Measured()


class Clock(Callback):
    """Compiles, then times the run and its steps.

    Args:
        mode: One of MODES.
    """

    WARMUP = 5  # untimed steps, in which --mode fit compiles and captures

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self._start = 0.0
        # starts of batches, in a list for each stretch of steps without a validation or epoch's end
        self._starts: list[list[Any]] = [[]]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, LitGPT)
        pl_module.logs_every_batch = False  # this callback reads no training loss
        self._device = trainer.strategy.root_device
        RUN.device = name_of(self._device)
        text = pl_module.text
        RUN.tokens_per_step = text.windows_per_step * text.block_size
        RUN.flops_per_token = cost.training_flops_per_token(pl_module.net, causal=False)
        began = self._now()
        RUN.precision = str(trainer.precision)
        if self.mode not in ("eager", "fit"):
            pl_module.compiled.compile(pl_module.net, self.mode)
        if self.mode != "fit":
            self._make_a_step(trainer, pl_module)
        self._start = self._now()
        RUN.compiling = self._start - began

    def _now(self) -> float:
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        return time.perf_counter()

    def _make_a_step(self, trainer: L.Trainer, module: LitGPT) -> None:
        # three times: CUDA graphs are recorded at the second
        context = trainer.precision_plugin.forward_context
        inputs, targets = (x.to(self._device) for x in next(iter(module.text.train_dataloader())))
        for _ in range(3):
            with context():
                module.compiled.objective(module.net, inputs, targets)[0].backward()
            module.zero_grad(set_to_none=True)

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.WARMUP and self.mode == "fit":
            # compilation and captures take place in the first steps
            RUN.compiling = self._now() - self._start
            self._start = self._now()
        if trainer.global_step >= self.WARMUP:
            self._starts[-1].append(self._mark())

    def _mark(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._starts.append([])

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loss = float(trainer.callback_metrics["val/loss"])
        RUN.in_all = self._now() - self._start
        RUN.losses.append((trainer.global_step, loss, RUN.in_all))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._starts.append([])

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        RUN.in_all = self._now() - self._start  # synchronises, so that the events have their times
        RUN.n_steps = trainer.global_step
        pairs = [pair for starts in self._starts for pair in itertools.pairwise(starts)]
        is_cuda = self._device.type == "cuda"
        RUN.steps = [a.elapsed_time(b) / 1e3 if is_cuda else b - a for a, b in pairs]
        RUN.peak_bytes = torch.cuda.max_memory_allocated(self._device) if is_cuda else 0


def report(run: Measured, target: float, peak: float | None) -> Iterator[str]:
    """Format a line for each measurement."""
    yield f"device: {run.device}, torch {torch.__version__}"
    yield f"compiling: {run.compiling:.1f} s"
    reached = [each for each in run.losses if each[1] <= target]
    step, loss, in_all = reached[0] if reached else (0, math.nan, 0.0)
    yield f"val/loss {target}: " + (
        f"reached at step {step:,} ({loss:.4f}), {in_all:.1f} s in all, "
        f"{run.training(step):.1f} s training"
        if reached
        else f"not reached in {run.n_steps:,} steps, {run.in_all:.1f} s in all"
    )
    step, loss, in_all = min(run.losses, key=lambda each: each[1])
    yield f"best val/loss: {loss:.4f} at step {step:,}, {in_all:.1f} s in all"
    rate = run.tokens_per_step / statistics.fmean(run.steps)
    yield (
        f"speed: {rate:,.0f} tokens per second, {statistics.median(run.steps) * 1e3:.2f} ms a step "
        f"(median of {len(run.steps):,}; mean {statistics.fmean(run.steps) * 1e3:.2f})"
    )
    if peak is not None:
        share = rate * run.flops_per_token / (peak * 1e12)
        yield f"MFU: {share:.1%} of {peak:g} TFLOP/s"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="best_gpu.yaml")
    parser.add_argument("--mode", default="reduce-overhead", choices=MODES)
    parser.add_argument("--target", type=float, default=NANOGPT)
    parser.add_argument("--peak_tflops", type=float)
    given, more = parser.parse_known_args(arguments)
    code = gptlit(
        [
            "fit",
            f"--config={given.config}",
            *(["--model.compile=false"] if given.mode != "fit" else []),  # Clock does it
            f"--trainer.callbacks={Clock.__module__}.Clock",
            f"--trainer.callbacks.mode={given.mode}",
            *more,
        ]
    )
    if code:
        raise SystemExit(code)
    peak = given.peak_tflops or peaks.tflops(RUN.device)
    print("\n".join(report(RUN, given.target, peak)))


if __name__ == "__main__":
    main()
