"""From logits to a token: pure functions on (B, V) logits, applied in one order.

The order is bans, penalties, forced tokens (these three by `Rules`), temperature, top-k, top-p,
min-p, typical-p, softmax, draw. Temperature and top-p don't commute, so the order is part of an
option's meaning. The filters, from top-k to typical-p, set the logits of removed tokens to -inf and
keep at least one token of a row.
"""

import contextlib
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gptlit.devices import accelerators
from gptlit.generation.settings import SamplingSettings
from gptlit.messages import UsageError

DRAWS_AT_ONCE = 256  # of each stream


def ban(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return (B, V) logits with some (n,) tokens impossible."""
    return logits.index_fill(-1, tokens, -math.inf)


def force(logits: Tensor, token: int) -> Tensor:
    """Return (B, V) logits with all but one token impossible."""
    forced = torch.full_like(logits, -math.inf)
    forced[:, token] = 0
    return forced


def apply_repetition_penalty(logits: Tensor, counts: Tensor, penalty: float) -> Tensor:
    """Divide positive logits of tokens seen before by `penalty`, and multiply negative ones by it.

    Args:
        logits: (B, V)
        counts: (B, V) counts of each token in prompt and continuation.
        penalty: Factor; 1 for none.

    Source: Keskar et al. 2019 (CTRL), section 4.1, as Hugging Face implements it.
    """
    penalised = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(counts > 0, penalised, logits)


def apply_count_penalties(
    logits: Tensor, counts: Tensor, frequency: float, presence: float
) -> Tensor:
    """Subtract `frequency` for each time a token was written, and `presence` if it ever was.

    Args:
        logits: (B, V)
        counts: (B, V) counts of each token in the continuation, without the prompt.
        frequency: Penalty for each time; 0 for none.
        presence: Penalty once; 0 for none.
    """
    return logits - frequency * counts - presence * (counts > 0)


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Return (B, V) logits divided by `temperature`: below 1 sharper, above 1 flatter."""
    # shifted so that the largest is 0, which stays finite at the smallest temperatures
    return (logits - logits.max(dim=-1, keepdim=True).values) / temperature


def apply_top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the `k` likeliest tokens of each row, exactly k also among ties."""
    if k >= logits.size(-1):
        return logits
    values, indices = logits.topk(k, dim=-1)
    return torch.full_like(logits, -math.inf).scatter_(-1, indices, values)


def apply_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest likeliest tokens of each row that together have the probability `p`.

    Source: Holtzman et al. 2020, section 3.1 ("nucleus").
    """
    ordered, indices = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(dim=-1, dtype=accelerators.widest_float(logits.device))
    before = probabilities.cumsum(dim=-1) - probabilities
    return _keep(logits, indices, before < p)


def apply_min_p(logits: Tensor, p: float) -> Tensor:
    """Keep tokens at least `p` times as likely as the likeliest one of their row.

    Source: Nguyen et al. 2024.
    """
    least = logits.max(dim=-1, keepdim=True).values + math.log(p)
    return logits.masked_fill(logits < least, -math.inf)


def apply_typical_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest most typical tokens of each row that together have the probability `p`.

    A token is more typical the nearer its surprise is to the entropy of the distribution.
    Source: Meister et al. 2023, section 4.
    """
    logs = logits.log_softmax(dim=-1, dtype=accelerators.widest_float(logits.device))
    indices = (-logs - entropy(logits)[:, None]).abs().argsort(dim=-1, stable=True)
    ordered = logs.exp().gather(-1, indices)
    before = ordered.cumsum(dim=-1) - ordered
    return _keep(logits, indices, before < p)


def _keep(logits: Tensor, indices: Tensor, kept: Tensor) -> Tensor:
    """Return (B, V) logits with -inf where not `kept`, a (B, V) mask in the order of `indices`."""
    kept[..., 0] = True
    return logits.masked_fill(~torch.zeros_like(kept).scatter_(-1, indices, kept), -math.inf)


def entropy(logits: Tensor) -> Tensor:
    """Return (B,) entropies of the distributions of (B, V) logits, in nats (Shannon 1948)."""
    logs = logits.log_softmax(dim=-1, dtype=accelerators.widest_float(logits.device))
    return -(logs.exp() * logs.masked_fill(logs == -math.inf, 0)).sum(dim=-1)


def scores(logits: Tensor, ids: Tensor) -> Tensor:
    """Return (B, 2): the log probability of each of (B,) ids by (B, V) logits, and the entropy of
    their distribution, in nats."""
    logs = logits.float().log_softmax(dim=-1).gather(1, ids[:, None])[:, 0]
    entropies = entropy(logits.float())
    return torch.stack([logs.to(entropies.dtype), entropies], dim=1)


def draw(logits: Tensor, u: Tensor) -> Tensor:
    """Draw tokens by the inverse CDF: the first whose cumulative probability is above u.

    Args:
        logits: (B, V)
        u: (B,) numbers from 0 to 1, in the device's widest float.

    Returns:
        (B,) token ids, never one of probability 0.
    """
    probabilities = logits.softmax(dim=-1, dtype=torch.float32)
    cdf = probabilities.to(accelerators.widest_float(logits.device)).cumsum(dim=-1)  # (B, V)
    total = cdf[:, -1:]
    ids = (cdf <= u[:, None] * total).sum(dim=-1)
    # u * total can round up to total, where the last token with a probability is drawn
    return ids.minimum((cdf < total).sum(dim=-1))


def apply_settings(logits: Tensor, settings: SamplingSettings) -> Tensor:
    """Return the (B, V) logits that tokens are drawn from; not for temperature 0."""
    logits = apply_temperature(logits.float(), settings.temperature)
    steps: tuple[tuple[Callable[[Tensor, Any], Tensor], Any], ...] = (
        (apply_top_k, settings.top_k),
        (apply_top_p, settings.top_p),
        (apply_min_p, settings.min_p),
        (apply_typical_p, settings.typical_p),
    )
    for step, value in steps:
        if value is not None:
            logits = step(logits, value)
    return logits


def next_token(logits: Tensor, u: Tensor, settings: SamplingSettings) -> Tensor:
    """Draw (B,) ids from (B, V) logits by (B,) numbers u; the likeliest at temperature 0."""
    if settings.temperature == 0:
        return logits.argmax(dim=-1)
    with _sums_allowed():
        return draw(apply_settings(logits, settings), u)


@contextlib.contextmanager
def _sums_allowed() -> Iterator[None]:
    """Let `torch.use_deterministic_algorithms` warn of cumulative sums on CUDA, not refuse them."""
    if not torch.are_deterministic_algorithms_enabled():
        yield
        return
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=warns)


class Rules:
    """Changes the logits of B texts: bans, then penalties, then forced tokens.

    Args:
        settings: The penalties, and the number of tokens before which the text can't end.
        prompts: B times (T,) ids, which the repetition penalty counts.
        vocab_size: V
        banned: Ids that are never written.
        forced: Ids that come first, whatever their logits are.
        eos_id: Id that is banned from the first `settings.min_new_tokens` tokens.

    Raises:
        UsageError: Every token is banned.
    """

    def __init__(
        self,
        settings: SamplingSettings,
        prompts: Sequence[Tensor] | Tensor,
        vocab_size: int,
        *,
        banned: Sequence[int] = (),
        forced: Sequence[int] = (),
        eos_id: int | None = None,
    ) -> None:
        self._penalties = (
            settings.repetition_penalty,
            settings.frequency_penalty,
            settings.presence_penalty,
        )
        self._counts_tokens = self._penalties != (1, 0, 0)
        self._forced = forced
        self._min_new_tokens = 0 if eos_id is None else settings.min_new_tokens
        # all that `apply` depends on but the ids of the texts
        self.key = (self._penalties, (*banned,), (*forced,), self._min_new_tokens, eos_id)
        device = prompts[0].device
        if len(set(banned)) >= vocab_size:
            raise UsageError("no token is left to write; ban fewer", "ban")
        self._banned = torch.tensor(banned, dtype=torch.long, device=device)
        self._end = torch.tensor([eos_id or 0], device=device)
        self.n_written = 0
        if self._counts_tokens:
            counts = [torch.bincount(prompt, minlength=vocab_size).float() for prompt in prompts]
            self._seen = torch.stack(counts)  # (B, V), in prompts and continuations
            self._written = torch.zeros_like(self._seen)  # in continuations alone

    def restart(self, other: "Rules") -> None:
        """Take over the state of other rules with the same `key`, in the same tensors."""
        self.n_written = other.n_written
        if self._counts_tokens:
            self._seen.copy_(other._seen)
            self._written.copy_(other._written)

    def apply(self, logits: Tensor) -> Tensor:
        """Return (B, V) logits, or log probabilities, of the next tokens after all rules."""
        if len(self._banned):
            logits = ban(logits, self._banned)
        if self.n_written < self._min_new_tokens:
            logits = ban(logits, self._end)
        if self._counts_tokens:
            repetition, frequency, presence = self._penalties
            logits = apply_repetition_penalty(logits, self._seen, repetition)
            logits = apply_count_penalties(logits, self._written, frequency, presence)
        if self.n_written < len(self._forced):
            logits = force(logits, self._forced[self.n_written])
        return logits

    def phase(self) -> Hashable:
        """Return a value that stays the same while `apply` is the same function; None for a token
        that is forced."""
        if self.n_written < len(self._forced):
            return None
        return self.n_written < self._min_new_tokens

    def add(self, ids: Tensor) -> None:
        """Record (B,) ids that were written."""
        self.n_written += 1
        self.count(ids)

    def count(self, ids: Tensor) -> None:
        """Count (B,) ids for the penalties, on the device alone."""
        if self._counts_tokens:
            ones = torch.ones_like(ids[:, None]).float()
            self._seen.scatter_add_(1, ids[:, None], ones)
            self._written.scatter_add_(1, ids[:, None], ones)

    def reorder(self, rows: Sequence[int]) -> None:
        """Make text i a copy of text `rows[i]`."""
        if self._counts_tokens:
            self._seen, self._written = self._seen[list(rows)], self._written[list(rows)]


class Streams:
    """One stream of uniform numbers per sample, so that no sample's text depends on another.

    Args:
        seeds: A seed per sample.
        device: Device of the numbers; they are drawn on the CPU, so that a seed gives the same
            ones everywhere.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._device = torch.device(device)
        self.dtype = accelerators.widest_float(self._device)
        self._left = torch.empty(0, len(seeds), dtype=self.dtype, device=self._device)

    def next(self) -> Tensor:
        """Return (B,) numbers from 0 to 1, one from each stream, in the device's widest float."""
        return self.take(1)[0]

    def take(self, n: int) -> Tensor:
        """Return the next n numbers of each stream, (n, B), n <= DRAWS_AT_ONCE."""
        if n > len(self._left):
            many: dict[str, Any] = {"size": (DRAWS_AT_ONCE,), "dtype": torch.float64}
            drawn = [torch.rand(generator=each, **many) for each in self._generators]
            block = torch.stack(drawn, dim=1)  # (DRAWS_AT_ONCE, B)
            self._left = torch.cat(
                [self._left, accelerators.placed(block.to(self.dtype), self._device)]
            )
        taken, self._left = self._left[:n], self._left[n:]
        return taken
