"""Scores of a passage: each token's probability and rank, and the likeliest other tokens."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gptlit.generation.decoding import window_starts
from gptlit.generation.generate import in_eval_mode
from gptlit.generation.prompts import encode_prompt
from gptlit.generation.sampling import entropy
from gptlit.messages import UsageError, opt
from gptlit.model.gpt import GPT
from gptlit.tokenizers.base import Tokenizer, Unknown

ALTERNATIVES = 5
ROWS = 128  # of logits that are scored at once


@dataclass(frozen=True)
class Scores:
    """Predictions of n tokens, in nats.

    Args:
        logprobs: (n,) log probability of each token.
        entropies: (n,) entropy of the distribution that it was predicted from.
        ranks: (n,) its rank, 1 for the likeliest token.
        best: (n, k) ids of the likeliest tokens, in order.
        best_logprobs: (n, k) their log probabilities.
    """

    logprobs: Tensor
    entropies: Tensor
    ranks: Tensor
    best: Tensor
    best_logprobs: Tensor


@torch.no_grad()
def scores_of(logits: Tensor, following: Tensor, k: int = ALTERNATIVES) -> Scores:
    """Return the scores of (n,) tokens by the (n, V) logits that predict them.

    Args:
        logits: (n, V)
        following: (n,) ids of the tokens.
        k: Number of likeliest tokens, at most V of them.
    """
    logs = logits.float().log_softmax(dim=-1)  # (n, V)
    own = logs.gather(1, following[:, None])  # (n, 1)
    best = logs.topk(min(k, logs.size(1)), dim=1)
    ranks = (logs > own).sum(dim=1) + 1
    return Scores(own[:, 0], entropy(logs).float(), ranks, best.indices, best.values)


@torch.no_grad()
def score(model: GPT, ids: Tensor, k: int = ALTERNATIVES) -> Scores:
    """Return the scores of all tokens of a passage but the first, each given those before it.

    The context is that of `generate_step`: when block_size tokens are in it, the last
    block_size // 2 are kept, so a generated text gets the probabilities it was drawn with.

    Args:
        model: The model; its mode is the same afterwards.
        ids: (n + 1,) token ids, of any length.
        k: Number of likeliest tokens, at most V of them.
    """
    size, parts = model.config.block_size, []
    with in_eval_mode(model):
        for start, predicted in window_starts(len(ids), size):
            following = ids[predicted : start + size + 1]  # (n,)
            logits = model(ids[None, start : start + size])[0, predicted - start - 1 :]
            logits = logits[: len(following)]  # (n, V)
            pairs = zip(logits.split(ROWS), following.split(ROWS), strict=True)
            parts += [scores_of(*pair, k) for pair in pairs]
    if not parts:
        none = torch.zeros(0, model.config.vocab_size, device=ids.device)
        parts = [scores_of(none, ids[1:], k)]
    columns = zip(*(vars(part).values() for part in parts), strict=True)
    return Scores(*map(torch.cat, columns))


@dataclass(frozen=True)
class Alternative:
    """Another token that the model could have predicted; its log probability is in nats."""

    token: str
    id: int
    logprob: float


@dataclass(frozen=True)
class Scored:
    """A token of a text with the model's prediction.

    Args:
        token: Its text; bytes of an incomplete character are written as \\xe2.
        id: Its id.
        logprob: Log probability by the model, in nats; None for a first token without context.
        rank: 1 for the likeliest token; None as for logprob.
        entropy: Entropy of the distribution that it was predicted from, in nats; None likewise.
        alternatives: The likeliest other tokens, in order.
    """

    token: str
    id: int
    logprob: float | None = None
    rank: int | None = None
    entropy: float | None = None
    alternatives: list[Alternative] = field(default_factory=list)


@dataclass(frozen=True)
class Explained:
    """A text and its tokens.

    Args:
        text: The text as the model read it.
        pieces: Part of the text that each token adds.
        tokens: The tokens, one for each piece.
        start: Token that the first one was predicted from; None if it was not predicted.
        n_bytes: UTF-8 bytes of the predicted tokens.
        block_size: The model's context in tokens.
    """

    text: str
    pieces: list[str]
    tokens: list[Scored]
    start: str | None
    n_bytes: int
    block_size: int

    @property
    def metrics(self) -> dict[str, float | None]:
        """Metrics of the predicted tokens: `loss` in nats, `perplexity`, `bits_per_byte`."""
        nats = [-token.logprob for token in self.tokens if token.logprob is not None]
        if not nats or not self.n_bytes:
            return dict.fromkeys(("loss", "perplexity", "bits_per_byte"))
        loss = math.fsum(nats) / len(nats)
        bits = math.fsum(nats) / math.log(2)
        return {"loss": loss, "perplexity": math.exp(loss), "bits_per_byte": bits / self.n_bytes}


@torch.inference_mode()
def explain(model: GPT, tokenizer: Tokenizer, text: str, unknown: Unknown = "error") -> Explained:
    """Compute each token's probability given those before it, and the likeliest other tokens.

    The context is that of `score`. The first token is predicted from the end of sequence, or else
    from a newline; if the model has neither, it is not predicted.

    Args:
        model: The model, in eval mode.
        tokenizer: The tokenizer it was trained with.
        text: The text to explain.
        unknown: Handling of characters outside the vocabulary: "error" or "skip".

    Raises:
        UsageError: An empty text, or characters outside the vocabulary.
    """
    ids = encode_prompt(tokenizer, text, unknown).tolist()
    if not ids:
        raise UsageError(
            f"there is no text; give one by {opt('prompt')} or {opt('prompt_file')}", "explain"
        )
    decode = tokenizer.incremental_decoder()
    pieces = [decode(id_) for id_ in ids]
    text = "".join(pieces)
    n_bytes, size, start = len(text.encode()), model.config.block_size, tokenizer.start_id
    if start == tokenizer.eos_id or tokenizer.piece(start) == b"\n":
        scored = list(_scored(model, tokenizer, [start, *ids]))
        return Explained(text, pieces, scored, spelled(tokenizer, start), n_bytes, size)
    first = Scored(spelled(tokenizer, ids[0]), ids[0])
    n_bytes -= len(tokenizer.piece(ids[0]))
    return Explained(text, pieces, [first, *_scored(model, tokenizer, ids)], None, n_bytes, size)


def spelled(tokenizer: Tokenizer, id_: int) -> str:
    """Decode a single token; bytes of an incomplete character are written as \\xe2."""
    return tokenizer.piece(id_).decode("utf-8", "backslashreplace")


def _scored(model: GPT, tokenizer: Tokenizer, ids: list[int]) -> Iterator[Scored]:
    """Score all ids but the first."""
    on_device = torch.tensor(ids, device=model.wte.weight.device)
    scores = score(model, on_device, ALTERNATIVES + 1)
    columns = (scores.logprobs, scores.ranks, scores.entropies, scores.best, scores.best_logprobs)
    rows = zip(ids[1:], *(column.tolist() for column in columns), strict=True)
    for id_, logprob, rank, entropy_, best, values in rows:
        alternatives = [
            Alternative(spelled(tokenizer, other), other, value)
            for other, value in zip(best, values, strict=True)
            if other != id_
        ]
        text = spelled(tokenizer, id_)
        yield Scored(text, id_, logprob, rank, entropy_, alternatives[:ALTERNATIVES])
