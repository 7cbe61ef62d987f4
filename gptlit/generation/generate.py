"""Generation in three layers: `generate_chunks` yields ids, `stream_generate` text, and `generate`
returns the whole.

Each sample draws from its own stream of random numbers, so that its text depends neither on the
batch around it nor on the cache (float32; exact ties aside).
"""

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from gptlit.generation import captured
from gptlit.generation.captured import CHUNK, Chunk
from gptlit.generation.decoding import Windows
from gptlit.generation.prompts import encode_prompt, prompt_tensor, rule_ids
from gptlit.generation.sampling import Rules, Streams, next_token, scores
from gptlit.generation.settings import DEFAULTS, SamplingSettings, documented
from gptlit.generation.text_stream import Draft, GeneratedText
from gptlit.model.gpt import GPT
from gptlit.tokenizers.base import Tokenizer, Unknown

STREAMED = 8  # tokens of a streamed text that are shown at once
SAMPLES_AT_ONCE = 64  # in a batch, which has to fit into memory
Prompt = TypeVar("Prompt", str, list[str])


@contextlib.contextmanager
def in_eval_mode(model: GPT) -> Iterator[None]:
    """Put a model into eval mode, and back into its own mode at the end."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@torch.inference_mode()
def generate_step(
    model: GPT,
    prompts: Sequence[Tensor] | Tensor,
    settings: SamplingSettings,
    seeds: Sequence[int],
    use_cache: bool = True,
    *,
    eos_id: int | None = None,
    banned: Sequence[int] = (),
    forced: Sequence[int] = (),
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the next (B,) token ids and the model's (B, V) logits, `settings.max_new_tokens` times.

    `Windows` has the tokens that the model sees, the same with and without a cache. The model is
    in eval mode meanwhile.

    Args:
        model: Model that writes.
        prompts: B times (T,) ids, T >= 1, of any lengths; the last block_size are used.
        settings: How tokens are drawn, and how many.
        seeds: B seeds, one stream of random numbers each.
        use_cache: Keep keys and values instead of reading the whole window for every token.
        eos_id: Id that isn't drawn for the first `settings.min_new_tokens` tokens.
        banned: Ids that are never drawn.
        forced: Ids that come first, instead of drawn ones.
    """
    windows = Windows(model, prompts, use_cache)
    streams = Streams(seeds, prompts[0].device)
    vocab_size = model.config.vocab_size
    rules = Rules(settings, prompts, vocab_size, banned=banned, forced=forced, eos_id=eos_id)
    steps = itertools.count() if settings.max_new_tokens is None else range(settings.max_new_tokens)
    with in_eval_mode(model):
        for _ in steps:
            logits = windows.logits()
            ids = next_token(rules.apply(logits), streams.next(), settings)  # (B,)
            rules.add(ids)
            windows.append(ids)
            yield ids, logits


@torch.inference_mode()
def generate_chunks(
    model: GPT,
    prompts: Sequence[Tensor] | Tensor,
    settings: SamplingSettings,
    seeds: Sequence[int],
    use_cache: bool = True,
    *,
    scored: bool = False,
    most: int = CHUNK,
    **rules: Any,
) -> Iterator[Chunk]:
    """Yield the ids of `generate_step` in chunks: captured steps on a GPU, single tokens elsewhere.

    Other arguments are those of `generate_step`.

    Args:
        scored: Also record each token's log probability and entropy.
        most: Most tokens of a chunk, up to CHUNK.
    """
    if use_cache and captured.is_used_for(model):
        state = Rules(settings, prompts, model.config.vocab_size, **rules)
        streams = Streams(seeds, prompts[0].device)
        with in_eval_mode(model):
            how: dict[str, Any] = {"scored": scored, "most": most}
            yield from captured.chunks(model, prompts, state, streams, settings, **how)
        return
    for ids, logits in generate_step(model, prompts, settings, seeds, use_cache, **rules):
        yield Chunk(ids[None].cpu(), scores(logits, ids)[None].cpu() if scored else None)


def _chunks(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[np.ndarray],
    settings: SamplingSettings,
    seeds: Sequence[int],
    use_cache: bool,
    **how: Any,
) -> Iterator[Chunk]:
    """`generate_chunks` for B times (T,) ids of prompts."""
    batch = [prompt_tensor(model, tokenizer, prompt) for prompt in prompts]
    how |= rule_ids(tokenizer, settings)
    return generate_chunks(model, batch, settings, seeds, use_cache, **how)


