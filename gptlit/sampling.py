"""From logits to a token: pure functions on (B, V) logits, composed by `next_token`.

The order is temperature, top-k, draw. Temperature and top-k commute.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

DRAWS_AT_ONCE = 256


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """(B, V) logits divided by `temperature`: below 1 sharper, above 1 flatter."""
    return logits / temperature


def apply_top_k(logits: Tensor, k: int) -> Tensor:
    """(B, V) logits with all but exactly the `k` largest of each row at -inf; ties don't add."""
    if k >= logits.size(-1):
        return logits
    values, indices = logits.topk(k, dim=-1)
    return torch.full_like(logits, -math.inf).scatter_(-1, indices, values)


def draw(logits: Tensor, u: Tensor) -> Tensor:
    """The token at which the distribution function passes u: sampling by the inverse CDF.

    Args:
        logits: (B, V)
        u: (B,) numbers in [0, 1), float64.

    Returns:
        (B,) token ids, never one of probability 0.
    """
    cdf = logits.softmax(dim=-1, dtype=torch.float32).double().cumsum(dim=-1)  # (B, V)
    total = cdf[:, -1:]
    ids = (cdf <= u[:, None] * total).sum(dim=-1)
    # u * total can round up to total: then the last token with a probability is meant
    return ids.minimum((cdf < total).sum(dim=-1))


def next_token(logits: Tensor, u: Tensor, temperature: float, top_k: int | None) -> Tensor:
    """(B,) ids drawn from (B, V) logits; temperature 0 is greedy."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = apply_temperature(logits.float(), temperature)
    if top_k is not None:
        logits = apply_top_k(logits, top_k)
    return draw(logits, u)


class Streams:
    """One stream of uniform numbers per sample, so that a sample's text depends on no other.

    Args:
        seeds: A seed per sample.
        device: Where the numbers are used; they are always drawn on the CPU, so that a seed
            means the same everywhere.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._device = device
        self._at = DRAWS_AT_ONCE
        self._block = torch.empty(0)

    def next(self) -> Tensor:
        """(B,) float64 numbers in [0, 1), one from each stream."""
        if self._at == DRAWS_AT_ONCE:
            drawn = [
                torch.rand(DRAWS_AT_ONCE, generator=generator, dtype=torch.float64)
                for generator in self._generators
            ]
            self._block = torch.stack(drawn, dim=1).to(self._device)  # (DRAWS_AT_ONCE, B)
            self._at = 0
        self._at += 1
        return self._block[self._at - 1]
