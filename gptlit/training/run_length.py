"""The length of a run in optimizer steps, and the learning rate schedule over it."""

import math
import sys
from collections.abc import Callable

import lightning as L

from gptlit.messages import UsageError, opt
from gptlit.optim import schedules
from gptlit.optim.optimizers import Recipe
from gptlit.steps.user_batches import text_of


def steps_of_run(trainer: L.Trainer) -> int | None:
    """Return the optimizer steps of the whole run; None if only its time or the user ends it."""
    # trainer.estimated_stepping_batches would make the loaders before a resume restores them, and
    # their position in the text would be lost
    if text_of(trainer) is None:
        steps = trainer.estimated_stepping_batches
        return None if math.isinf(steps) else int(steps)
    ends = []
    if trainer.max_steps >= 0:
        ends.append(trainer.max_steps)
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        ends.append(trainer.max_epochs * steps_of_epoch(trainer))
    return min(ends, default=None)


def steps_of_epoch(trainer: L.Trainer) -> int:
    """Return the optimizer steps of an epoch, within limit_train_batches and overfit_batches."""
    accumulated = trainer.accumulate_grad_batches
    if (text := text_of(trainer)) is None:
        n_batches = trainer.num_training_batches  # infinite for a loader without a length
        return sys.maxsize if math.isinf(n_batches) else math.ceil(n_batches / accumulated)
    whole, limit = text.steps_per_epoch, trainer.limit_train_batches
    batches = limit if isinstance(limit, int) else int(limit * whole * accumulated)
    return min(whole, math.ceil(batches / accumulated))


def make_whole(trainer: L.Trainer) -> None:
    """Make the Trainer's batches of an epoch and between validations whole steps of the run.

    Lightning would also step after fewer batches than usual at an epoch's end, and validate and
    save within a step, from where no resume is exact. A run that is shorter than its interval
    between validations is validated at its end. What is whole already stays as it is, since the
    Trainer may fit another text later.
    """
    accumulated, interval = trainer.accumulate_grad_batches, trainer.val_check_interval
    if text_of(trainer) is None or not (n_batches := steps_of_epoch(trainer) * accumulated):
        return
    if trainer.limit_train_batches != 1.0 or isinstance(trainer.limit_train_batches, int):
        trainer.limit_train_batches = n_batches
    if isinstance(interval, float) and accumulated > 1:  # part of an epoch
        interval = max(1, int(interval * n_batches))
    if isinstance(interval, int):  # else a time
        steps = math.ceil(interval / accumulated)
        if trainer.check_val_every_n_epoch is None:
            steps = min(steps, steps_of_run(trainer) or sys.maxsize)
        trainer.val_check_interval = steps * accumulated


def validates_each_epoch(trainer: L.Trainer) -> bool:
    """Whether an epoch is at least as long as the interval between validations, if there are any.

    An interval that is a time counts as longer.
    """
    if not trainer.enable_validation:
        return True
    if trainer.check_val_every_n_epoch is not None:
        return trainer.check_val_every_n_epoch == 1
    n_batches = trainer.val_check_batch  # None for a time
    return n_batches is not None and n_batches <= trainer.num_training_batches


def schedule(recipe: Recipe, trainer: L.Trainer) -> Callable[[int], float]:
    """Return the function from a step of a run to its learning rate, as a fraction of the peak.

    Raises:
        UsageError: The run has no length to spread the schedule over, or is longer than the
            schedule and would learn nothing after it.
    """
    if recipe.schedule == "constant":
        return schedules.lr_factor(recipe, sys.maxsize)
    steps = steps_of_run(trainer)
    end = steps if recipe.decay_steps is None else recipe.decay_steps
    if end is None:
        raise UsageError(
            "the run has no length to spread the schedule over; give "
            f"{opt('trainer.max_steps')}, {opt('trainer.max_epochs')} or "
            f"{opt('model.decay_steps')}",
            "model.decay_steps",
        )
    if not recipe.min_lr and end < (sys.maxsize if steps is None else steps):
        raise UsageError(
            f"the run is longer, and would continue at learning rate {opt('model.min_lr')} 0 "
            "without learning anything; give a min_lr above 0, or leave decay_steps out",
            "model.decay_steps",
            end,
        )
    return schedules.lr_factor(recipe, end)
