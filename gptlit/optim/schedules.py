"""Learning rate schedules: functions from a step to a factor of the peak learning rate."""

import math
from collections.abc import Callable

from gptlit.optim.optimizers import Recipe


def lr_factor(recipe: Recipe, end: int) -> Callable[[int], float]:
    """Return the schedule of a recipe.

    Args:
        recipe: Schedule, warmup, peak and final learning rate.
        end: Step at which the final rate is reached; a constant rate doesn't use it.
    """
    warmup, final = recipe.warmup_steps, recipe.min_lr / recipe.lr
    if recipe.schedule == "cosine":
        return warmup_cosine(warmup, end, final)
    if recipe.schedule == "constant":
        return warmup_linear(warmup, end, end, 1.0)
    share = 1.0 if recipe.schedule == "linear" else recipe.decay_fraction
    return warmup_linear(warmup, end - round(share * end), end, final)


def warmup_cosine(warmup_steps: int, decay_steps: int, final: float) -> Callable[[int], float]:
    """Return the schedule of nanoGPT: linear warmup, then half a cosine.

    The factor rises from 0 to 1 over `warmup_steps`, falls to `final` at `decay_steps`, and stays.

    At decay_steps <= warmup_steps there is no cosine. The arguments are those of `warmup_linear`.
    """

    def factor(step: int) -> float:
        if step < warmup_steps:
            return step / warmup_steps
        if step >= decay_steps:
            return final
        progress = (step - warmup_steps) / (decay_steps - warmup_steps)
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def warmup_linear(
    warmup_steps: int, decay_from: int, decay_steps: int, final: float
) -> Callable[[int], float]:
    """Linear warmup, stable, linear decay (MiniCPM, Hu et al. 2024).

    The factor rises from 0 to 1 over `warmup_steps`, stays until `decay_from`, falls to `final`
    at `decay_steps`, and stays.

    Args:
        warmup_steps: Steps of the linear rise; 0 for none.
        decay_from: Last step at the peak, or the end of the warmup where that comes later.
        decay_steps: Step at which `final` is reached.
        final: min_lr / lr
    """
    start = max(warmup_steps, decay_from)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return step / warmup_steps
        if step >= decay_steps:
            return final
        if step <= start:
            return 1.0
        return 1 - (1 - final) * (step - start) / (decay_steps - start)

    return factor
