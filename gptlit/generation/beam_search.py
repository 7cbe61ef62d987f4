"""Beam search: the likeliest texts, instead of texts drawn; the same at every call.

Each step goes on from the `num_beams` likeliest texts so far. Of their continuations by one token
the `num_beams` likeliest that end are put aside with a score, and the `num_beams` likeliest that
don't end go on. Which texts end, and how they are scored, `Beams` tells. It is the beam search of
Hugging Face's `generate`, to which `make parity` compares it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from gptlit.generation.decoding import Windows
from gptlit.generation.generate import (
    Sampling,
    as_prompt,
    encode_prompt,
    generate_many,
    rules_by_id,
)
from gptlit.generation.sampling import Rules, entropy
from gptlit.generation.text_stream import Draft, Written
from gptlit.messages import UsageError, opt
from gptlit.model.gpt import GPT
from gptlit.tokenizers.base import Tokenizer, Unknown

DRAWING = ("temperature", "top_k", "top_p", "min_p", "typical_p")


@dataclass(frozen=True)
class Beams(Sampling):
    """How to choose tokens or search for likely texts, and when to stop.

    Names and meanings are Hugging Face's, but `num_samples`, which is its `num_return_sequences`.

    A text of a beam search ends by its end of sequence, by a stop string, or at `max_new_tokens`,
    and competes with the others by its score: the sum of its tokens' log probabilities divided by
    length ** length_penalty. All new tokens count in sum and length, those of the end of sequence
    and of a stop string included; the prompt's don't. Bans, penalties and `force` change the log
    probabilities as they change logits in sampling, in the same order, and they aren't normalised
    again: a forced token adds 0 to the sum, and 1 to the length; a repetition penalty multiplies,
    since no logarithm of a probability is positive. One beam chooses by logits, as greedy does, and
    is scored like the others.

    Args:
        num_beams: How many texts a beam search follows at once; 1 is greedy. Left out, tokens are
            drawn.
        length_penalty: Of a beam search: above 0 favours longer texts, below 0 shorter ones; 0
            compares plain sums.
        early_stopping: When a beam search stops, having as many ended texts as beams. true: at
            once, as one beam always does. false: when the likeliest text that goes on, were it to
            end now, would not score above the worst of them. never: when no text can come to score
            above the worst of them (as long as no penalty is negative).
        num_samples: How many of the best texts to give; fewer if there are no more.
    """

    num_beams: int | None = None
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    num_samples: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_beams is None:
            for name in ("length_penalty", "early_stopping"):
                if (value := getattr(self, name)) != getattr(Beams, name):
                    reason = f"is of a beam search; give {opt('num_beams')} too"
                    raise UsageError(reason, name, value)
            return
        if self.num_beams < 1:
            raise UsageError("must be 1 (greedy) or more", "num_beams", self.num_beams)
        if not -10 <= self.length_penalty <= 10:
            reason = "must be from -10 to 10; 1 is usual"
            raise UsageError(reason, "length_penalty", self.length_penalty)
        if self.early_stopping not in (False, True, "never"):
            reason = "must be false, true or never"
            raise UsageError(reason, "early_stopping", self.early_stopping)
        if not 1 <= self.num_samples <= self.num_beams:
            beams = opt("num_beams")
            reason = f"a beam search gives 1 to {beams} {self.num_beams} texts; lower it or raise"
            raise UsageError(f"{reason} {beams}", "num_samples", self.num_samples)
        if not self.max_new_tokens:
            reason = "a beam search gives its texts when it ends; give a number of 1 or more"
            raise UsageError(reason, "max_new_tokens", self.max_new_tokens)
        for name in DRAWING:
            value = getattr(self, name)
            # greedy is no drawing either
            if value != getattr(Beams, name) and (name, value) != ("temperature", 0):
                raise UsageError(
                    "is for drawing, and a beam search draws nothing; leave out "
                    f"{opt(name)}, or {opt('num_beams')}",
                    name,
                    value,
                )

    def score(self, total: float, length: int) -> float:
        """Of a text that ends: the sum of its log probabilities / length ** length_penalty."""
        return total / length**self.length_penalty

    def prospect(self, total: float, length: int) -> float:
        """What a text that goes on is taken to be able to score, by `early_stopping`."""
        if self.early_stopping is True or self.num_beams == 1:
            return -math.inf
        if self.early_stopping == "never" and self.length_penalty > 0:
            # the sum can only fall, but the longest text is divided by most
            length = self.max_new_tokens or length
        return self.score(total, length)


@dataclass
class Found(Written):
    """A text that a beam search found.

    Args:
        score: Its tokens' log probabilities / length ** length_penalty (see `Beams`): also of an
            end of sequence, which `ids` and `logprobs` leave out.
    """

    score: float = 0.0


def search(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str = "",
    *,
    num_beams: int = 1,
    unknown: Unknown = "error",
    use_cache: bool = True,
    scored: bool = False,
    **settings: Any,
) -> list[Found]:
    """The best continuations of a prompt, best first: `num_samples`, or as many as there are.

    Of equally likely texts the one that continues the likelier text is before the other, then the
    one with the lower id; of equal scores the one that ended earlier.

    Args:
        model: The model that writes.
        tokenizer: The one it was trained with.
        prompt: The text to continue.
        num_beams: How many texts to follow at once; 1 is greedy.
        unknown: What to do with characters outside the vocabulary: "error" or "skip".
        use_cache: Keep keys and values; the texts are the same either way.
        scored: Tell each token's log probability and entropy.
        settings: The other fields of `Beams`.

    Raises:
        UsageError: a setting that can't work, or characters outside the vocabulary.
    """
    beams = Beams(num_beams=num_beams, **settings)
    ids = encode_prompt(tokenizer, prompt, unknown)
    start = _Beam(Draft(tokenizer, ids.tolist(), beams.stop))
    rules = rules_by_id(tokenizer, beams)
    was_training = model.training
    model.eval()
    try:
        rows = _Rows(model, as_prompt(model, tokenizer, ids), beams, rules, use_cache)
        found = _search(rows, start, beams, scored)
    finally:
        model.train(was_training)
    if not found:
        reason = "there is no text to find; every token is banned, or the model's logits aren't"
        raise UsageError(f"{reason} numbers", "num_beams", num_beams)
    return found[: beams.num_samples]


def write(
    model: GPT, tokenizer: Tokenizer, jobs: Sequence[tuple[str, int]], settings: dict[str, Any]
) -> list[list[Written]]:
    """The texts of each job, a prompt and a seed: those found if `num_beams` is among the
    settings, or else the one drawn. Settings and errors are those of `search` or `generate_many`.
    """
    if settings.get("num_beams") is not None:
        return [[*search(model, tokenizer, prompt, **settings)] for prompt, _ in jobs]
    own = {field.name for field in fields(Beams)} - {field.name for field in fields(Sampling)}
    settings = {name: value for name, value in settings.items() if name not in own}
    prompts, seeds = zip(*jobs, strict=True)
    return [[text] for text in generate_many(model, tokenizer, prompts, seeds, **settings)]


@dataclass(frozen=True)
class _Beam:
    """A text on its way, and the sum of its tokens' log probabilities."""

    draft: Draft
    total: float = 0.0


