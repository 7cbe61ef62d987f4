"""Beam search: finds the likeliest texts instead of drawing texts; the same ones at every call.

Each step extends the `num_beams` likeliest unfinished texts by one token. Of the continuations,
the `num_beams` likeliest that end are kept with a score, and the `num_beams` likeliest that don't
end are extended further. It is the beam search of Hugging Face's `generate`, to which `make parity`
compares it.

A text ends at its end of sequence, at a stop string, or at `max_new_tokens`. Its score is the sum
of its tokens' log probabilities divided by length ** length_penalty. All new tokens count in sum
and length, those of the end of sequence and of a stop string included; the prompt's don't. Bans,
penalties and `force` change the log probabilities as they change logits in sampling, in the same
order, and they aren't normalised again: a forced token adds 0 to the sum, and 1 to the length; a
repetition penalty multiplies, since no log probability is positive. A single beam chooses by
logits, as greedy sampling does, and is scored like the others.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gptlit.devices import accelerators
from gptlit.generation.decoding import Windows
from gptlit.generation.prompts import encode_prompt, prompt_tensor, rule_ids
from gptlit.generation.sampling import Rules, entropy
from gptlit.generation.settings import GREEDY, BeamSettings
from gptlit.generation.text_stream import Draft, GeneratedText
from gptlit.messages import UsageError
from gptlit.model.gpt import GPT
from gptlit.tokenizers.base import Tokenizer, Unknown


@dataclass
class ScoredText(GeneratedText):
    """A text that a beam search returns, with its score.

    Args:
        score: Sum of log probabilities / length ** length_penalty; it includes an end of sequence,
            which `ids` and `logprobs` leave out.
    """

    score: float = 0.0


def search(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str = "",
    settings: BeamSettings = GREEDY,
    *,
    unknown: Unknown = "error",
    use_cache: bool = True,
    scored: bool = False,
) -> list[ScoredText]:
    """Return the best continuations of a prompt, best first, `num_samples` or fewer.

    Of two equally likely texts, the one that continues the likelier text comes first, then the one
    with the lower id; of two equal scores, the one that ended earlier.

    Other arguments, and errors, are those of `generate`.

    Args:
        settings: Number of beams, how they are scored and when they end; greedy when left out.
        scored: Record each token's log probability and entropy.

    Raises:
        UsageError: No text has a probability above 0.
    """
    ids = encode_prompt(tokenizer, prompt, unknown)
    start = _Beam(Draft(tokenizer, ids.tolist(), settings.stop))
    rules = rule_ids(tokenizer, settings)
    was_training = model.training
    model.eval()
    try:
        rows = _Rows(model, prompt_tensor(model, tokenizer, ids), settings, rules, use_cache)
        texts = _search(rows, start, settings, scored)
    finally:
        model.train(was_training)
    if not texts:
        reason = "there is no text to find; every token is banned, or the model's logits aren't"
        raise UsageError(f"{reason} finite", "num_beams", settings.num_beams)
    return texts[: settings.num_samples]


@dataclass(frozen=True)
class _Beam:
    """An unfinished text, and the sum of its tokens' log probabilities."""

    draft: Draft
    total: float = 0.0


