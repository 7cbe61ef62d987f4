"""How weights are changed: parameter groups, optimizers, and the learning rate's schedule."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gptlit.messages import UsageError, opt
from gptlit.optim.muon import Muon

Optimizer = Literal["adamw", "adam", "sgd", "muon"]
Schedule = Literal["cosine", "linear", "wsd", "constant"]
MOMENTUM = {"sgd": 0.9, "muon": 0.95}


@dataclass(frozen=True)
class Recipe:
    """An optimizer and its schedule; `LitGPT` tells what each option means."""

    optimizer: Optimizer = "adamw"
    lr: float = 1e-3
    muon_lr: float = 0.012
    muon_beta2: float | None = 0.95
    min_lr: float = 1e-4
    schedule: Schedule = "cosine"
    warmup_steps: int = 100
    decay_steps: int | None = None
    decay_fraction: float = 0.5
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    momentum: float | None = None

    def __post_init__(self) -> None:
        steps, lr = self.decay_steps, opt("model.lr")
        would_work = {
            "lr": (0 < self.lr < math.inf, "must be above 0; 1e-3 is usual for a small model"),
            "muon_lr": (0 < self.muon_lr < math.inf, "must be above 0; 0.012 is usual"),
            "min_lr": (0 <= self.min_lr <= self.lr, f"must lie between 0 and {lr} {self.lr}"),
            "warmup_steps": (self.warmup_steps >= 0, "must be 0 or more"),
            "decay_steps": (steps is None or steps >= 1, "must be 1 or more, or left out"),
            "decay_fraction": (0 < self.decay_fraction <= 1, "must be above 0 and at most 1"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "must be 0 or more; 0.1 is usual"),
            "betas": (all(0 <= b < 1 for b in self.betas), "each must be at least 0 and below 1"),
            "muon_beta2": (0 <= (self.muon_beta2 or 0) < 1, "must be at least 0 and below 1"),
            "momentum": (0 <= (self.momentum or 0) < 1, "must be at least 0 and below 1"),
        }
        for name, (works, told) in would_work.items():
            if not works:
                value = getattr(self, name)
                given = list(value) if isinstance(value, tuple) else value
                raise UsageError(told, f"model.{name}", given)
        if self.momentum is not None and self.optimizer not in MOMENTUM:
            raise UsageError(
                f"is of {opt('model.optimizer')} sgd and muon; that of {self.optimizer} is the "
                f"first of {opt('model.betas')}",
                "model.momentum",
                self.momentum,
            )


# ---------------------------------------------------------------------- parameter groups


def split(
    named: Iterable[tuple[str, nn.Parameter]], optimizer: Optimizer
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The trainable parameters that weight decay shrinks (Muon's own), and the others.

    By AdamW and SGD all matrices decay, embeddings among them, as in GPT-2's and nanoGPT's recipe:
    a tied embedding is the head's matrix as well. Biases, norms and token shifts don't: they are
    few, fit nothing by heart, and norms' weights would be drawn away from 1.

    Muon's are the matrices of the blocks. Its update suits a matrix that vectors are multiplied
    by; the rows of an embedding are looked up one by one, and a head's are as many as tokens, of
    which most are rare. Both are AdamW's, and nothing of that decays: a rare token's row would
    shrink at each step and grow at few.
    """
    first: list[nn.Parameter] = []
    second: list[nn.Parameter] = []
    for name, parameter in named:
        if parameter.requires_grad:
            in_block = "h" in name.split(".") or optimizer != "muon"
            (first if parameter.dim() >= 2 and in_block else second).append(parameter)
    return first, second


def group_options(recipe: Recipe) -> tuple[dict[str, Any], dict[str, Any]]:
    """What an optimizer does with each part of `split`, at the schedule's peak."""
    momentum = MOMENTUM.get(recipe.optimizer) if recipe.momentum is None else recipe.momentum
    adam: dict[str, Any] = {"lr": recipe.lr, "betas": recipe.betas, "weight_decay": 0.0}
    sgd: dict[str, Any] = {
        "lr": recipe.lr,
        "momentum": momentum,
        "nesterov": bool(momentum),
        "weight_decay": 0.0,
    }
    decay = {"weight_decay": recipe.weight_decay}
    muon: dict[str, Any] = {"lr": recipe.muon_lr, "momentum": momentum, "beta2": recipe.muon_beta2}
    parts = {
        "adamw": (adam | decay, adam),
        # its decay would be added to gradients, and so undone by their scaling
        "adam": (adam, adam),
        "sgd": (sgd | decay, sgd),
        "muon": (muon | decay, adam),
    }
    return parts[recipe.optimizer]


