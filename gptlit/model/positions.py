"""Positions: tables that are added to embeddings, and rotations of queries and keys."""

from typing import Any

import torch
from torch import Tensor, nn

from gptlit.model.config import GPTConfig


class LearnedPositions(nn.Embedding):
    """Adds a learned row for each position."""

    def forward(self, x: Tensor, past: int) -> Tensor:  # type: ignore[override]  # other inputs
        return x + self.weight[past : past + x.size(1)]


class SinusoidalPositions(nn.Module):
    """Adds sines and cosines of each position, with wavelengths from 2 pi to 2 pi base.

    Source: Vaswani et al. 2017, section 3.5.
    """

    weight: Tensor

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        angles = _angles(config.block_size, config.n_embd, config.position_base)  # (T, C / 2)
        table = torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)  # (T, C)
        self.register_buffer("weight", table, persistent=False)

    def forward(self, x: Tensor, past: int) -> Tensor:
        return x + self.weight[past : past + x.size(1)]


class NoPositions(nn.Module):
    """Adds nothing: the order of tokens comes from rotary positions, or from causality alone."""

    def forward(self, x: Tensor, past: int) -> Tensor:
        return x


def added_positions(config: GPTConfig) -> nn.Module:
    """Return the module that adds a config's positions to (B, T, C) embeddings."""
    if config.positions == "learned":
        return LearnedPositions(config.n_positions or config.block_size, config.n_embd)
    return SinusoidalPositions(config) if config.positions == "sinusoidal" else NoPositions()


class Rotary(nn.Module):
    """Rotates the pairs of channels (i, i + head_size / 2) by an angle that grows with position.

    The product of a query and a key then depends on the distance between them.
    Source: Su et al. 2021, with Llama's order of channels.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        angles = _angles(config.block_size, config.head_size, config.position_base)
        self.register_buffer("cos", angles.cos(), persistent=False)  # (T, head_size / 2)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x: Tensor, at: slice | Tensor) -> Tensor:
        """Rotate (..., T, head_size) by their positions, T or (..., T) of them."""
        return rotated(x, self.cos[at], self.sin[at])


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate (..., head_size) by angles with (..., head_size / 2) cosines and sines."""
    left, right = x.float().chunk(2, dim=-1)  # (..., head_size / 2)
    turned = torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)
    return turned.to(x.dtype)  # (..., head_size)


def _angles(n_positions: int, n_channels: int, base: float) -> Tensor:
    """Return (n_positions, n_channels / 2): position / base^(2 i / n_channels)."""
    # on the CPU, also in a `with device:` block, since Apple's GPUs have no float64
    exact: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
    powers = torch.arange(0, n_channels, 2, **exact) / n_channels
    positions = torch.arange(n_positions, **exact)
    return (positions[:, None] * base**-powers).float().to(torch.get_default_device())
