"""From logits to a token: pure functions on (B, V) logits, composed by `Choice` in one order.

The order is bans, penalties, forced tokens (these three by `Rules`), temperature, top-k, top-p,
min-p, typical-p, softmax, draw.
Temperature and top-k commute; temperature and top-p don't, so that the order is part of what
an option means. Each function leaves at least one token of a row possible.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gptlit.messages import UsageError

DRAWS_AT_ONCE = 256


def ban(logits: Tensor, tokens: Tensor) -> Tensor:
    """(B, V) logits with some (n,) tokens impossible."""
    return logits.index_fill(-1, tokens, -math.inf)


def force(logits: Tensor, token: int) -> Tensor:
    """(B, V) logits with all but one token impossible."""
    forced = torch.full_like(logits, -math.inf)
    forced[:, token] = 0
    return forced


def apply_repetition_penalty(logits: Tensor, counts: Tensor, penalty: float) -> Tensor:
    """Logits of tokens seen before divided by `penalty` where positive, multiplied elsewhere.

    Args:
        logits: (B, V)
        counts: (B, V) how often each token was seen, in prompt and continuation.
        penalty: 1 is none.

    Source: Keskar et al. 2019 (CTRL), section 4.1, as Hugging Face has it.
    """
    penalised = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(counts > 0, penalised, logits)


def apply_count_penalties(
    logits: Tensor, counts: Tensor, frequency: float, presence: float
) -> Tensor:
    """Logits less `frequency` for each time a token was written, less `presence` if it was.

    Args:
        logits: (B, V)
        counts: (B, V) how often each token was written, the prompt left out.
        frequency: 0 is none.
        presence: 0 is none.
    """
    return logits - frequency * counts - presence * (counts > 0)


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """(B, V) logits divided by `temperature`: below 1 sharper, above 1 flatter."""
    # the likeliest at 0, so that the smallest temperatures leave a number
    return (logits - logits.max(dim=-1, keepdim=True).values) / temperature


def apply_top_k(logits: Tensor, k: int) -> Tensor:
    """(B, V) logits with all but exactly the `k` largest of each row at -inf; ties don't add."""
    if k >= logits.size(-1):
        return logits
    values, indices = logits.topk(k, dim=-1)
    return torch.full_like(logits, -math.inf).scatter_(-1, indices, values)


def apply_top_p(logits: Tensor, p: float) -> Tensor:
    """(B, V) logits of the fewest likeliest tokens that have `p` of the probability together.

    Source: Holtzman et al. 2020, section 3.1 ("nucleus").
    """
    ordered, indices = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(dim=-1, dtype=torch.float64)
    before = probabilities.cumsum(dim=-1) - probabilities
    return _keep(logits, indices, before < p)


def apply_min_p(logits: Tensor, p: float) -> Tensor:
    """(B, V) logits of tokens at least `p` times as likely as the likeliest.

    Source: Nguyen et al. 2024.
    """
    floor = logits.max(dim=-1, keepdim=True).values + math.log(p)
    return logits.masked_fill(logits < floor, -math.inf)


def apply_typical_p(logits: Tensor, p: float) -> Tensor:
    """(B, V) logits of the fewest most typical tokens that have `p` of the probability together.

    A token is the more typical, the nearer its surprise is to the entropy of the distribution.
    Source: Meister et al. 2023, section 4.
    """
    logs = logits.log_softmax(dim=-1, dtype=torch.float64)
    probabilities = logs.exp()
    entropy = -(probabilities * logs.masked_fill(probabilities == 0, 0)).sum(dim=-1, keepdim=True)
    indices = (-logs - entropy).abs().argsort(dim=-1, stable=True)
    ordered = probabilities.gather(-1, indices)
    before = ordered.cumsum(dim=-1) - ordered
    return _keep(logits, indices, before < p)


def _keep(logits: Tensor, indices: Tensor, kept: Tensor) -> Tensor:
    """Logits with those at -inf whose place in an order, `indices`, is not kept."""
    kept[..., 0] = True
    return logits.masked_fill(~torch.zeros_like(kept).scatter_(-1, indices, kept), -math.inf)


def entropy(logits: Tensor) -> Tensor:
    """(B,) entropies of the distributions of (B, V) logits, in nats (Shannon 1948)."""
    logs = logits.log_softmax(dim=-1, dtype=torch.float64)
    return -(logs.exp() * logs.masked_fill(logs == -math.inf, 0)).sum(dim=-1)


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


