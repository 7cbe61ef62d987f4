"""Muon: updates of matrices with the directions of their momentum made equally large.

The rest of a model's parameters, which are no matrices or are looked up by rows, is AdamW's, in
the same optimizer, so that a training loop has one `step` and one state to save.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5
SMALLEST_NORM = 1e-7
# from this ratio of sides on, working on the small square of a matrix is faster
WIDE = 2
FUSED = ("cpu", "cuda")


def working_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device computes in it natively and faster, else float32.

    A CPU's matrices of these sizes gain nothing from it, and most have to emulate it.
    """
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float32


def orthogonalize(matrices: Tensor) -> Tensor:
    """Each matrix U S V' with its singular values S brought near to 1, between 0.68 and 1.14.

    Five steps of the iteration X <- a X + b (X X') X + c (X X')^2 X, which works on the singular
    values alone. It doesn't converge to 1: its coefficients are those that lift small values
    fastest. Values below about a thousandth of the matrix's norm stay smaller.

    In float32, wide matrices are multiplied once, by a polynomial of their small square X X',
    which the same steps give for half of the operations. The squares take too much of bfloat16's
    precision for that.

    Args:
        matrices: (N, rows, columns), float32 or bfloat16.

    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
    """
    a, b, c = COEFFICIENTS
    is_tall = matrices.size(1) > matrices.size(2)
    x = matrices.mT if is_tall else matrices  # (N, m, n), m <= n
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=SMALLEST_NORM)
    if x.size(2) >= WIDE * x.size(1) and x.dtype != torch.bfloat16:
        x = torch.bmm(_polynomial(torch.bmm(x, x.mT)), x)
    else:
        for _ in range(STEPS):
            square = torch.bmm(x, x.mT)  # (N, m, m)
            square = torch.baddbmm(square, square, square, beta=b, alpha=c)
            x = torch.baddbmm(x, square, x, beta=a)
    return x.mT if is_tall else x


def _polynomial(square: Tensor) -> Tensor:
    """(N, m, m) X X' of each matrix to the product of all steps' a + b X X' + c (X X')^2."""
    a, b, c = COEFFICIENTS
    product = None
    for step in range(STEPS):
        factor = torch.baddbmm(square, square, square, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        product = factor if product is None else torch.bmm(factor, product)
        if step < STEPS - 1:
            square = torch.bmm(torch.bmm(factor, square), factor)  # of the next X
    assert product is not None
    return product


def _turned(matrix: Tensor) -> Tensor:
    """A matrix on its side, if it is taller than wide."""
    return matrix.mT if matrix.size(0) > matrix.size(1) else matrix


class Muon(torch.optim.Optimizer):
    """Muon on some parameters, AdamW on the others.

    A group with "momentum" is Muon's: its (rows, columns) matrices w with gradients g take

        m <- momentum m + (1 - momentum) g
        w <- (1 - lr weight_decay) w - lr s O((1 - momentum) g + momentum m)

    where O is `orthogonalize` and s is sqrt(max(1, rows / columns)). Matrices of one shape, or of
    one turned on its side, are computed together. That of queries, keys and values is one matrix.

    A group with "betas" is AdamW's. Parameters without a gradient are left alone.

    Args:
        groups: Each with "params", "lr", "weight_decay", and either "momentum" or "betas".
        eps: Of AdamW.

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
        weights = [weight for weight in group["params"] if weight.grad is not None]
        if not weights:
            return
        gradients = [weight.grad for weight in weights]
        momenta = [self._state(weight, "momentum_buffer") for weight in weights]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        updates = self._updates(torch._foreach_lerp(gradients, momenta, group["momentum"]))
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(weights, updates, alpha=-group["lr"])

    def _updates(self, momenta: Sequence[Tensor]) -> list[Tensor]:
        """Each matrix orthogonalised and scaled, by one batch for all of a shape."""
        batches: dict[Any, list[int]] = defaultdict(list)
        for index, momentum in enumerate(momenta):
            batches[(*sorted(momentum.shape), momentum.device)].append(index)
        updates = list(momenta)
        for (_, _, device), indices in batches.items():
            wide = [_turned(momenta[index]) for index in indices]
            done = orthogonalize(torch.stack(wide).to(working_dtype(device))).to(wide[0].dtype)
            for index, update in zip(indices, done, strict=True):
                rows, columns = momenta[index].shape
                is_tall = rows > columns
                updates[index] = update.mul_(math.sqrt(rows / columns)).mT if is_tall else update
        return updates

    def _step_by_adamw(self, group: dict[str, Any]) -> None:
        weights = [weight for weight in group["params"] if weight.grad is not None]
        if not weights:
            return
        fused = weights[0].device.type in FUSED
        for weight in weights:
            if "step" not in self.state[weight]:
                on = weight.device if fused else "cpu"
                self.state[weight]["step"] = torch.zeros((), dtype=torch.float32, device=on)
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

    def _state(self, weight: nn.Parameter, name: str) -> Tensor:
        """What is remembered of a parameter under a name; zeros at first."""
        state = self.state[weight]
        if name not in state:
            state[name] = torch.zeros_like(weight, memory_format=torch.preserve_format)
        return state[name]