class _Rows:
    """What the model and the rules know of `num_beams` texts, one in each row."""

    def __init__(
        self, model: GPT, prompt: Tensor, beams: Beams, rules: dict[str, Any], use_cache: bool
    ) -> None:
        self.n = beams.num_beams or 1
        self._device = prompt.device
        prompts = prompt.expand(self.n, -1)  # (num_beams, T)
        self._windows = Windows(model, prompts, use_cache)
        vocab_size, least = model.config.vocab_size, beams.min_new_tokens
        self._rules = Rules(beams, prompts, vocab_size, min_new_tokens=least, **rules)

    def next(self) -> tuple[Tensor, Tensor]:
        """Of the next tokens the (num_beams, V) log probabilities, float64, by the model itself
        and after the rules."""
        logits = self._windows.logits()
        logs = logits.log_softmax(dim=-1, dtype=torch.float64)
        applied = self._rules.apply(logs)
        if self.n == 1:  # greedy, whose penalties work on logits
            others = torch.ones_like(applied, dtype=torch.bool)
            others[0, self._rules.apply(logits).argmax()] = False
            applied = applied.masked_fill(others, -math.inf)
        return logs, applied

    def go_on(self, rows: Sequence[int], ids: Sequence[int]) -> None:
        """Row i becomes what row `rows[i]` was, and one of `ids` longer.

        Of fewer than `num_beams` the first fills up the rows, which nobody asks then.
        """
        missing = self.n - len(rows)
        before = [*rows, *[rows[0]] * missing]
        last = torch.tensor([*ids, *[ids[0]] * missing], device=self._device)
        self._windows.reorder(before)
        self._windows.append(last)
        self._rules.reorder(before)
        self._rules.add(last)


@torch.inference_mode()
def _search(rows: _Rows, start: _Beam, beams: Beams, scored: bool) -> list[Found]:
    """What was found, best first, `num_beams` or fewer."""
    n, n_steps = rows.n, beams.max_new_tokens or 1
    going, found = [start], list[Found]()
    for length in range(1, n_steps + 1):
        own, logs = rows.next()
        entropies = entropy(own).tolist() if scored else []
        before, going, parents, ids = going, [], list[int](), list[int]()
        totals = torch.tensor([[beam.total] for beam in before], dtype=own.dtype, device=own.device)
        for rank, (row, id_, total) in enumerate(_likeliest(totals + logs[: len(before)], n)):
            if rank >= n and (len(going) == n or length == n_steps):
                break
            draft = before[row].draft.fork()
            draft.add(id_, (own[row, id_].item(), entropies[row]) if scored else None)
            if draft.ended or length == n_steps:
                if rank < n:
                    draft.finish()
                    found.append(Found(**vars(draft.written), score=beams.score(total, length)))
            elif len(going) < n:
                going.append(_Beam(draft, total))
                parents.append(row)
                ids.append(id_)
        found = sorted(found, key=lambda text: -text.score)[:n]
        if not going:
            break
        if len(found) == n and beams.prospect(going[0].total, length) <= found[-1].score:
            break
        rows.go_on(parents, ids)
    return found


def _likeliest(totals: Tensor, n: int) -> Iterator[tuple[int, int, float]]:
    """Row, id and value of (num_beams, V) sums of log probabilities, the highest first; of equal
    ones the first. Those without a probability are left out."""
    flat = totals.masked_fill(totals.isnan(), -math.inf).flatten()
    n_told = 0
    # of 2n at least n go on where texts end by the end of sequence alone: rarely more are asked for
    for n_sorted in (min(2 * n, len(flat)), len(flat)):
        (among,) = torch.where(flat >= flat.topk(n_sorted).values[-1])
        order = among[flat[among].argsort(descending=True, stable=True)][n_told:]
        for index, total in zip(order.tolist(), flat[order].tolist(), strict=True):
            if total == -math.inf:
                return
            yield *divmod(index, totals.size(1)), total
        n_told += len(order)
