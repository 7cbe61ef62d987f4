"""`gptlit fit --lr_find`: finds a learning rate by Lightning's tuner (Smith 2017)."""

import contextlib
import io
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from jsonargparse import Namespace
from lightning.pytorch.tuner import Tuner
from lightning.pytorch.utilities.seed import isolate_rng
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from gptlit.charts.axes import Point, Series, axis
from gptlit.charts.svg import chart
from gptlit.data.datamodule import TextDataModule
from gptlit.messages import UsageError, note
from gptlit.optim.optimizers import Recipe
from gptlit.runs.build import Run
from gptlit.training.module import LitGPT

STEPS = 100  # the help of --lr_find states it
RANGES = {"sgd": (1e-3, 10.0)}  # of rates, by optimizer
DEFAULT_RANGE = (1e-5, 1.0)
SKIPPED_STEPS = 10  # at the beginning, where the running mean has few values
MIN_LR_SHARE = 0.1  # of lr, for a min_lr that would be above lr
# options of a trial that differ from the run: no end, no validation, no output
TRIAL = (
    "--lr_find=false",
    "--minutes=0",
    f"--trainer.max_steps={10 * STEPS}",
    "--trainer.max_epochs=-1",
    "--trainer.min_steps=null",
    f"--trainer.val_check_interval={10 * STEPS}",
    "--trainer.check_val_every_n_epoch=null",
    "--trainer.enable_progress_bar=false",
    "--model.decay_steps=null",
    "--model.compile=false",  # too short for it
)


@dataclass(frozen=True)
class Trial:
    """The learning rate of each step, and the running mean of the loss after it."""

    rates: Sequence[float]
    losses: Sequence[float]

    @property
    def suggested(self) -> float | None:
        """The rate at which the loss fell fastest, to two digits; None if it never fell.

        The slope is over the logarithm of the rate, on which steps are evenly spaced. Lightning's
        own suggestion uses the slope over the rate itself, which is steepest among the smallest
        rates: for gpt2_small.yaml it suggests 7e-5 and this 1.8e-3; 4e-3 was best in many runs.
        """
        slopes = [
            (later - before, rate)
            for before, rate, later in zip(
                self.losses, self.rates[1:], self.losses[2:], strict=False
            )
            if math.isfinite(later - before)
        ]
        slope, rate = min(slopes[SKIPPED_STEPS - 1 :], default=(0.0, 0.0))
        return float(f"{rate:.2g}") if slope < 0 else None

    def chart(self) -> str:
        """Return an SVG chart of the loss over the rate, with the suggested rate.

        The loss rises at first, since Lightning's running mean begins too low.
        """
        points = [
            Point(rate, loss)
            for rate, loss in list(zip(self.rates, self.losses, strict=True))[SKIPPED_STEPS:]
            if math.isfinite(loss)
        ]
        series = [Series("", points, marked=False)]
        if (rate := self.suggested) is not None:
            nearest = min(points, key=lambda point: abs(math.log(point.x / rate)))
            series.append(Series(f"{rate:g}", [nearest], joined=False))
        x = axis("model.lr", [point.x for point in points], log=True)
        y = axis("loss, running mean", [point.y for point in points], log=False)
        return chart("lr_find", series, x, y)


def set_rate(model: Namespace, build_trial: Callable[..., Run]) -> Trial:
    """Set options of the model to those that a trial suggests, and print them.

    Args:
        model: Options of the model, changed in place.
        build_trial: Builds a run without a folder, with more options.

    Raises:
        UsageError: The loss fell at no rate.
    """
    note(f"--lr_find: {STEPS} steps, each at a higher learning rate than the one before")
    with tempfile.TemporaryDirectory() as folder, isolate_rng():
        run = build_trial(*TRIAL, f"--trainer.default_root_dir={folder}")
        trial = find(run.trainer, run.model, run.data)
    rates = changes(trial, model.optimizer, model.lr, model.muon_lr, model.min_lr)
    changed = [f"--model.{name} {model[name]:g} -> {rate:g}" for name, rate in rates.items()]
    note(f"--lr_find: the loss fell fastest at {rates['lr']:g}; {', '.join(changed)}")
    model.update(Namespace(**rates))
    return trial


def find(trainer: L.Trainer, model: LitGPT, data: TextDataModule) -> Trial:
    """Train for STEPS steps at a growing learning rate; with muon both rates grow in proportion.

    Trainer, model and data cannot be used again.

    Args:
        trainer: Trainer without loggers and callbacks; a temporary file is written to its
            default_root_dir.
        model: Model; its weights are lost.
        data: Data module of the text.

    Raises:
        UsageError: There is more than one process.
        KeyboardInterrupt: The user pressed Ctrl-C.
    """
    if trainer.world_size > 1:
        raise UsageError(
            "--lr_find true: needs one process; find the rate by --trainer.devices 1, and give "
            "it by --model.lr"
        )
    low, high = RANGES.get(model.options.optimizer, DEFAULT_RANGE)
    # the tuner draws its progress bar even into log files
    silent = contextlib.redirect_stderr(io.StringIO())
    try:
        with _in_proportion(model.options), silent:
            tried = Tuner(trainer).lr_find(
                model,
                datamodule=data,
                min_lr=low,
                max_lr=high,
                num_training=STEPS,
                update_attr=False,
            )
    except SystemExit:
        raise KeyboardInterrupt("stopped in the trial of rates; nothing was trained") from None
    assert tried is not None
    return Trial(tried.results["lr"], tried.results["loss"])


@contextlib.contextmanager
def _in_proportion(recipe: Recipe) -> Iterator[None]:
    """Scale the tuner's rate for muon's matrices, which keep their ratio to lr."""
    share = recipe.muon_lr / recipe.lr if recipe.optimizer == "muon" else 1.0

    def times(factor: float) -> Any:
        def hook(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            for group in optimizer.param_groups:
                if "betas" not in group:
                    group["lr"] *= factor

        return hook

    hooks = [
        register_optimizer_step_pre_hook(times(share)),
        register_optimizer_step_post_hook(times(1 / share)),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def changes(
    trial: Trial, optimizer: str, lr: float, muon_lr: float, min_lr: float
) -> dict[str, float]:
    """Return the model's options that a trial changes: lr, muon_lr in proportion, min_lr if above.

    Raises:
        UsageError: The loss fell at no rate.
    """
    new_lr = trial.suggested
    if new_lr is None:
        raise UsageError(
            f"--lr_find true: the loss fell at no rate from {trial.rates[0]:g} to "
            f"{trial.rates[-1]:g}; choose one by --model.lr"
        )
    changed = {"lr": new_lr}
    if optimizer == "muon":
        changed["muon_lr"] = float(f"{new_lr * muon_lr / lr:.3g}")
    if min_lr > new_lr:
        changed["min_lr"] = float(f"{MIN_LR_SHARE * new_lr:.3g}")
    return changed
