"""Time that the host needs for a training step besides the net: Lightning, callbacks, the loader.

    python -m benchmarks.host [--steps 2000] [--rounds 5] [--parts] [--trainer.precision bf16-mixed]

Runs `gptlit fit` on the CPU with a tiny net whose forward pass, backward pass, gradient norm,
clipping and optimizer step do nothing, and a text that is kept on the device. What is left is the
work of the host between the steps of a GPU, and what it asks the GPU for. Prints

- microseconds a step, the median over rounds of `--steps` steps each, in which metrics are logged
  every 10 steps as by default;
- the operators that a step launches, and its reads of the device, by kind of step;
- with --parts also the functions' share in these microseconds by file, from cProfile.

Other options are passed to `gptlit fit`.
"""

import argparse
import contextlib
import cProfile
import pstats
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from gptlit.cli.fit import build
from gptlit.cli.lightning_warnings import quiet
from gptlit.optim.gradients import Gradients
from gptlit.runs import progress_bar
from gptlit.runs.build import Run
from gptlit.runs.run_end import train
from gptlit.training import module as training_module
from gptlit.training import optimizing
from gptlit.training.compiled_steps import CompiledSteps

WARMUP = 30  # steps
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
FAR = 1e9  # seconds
LOGGED_EVERY = 10  # steps, the default
OPTIONS = [
    "--model.n_layer=1",
    "--model.n_head=1",
    "--model.n_embd=8",
    "--model.block_size=8",
    "--model.compile=false",
    "--data.batch_size=1",
    "--data.on_device=true",
    "--data.val_fraction=0",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=true",
    "--trainer.limit_val_batches=0",
    "--threads=1",
]
# operators that launch nothing on a device
VIEWS = {
    "_record_function_enter_new",
    "_record_function_exit",
    "alias",
    "as_strided",
    "detach",
    "expand",
    "lift_fresh",
    "permute",
    "select",
    "slice",
    "squeeze",
    "t",
    "transpose",
    "unbind",
    "unsqueeze",
    "view",
}


class Launches(TorchDispatchMode):
    """Counts the operators of each step that would launch a kernel or a copy on a GPU.

    `by_step` has a Counter of operator names for each step, up to the cutting of the next batch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_step: list[Counter[str]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__.removesuffix("_unsafe")
        if self.by_step and name not in VIEWS:
            self.by_step[-1][name] += 1
        return func(*args, **(kwargs or {}))

    def begin_step(self) -> None:
        self.by_step.append(Counter())


@dataclass
class Rounds:
    """Times rounds of steps.

    Args:
        n_steps: Number of steps in a round.
        clock: Function that returns seconds.
        seconds: Seconds a step of each round.
    """

    n_steps: int
    clock: Callable[[], float]
    seconds: list[float] = field(default_factory=list)
    _began: float = 0.0

    def look(self, step: int) -> None:
        """Note the time when a step begins."""
        if step < WARMUP or (step - WARMUP) % self.n_steps:
            return
        now = self.clock()
        if step > WARMUP:
            self.seconds.append((now - self._began) / self.n_steps)
        self._began = now


def _always(value: Any) -> Callable[..., Any]:
    return lambda *_, **__: value


@contextlib.contextmanager
def without_net(run: Run) -> Iterator[None]:
    """Replace the net's work in a run: passes, loss, gradient norm, clipping and optimizer step."""
    model, configured = run.model, run.model.configure_optimizers
    loss, norm = torch.ones((), requires_grad=True), torch.ones(())

    def configure() -> Any:
        made = configured()
        optimizer: Optimizer = made["optimizer"]

        def step(closure: Callable[[], Any]) -> Any:
            optimizer._opt_called = True  # type: ignore[attr-defined]  # for the scheduler
            return closure()

        step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
        optimizer.step = step  # type: ignore[method-assign, assignment]
        return made

    with (
        mock.patch.object(CompiledSteps, "objective", _always((loss, loss))),
        mock.patch.object(Gradients, "norm", _always(norm)),
        mock.patch.object(optimizing, "clip_grads_with_norm_", _always(None)),
        mock.patch.object(model, "backward", _always(None)),
        mock.patch.object(model, "configure_optimizers", configure),
    ):
        yield


