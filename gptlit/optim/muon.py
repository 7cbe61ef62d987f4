"""Muon: updates of matrices with the directions of their momentum made equally large.

The rest of a model's parameters, which are no matrices or are looked up by rows, is AdamW's, in
the same optimizer, so that a training loop has one `step` and one state to save.
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
    """bfloat16 where the device computes in it natively and faster, else float32.

    A CPU's matrices of these sizes gain nothing from it, and most have to emulate it.
    """
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float32


def orthogonalize(matrices: Tensor) -> Tensor:
    """Each matrix U S V' with its singular values S brought near to 1, between 0.68 and 1.21.

    Five steps of the iteration X <- a X + b (X X') X + c (X X')^2 X, which works on the singular
    values alone. It doesn't converge to 1: its coefficients are those that lift small values
    fastest. Values below two thousandths of the matrix's norm stay smaller.

    In float32 all steps are made on X X' (X' X of a tall matrix), whose polynomial X is then
    multiplied by once: the same result for about half of the operations where one side is four
    times the other. Squares take too much of bfloat16's precision for that.

    Args:
        matrices: (N, rows, columns), float32 or bfloat16.

    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
    """
    is_tall = matrices.size(1) > matrices.size(2)
    if matrices.dtype == torch.bfloat16:
        done = _iterated(matrices.mT if is_tall else matrices)
        return done.mT if is_tall else done
    square = torch.bmm(matrices.mT, matrices) if is_tall else torch.bmm(matrices, matrices.mT)
    norm = square.diagonal(dim1=1, dim2=2).sum(dim=1).sqrt().clamp(min=SMALLEST_NORM)[:, None, None]
    product = _polynomial(square / norm.square()) / norm
    return torch.bmm(matrices, product) if is_tall else torch.bmm(product, matrices)


def _iterated(x: Tensor) -> Tensor:
    """The steps on (N, m, n) matrices themselves."""
    a, b, c = COEFFICIENTS
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=SMALLEST_NORM)
    for _ in range(STEPS):
        square = torch.bmm(x, x.mT)  # (N, m, m)
        square = torch.baddbmm(square, square, square, beta=b, alpha=c)
        x = torch.baddbmm(x, square, x, beta=a)
    return x


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


def evened(updates: Tensor, squares: list[Tensor], beta2: float) -> Tensor:
    """Updates whose rows are alike in size over many steps, as large in all as they were.

    `orthogonalize` makes the singular values of an update alike, and leaves some rows (of a wide
    matrix: some columns) far larger than others, step for step the same ones.

    Args:
        updates: (N, rows, columns)
        squares: N moving mean squares, (rows, 1) or of wide matrices (1, columns), which take in
            those of the updates.
        beta2: Their decay, at least 0 and below 1.

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

    A group with "momentum" is Muon's: its (rows, columns) matrices w with gradients g take

        m <- momentum m + (1 - momentum) g
        w <- (1 - lr weight_decay) w - lr s O((1 - momentum) g + momentum m)

    where O is `orthogonalize` and s is sqrt(max(1, rows / columns)). With a group's "beta2" the
    result of O is evened out as well, see `evened`. Matrices of one shape are computed together.
    That of queries, keys and values is one matrix.

    A group with "betas" is AdamW's. Parameters without a gradient are left alone.

    Args:
        groups: Each with "params", "lr", "weight_decay", and either "momentum", and "beta2" if
            wanted, or "betas".
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
                squares = [self._squares(weight) for weight in weights]
                updates = evened(updates, squares, group["beta2"])
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            scale = math.sqrt(max(1.0, shape[0] / shape[1]))
            torch._foreach_add_(weights, updates.unbind(), alpha=-group["lr"] * scale)

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

    def _squares(self, weight: Tensor) -> Tensor:
        """The moving mean square of each row of a matrix's updates, or of each of its columns."""
        state = self.state[weight]
        if "mean_square" not in state:
            lines = weight[:, :1] if weight.size(0) >= weight.size(1) else weight[:1]
            state["mean_square"] = torch.zeros_like(lines)
        return state["mean_square"]

    def _state(self, weight: Tensor, name: str) -> Tensor:
        """What is remembered of a parameter under a name; zeros at first."""
        state = self.state[weight]
        if name not in state:
            state[name] = torch.zeros_like(weight, memory_format=torch.preserve_format)
        return state[name]