class _Rows:
    """The state of model and rules for `num_beams` texts, one in each row."""

    def __init__(
        self,
        model: GPT,
        prompt: Tensor,
        beams: BeamSettings,
        rules: dict[str, Any],
        use_cache: bool,
    ) -> None:
        self.n = beams.num_beams or 1
        self._device = prompt.device
        prompts = prompt.expand(self.n, -1)  # (num_beams, T)
        self._windows = Windows(model, prompts, use_cache)
        self._rules = Rules(beams, prompts, model.config.vocab_size, **rules)

    def next(self) -> tuple[Tensor, Tensor]:
        """Return (num_beams, V) log probabilities, by the model alone and with rules."""
        logits = self._windows.logits()
        logs = logits.log_softmax(dim=-1, dtype=accelerators.widest_float(logits.device))
        applied = self._rules.apply(logs)
        if self.n == 1:  # greedy sampling's penalties change logits, not log probabilities
            others = torch.ones_like(applied, dtype=torch.bool)
            others[0, self._rules.apply(logits).argmax()] = False
            applied = applied.masked_fill(others, -math.inf)
        return logs, applied

    def extend(self, rows: Sequence[int], ids: Sequence[int]) -> None:
        """Make row i a copy of row `rows[i]`, and append `ids[i]` to it.

        If there are fewer than `num_beams`, copies of the first fill the other rows.
        """
        missing = self.n - len(rows)
        before = [*rows, *[rows[0]] * missing]
        last = torch.tensor([*ids, *[ids[0]] * missing], device=self._device)
        self._windows.reorder(before)
        self._windows.append(last)
        self._rules.reorder(before)
        self._rules.add(last)


@torch.inference_mode()
def _search(rows: _Rows, start: _Beam, beams: BeamSettings, scored: bool) -> list[ScoredText]:
    """Return the texts found, best first, `num_beams` or fewer."""
    n, n_steps = rows.n, beams.max_new_tokens or 1
    unfinished, ended = [start], list[ScoredText]()
    for length in range(1, n_steps + 1):
        by_model, logs = rows.next()
        entropies = entropy(by_model).tolist() if scored else []
        before, unfinished, parents, ids = unfinished, [], list[int](), list[int]()
        totals = logs.new_tensor([[beam.total] for beam in before])
        for rank, (row, id_, total) in enumerate(_likeliest(totals + logs[: len(before)], n)):
            if rank >= n and (len(unfinished) == n or length == n_steps):
                break
            draft = before[row].draft.fork()
            draft.add(id_, (by_model[row, id_].item(), entropies[row]) if scored else None)
            if draft.ended or length == n_steps:
                if rank < n:
                    draft.finish()
                    ended.append(
                        ScoredText(**vars(draft.written), score=_score(total, length, beams))
                    )
            elif len(unfinished) < n:
                unfinished.append(_Beam(draft, total))
                parents.append(row)
                ids.append(id_)
        ended = sorted(ended, key=lambda text: -text.score)[:n]
        if not unfinished:
            break
        if len(ended) == n and _best_to_come(unfinished[0].total, length, beams) <= ended[-1].score:
            break
        rows.extend(parents, ids)
    return ended


def _score(total: float, length: int, settings: BeamSettings) -> float:
    """Return the score of an ended text with this sum of log probabilities."""
    return total / length**settings.length_penalty


def _best_to_come(total: float, length: int, settings: BeamSettings) -> float:
    """Return the highest score of an unfinished text that `early_stopping` considers possible."""
    if settings.early_stopping is True or settings.num_beams == 1:
        return -math.inf
    if settings.early_stopping == "never" and settings.length_penalty > 0:
        # the sum can only fall, but the longest text is divided by most
        length = settings.max_new_tokens or length
    return _score(total, length, settings)


def _likeliest(totals: Tensor, n: int) -> Iterator[tuple[int, int, float]]:
    """Yield row, id and value of (num_beams, V) sums of log probabilities, highest first, and the
    first of equal ones; without those of probability 0."""
    flat = totals.masked_fill(totals.isnan(), -math.inf).flatten()
    n_yielded = 0
    # 2n are enough where texts end at the end of sequence alone: one ends in each row at most
    for n_sorted in (min(2 * n, len(flat)), len(flat)):
        (among,) = torch.where(flat >= flat.topk(n_sorted).values[-1])
        order = among[flat[among].argsort(descending=True, stable=True)][n_yielded:]
        for index, total in zip(order.tolist(), flat[order].tolist(), strict=True):
            if total == -math.inf:
                return
            yield *divmod(index, totals.size(1)), total
        n_yielded += len(order)
