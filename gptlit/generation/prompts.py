"""Prompts and settings as token ids of a model's vocabulary."""

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from gptlit.generation.settings import SamplingSettings
from gptlit.messages import UsageError, note, opt
from gptlit.model.gpt import GPT
from gptlit.tokenizers.base import Tokenizer, Unknown, UnknownPieces, checked_text


def encode_prompt(tokenizer: Tokenizer, prompt: str, unknown: Unknown = "error") -> np.ndarray:
    """Return the (T,) ids of a prompt, T >= 0.

    Raises:
        UsageError: Characters or words outside the vocabulary, unless `unknown` is "skip"; or
            `unknown` is neither "error" nor "skip".
        TypeError: The prompt is not a string.
    """
    checked_text(prompt, "prompt")
    if unknown not in get_args(Unknown):
        raise UsageError("must be error or skip", "unknown", unknown)
    try:
        return tokenizer.encode(prompt, unknown)
    except UnknownPieces as error:
        raise UsageError(f"{error}; {opt('unknown')} skip drops them", "prompt") from error


def single_tokens(tokenizer: Tokenizer, strings: Sequence[str]) -> list[int]:
    """Return the ids of tokens, each named by a text of one token or as a special token.

    A word of the text may be spelled like a special token. Such a string names both, or the word
    alone where the special token is the end of sequence, which has no text.

    Raises:
        UsageError: A string isn't one token.
    """
    tokens = []
    for string in strings:
        special = [tokenizer.special_ids[string]] if string in tokenizer.special_ids else []
        try:
            ids = tokenizer.encode(string).tolist()
            in_vocabulary = tokenizer.unknown_id is None or tokenizer.unknown_id not in ids
        except UnknownPieces as error:
            if not special:
                raise UsageError(str(error), "ban", repr(string)) from error
            in_vocabulary = False
        if in_vocabulary and len(ids) == 1:
            tokens += ids + [id_ for id_ in special if id_ != tokenizer.eos_id]
        elif special:
            tokens += special
        elif in_vocabulary:
            reason = f"is {len(ids)} tokens of this model; name one token at a time"
            raise UsageError(reason, "ban", repr(string))
        else:
            raise UsageError("the model has no token for it; leave it out", "ban", repr(string))
    return tokens


def forced_tokens(tokenizer: Tokenizer, settings: SamplingSettings) -> list[int]:
    """Return the ids of `settings.force`, tokenized without the prompt.

    Raises:
        UsageError: The vocabulary doesn't have it, or other settings exclude it.
    """
    force, limit = repr(settings.force), settings.max_new_tokens
    try:
        ids: list[int] = tokenizer.encode(settings.force).tolist()
    except UnknownPieces as error:
        raise UsageError(str(error), "force") from error
    if tokenizer.unknown_id in ids:
        reason = "contains text that the model has no token for; leave it out"
        raise UsageError(reason, "force", force)
    for string in settings.ban:
        if not set(ids).isdisjoint(single_tokens(tokenizer, [string])):
            reason = f"contains {opt('ban')} {string!r}; leave one of them out"
            raise UsageError(reason, "force", force)
    if limit is not None and len(ids) > limit:
        reason = f"is {len(ids)} tokens, more than {opt('max_new_tokens')} {limit}"
        raise UsageError(f"{reason}; give at least as many", "force", force)
    return ids


def prompt_tensor(model: GPT, tokenizer: Tokenizer, ids: np.ndarray) -> Tensor:
    """Return the (T,) ids of a prompt on the model's device; `start_id` for an empty prompt."""
    ids = ids if len(ids) else np.array([tokenizer.start_id])
    return torch.as_tensor(ids.astype(np.int64), device=model.wte.weight.device)


def rule_ids(tokenizer: Tokenizer, settings: SamplingSettings) -> dict[str, Any]:
    """Return the token ids that `Rules` takes: `eos_id`, `banned` and `forced`."""
    return {
        "eos_id": tokenizer.eos_id,
        "banned": single_tokens(tokenizer, settings.ban),
        "forced": forced_tokens(tokenizer, settings),
    }


def warn_dropped(
    prompt: str, unknown: Unknown, tokenizer: Tokenizer, option: str = "prompt"
) -> None:
    """Warn of pieces of a prompt outside the vocabulary that are skipped, or read as its token for
    unknown words."""
    try:
        ids = tokenizer.encode(prompt)
    except UnknownPieces as error:
        if unknown == "skip":
            note(f"warning: {opt(option)}: dropped {', '.join(map(repr, error.pieces))}")
        return
    if tokenizer.unknown_id is None or tokenizer.unknown_id not in ids:
        return
    pieces = dict.fromkeys(prompt.split() if tokenizer.kind == "word" else prompt)
    replaced = [repr(each) for each in pieces if tokenizer.unknown_id in tokenizer.encode(each)]
    token, which = tokenizer.piece(tokenizer.unknown_id).decode(), ", ".join(replaced)
    note(f"warning: {opt(option)}: the model reads {token} for {which or 'whitespace'}")
