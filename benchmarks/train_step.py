"""Time of a training step: through the Trainer, in a bare loop, and in a plain loop.

    python benchmarks/train_step.py [--rounds 30] [--steps 20] [--config FILE] [--loops all]
    python benchmarks/train_step.py --apart --rounds 6 --steps 250

`gptlit fit` trains with everything enabled: progress bar, logging, guard, TensorBoard, and a
validation and checkpoints between the timed stretches. After each of its stretches every other loop
makes as many steps, in turn in the same process:

- bare: the same model, batches, optimizer, clipping and learning rates in plain PyTorch. After
  every stretch its weights are compared with the Trainer's, to check that the work is the same.
- plain: per-item batches, torch.optim.AdamW by default, clipping, loss.item() at every step.
- plain with one change each, indented; its effect is the ratio to plain.
- all changes that help, together, eager and compiled.

Prints medians over the rounds, of milliseconds per step and of each round's ratio to plain and to
bare. The first round warms up and is not counted. `--apart` runs the Trainer's loop and the bare
one in processes of their own, in turn: two nets in one process affect each other's memory layout.
Text is random, as speed does not depend on it. Other options are passed to `gptlit fit`, such as
--trainer.accelerator cuda; every stretch on a GPU ends by synchronizing.
"""

import argparse
import contextlib
import copy
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import nn

from gptlit.__main__ import main as gptlit
from gptlit.data.loaders import Batch
from gptlit.devices.accelerators import name_of
from gptlit.model.gpt import GPT
from gptlit.optim import optimizers
from gptlit.training import run_length
from gptlit.training.module import LitGPT


@dataclass(frozen=True)
class Parts:
    """The parts of a loop."""

    gather: bool = False  # one gather a batch, instead of a slice a window
    optimizer: str = ""  # AdamW's "foreach" or "fused"; "" for its default
    set_to_none: bool = True
    reads_loss: bool = True  # loss.item() at every step
    attention: Literal["sdpa", "eager"] = "sdpa"
    compile: bool = False
    threads: int = 0  # 0 for all


PLAIN = Parts()
ALL = replace(PLAIN, gather=True, optimizer="fused", reads_loss=False)
LOOPS = {
    "plain": PLAIN,
    "  one gather a batch": replace(PLAIN, gather=True),
    "  foreach AdamW": replace(PLAIN, optimizer="foreach"),
    "  fused AdamW": replace(PLAIN, optimizer="fused"),
    "  loss not read": replace(PLAIN, reads_loss=False),
    "  set_to_none=False": replace(PLAIN, set_to_none=False),
    "  attention written out": replace(PLAIN, attention="eager"),
    "  torch.compile": replace(PLAIN, compile=True),
    "  one thread": replace(PLAIN, threads=1),
    "all that helps": ALL,
    "all, compiled": replace(ALL, compile=True),
}
CHOICES = {"trainer": [], "eager": [name for name in LOOPS if not LOOPS[name].compile]}
CHOICES["all"] = list(LOOPS)
MEASURED: dict[str, list[float]] = {}  # seconds a step of each loop, by rounds
DIFFERENCES: list[float] = []  # of the bare loop's weights from the Trainer's, by rounds
WHERE: list[str] = []
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Step = Callable[[], None]


