"""Muon: an optimizer that makes all directions of a matrix's update equally large.

AdamW trains the parameters that aren't matrices or whose rows are looked up, within the same
optimizer, so that a training loop has one `step` and one state to save.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5
SMALLEST_NORM = 1e-7
FUSED = ("cpu", "cuda")


def working_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on devices that compute in it natively and faster, else float32.

    CPUs gain nothing from it at these sizes, and most of them emulate it.
    """
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float32


def orthogonalize(matrices: Tensor) -> Tensor:
    """Move the singular values S of matrices U S V' near 1, to between 0.68 and 1.21.

    Five steps of the iteration X <- a X + b (X X') X + c (X X')^2 X change the singular values
    alone. They don't converge to 1: the coefficients increase small values fastest. Values below
    0.002 of the matrix's norm stay smaller.

    In float32 the steps compute a polynomial of X X' (X' X for a tall matrix), by which X is
    multiplied once: the same result with about half of the operations where one side is four times
    the other. bfloat16 is too imprecise for it.

    Args:
        matrices: (N, rows, columns), float32 or bfloat16.

    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
    """
    is_tall = matrices.size(1) > matrices.size(2)
    if matrices.dtype == torch.bfloat16:
        done = _iterate(matrices.mT if is_tall else matrices)
        return done.mT if is_tall else done
    square = torch.bmm(matrices.mT, matrices) if is_tall else torch.bmm(matrices, matrices.mT)
    norm = square.diagonal(dim1=1, dim2=2).sum(dim=1).sqrt().clamp(min=SMALLEST_NORM)[:, None, None]
    product = _polynomial(square / norm.square()) / norm
    return torch.bmm(matrices, product) if is_tall else torch.bmm(product, matrices)


def _iterate(x: Tensor) -> Tensor:
    """Apply the steps to (N, m, n) matrices, m <= n."""
    a, b, c = COEFFICIENTS
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=SMALLEST_NORM)
    for _ in range(STEPS):
        square = torch.bmm(x, x.mT)  # (N, m, m)
        square = torch.baddbmm(square, square, square, beta=b, alpha=c)
        x = torch.baddbmm(x, square, x, beta=a)
    return x


def _polynomial(square: Tensor) -> Tensor:
    """Return the product of all steps' a + b X X' + c (X X')^2, from (N, m, m) X X'."""
    a, b, c = COEFFICIENTS
    product = None
    for step in range(STEPS):
        factor = torch.baddbmm(square, square, square, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        product = factor if product is None else torch.bmm(factor, product)
        if step < STEPS - 1:
            square = torch.bmm(torch.bmm(factor, square), factor)  # X X' of the next step
    assert product is not None
    return product


def even_rows(updates: Tensor, squares: list[Tensor], beta2: float) -> Tensor:
    """Scale the rows of updates so that they have about equal sizes over many steps; norms stay.

    `orthogonalize` leaves some rows (for a wide matrix, columns) far larger than others, the same
    ones at each step.

    Args:
        updates: (N, rows, columns)
        squares: N moving mean squares, (rows, 1) or for wide matrices (1, columns); updated.
        beta2: Decay of the mean squares, at least 0 and below 1.

    Source: Li et al. 2025, "NorMuon: Making Muon more efficient and scalable".
    """
    along = 2 if updates.size(1) >= updates.size(2) else 1
    means = updates.square().mean(along, keepdim=True)
    torch._foreach_lerp_(squares, list(means.unbind()), 1 - beta2)
    even = updates / torch.stack(squares).sqrt().clamp(min=SMALLEST_NORM)
    sizes = [torch.linalg.matrix_norm(each, keepdim=True) for each in (updates, even)]
    return even * (sizes[0] / sizes[1].clamp(min=SMALLEST_NORM))


class Muon(torch.optim.Optimizer):
    """Muon on some parameters, AdamW on the others.

    Groups with "momentum" are Muon's: (rows, columns) matrices w with gradients g are updated by

        m <- momentum m + (1 - momentum) g
        w <- (1 - lr weight_decay) w - lr s O((1 - momentum) g + momentum m)

    where O is `orthogonalize` and s is sqrt(max(1, rows / columns)). With "beta2", `even_rows`
    follows O. Matrices of one shape are computed together. Queries, keys and values are one matrix.

    Groups with "betas" are AdamW's. Parameters without a gradient aren't changed.

    Args:
        groups: Parameter groups with "params", "lr", "weight_decay", and either "momentum" and
            optionally "beta2", or "betas". A rate "lr" may be a scalar on the weights' device.
        eps: Epsilon of AdamW.

    Source: Jordan et al. 2024, with the decoupled weight decay of Liu et al. 2025 ("Muon is
    scalable for LLM training").
    """

    def __init__(self, groups: Sequence[dict[str, Any]], eps: float = 1e-8) -> None:
        super().__init__(groups, {"eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if "momentum" in group:
                self._step_by_muon(group)
            else:
                self._step_by_adamw(group)
        return loss

    def _step_by_muon(self, group: dict[str, Any]) -> None:
        batches: dict[Any, list[Tensor]] = defaultdict(list)
        for weight in group["params"]:
            if weight.grad is not None:
                batches[(weight.shape, weight.dtype, weight.device)].append(weight)
        for (shape, dtype, device), weights in batches.items():
            gradients = [weight.grad for weight in weights if weight.grad is not None]
            momenta = [self._state(weight, "momentum_buffer") for weight in weights]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            ahead = torch.stack(torch._foreach_lerp(gradients, momenta, group["momentum"]))
            updates = orthogonalize(ahead.to(working_dtype(device))).to(dtype)
            if group.get("beta2") is not None:
                # of each row or, if there are more of them, column
                lines = [w[:, :1] if shape[0] >= shape[1] else w[:1] for w in weights]
                states = zip(weights, lines, strict=True)
                squares = [self._state(weight, "mean_square", line) for weight, line in states]
                updates = even_rows(updates, squares, group["beta2"])
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            scale = math.sqrt(max(1.0, shape[0] / shape[1]))
            rate = -group["lr"] * scale
            if isinstance(rate, Tensor):  # a factor within the sum has to be a number
                updates, rate = updates * rate, 1.0
            torch._foreach_add_(weights, updates.unbind(), alpha=rate)

    def _step_by_adamw(self, group: dict[str, Any]) -> None:
        weights = [weight for weight in group["params"] if weight.grad is not None]
        if not weights:
            return
        fused = weights[0].device.type in FUSED
        for weight in weights:
            state, on = self.state[weight], weight.device if fused else torch.device("cpu")
            if "step" not in state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=on)
            elif state["step"].device != on:  # loading leaves it where the checkpoint had it
                state["step"] = state["step"].to(on)
        adamw(
            weights,
            [weight.grad for weight in weights],
            [self._state(weight, "exp_avg") for weight in weights],
            [self._state(weight, "exp_avg_sq") for weight in weights],
            [],
            [self.state[weight]["step"] for weight in weights],
            fused=fused,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _state(self, weight: Tensor, name: str, like: Tensor | None = None) -> Tensor:
        """Return a parameter's state, at first zeros with the shape of `like` or its own."""
        state = self.state[weight]
        if name not in state:
            state[name] = torch.zeros_like(weight if like is None else like)
        return state[name]
