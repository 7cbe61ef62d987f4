"""Writing in three layers: `generate_step` yields ids, `stream_generate` text, `generate` all.

A sample is its own: sample i draws from the stream of seed + i, so that its text depends
neither on the batch around it nor on the cache (float32; exact ties aside).
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor

from gptlit.generation.decoding import Windows
from gptlit.generation.sampling import Rules, Streams, entropy, next_token
from gptlit.generation.settings import DEFAULTS, SamplingSettings
from gptlit.generation.text_stream import Draft, Written
from gptlit.messages import UsageError, note, opt
from gptlit.model.gpt import GPT
from gptlit.tokenizers.base import Tokenizer, Unknown, UnknownPieces, checked_text

SAMPLES_AT_ONCE = 64  # as memory can hold them
Prompt = TypeVar("Prompt", str, list[str])


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
    """Yield the next (B,) token ids and the (B, V) logits of the model that they come from,
    `settings.max_new_tokens` times, in eval mode.

    What the model sees of a text, and when it is read anew, is the rule of `Windows`, the same
    with and without a cache.

    Args:
        model: Logits for (B, T) ids.
        prompts: B times (T,) ids, T >= 1 and not the same for all; of more than block_size, the
            last are used.
        settings: How tokens are drawn, and how many.
        seeds: B seeds, one stream of random numbers each.
        use_cache: Keep keys and values instead of feeding the whole window for every token.
        eos_id: Not drawn for the first `settings.min_new_tokens` tokens.
        banned: Ids that are never drawn.
        forced: Ids that come first, whatever would have been drawn.
    """
    windows = Windows(model, prompts, use_cache)
    streams = Streams(seeds, prompts[0].device)
    rules = Rules(
        settings,
        prompts,
        model.config.vocab_size,
        banned=banned,
        forced=forced,
        eos_id=eos_id,
    )
    steps = itertools.count() if settings.max_new_tokens is None else range(settings.max_new_tokens)
    was_training = model.training
    model.eval()
    try:
        for _ in steps:
            logits = windows.logits()
            ids = next_token(rules.apply(logits), streams.next(), settings)  # (B,)
            rules.add(ids)
            windows.append(ids)
            yield ids, logits
    finally:
        model.train(was_training)


def encode_prompt(tokenizer: Tokenizer, prompt: str, unknown: Unknown = "error") -> np.ndarray:
    """The (T,) ids of a prompt, T >= 0.

    Raises:
        UsageError: characters or words outside the vocabulary, unless `unknown` is "skip"; or
            `unknown` is neither "error" nor "skip".
        TypeError: the prompt is not a string.
    """
    checked_text(prompt, "prompt")
    if unknown not in get_args(Unknown):
        raise UsageError("must be error or skip", "unknown", unknown)
    try:
        return tokenizer.encode(prompt, unknown)
    except UnknownPieces as error:
        raise UsageError(f"{error}; {opt('unknown')} skip drops them", "prompt") from error


def single_tokens(tokenizer: Tokenizer, strings: Sequence[str]) -> list[int]:
    """The ids of the tokens that strings name: text of one token, or a special token's name.

    A word of the text may be spelled as a special token is: such a string names both, or the
    word alone where the special token is the end of sequence, which writes nothing.

    Raises:
        UsageError: a string isn't one token.
    """
    found = []
    for string in strings:
        special = [tokenizer.special_ids[string]] if string in tokenizer.special_ids else []
        try:
            ids = tokenizer.encode(string).tolist()
            known = tokenizer.unknown_id is None or tokenizer.unknown_id not in ids
        except UnknownPieces as error:
            if not special:
                raise UsageError(str(error), "ban", repr(string)) from error
            known = False
        if known and len(ids) == 1:
            found += ids + [id_ for id_ in special if id_ != tokenizer.eos_id]
        elif special:
            found += special
        elif known:
            reason = f"is {len(ids)} tokens of this model; name one token at a time"
            raise UsageError(reason, "ban", repr(string))
        else:
            raise UsageError("the model has no token for it; leave it out", "ban", repr(string))
    return found


def forced_tokens(tokenizer: Tokenizer, settings: SamplingSettings) -> list[int]:
    """The ids of `settings.force`, tokenized on its own: with the end of the prompt it might have
    made other tokens.

    Raises:
        UsageError: it can't be written with this vocabulary, or other options forbid it.
    """
    force, limit = repr(settings.force), settings.max_new_tokens
    try:
        ids: list[int] = tokenizer.encode(settings.force).tolist()
    except UnknownPieces as error:
        raise UsageError(str(error), "force") from error
    if tokenizer.unknown_id in ids:
        raise UsageError("holds what the model has no token for; leave it out", "force", force)
    for string in settings.ban:
        if not set(ids).isdisjoint(single_tokens(tokenizer, [string])):
            reason = f"contains {opt('ban')} {string!r}; leave one of them out"
            raise UsageError(reason, "force", force)
    if limit is not None and len(ids) > limit:
        more = f"more than {opt('max_new_tokens')} {limit}; give at least as many"
        raise UsageError(f"is {len(ids)} tokens, {more}", "force", force)
    return ids


def as_prompt(model: GPT, tokenizer: Tokenizer, ids: np.ndarray) -> Tensor:
    """(T,) ids of a prompt where the model is; an empty one starts from the tokenizer's
    `start_id`, which is not part of the text."""
    ids = ids if len(ids) else np.array([tokenizer.start_id])
    return torch.as_tensor(ids.astype(np.int64), device=model.lm_head.weight.device)


def rules_by_id(tokenizer: Tokenizer, settings: SamplingSettings) -> dict[str, Any]:
    """What `generate_step` and `Rules` take of a tokenizer: `eos_id`, `banned` and `forced`."""
    return {
        "eos_id": tokenizer.eos_id,
        "banned": single_tokens(tokenizer, settings.ban),
        "forced": forced_tokens(tokenizer, settings),
    }


def _steps(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[np.ndarray],
    settings: SamplingSettings,
    seeds: Sequence[int],
    use_cache: bool,
) -> Iterator[tuple[Tensor, Tensor]]:
    """`generate_step` for B times (T,) ids of prompts."""
    batch = [as_prompt(model, tokenizer, ids) for ids in prompts]
    rules = rules_by_id(tokenizer, settings)
    return generate_step(model, batch, settings, seeds, use_cache, **rules)


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
    """Yield the prompt, then its continuation piece by piece, up to the end of sequence if the
    tokenizer has one.

    Args:
        model: Model that writes.
        tokenizer: Tokenizer that the model was trained with.
        prompt: Text to continue.
        settings: How tokens are drawn, and where the text ends.
        seed: Seed of the sample's own stream of random numbers.
        unknown: "error" refuses characters outside the vocabulary, "skip" drops them.
        use_cache: Keep keys and values; the text is the same either way.

    Raises:
        UsageError: settings that don't work with this tokenizer, or characters outside the
            vocabulary.
    """
    ids = encode_prompt(tokenizer, prompt, unknown)
    text = Draft(tokenizer, ids.tolist(), settings.stop)
    # settings that don't work are refused before the prompt is yielded
    steps = _steps(model, tokenizer, [ids], settings, [seed], use_cache)
    yield text.prompt
    for step, _ in steps:
        yield text.add(int(step))
        if text.ended:
            return
    if held := text.finish():
        yield held


def generate(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: Prompt = "",  # type: ignore[assignment]  # the default is of one of its types
    *,
    seed: int = 1337,
    unknown: Unknown = "error",
    use_cache: bool = True,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    typical_p: float | None = None,
    repetition_penalty: float = 1.0,
    frequency_penalty: float = 0.0,
    presence_penalty: float = 0.0,
    max_new_tokens: int | None = 500,
    min_new_tokens: int = 0,
    stop: str | Sequence[str] = (),
    ban: str | Sequence[str] = (),
    force: str = "",
) -> Prompt:
    """The prompt and its continuation, up to the end of sequence if the tokenizer has one.

    Several prompts are written in batches, with the same seed each: every text is the one that
    its prompt gives alone (float32; exact ties aside).

    Args:
        model: The model that writes, on any device.
        tokenizer: The one it was trained with.
        prompt: The text to continue, or a list of texts. Of more than `block_size` tokens the
            last are used.
        seed: Of each text's own stream of random numbers, 0 or more.
        unknown: What to do with characters or words outside the vocabulary: "error" or "skip".
        use_cache: Keep keys and values; the text is the same either way.
        temperature: Below 1 is safer, above 1 is wilder; 0 is greedy.
        top_k: Draw from the k likeliest tokens only.
        top_p: Draw from the likeliest tokens that have this share of the probability together.
        min_p: Draw from tokens at least this many times as likely as the likeliest.
        typical_p: Draw from the most typical that have this share of the probability together.
        repetition_penalty: Above 1, makes tokens of prompt and text less likely; 1 is none.
        frequency_penalty: Taken from a token's logit for each time that it was written.
        presence_penalty: Taken from the logit of each token that was written.
        max_new_tokens: The most tokens to write; None for no limit.
        min_new_tokens: The end of sequence isn't drawn for so many tokens.
        stop: A string, or several, that end a text where they first appear; not part of it.
        ban: A string of one token, or several, that are never written.
        force: What the continuation begins with.

    Returns:
        A text, or for a list of prompts the list of their texts, in order.

    Raises:
        UsageError: a setting that can't work, or characters outside the vocabulary.
        TypeError: a prompt that is not a string.
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
) -> list[Written]:
    """Write a text for each prompt and seed, in one batch; each is the text that `generate` gives.

    Args:
        model: Model that writes.
        tokenizer: Tokenizer that the model was trained with.
        prompts: Texts to continue.
        seeds: A seed for each prompt.
        settings: How tokens are drawn, and where texts end.
        unknown: "error" refuses characters outside the vocabulary, "skip" drops them.
        use_cache: Keep keys and values; the texts are the same either way.
        scored: Record each token's log probability and entropy.

    Raises:
        UsageError: settings that don't work with this tokenizer, or characters outside the
            vocabulary.
    """
    if isinstance(prompts, str):
        raise TypeError("prompts: must be a list of strings, not one string")
    encoded = {prompt: encode_prompt(tokenizer, prompt, unknown) for prompt in set(prompts)}
    rows = [encoded[prompt] for prompt in prompts]
    texts = [Draft(tokenizer, row.tolist(), settings.stop) for row in rows]
    for step, logits in _steps(model, tokenizer, rows, settings, seeds, use_cache):
        scores = _scores(logits, step) if scored else itertools.repeat(None)
        for text, id_, score in zip(texts, step.tolist(), scores, strict=False):
            text.add(id_, score)
        if all(text.ended for text in texts):
            break
    for text in texts:
        text.finish()
    return [text.written for text in texts]


def _scores(logits: Tensor, ids: Tensor) -> list[tuple[float, float]]:
    """The log probability of each of (B,) ids under (B, V) logits, and the entropy."""
    logs = logits.float().log_softmax(dim=-1).gather(1, ids[:, None])[:, 0]
    return list(zip(logs.tolist(), entropy(logits.float()).tolist(), strict=True))


def tell_dropped(
    prompt: str, unknown: Unknown, tokenizer: Tokenizer, option: str = "--prompt"
) -> None:
    """Warn of pieces of a prompt that the model doesn't know, where it is told to skip them or
    has a token that stands for any."""
    try:
        ids = tokenizer.encode(prompt)
    except UnknownPieces as error:
        if unknown == "skip":
            note(f"warning: {option}: dropped {', '.join(map(repr, error.pieces))}")
        return
    if tokenizer.unknown_id is None or tokenizer.unknown_id not in ids:
        return
    pieces = dict.fromkeys(prompt.split() if tokenizer.kind == "word" else prompt)
    strange = [repr(each) for each in pieces if tokenizer.unknown_id in tokenizer.encode(each)]
    token = tokenizer.piece(tokenizer.unknown_id).decode()
    note(f"warning: {option}: the model reads {token} for {', '.join(strange) or 'white space'}")
