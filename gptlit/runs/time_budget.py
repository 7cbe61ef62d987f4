"""`gptlit fit --minutes`: the number of steps whose whole schedule fits a time."""

import contextlib
import io
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from gptlit.messages import UsageError, opt
from gptlit.runs.build import Run
from gptlit.runs.computing import ThreadChoice
from gptlit.training import loop_state
from gptlit.training.threads import Threads

WARM_UP = 5  # steps, in which compiled or captured ones are made
LEAST, MOST = 3, 200  # timed steps
SECONDS = 3.0  # of timed steps, if they are not fewer or more
SHARE = 0.1  # of the time for the probe, at most, if a step is long
MARGIN = 0.05  # of the time, for saving and logging
VALIDATING = 0.2  # of the time, at most, if the interval may change

Clock = Callable[[], float]


@dataclass(frozen=True)
class Measured:
    """Seconds that parts of a run take.

    Args:
        step: An optimizer step.
        validation: A validation and the sample after it; 0 if there is none.
        start: The start of training and its first steps, beyond their usual time.
        probe: The measurement itself.
        steps_per_epoch: Optimizer steps of an epoch.
    """

    step: float
    validation: float
    start: float
    probe: float
    steps_per_epoch: int


@dataclass(frozen=True)
class Length:
    """A run's number of steps, and of steps between two validations (0: as before)."""

    n_steps: int
    interval: int
    n_validations: int


class _Timer(Callback):
    """Times steps and the validation after them, which ends the fit."""

    def __init__(self, clock: Clock, limit: float) -> None:
        self.clock = clock
        self.limit = limit  # seconds of steps
        self.started = self.began = self.ended = self.validated = 0.0
        self.n_steps = 0  # timed

    def _now(self, trainer: L.Trainer) -> float:
        device = trainer.strategy.root_device
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return self.clock()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started = self._now(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if not loop_state.has_stepped(trainer) or trainer.should_stop:
            return
        if trainer.global_step == WARM_UP:
            self.began = self._now(trainer)
        self.n_steps = trainer.global_step - WARM_UP
        if self.n_steps <= 0:
            return
        passed = self.clock() - self.began
        is_enough = self.n_steps >= LEAST and passed >= SECONDS
        if is_enough or self.n_steps == MOST or passed >= self.limit:
            self.ended = self.validated = self._now(trainer)
            trainer.should_stop = True

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.validated = self._now(trainer)


def trial(n_steps: int, folder: str) -> list[str]:
    """Return the options by which a trial differs from the run: no end, no output.

    Args:
        n_steps: Number of steps in the config, by which a run chooses whether to compile.
        folder: Folder of temporary files.
    """
    longest = max(n_steps, WARM_UP + MOST + 1)
    return [
        "--minutes=0",
        "--lr_find=false",
        f"--trainer.max_steps={longest}",
        "--trainer.max_epochs=-1",
        "--trainer.max_time=null",
        "--trainer.min_steps=null",
        f"--trainer.val_check_interval={longest}",
        "--trainer.check_val_every_n_epoch=null",
        "--trainer.enable_progress_bar=false",
        f"--trainer.default_root_dir={folder}",
        "--model.decay_steps=null",
    ]


def measure(run: Run, minutes: float, clock: Clock | None = None) -> Measured:
    """Train a run for some steps and validate it once; it can't be used again.

    Args:
        run: Run without a folder, of more than WARM_UP + MOST steps.
        minutes: Time of the whole run.
        clock: Function that returns seconds; time.perf_counter by default.

    Raises:
        UsageError: There is more than one process.
        KeyboardInterrupt: The user pressed Ctrl-C.
    """
    trainer: Any = run.trainer
    clock = clock or time.perf_counter
    if trainer.world_size > 1:
        raise UsageError(
            f"measures one process; give {opt('trainer.max_steps')}, or {opt('trainer.devices')} 1",
            "minutes",
            minutes,
        )
    timer = _Timer(clock, SHARE * 60 * minutes)
    chosen = Threads(torch.get_num_threads(), is_given=bool(run.options.threads))
    # the fit computes with as many threads as this
    trainer.callbacks[:] = [ThreadChoice(chosen), *trainer.callbacks, timer]
    before = clock()
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # sample text
            trainer.fit(run.model, datamodule=run.data)
    except SystemExit:
        raise KeyboardInterrupt("stopped while measuring; nothing was trained") from None
    step = (timer.ended - timer.began) / timer.n_steps
    start = timer.began - before - WARM_UP * step
    validation = timer.validated - timer.ended
    return Measured(step, validation, max(0.0, start), clock() - before, run.data.steps_per_epoch)


def fitting(
    minutes: float, measured: Measured, n_steps: int, interval: int, *, keeps_interval: bool
) -> Length:
    """Choose the length of a run that ends in time, with its last validation.

    The time of the probe counts, and MARGIN of the time is left for saving and logging. If the
    interval may change, there are as many validations as before, or fewer so that they take at most
    VALIDATING of the time; at least one.

    Args:
        minutes: Time of the run.
        measured: Seconds that its parts take.
        n_steps: Number of steps in the config; 0 if it has none.
        interval: Steps between two validations.
        keeps_interval: Whether the interval stays as it is.

    Raises:
        UsageError: The time is too short for one step.
    """
    seconds = 60 * minutes * (1 - MARGIN) - measured.probe - measured.start
    each = measured.validation
    if keeps_interval:
        # one validation at the end, if they come at no other time
        steps = int((seconds - each) / (measured.step + each / interval)) if seconds > each else 0
        length = Length(steps, interval, -(-steps // interval))
    else:
        n = max(1, round(n_steps / interval))
        if each:
            n = max(1, min(n, int(VALIDATING * seconds / each)))
        between = int((seconds / n - each) / measured.step)
        length = Length(n * between, between, n)
    if length.n_steps < 1:
        least = measured.probe + measured.start + each + measured.step
        least = math.ceil(least / (1 - MARGIN) / 6) / 10
        raise UsageError(
            f"is too short for a step of {measured.step:.2g} s and a validation of {each:.2g} s; "
            f"give {max(least, minutes + 0.1):.1f} or more",
            "minutes",
            minutes,
        )
    return length
