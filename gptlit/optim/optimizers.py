"""The options of optimizer and schedule, parameter groups, and optimizers."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gptlit.messages import UsageError, opt
from gptlit.optim.muon import Muon

Optimizer = Literal["adamw", "adam", "sgd", "muon"]
Schedule = Literal["cosine", "linear", "wsd", "constant"]
MOMENTUM = {"sgd": 0.9, "muon": 0.95}
OF_TOKENS = {"wte", "lm_head", "noise"}  # modules whose rows belong to single tokens


@dataclass(frozen=True)
class Recipe:
    """An optimizer and its learning rate schedule.

    Args:
        lr: Peak learning rate. With sgd, 0.1 and more is usual.
        min_lr: Learning rate at the end of the schedule and after it.
        warmup_steps: Optimizer steps over which the learning rate rises linearly from 0 to lr.
        decay_steps: Step at which the schedule reaches min_lr. By default the run's last step; a
            run that is resumed with more steps takes the rates of a run planned for as many.
        weight_decay: Weight decay of all matrices with adamw and sgd, and of the blocks' matrices
            with muon; adam has none.
        embedding_weight_decay: Weight decay of the embedding and of a head that isn't tied to it;
            null for weight_decay with adamw and sgd, and none with muon.
        betas: Betas of adamw and adam, and of the AdamW part of muon.
        optimizer: adamw; adam, without weight decay; sgd, with Nesterov momentum; muon, which
            makes the directions of a matrix's update equally large (Jordan et al. 2024), for the
            blocks' matrices, with AdamW at `lr` for embeddings, head, norms and biases.
        muon_lr: Peak learning rate of the matrices that muon trains; its schedule is that of lr.
        muon_beta2: Decay of the moving averages by which muon evens out the rows of a matrix's
            update (NorMuon, Li et al. 2025); none for Muon as published.
        momentum: Momentum of sgd, by default 0.9, and of muon, by default 0.95.
        schedule: Shape after the warmup: cosine, half a wave down to min_lr; linear, straight
            down; wsd (warmup, stable, decay), constant, then straight down; constant.
        decay_fraction: With wsd, the fraction of decay_steps over which lr decays.
    """

    lr: float = 1e-3
    min_lr: float = 1e-4
    warmup_steps: int = 100
    decay_steps: int | None = None
    weight_decay: float = 0.1
    embedding_weight_decay: float | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    optimizer: Optimizer = "adamw"
    muon_lr: float = 0.012
    muon_beta2: float | None = 0.95
    momentum: float | None = None
    schedule: Schedule = "cosine"
    decay_fraction: float = 0.5

    def __post_init__(self) -> None:
        steps, lr = self.decay_steps, opt("model.lr")
        of_tokens = self.embedding_weight_decay or 0
        checks = {
            "lr": (0 < self.lr < math.inf, "must be above 0; 1e-3 is usual for a small model"),
            "muon_lr": (0 < self.muon_lr < math.inf, "must be above 0; 0.012 is usual"),
            "min_lr": (0 <= self.min_lr <= self.lr, f"must be from 0 to {lr} {self.lr}"),
            "warmup_steps": (self.warmup_steps >= 0, "must be 0 or more"),
            "decay_steps": (steps is None or steps >= 1, "must be 1 or more, or left out"),
            "decay_fraction": (0 < self.decay_fraction <= 1, "must be above 0 and at most 1"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "must be 0 or more; 0.1 is usual"),
            "embedding_weight_decay": (
                0 <= of_tokens < math.inf,
                "must be 0 or more; 0.5 is usual",
            ),
            "betas": (all(0 <= b < 1 for b in self.betas), "each must be at least 0 and below 1"),
            "muon_beta2": (0 <= (self.muon_beta2 or 0) < 1, "must be at least 0 and below 1"),
            "momentum": (0 <= (self.momentum or 0) < 1, "must be at least 0 and below 1"),
        }
        for name, (is_valid, reason) in checks.items():
            if not is_valid:
                value = getattr(self, name)
                as_typed = list(value) if isinstance(value, tuple) else value
                raise UsageError(reason, f"model.{name}", as_typed)
        if self.momentum is not None and self.optimizer not in MOMENTUM:
            remedy = f"for {self.optimizer} give the first of {opt('model.betas')}"
            reason = f"applies to {opt('model.optimizer')} sgd and muon; {remedy}"
            raise UsageError(reason, "model.momentum", self.momentum)
        if of_tokens and self.optimizer == "adam":
            reason = (
                f"{opt('model.optimizer')} adam has no weight decay; use adamw, or leave it out"
            )
            raise UsageError(reason, "model.embedding_weight_decay", of_tokens)


# ---------------------------------------------------------------------- parameter groups


def split_parameters(
    named: Iterable[tuple[str, nn.Parameter]], recipe: Recipe
) -> list[list[nn.Parameter]]:
    """Split the trainable parameters into those with weight decay (Muon's own) and the others.

    With a weight decay of their own, embedding and head are a part between the two.

    With AdamW and SGD all matrices decay, embeddings included, as in GPT-2 and nanoGPT, where a
    tied embedding is also the head's matrix. Biases, norms and token shifts don't decay: they are
    too few to memorise a text, and the weights of norms should stay near 1.

    Muon trains the matrices of the blocks, since its update suits matrices that vectors are
    multiplied by. AdamW trains the others without decay: the rows of embedding and head belong to
    single tokens, and that of a rare token would shrink at each step and grow at few.
    """
    matrices: list[nn.Parameter] = []
    of_tokens: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    has_own = recipe.embedding_weight_decay is not None
    for name, parameter in named:
        modules = set(name.split("."))
        if not parameter.requires_grad:
            continue
        if parameter.dim() < 2:
            others.append(parameter)
        elif has_own and modules & OF_TOKENS:
            of_tokens.append(parameter)
        else:
            (matrices if "h" in modules or recipe.optimizer != "muon" else others).append(parameter)
    return [matrices, of_tokens, others] if has_own else [matrices, others]


def group_options(recipe: Recipe) -> list[dict[str, Any]]:
    """Return an optimizer's options for each part of `split_parameters`, at the peak rate."""
    momentum = MOMENTUM.get(recipe.optimizer) if recipe.momentum is None else recipe.momentum
    adam: dict[str, Any] = {"lr": recipe.lr, "betas": recipe.betas}
    sgd: dict[str, Any] = {"lr": recipe.lr, "momentum": momentum, "nesterov": bool(momentum)}
    muon: dict[str, Any] = {"lr": recipe.muon_lr, "momentum": momentum, "beta2": recipe.muon_beta2}
    first = {"adamw": adam, "adam": adam, "sgd": sgd, "muon": muon}[recipe.optimizer]
    second = sgd if recipe.optimizer == "sgd" else adam
    # Adam would add the decay to the gradients and then scale it away with them
    decay = 0.0 if recipe.optimizer == "adam" else recipe.weight_decay
    decays = [recipe.embedding_weight_decay, 0.0]
    options = [second | {"weight_decay": each} for each in decays if each is not None]
    return [first | {"weight_decay": decay}, *options]


def groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Return an optimizer's parameter groups: the parts of `split_parameters`, with options."""
    parts = split_parameters(model.named_parameters(), recipe)
    pairs = zip(parts, group_options(recipe), strict=True)
    return [{"params": part, **options} for part, options in pairs]


def build(model: nn.Module, recipe: Recipe, *, fused: bool = False) -> torch.optim.Optimizer:
    """Make the optimizer of a recipe, with the parameter groups of `split_parameters`.

    Args:
        model: Model to train.
        recipe: Kind of optimizer, and its options.
        fused: Run a whole step of Adam, AdamW or SGD in one kernel.

    Sources: Adam, Kingma and Ba 2015; AdamW, Loshchilov and Hutter 2019; SGD with the momentum of
    Sutskever et al. 2013 (Nesterov's); Muon, Jordan et al. 2024, and Li et al. 2025.
    """
    if recipe.optimizer == "muon":
        return Muon(groups(model, recipe))
    kind: Any = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    return kind[recipe.optimizer](groups(model, recipe), fused=fused or None)


def parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Return all parameters of an optimizer, in its order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def total_norm(tensors: Iterable[Tensor]) -> Tensor:
    """Return the Euclidean norm of all numbers in some tensors, a scalar on their device.

    For tensors that are sharded over processes, it is the norm of the whole tensors.
    """
    norm = nn.utils.get_total_norm(list(tensors))
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm
