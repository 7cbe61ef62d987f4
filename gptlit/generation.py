"""Writing in three layers: `generate_step` yields ids, `stream_generate` text, `generate` all.

A sample is its own: sample i draws from the stream of seed + i, so that its text depends
neither on the batch around it nor on the cache (float32; exact ties aside).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gptlit.messages import UsageError
from gptlit.model import GPT, KVCache
from gptlit.sampling import Streams, next_token
from gptlit.tokenizer import Tokenizer, Unknown, UnknownPieces


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens.

    Args:
        max_new_tokens: How many tokens to write; past block_size it just goes on.
        temperature: Below 1 is safer, above 1 is wilder; 0 is greedy.
        top_k: Draw from the k likeliest tokens only; unlimited when left out.
    """

    max_new_tokens: int = 500
    temperature: float = 0.8
    top_k: int | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 0:
            raise UsageError(f"--max_new_tokens {self.max_new_tokens}: must be 0 or more")
        # `not <=` refuses NaN as well
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(
                f"--temperature {self.temperature}: must be 0 (greedy) or above; 0.8 is usual"
            )
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"--top_k {self.top_k}: must be 1 or more, or left out for no limit")


@torch.inference_mode()
def generate_step(
    model: GPT,
    prompt: Tensor,
    sampling: Sampling,
    seeds: Sequence[int],
    use_cache: bool = True,
) -> Iterator[Tensor]:
    """Yield the next (B,) token ids, `sampling.max_new_tokens` times, in eval mode.

    The window of context holds up to block_size tokens. When it is full, its last
    block_size // 2 tokens (at least one) are kept and fed anew, with and without a cache, so
    that the cost per token stays constant however long the text.

    Args:
        model: Logits for (B, T) ids.
        prompt: (B, T) ids, T >= 1; of more than block_size, the last are used.
        sampling: How to choose among the logits.
        seeds: B seeds, one stream of random numbers each.
        use_cache: Keep keys and values instead of feeding the whole window for every token.
    """
    block_size = model.config.block_size
    window = fresh = prompt[:, -block_size:]  # fresh: what the cache hasn't seen
    streams = Streams(seeds, prompt.device)
    cache = KVCache(model.config, len(prompt), model.lm_head.weight) if use_cache else None
    was_training = model.training
    model.eval()
    try:
        for _ in range(sampling.max_new_tokens):
            if window.size(1) > block_size:
                window = fresh = window[:, -max(1, block_size // 2) :]
                if cache is not None:
                    cache.length = 0
            logits = model(window if cache is None else fresh, cache, last=True)[:, -1]  # (B, V)
            ids = next_token(logits, streams.next(), sampling.temperature, sampling.top_k)  # (B,)
            fresh = ids[:, None]
            window = torch.cat([window, fresh], dim=1)
            yield ids
    finally:
        model.train(was_training)


def encode_prompt(tokenizer: Tokenizer, prompt: str, unknown: Unknown = "error") -> np.ndarray:
    """The (T,) ids of a prompt, T >= 0.

    Raises:
        UsageError: characters or words outside the vocabulary, unless `unknown` is "skip".
    """
    try:
        return tokenizer.encode(prompt, unknown)
    except UnknownPieces as error:
        raise UsageError(f"--prompt: {error}; --unknown skip drops them") from error


def _steps(
    model: GPT,
    tokenizer: Tokenizer,
    ids: np.ndarray,
    sampling: Sampling,
    seeds: Sequence[int],
    use_cache: bool,
) -> Iterator[Tensor]:
    """`generate_step` for one prompt of (T,) ids, once for each seed.

    An empty prompt starts from the tokenizer's `start_id`, which is not part of the text.
    """
    ids = ids if len(ids) else np.array([tokenizer.start_id])
    prompt = torch.as_tensor(ids.astype(np.int64), device=model.lm_head.weight.device)
    return generate_step(model, prompt.expand(len(seeds), -1), sampling, seeds, use_cache)


def stream_generate(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str = "",
    *,
    seed: int = 1337,
    unknown: Unknown = "error",
    use_cache: bool = True,
    **sampling: Any,
) -> Iterator[str]:
    """Yield the prompt, then its continuation piece by piece, up to the end of sequence if the
    tokenizer has one.

    Args:
        model: The model that writes.
        tokenizer: The one it was trained with.
        prompt: The text to continue.
        seed: Of the sample's own stream of random numbers.
        unknown: What to do with characters outside the vocabulary: "error" or "skip".
        use_cache: Keep keys and values; the text is the same either way.
        sampling: The fields of `Sampling`.

    Raises:
        UsageError: a setting that can't work, or characters outside the vocabulary.
    """
    settings = Sampling(**sampling)
    ids = encode_prompt(tokenizer, prompt, unknown)
    spell = tokenizer.speller()
    yield "".join(map(spell, ids.tolist()))
    for step in _steps(model, tokenizer, ids, settings, [seed], use_cache):
        if (id_ := int(step)) == tokenizer.eos_id:
            return
        yield spell(id_)


def generate(model: GPT, tokenizer: Tokenizer, prompt: str = "", **options: Any) -> str:
    """The prompt and its continuation: the whole of what `stream_generate` yields."""
    return "".join(stream_generate(model, tokenizer, prompt, **options))


def generate_samples(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str = "",
    *,
    seeds: Sequence[int],
    unknown: Unknown = "error",
    use_cache: bool = True,
    **sampling: Any,
) -> list[str]:
    """A text for each of `seeds`, prompt and continuation, drawn as one batch.

    Each is the text that `generate` gives for its seed. Arguments and errors are those of
    `stream_generate`.
    """
    settings = Sampling(**sampling)
    ids = encode_prompt(tokenizer, prompt, unknown)
    steps: list[Tensor] = []
    ended = torch.zeros(len(seeds), dtype=torch.bool)
    for step in _steps(model, tokenizer, ids, settings, seeds, use_cache):
        steps.append(step)
        if tokenizer.eos_id is not None:
            ended |= step.cpu() == tokenizer.eos_id
            if ended.all():
                break
    rows = torch.stack(steps, dim=1).tolist() if steps else [[]] * len(seeds)
    rows = [row[: row.index(tokenizer.eos_id)] if tokenizer.eos_id in row else row for row in rows]
    return [tokenizer.decode(ids.tolist() + row) for row in rows]