@dataclass(frozen=True)
class Choice:
    """How a token is chosen from logits; names and meanings are Hugging Face's.

    Args:
        temperature: Below 1 is safer, above 1 is wilder; 0 is greedy.
        top_k: Draw from the k likeliest tokens only; unlimited when left out.
        top_p: Draw from the likeliest that have this share of the probability together.
        min_p: Draw from those at least this many times as likely as the likeliest.
        typical_p: Draw from the most typical that have this share of the probability together.
        repetition_penalty: Above 1, makes tokens of prompt and text less likely; 1 is none.
        frequency_penalty: Taken from a token's logit for each time that it was written.
        presence_penalty: Taken from the logit of each token that was written.
    """

    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0

    def __post_init__(self) -> None:
        # `not <=` refuses NaN as well
        if self.temperature != 0 and not 1e-6 <= self.temperature < math.inf:
            reason = "must be 0 (greedy), or 1e-6 or above; 0.8 is usual"
            raise UsageError(reason, "temperature", self.temperature)
        if self.top_k is not None and self.top_k < 1:
            raise UsageError("must be 1 or more, or left out for no limit", "top_k", self.top_k)
        for name, usual in (("top_p", 0.9), ("min_p", 0.05), ("typical_p", 0.9)):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise UsageError(f"must be above 0 and at most 1; {usual} is usual", name, value)
        if not 1e-6 <= self.repetition_penalty <= 1e6:
            reason = "must be from 1e-6 to 1e6; 1 is none and 1.1 is usual"
            raise UsageError(reason, "repetition_penalty", self.repetition_penalty)
        for name in ("frequency_penalty", "presence_penalty"):
            if not -1e6 <= (value := getattr(self, name)) <= 1e6:
                raise UsageError("must be from -1e6 to 1e6; 0 is none", name, value)

    @property
    def needs_counts(self) -> bool:
        """Whether what was seen before matters."""
        return (self.repetition_penalty, self.frequency_penalty, self.presence_penalty) != (1, 0, 0)

    def penalise(self, logits: Tensor, seen: Tensor, written: Tensor) -> Tensor:
        """(B, V) logits after the penalties.

        Args:
            logits: (B, V)
            seen: (B, V) how often each token is in prompt and continuation.
            written: (B, V) the same for the continuation alone.
        """
        logits = apply_repetition_penalty(logits, seen, self.repetition_penalty)
        return apply_count_penalties(logits, written, self.frequency_penalty, self.presence_penalty)

    def shape(self, logits: Tensor) -> Tensor:
        """(B, V) logits of the distribution that is drawn from; not for temperature 0."""
        logits = apply_temperature(logits.float(), self.temperature)
        steps: tuple[tuple[Callable[[Tensor, Any], Tensor], Any], ...] = (
            (apply_top_k, self.top_k),
            (apply_top_p, self.top_p),
            (apply_min_p, self.min_p),
            (apply_typical_p, self.typical_p),
        )
        for step, value in steps:
            if value is not None:
                logits = step(logits, value)
        return logits

    def next_token(self, logits: Tensor, u: Tensor) -> Tensor:
        """(B,) ids drawn from (B, V) logits by (B,) numbers u; temperature 0 is greedy."""
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        return draw(self.shape(logits), u)


class Rules:
    """What the texts so far, B of them, and the options make of the next tokens: bans, then
    penalties, then forced tokens.

    Args:
        choice: The penalties.
        prompts: B times (T,) ids, which the repetition penalty counts.
        vocab_size: V
        banned: Ids that are never written.
        forced: Ids that come first, whatever the rest says.
        eos_id: Banned from the first `min_new_tokens` tokens.
        min_new_tokens: See `eos_id`.

    Raises:
        UsageError: every token is banned.
    """

    def __init__(
        self,
        choice: Choice,
        prompts: Sequence[Tensor] | Tensor,
        vocab_size: int,
        *,
        banned: Sequence[int] = (),
        forced: Sequence[int] = (),
        eos_id: int | None = None,
        min_new_tokens: int = 0,
    ) -> None:
        self._choice = choice
        self._forced = forced
        self._min_new_tokens = 0 if eos_id is None else min_new_tokens
        device = prompts[0].device
        if len(set(banned)) >= vocab_size:
            raise UsageError("no token is left to write; ban fewer", "ban")
        self._banned = torch.tensor(banned, dtype=torch.long, device=device)
        self._end = torch.tensor([eos_id or 0], device=device)
        self._n_written = 0
        self._seen = self._written = torch.empty(0)
        if choice.needs_counts:
            self._seen = torch.stack(
                [torch.bincount(prompt, minlength=vocab_size).float() for prompt in prompts]
            )
            self._written = torch.zeros_like(self._seen)

    def apply(self, logits: Tensor) -> Tensor:
        """(B, V) logits, or log probabilities, of the next tokens after all rules."""
        if len(self._banned):
            logits = ban(logits, self._banned)
        if self._n_written < self._min_new_tokens:
            logits = ban(logits, self._end)
        if self._choice.needs_counts:
            logits = self._choice.penalise(logits, self._seen, self._written)
        if self._n_written < len(self._forced):
            logits = force(logits, self._forced[self._n_written])
        return logits

    def add(self, ids: Tensor) -> None:
        """Take note of (B,) ids that were written."""
        self._n_written += 1
        if self._choice.needs_counts:
            for counts in (self._seen, self._written):
                counts.scatter_add_(1, ids[:, None], torch.ones_like(ids[:, None]).float())

    def reorder(self, rows: Sequence[int]) -> None:
        """Text i becomes what text `rows[i]` was."""
        if self._choice.needs_counts:
            self._seen, self._written = self._seen[list(rows)], self._written[list(rows)]


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