def same_steps(trainer: L.Trainer, module: LitGPT) -> tuple[nn.Module, Step]:
    """Make the bare loop's step, which does the Trainer's work, and its copy of the net."""
    net = copy.deepcopy(module.net)
    optimizer = optimizers.build(net, module.options, fused=trainer.precision == "32-true")
    factor, device = run_length.schedule(module.options, trainer), trainer.strategy.root_device
    peaks = [group["lr"] for group in optimizer.param_groups]
    batches = _endless(module.text.train_dataloader)
    clip, steps = float(trainer.gradient_clip_val or math.inf), iter(range(sys.maxsize))

    def step() -> None:
        rate = factor(next(steps))
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * rate
        inputs, targets = (part.to(device) for part in next(batches))
        with trainer.precision_plugin.forward_context():
            loss = F.cross_entropy(net(inputs).flatten(0, 1), targets.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()

    return net, step


def _endless(loader: Callable[[], Any]) -> Iterator[Batch]:
    epoch = 0
    batches = loader()
    while True:
        batches.set_epoch(epoch)
        yield from batches
        epoch += 1


def steps_of(parts: Parts, trainer: L.Trainer, module: LitGPT) -> Step:
    """Make the step of a loop as it is usually written, with some parts changed."""
    device, text = trainer.strategy.root_device, module.text
    net = GPT(replace(module.config, attention=parts.attention)).to(device).train()
    if parts.compile:
        net.compile()
    how: dict[str, Any] = {parts.optimizer: True} if parts.optimizer else {}
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=module.options.lr, betas=module.options.betas, **how
    )
    data = torch.from_numpy(text.tokens.ids[:].astype(np.int64))
    batch, block, offsets = text.batch_size, text.block_size, torch.arange(text.block_size)

    def step() -> None:
        ix = torch.randint(len(data) - block, (batch,))
        if parts.gather:
            at = ix[:, None] + offsets
            inputs, targets = data[at], data[at + 1]
        else:
            inputs = torch.stack([data[i : i + block] for i in ix])
            targets = torch.stack([data[i + 1 : i + 1 + block] for i in ix])
        inputs, targets = inputs.to(device), targets.to(device)
        with trainer.precision_plugin.forward_context():
            loss = F.cross_entropy(net(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad(set_to_none=parts.set_to_none)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        if parts.reads_loss:
            loss.item()

    return step


def where(trainer: L.Trainer) -> str:
    """Describe device, precision and threads."""
    device = trainer.strategy.root_device
    name = name_of(device)
    return f"{name}, {trainer.precision}, {torch.get_num_threads()} threads"


def wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


class InTurn(Callback):
    """Times the Trainer's steps between two validations, then as many steps of every other loop.

    There is one more step between two validations than is timed, so that the work after the last
    timed step, up to fetching the next batch, is included.

    Args:
        steps: Number of timed steps.
        loops: Names of the loops, out of LOOPS.
        clock: Name of a clock, out of CLOCKS.
    """

    def __init__(self, steps: int, loops: list[str], clock: str = "wall") -> None:
        self.steps = steps
        self.names = loops
        self.clock = CLOCKS[clock]
        self._began = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, LitGPT)
        pl_module.logs_every_batch = False  # as where no callback is added: this one reads none
        self._device = trainer.strategy.root_device
        WHERE.append(where(trainer))
        self._net, same = same_steps(trainer, pl_module)
        self._loops = {"bare": (same, 0)}
        for name in self.names:
            parts = LOOPS[name]
            self._loops[name] = (steps_of(parts, trainer, pl_module), parts.threads)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any
    ) -> None:
        place = trainer.global_step % (self.steps + 1)
        if place == 0 or place == self.steps:
            now = self._now()
            if place:
                self._others(pl_module, (now - self._began) / self.steps)
            self._began = now

    def _now(self) -> float:
        wait_for(self._device)
        return self.clock()

    @torch.random.fork_rng()
    def _others(self, module: L.LightningModule, seconds: float) -> None:
        MEASURED.setdefault("Trainer", []).append(seconds)
        threads = torch.get_num_threads()
        for name, (step, own_threads) in self._loops.items():
            torch.set_num_threads(own_threads or threads)
            began = self._now()
            for _ in range(self.steps):
                step()
            MEASURED.setdefault(name, []).append((self._now() - began) / self.steps)
        torch.set_num_threads(threads)
        DIFFERENCES.append(_difference(module.net, self._net))
        self._loops["bare"][0]()  # for the step that the Trainer makes untimed


class Alone(Callback):
    """Times the Trainer's steps after a warmup, or the bare loop's before the Trainer's.

    Args:
        steps: Number of timed steps.
        loop: Trainer or bare.
        clock: Name of a clock, out of CLOCKS.
    """

    WARMUP = 20

    def __init__(self, steps: int, loop: str, clock: str = "wall") -> None:
        self.steps = steps
        self.clock = CLOCKS[clock]
        self.is_bare = loop == "bare"
        self._began = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, LitGPT)
        pl_module.logs_every_batch = False
        WHERE.append(where(trainer))
        if self.is_bare:
            _, step = same_steps(trainer, pl_module)
            for index in range(self.WARMUP + self.steps):
                self._look(index, trainer)
                step()
            self._look(self.WARMUP + self.steps, trainer)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any
    ) -> None:
        if not self.is_bare:
            self._look(trainer.global_step, trainer)

    def _look(self, step: int, trainer: L.Trainer) -> None:
        if step not in (self.WARMUP, self.WARMUP + self.steps):
            return
        wait_for(trainer.strategy.root_device)
        if step == self.WARMUP:
            self._began = self.clock()
        else:
            seconds = (self.clock() - self._began) / self.steps
            MEASURED["bare" if self.is_bare else "Trainer"] = [seconds]


