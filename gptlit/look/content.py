"""The values on a page of `gptlit look`, as JSON's types."""

import base64
from typing import Any

import torch
from torch import Tensor

from gptlit.generation.sampling import entropy
from gptlit.insight.attention import attention_maps
from gptlit.insight.lens import logit_lens
from gptlit.insight.neighbours import nearest_neighbours
from gptlit.insight.passages import scores_of, spelled
from gptlit.model.gpt import GPT
from gptlit.terminal import visible
from gptlit.tokenizers.base import Tokenizer

ALTERNATIVES = 10  # likeliest tokens of a prediction
LENS = 5  # of a layer
NEIGHBOURS = 8
MAP_BYTES = 3 << 20  # of all attention maps on a page
MOST_TOKENS = 256  # so that a browser draws the page at once
DIGITS = 4  # of a number on the page

Json = dict[str, Any]


def most_tokens(model: GPT) -> int:
    """Return the number of tokens that a page can show of a model's context."""
    config = model.config
    n_maps, fitting = max(1, config.n_layer * config.n_head), 1
    while n_maps * triangle(fitting + 1) <= MAP_BYTES:
        fitting += 1
    return min(config.block_size, MOST_TOKENS, fitting)


def triangle(n: int) -> int:
    """Return the number of pairs of a position and one up to it, of n positions."""
    return n * (n + 1) // 2


def start_of(tokenizer: Tokenizer) -> int | None:
    """Return the id that precedes a text's first token: an end of sequence, or a newline."""
    start = tokenizer.start_id
    is_known = start == tokenizer.eos_id or tokenizer.piece(start) == b"\n"
    return start if is_known else None


@torch.no_grad()
def content(model: GPT, tokenizer: Tokenizer, ids: list[int], started: bool) -> Json:
    """Return the values of a passage; probabilities have four digits, attention weights 8 bits.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        ids: (T,) ids, 1 <= T <= `most_tokens`.
        started: Whether the first id is that of `start_of`, and not a part of the text.
    """
    passage = torch.tensor(ids, device=model.wte.weight.device)
    lens, logits = [], torch.empty(0)
    for logits in logit_lens(model, passage):  # the last are the model's own
        lens.append(_layer(logits, passage))
    following = scores_of(logits[:-1], passage[1:], 1)
    distinct = passage.unique()
    near, cosines = nearest_neighbours(model.wte.weight, distinct, NEIGHBOURS)
    best = _likeliest(logits, ALTERNATIVES)
    decode = tokenizer.incremental_decoder()
    maps = attention_maps(model, passage)
    named = {*ids, *near.flatten().tolist()}
    named |= {id_ for rows in (best, *lens) for row in rows["ids"] for id_ in row}
    return {
        "ids": ids,
        "started": started,
        "pieces": [decode(id_) for id_ in ids[started:]],
        "tokens": {id_: visible(spelled(tokenizer, id_)) for id_ in sorted(named)},
        "layers": len(maps),
        "heads": maps.size(1),
        "maps": encoded(maps),
        # of the tokens from the second on
        "nats": rounded(-following.logprobs),
        "rank": following.ranks.tolist(),
        # of the predictions after each token
        "entropy": rounded(entropy(logits)),
        "best": best,
        "lens": lens,
        "near": {
            id_: {"ids": others, "cosine": rounded(values)}
            for id_, others, values in zip(distinct.tolist(), near.tolist(), cosines, strict=True)
        },
    }


def _layer(logits: Tensor, passage: Tensor) -> Json:
    """Return the likeliest tokens by (T, V) logits, and the next tokens' own probabilities."""
    own = scores_of(logits[:-1], passage[1:], 1).logprobs.exp()
    return _likeliest(logits, LENS) | {"next": rounded(own)}


def _likeliest(logits: Tensor, k: int) -> Json:
    best = logits.float().softmax(dim=-1).topk(min(k, logits.size(1)), dim=1)
    return {"ids": best.indices.tolist(), "probability": [*map(rounded, best.values)]}


def rounded(values: Tensor) -> list[float]:
    """Return (n,) values with so many digits that a page needs no more."""
    return [float(f"{value:.{DIGITS}g}") for value in values.tolist()]


def encoded(maps: Tensor) -> str:
    """Return (n_layer, n_head, T, T) weights from 0 to 1 as 8 bits each, in base64.

    A row ends at its own position, since later ones have no weight.
    """
    T = maps.size(-1)
    rows, columns = torch.tril_indices(T, T)
    kept = maps[:, :, rows, columns]  # (n_layer, n_head, T (T + 1) / 2)
    quantised = (kept * 255).round().to(torch.uint8)
    return base64.b64encode(quantised.cpu().numpy().tobytes()).decode("ascii")
