"""Parameter groups, the optimizer, and the learning rate's schedule."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


def parameter_groups(named: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict]:
    """Two groups: matrices (embeddings among them) with decay; biases and norms without."""
    parameters = [parameter for _, parameter in named if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def adamw(
    model: nn.Module,
    *,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    fused: bool,
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) with decay on matrices only."""
    groups = parameter_groups(model.named_parameters(), weight_decay)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=fused or None)


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