def build(model: nn.Module, recipe: Recipe, *, fused: bool = False) -> torch.optim.Optimizer:
    """The optimizer of a recipe, with two groups of parameters, those of `split`.

    Args:
        model: Whose parameters are changed.
        recipe: Which optimizer, and its settings.
        fused: Let one kernel make a whole step of Adam, AdamW or SGD.

    Sources: Adam, Kingma and Ba 2015; AdamW, Loshchilov and Hutter 2019; SGD with the momentum of
    Sutskever et al. 2013 (Nesterov's); Muon, Jordan et al. 2024, and Li et al. 2025.
    """
    parts = split(model.named_parameters(), recipe.optimizer)
    pairs = zip(parts, group_options(recipe), strict=True)
    groups = [{"params": part, **options} for part, options in pairs]
    if recipe.optimizer == "muon":
        return Muon(groups)
    kind: Any = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    return kind[recipe.optimizer](groups, fused=fused or None)


# ---------------------------------------------------------------------- schedules


def schedule(recipe: Recipe, end: int) -> Callable[[int], float]:
    """The learning rate at a step, as a fraction of the peak, by the recipe's schedule.

    Args:
        recipe: With the schedule, its warmup and its floor.
        end: The step at which the floor is reached; of no meaning to a constant rate.
    """
    warmup, floor = recipe.warmup_steps, recipe.min_lr / recipe.lr
    if recipe.schedule == "cosine":
        return warmup_cosine(warmup, end, floor)
    if recipe.schedule == "constant":
        return warmup_linear(warmup, end, end, 1.0)
    share = 1.0 if recipe.schedule == "linear" else recipe.decay_fraction
    return warmup_linear(warmup, end - round(share * end), end, floor)


def parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """All that an optimizer changes, in its order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def total_norm(tensors: Iterable[Tensor]) -> Tensor:
    """The Euclidean norm of all numbers in tensors together, a scalar that stays on their device.

    Of tensors that processes share the norm is that of the whole.
    """
    norm = nn.utils.get_total_norm(list(tensors))
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def warmup_cosine(warmup_steps: int, decay_steps: int, floor: float) -> Callable[[int], float]:
    """The learning rate at a step, as a fraction of the peak.

    Linear from 0 to 1 over `warmup_steps`, half a cosine to `floor` at `decay_steps`, then
    `floor` (nanoGPT's and S5's schedule).

    Args:
        warmup_steps: Steps of the linear rise; 0 for none.
        decay_steps: The step at which the floor is reached; at or below warmup_steps there is
            no cosine.
        floor: min_lr / lr.
    """

    def factor(step: int) -> float:
        if step < warmup_steps:
            return step / warmup_steps
        if step >= decay_steps:
            return floor
        progress = (step - warmup_steps) / (decay_steps - warmup_steps)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def warmup_linear(
    warmup_steps: int, decay_from: int, decay_steps: int, floor: float
) -> Callable[[int], float]:
    """The learning rate at a step, as a fraction of the peak.

    Linear from 0 to 1 over `warmup_steps`, 1 until `decay_from`, linear to `floor` at
    `decay_steps`, then `floor` (Hu et al. 2024, MiniCPM: warmup, stable, decay).

    Args:
        warmup_steps: Steps of the linear rise; 0 for none.
        decay_from: The last step at the peak, or the warmup's end where that comes later.
        decay_steps: The step at which the floor is reached.
        floor: min_lr / lr.
    """
    start = max(warmup_steps, decay_from)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return step / warmup_steps
        if step >= decay_steps:
            return floor
        if step <= start:
            return 1.0
        return 1 - (1 - floor) * (step - start) / (decay_steps - start)

    return factor
