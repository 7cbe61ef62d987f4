"""Activations of the MLP, and the soft cap of logits."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ReLU2(nn.Module):
    """The square of ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


class SwiGLU(nn.Module):
    """The second half of the channels, times SiLU of the first half."""

    def forward(self, x: Tensor) -> Tensor:
        gate, value = x.chunk(2, dim=-1)  # (..., hidden) each
        return F.silu(gate) * value


class Softcap(nn.Module):
    """Squashes values smoothly to within +-cap."""

    def __init__(self, cap: float) -> None:
        super().__init__()
        self.cap = cap

    def forward(self, x: Tensor) -> Tensor:
        return self.cap * torch.tanh(x / self.cap)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "relu": nn.ReLU,
    "relu2": ReLU2,
    "swiglu": SwiGLU,
}