def apart(arguments: list[str], rounds: int) -> None:
    """Measure the Trainer's loop and the bare one in processes of their own, in turn."""
    for _ in range(rounds + 1):
        for loop in ("Trainer", "bare"):
            command = [sys.executable, __file__, f"--only={loop}", *arguments]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            *_, place, seconds = done.stdout.splitlines()
            WHERE[:] = [place]
            MEASURED.setdefault(loop, []).append(float(seconds))


def _difference(one: Any, other: nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a.detach() - b.detach()).abs().max()) for a, b in pairs)


def report(measured: dict[str, list[float]]) -> Iterator[str]:
    """Format a line for each loop, with medians over all rounds but the first."""
    counted = {name: seconds[1:] for name, seconds in measured.items()}
    width = max(map(len, counted)) + 2
    heads = f"{'ms a step':>10}{'range':>20}{'x bare':>9}{'x plain':>9}"
    yield f"{'':<{width}}{heads}"

    def ratio(name: str, base: str) -> str:
        if base not in counted:
            return ""
        pairs = zip(counted[name], counted[base], strict=True)
        return f"{statistics.median(a / b for a, b in pairs):.3f}"

    for name, seconds in counted.items():
        ms = [1e3 * each for each in seconds]
        spread = f"{min(ms):.2f} to {max(ms):.2f}"
        ratios = f"{ratio(name, 'bare'):>9}{ratio(name, 'plain'):>9}"
        yield f"{name:<{width}}{statistics.median(ms):>10.2f}{spread:>20}{ratios}"


def random_text(n_characters: int = 1_000_000) -> str:
    """Draw 65 distinct characters uniformly."""
    return "".join(np.random.default_rng(0).choice([chr(48 + i) for i in range(65)], n_characters))


def train(
    config: str,
    callback: type[Callback],
    how: dict[str, Any],
    n_steps: int,
    interval: int,
    more: list[str],
) -> None:
    """Run `gptlit fit` in a temporary folder with a callback of this script."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("text.txt").write_text(random_text(), encoding="utf-8")
        options = [
            f"--config={config}",
            "--data.path=text.txt",
            f"--trainer.callbacks={callback.__module__}.{callback.__name__}",
            *(f"--trainer.callbacks.{name}={value}" for name, value in how.items()),
            "--trainer.enable_progress_bar=true",
            f"--trainer.max_steps={n_steps}",
            f"--trainer.val_check_interval={interval}",
            "--samples.max_new_tokens=1",
            "--data.val_fraction=0.005",
        ]
        with Path("output.txt").open("w") as output, contextlib.redirect_stdout(output):
            code = gptlit(["fit", *options, *more])
        if code:
            raise SystemExit(code)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument(
        "--steps",
        type=int,
        default=20,
        help="Steps of a stretch; multiples of 10 are logged evenly.",
    )
    parser.add_argument("--config", default="gpt2_small.yaml")
    parser.add_argument("--loops", default="all", choices=list(CHOICES))
    parser.add_argument(
        "--clock",
        default="wall",
        choices=list(CLOCKS),
        help="cpu counts the process's own time, for one thread on a shared CPU.",
    )
    parser.add_argument(
        "--apart", action="store_true", help="Run Trainer and bare in processes of their own."
    )
    parser.add_argument("--only", choices=["Trainer", "bare"], help=argparse.SUPPRESS)
    given, more = parser.parse_known_args(arguments)
    if given.only:
        steps = Alone.WARMUP + given.steps + 1 if given.only == "Trainer" else 1
        how = {"steps": given.steps, "loop": given.only, "clock": given.clock}
        train(given.config, Alone, how, steps, steps, more)
        print(*WHERE, MEASURED[given.only][0], sep="\n")
        return
    if given.apart:
        options = [f"--{name}={getattr(given, name)}" for name in ("steps", "config", "clock")]
        apart([*options, *more], given.rounds)
    else:
        cycle = given.steps + 1
        how = {"steps": given.steps, "loops": CHOICES[given.loops], "clock": given.clock}
        train(given.config, InTurn, how, cycle * (given.rounds + 1), cycle, more)
    print(
        f"{given.config}: {given.rounds} rounds of {given.steps} steps, torch {torch.__version__}",
        *WHERE,
        sep=", ",
    )
    print("\n".join(report(MEASURED)))
    if given.apart:
        return
    largest = max(DIFFERENCES, default=math.nan)
    print(f"largest difference of the bare loop's weights from the Trainer's: {largest:g}")


if __name__ == "__main__":
    main()
