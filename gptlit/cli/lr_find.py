"""`gptlit fit --lr_find`: a learning rate from a short trial (Smith 2017), by Lightning's tuner."""

import contextlib
import io
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.tuner import Tuner
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from gptlit import charts
from gptlit.charts import Point, Series
from gptlit.data.datamodule import TextDataModule
from gptlit.messages import UsageError
from gptlit.optim.optimizers import Recipe
from gptlit.training.module import LitGPT

STEPS = 100  # the help of --lr_find states it
RANGES = {"sgd": (1e-3, 10.0)}  # by optimizer, where it isn't
USUAL_RANGE = (1e-5, 1.0)
NOT_COUNTED = 10  # steps at the beginning, whose mean is one of few
LOWERED = 0.1  # of lr: what min_lr becomes where it would be above
# what a trial has otherwise than the run: no end, no validation, and nothing left behind
TRIAL = (
    "--lr_find=false",
    f"--trainer.max_steps={10 * STEPS}",
    "--trainer.max_epochs=-1",
    f"--trainer.val_check_interval={10 * STEPS}",
    "--trainer.check_val_every_n_epoch=null",
    "--trainer.enable_progress_bar=false",
    "--model.decay_steps=null",
)


@dataclass(frozen=True)
class Trial:
    """The learning rate of each step, and the loss's running mean (of about 50 steps) after it."""

    rates: Sequence[float]
    losses: Sequence[float]

    @property
    def suggested(self) -> float | None:
        """The rate at which the loss fell fastest, of two digits; None where it never fell.

        Fastest by the logarithm of the rate, as steps are spread evenly over that. Lightning's
        own suggestion takes the slope over the rate itself, which is steepest among the
        smallest rates wherever the loss falls at all: for small.yaml 7e-5, where 4e-3 was found
        best by many runs, and this gives 1.8e-3.
        """
        slopes = {
            rate: later - before
            for before, rate, later in zip(
                self.losses, self.rates[1:], self.losses[2:], strict=False
            )
            if math.isfinite(later - before)
        }
        counted = dict(itertools.islice(slopes.items(), NOT_COUNTED - 1, None))
        steepest = min(counted, key=lambda rate: counted[rate], default=0.0)
        return float(f"{steepest:.2g}") if counted and counted[steepest] < 0 else None

    def chart(self) -> str:
        """The loss over the rate, as SVG, with what is suggested.

        It rises at first: Lightning's running mean begins too low.
        """
        points = [
            Point(rate, loss)
            for rate, loss in list(zip(self.rates, self.losses, strict=True))[NOT_COUNTED:]
            if math.isfinite(loss)
        ]
        series = [Series("", points, marked=False)]
        if (found := self.suggested) is not None:
            nearest = min(points, key=lambda point: abs(math.log(point.x / found)))
            series.append(Series(f"{found:g}", [nearest], joined=False))
        x = charts.axis("model.lr", [point.x for point in points], log=True)
        y = charts.axis("loss, running mean", [point.y for point in points], log=False)
        return charts.chart("lr_find", series, x, y)


def find(trainer: L.Trainer, model: LitGPT, data: TextDataModule) -> Trial:
    """Train for STEPS steps at a rate that grows from step to step; they are all used up by it.

    With muon both rates grow in proportion.

    Args:
        trainer: Without loggers and callbacks; a file is written to its default_root_dir, and
            removed.
        model: Its weights are lost.
        data: Its text.

    Raises:
        UsageError: there is more than one process.
        KeyboardInterrupt: Ctrl-C.
    """
    if trainer.world_size > 1:
        raise UsageError(
            "--lr_find true: needs one process; find the rate by --trainer.devices 1, and give "
            "it by --model.lr"
        )
    low, high = RANGES.get(model.options.optimizer, USUAL_RANGE)
    # whose bar is drawn into log files, too
    silent = contextlib.redirect_stderr(io.StringIO())
    try:
        with _in_proportion(model.options), silent:
            found = Tuner(trainer).lr_find(
                model,
                datamodule=data,
                min_lr=low,
                max_lr=high,
                num_training=STEPS,
                update_attr=False,
            )
    except SystemExit:
        raise KeyboardInterrupt("stopped on the search of a rate; nothing was trained") from None
    assert found is not None
    return Trial(found.results["lr"], found.results["loss"])


@contextlib.contextmanager
def _in_proportion(recipe: Recipe) -> Iterator[None]:
    """Let muon's matrices have their share of the rate that the tuner gives to all."""
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
    """The options of the model that a trial suggests, by name.

    Args:
        trial: What was found.
        optimizer: Of the run.
        lr: As it was; muon_lr keeps its proportion to it.
        muon_lr: As it was.
        min_lr: As it was, and stays where it isn't above the new lr.

    Raises:
        UsageError: the trial suggests nothing.
    """
    found = trial.suggested
    if found is None:
        raise UsageError(
            f"--lr_find true: the loss fell at no rate from {trial.rates[0]:g} to "
            f"{trial.rates[-1]:g}; choose one by --model.lr"
        )
    changed = {"lr": found}
    if optimizer == "muon":
        changed["muon_lr"] = float(f"{found * muon_lr / lr:.3g}")
    if min_lr > found:
        changed["min_lr"] = float(f"{LOWERED * found:.3g}")
    return changed