@contextlib.contextmanager
def a_run(n_steps: int, more: list[str]) -> Iterator[Run]:
    """Build a run of `n_steps` steps whose net does nothing, in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("text.txt").write_text("to be or not to be, that is the question\n" * 2500)
        options = [*OPTIONS, "--data.path=text.txt", f"--trainer.max_steps={n_steps}", *more]
        with (
            Path("output.txt").open("w") as output,
            contextlib.redirect_stdout(output),
            quiet(),
            build(options) as run,
            without_net(run),
        ):
            yield run


def at_each_step(run: Run, look: Callable[[int], None]) -> None:
    """Call `look(step)` at the first hook of the model in each step."""
    begin = run.model.on_train_batch_start

    def on_train_batch_start(batch: Any, batch_idx: int) -> None:
        look(run.trainer.global_step)
        begin(batch, batch_idx)

    run.model.on_train_batch_start = on_train_batch_start  # type: ignore[method-assign]


def microseconds(n_steps: int, n_rounds: int, clock: str, more: list[str]) -> list[float]:
    """Return the microseconds a step of each round."""
    rounds = Rounds(n_steps, CLOCKS[clock])
    with a_run(WARMUP + n_steps * n_rounds + 1, more) as run:
        at_each_step(run, rounds.look)
        train(run)
    return [1e6 * each for each in rounds.seconds]


def launches(more: list[str], n_steps: int = 2 * LOGGED_EVERY) -> list[Counter[str]]:
    """Return the operators launched by each of the last `n_steps` steps before the last one.

    Without those of the progress bar and of a loss that is logged once a second for it.
    """
    with (
        mock.patch.object(progress_bar, "REDRAW_SECONDS", FAR),
        mock.patch.object(training_module, "LOG_AFTER_SECONDS", FAR),
        a_run(WARMUP + n_steps + 1, more) as run,
        Launches() as counted,
    ):
        at_each_step(run, lambda step: counted.begin_step())
        train(run)
    return counted.by_step[-n_steps - 1 : -1]


def parts(n_steps: int, more: list[str]) -> list[tuple[str, float, float]]:
    """Return each file's share of a step's time, and the function calls in it, by cProfile."""
    profile = cProfile.Profile()

    def look(step: int) -> None:
        if step == WARMUP:
            profile.enable()
        elif step == WARMUP + n_steps:
            profile.disable()

    with a_run(WARMUP + n_steps + 1, more) as run:
        at_each_step(run, look)
        train(run)
    seconds: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for (file, _, _), (_, n, own, _, callers) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        if file != "~":
            seconds[_short(file)] += own
            calls[_short(file)] += n
            continue
        for (caller, *_), (_, m, within, _) in callers.items():  # a built-in counts to its caller
            seconds[_short(caller)] += within
            calls[_short(caller)] += m
    total = sum(seconds.values())
    return [(name, own / total, calls[name] / n_steps) for name, own in seconds.most_common()]


def _short(file: str) -> str:
    """Shorten a file's path to begin with its package."""
    for package in ("gptlit", "lightning", "torch", "torchmetrics", "numpy"):
        _, found, after = file.rpartition(f"/{package}/")
        if found and "/benchmarks" not in file:
            return f"{package}/{after}"
    return Path(file).name


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000, help="Steps of a round.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", action="store_true", help="Also print the time by file.")
    parser.add_argument(
        "--clock",
        default="wall",
        choices=list(CLOCKS),
        help="cpu counts the process's own time, on a machine that others load.",
    )
    given, more = parser.parse_known_args(arguments)
    us = microseconds(given.steps, given.rounds, given.clock, more)
    median = statistics.median(us)
    print(f"host: {median:.0f} us a step ({min(us):.0f} to {max(us):.0f})")
    steps = launches(more)
    kinds = Counter(tuple(step.most_common()) for step in steps)
    for kind, n in kinds.items():
        names = ", ".join(f"{name} {times}" for name, times in kind)
        print(f"{n} of {len(steps)} steps launch {sum(dict(kind).values())}: {names}")
    if given.parts:
        for name, share, calls in parts(given.steps, more)[:40]:
            print(f"{share * median:7.1f} us {calls:7.1f} calls  {name}")


if __name__ == "__main__":
    main()