def stream_generate(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str = "",
    settings: SamplingSettings = DEFAULTS,
    *,
    seed: int = 1337,
    unknown: Unknown = "error",
    use_cache: bool = True,
) -> Iterator[str]:
    """Yield the prompt, then its continuation piece by piece.

    The pieces are those of the text that `generate` returns, with its arguments and errors.

    Args:
        settings: How tokens are drawn, and where the text ends.
    """
    ids = encode_prompt(tokenizer, prompt, unknown)
    text = Draft(tokenizer, ids.tolist(), settings.stop)
    # settings that don't work are refused before the prompt is yielded
    chunks = _chunks(model, tokenizer, [ids], settings, [seed], use_cache, most=STREAMED)
    yield text.prompt
    for chunk in chunks:
        for id_ in chunk.ids[:, 0].tolist():
            yield text.add(id_)
            if text.ended:
                return
    if held := text.finish():
        yield held


def generate(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: Prompt = "",  # type: ignore[assignment]  # str is one of its types
    *,
    seed: int = 1337,
    unknown: Unknown = "error",
    use_cache: bool = True,
    temperature: float = SamplingSettings.temperature,
    top_k: int | None = SamplingSettings.top_k,
    top_p: float | None = SamplingSettings.top_p,
    min_p: float | None = SamplingSettings.min_p,
    typical_p: float | None = SamplingSettings.typical_p,
    repetition_penalty: float = SamplingSettings.repetition_penalty,
    frequency_penalty: float = SamplingSettings.frequency_penalty,
    presence_penalty: float = SamplingSettings.presence_penalty,
    max_new_tokens: int | None = SamplingSettings.max_new_tokens,
    min_new_tokens: int = SamplingSettings.min_new_tokens,
    stop: str | Sequence[str] = (),
    ban: str | Sequence[str] = (),
    force: str = SamplingSettings.force,
) -> Prompt:
    """Return the prompt and its continuation, up to the end of sequence if the tokenizer has one.

    Several prompts are written in batches with the same seed. Each text is the one that its prompt
    gives alone (float32; exact ties aside).

    Args:
        model: Model that writes, on any device.
        tokenizer: Tokenizer that the model was trained with.
        prompt: Text to continue, or a list of texts; the last `block_size` tokens are used.
        seed: Seed of each text's own stream of random numbers, 0 or more.
        unknown: "error" refuses characters or words outside the vocabulary, "skip" drops them.
        use_cache: Keep keys and values; the text is the same either way.
        SETTINGS

    Returns:
        A text, or for a list of prompts the list of their texts, in order.

    Raises:
        UsageError: Invalid settings, or characters outside the vocabulary.
        TypeError: A prompt is not a string.
    """
    given = locals()
    settings = SamplingSettings(**{each.name: given[each.name] for each in fields(DEFAULTS)})
    if isinstance(prompt, str):
        pieces = stream_generate(
            model, tokenizer, prompt, settings, seed=seed, unknown=unknown, use_cache=use_cache
        )
        return "".join(pieces)
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
        name = type(prompt).__name__
        raise TypeError(f"prompt: must be a string or a list of strings, not a {name}")
    texts: list[str] = []
    for first in range(0, len(prompt), SAMPLES_AT_ONCE):
        some = prompt[first : first + SAMPLES_AT_ONCE]
        seeds = [seed] * len(some)
        written = generate_many(
            model, tokenizer, some, seeds, settings, unknown=unknown, use_cache=use_cache
        )
        texts += [each.whole for each in written]
    return texts


generate.__doc__ = (generate.__doc__ or "").replace("SETTINGS", documented(SamplingSettings))


def generate_many(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: SamplingSettings = DEFAULTS,
    *,
    unknown: Unknown = "error",
    use_cache: bool = True,
    scored: bool = False,
) -> list[GeneratedText]:
    """Write a text for each prompt and seed, in one batch; each is the text that `generate` gives.

    Other arguments, and errors, are those of `generate`.

    Args:
        prompts: B texts to continue.
        seeds: B seeds, one for each prompt.
        settings: How tokens are drawn, and where texts end.
        scored: Record each token's log probability and entropy.
    """
    if isinstance(prompts, str):
        raise TypeError("prompts: must be a list of strings, not one string")
    encoded = {prompt: encode_prompt(tokenizer, prompt, unknown) for prompt in set(prompts)}
    rows = [encoded[prompt] for prompt in prompts]
    texts = [Draft(tokenizer, row.tolist(), settings.stop) for row in rows]
    for chunk in _chunks(model, tokenizer, rows, settings, seeds, use_cache, scored=scored):
        recorded: Iterable[Iterable[Any]] = itertools.repeat(itertools.repeat(None))
        if chunk.scores is not None:
            recorded = chunk.scores.transpose(0, 1).tolist()
        for text, ids, its_scores in zip(texts, chunk.ids.T.tolist(), recorded, strict=False):
            for id_, score in zip(ids, its_scores, strict=False):
                text.add(id_, score)
        if all(text.ended for text in texts):
            break
    for text in texts:
        text.finish()
    return [text.written for text in texts]
