"""A run on a GPU: time to a target loss, best loss, tokens per second, and MFU.

    python benchmarks/gpu.py [--config best_gpu.yaml] [--mode reduce-overhead] [--peak_tflops 989]
    python benchmarks/gpu.py --config tiny.yaml --mode eager --trainer.accelerator cpu

`gptlit fit` trains with validations on the whole split; other options are passed to it. The net is
compiled here, by --mode (default; reduce-overhead, which replays CUDA graphs; max-autotune; eager,
not at all), and a batch is passed through it before the clock starts, so that compilation is timed
separately. Validations are not compiled. "In all" counts everything after that, "training" excludes
validations, samples and saving; tokens per second are those of training. The text is in host
memory: gptlit has no option yet to keep it on the device.

MFU (Chowdhery et al. 2022, PaLM) is the FLOPs of forward and backward, masked attention counted in
full, divided by the device's peak in dense bfloat16: PEAKS, as published, or --peak_tflops.
Without a peak, as on a CPU, it is left out. NOT yet run on a GPU.
"""

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from gptlit.__main__ import main as gptlit
from gptlit.model import cost
from gptlit.training.losses import objective
from gptlit.training.module import LitGPT

NANOGPT = 1.4697  # its README, on sampled batches of the validation split
MODES = ["default", "reduce-overhead", "max-autotune", "eager"]
# TFLOP/s in dense bfloat16 with float32 sums, from data sheets; the first matching name counts
PEAKS = {
    "B200": 2250,
    "H200": 989,
    "GH200": 989,
    "H100 PCIe": 756,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "L40": 181,
    "L4": 121,
    "A40": 150,
    "A10G": 70,
    "A10": 125,
    "RTX 5090": 209,
    "RTX 4090": 165,
    "RTX 3090": 71,
}


def peak_tflops(name: str) -> float | None:
    """The published peak of a device by its name; None if it is not in PEAKS."""
    return next((peak for part, peak in PEAKS.items() if part in name), None)


@dataclass
class Measured:
    """Seconds, sizes and losses of a run."""

    device: str = ""
    compiling: float = 0.0
    training: float = 0.0
    in_all: float = 0.0
    n_steps: int = 0
    tokens_per_step: int = 0
    flops_per_token: float = 0.0
    losses: list[tuple[int, float, float, float]] = field(default_factory=list)


RUN = Measured()


class Clock(Callback):
    """Compiles, then times the run and its training.

    Args:
        mode: One of MODES.
    """

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self._start = self._since = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, LitGPT)
        pl_module.logs_every_batch = False  # this callback reads no training loss
        self._device = trainer.strategy.root_device
        is_cuda = self._device.type == "cuda"
        RUN.device = torch.cuda.get_device_name(self._device) if is_cuda else self._device.type
        text = pl_module.text
        RUN.tokens_per_step = text.windows_per_step * text.block_size
        RUN.flops_per_token = cost.training_flops_per_token(pl_module.net, causal=False)
        began = self._now()
        if self.mode != "eager":
            pl_module.compiled.compile(pl_module.net, self.mode)
        self._make_a_step(trainer, pl_module)
        RUN.compiling = self._now() - began
        self._start = self._since = self._now()

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
                objective(module(inputs), targets)[0].backward()
            module.zero_grad(set_to_none=True)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        RUN.training += self._now() - self._since
        RUN.n_steps = trainer.global_step

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loss = float(trainer.callback_metrics["val/loss"])
        RUN.in_all = self._now() - self._start
        RUN.losses.append((trainer.global_step, loss, RUN.in_all, RUN.training))

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == RUN.n_steps:  # samples and saves are behind
            self._since = self._now()


def report(run: Measured, target: float, peak: float | None) -> Iterator[str]:
    """Format a line for each measurement."""
    yield f"device: {run.device}, torch {torch.__version__}"
    yield f"compiling: {run.compiling:.1f} s"
    reached = [each for each in run.losses if each[1] <= target]
    step, loss, in_all, training = reached[0] if reached else (0, math.nan, 0.0, 0.0)
    yield f"val/loss {target}: " + (
        f"reached at step {step:,} ({loss:.4f}), {in_all:.1f} s in all, {training:.1f} s training"
        if reached
        else f"not reached in {run.n_steps:,} steps, {run.in_all:.1f} s in all"
    )
    step, loss, in_all, _ = min(run.losses, key=lambda each: each[1])
    yield f"best val/loss: {loss:.4f} at step {step:,}, {in_all:.1f} s in all"
    rate = run.n_steps * run.tokens_per_step / run.training
    yield f"speed: {rate:,.0f} tokens per second, {run.training / run.n_steps * 1e3:.2f} ms a step"
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
            "--model.compile=false",  # Clock does it
            f"--trainer.callbacks={Clock.__module__}.Clock",
            f"--trainer.callbacks.mode={given.mode}",
            *more,
        ]
    )
    if code:
        raise SystemExit(code)
    peak = given.peak_tflops or peak_tflops(RUN.device)
    print("\n".join(report(RUN, given.target, peak)))


if __name__ == "__main__":
    main()
