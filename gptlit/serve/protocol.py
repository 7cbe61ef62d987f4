"""Requests and errors of the API, in the shapes of OpenAI's `/v1/completions`."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gptlit.generation.prompts import encode_prompt
from gptlit.generation.settings import SamplingSettings
from gptlit.messages import UsageError, did_you_mean, naming_flags
from gptlit.model.gpt import GPT
from gptlit.tokenizers.base import Tokenizer

MOST_TEXTS = 128  # of a request
MOST_BEST = 20  # likeliest tokens
MOST_STOPS, LONGEST_STOP = 16, 256
SEEDS = 2**63


class ApiError(Exception):
    """A request can't be answered.

    Args:
        status: HTTP's status code.
        message: One sentence.
        param: Name of the parameter that is wrong.
        code: OpenAI's code of the problem.
        headers: Headers of the reply.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
        kind = "invalid_request_error" if status < 500 and status != 429 else "server_error"
        kind = "rate_limit_error" if status == 429 else kind
        self.content = {"message": message, "type": kind, "param": param, "code": code}

    def as_json(self) -> dict[str, Any]:
        """Return the body of the reply."""
        return {"error": self.content}


@dataclass(frozen=True)
class Limits:
    """Largest requests.

    Args:
        max_tokens: Most tokens of a text.
        max_prompt: Most tokens of a prompt.
    """

    max_tokens: int
    max_prompt: int


@dataclass(frozen=True)
class Asked:
    """A request for completions.

    Args:
        prompts: Token ids of each prompt.
        settings: How texts are drawn, and where they end.
        n: Texts of each prompt.
        seed: Seed of each prompt's first text.
        logprobs: Number of likeliest tokens to report with each token; None for no scores.
        echo: Whether replies begin with the prompt.
        streams: Whether the reply is a stream of events.
        includes_usage: Whether the stream ends with the numbers of tokens.
        returns_ids: Whether the ids of tokens are reported, an extension.
    """

    prompts: list[list[int]]
    settings: SamplingSettings
    n: int
    seed: int
    logprobs: int | None
    echo: bool
    streams: bool
    includes_usage: bool
    returns_ids: bool


# names and types of all parameters; those of SETTINGS are passed on under their own names
SETTINGS: dict[str, tuple[type, ...]] = {
    "temperature": (float, int), "top_k": (int,), "top_p": (float, int), "min_p": (float, int),
    "typical_p": (float, int), "repetition_penalty": (float, int),
    "frequency_penalty": (float, int), "presence_penalty": (float, int),
}  # fmt: skip
PARAMETERS: dict[str, tuple[type, ...]] = SETTINGS | {
    "model": (str,), "prompt": (str, list), "max_tokens": (int,), "min_tokens": (int,),
    "n": (int,), "best_of": (int,), "logprobs": (int,), "echo": (bool,), "stop": (str, list),
    "seed": (int,), "stream": (bool,), "stream_options": (dict,), "suffix": (str,),
    "logit_bias": (dict,), "user": (str,), "unknown": (str,), "return_token_ids": (bool,),
}  # fmt: skip
NAMES = {str: "a string", list: "a list", int: "an integer", bool: "true or false",
         float: "a number", dict: "an object"}  # fmt: skip


def parse(given: Mapping[str, Any], model: GPT, tokenizer: Tokenizer, limits: Limits) -> Asked:
    """Return the request that parameters make.

    Raises:
        ApiError: It is invalid, or above the limits.
    """
    for name, only in (("suffix", ""), ("logit_bias", {}), ("best_of", given.get("n", 1))):
        if given.get(name, only) != only:
            raise _invalid(name, "is not supported; leave it out")
    prompts = _prompts(given, tokenizer, limits)
    n = _within(given, "n", 1, 1, MOST_TEXTS)
    if n * len(prompts) > MOST_TEXTS:
        raise _invalid("n", f"{n} for {len(prompts)} prompts is more than {MOST_TEXTS} texts")
    seed = _within(given, "seed", secrets.randbelow(2**31), 0, SEEDS - n)
    logprobs = None
    if "logprobs" in given:
        logprobs = _within(given, "logprobs", 0, 0, min(MOST_BEST, model.config.vocab_size))
    streams, options = given.get("stream", False), given.get("stream_options", {})
    if "stream_options" in given and not streams:
        raise _invalid("stream_options", "needs stream true; leave it out")
    if unknown := [*options.keys() - {"include_usage"}]:
        raise _invalid(f"stream_options.{unknown[0]}", "unknown; include_usage is the only one")
    return Asked(
        prompts,
        _settings(given, limits),
        n,
        seed,
        logprobs,
        given.get("echo", False),
        streams,
        bool(options.get("include_usage", False)),
        given.get("return_token_ids", False),
    )


def as_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in a body, without entries that are null.

    Raises:
        ApiError: It is not a JSON object.
    """

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    try:
        given = json.loads(body, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}") from error
    if not isinstance(given, dict):
        raise ApiError(400, "the body must be a JSON object")
    return {name: value for name, value in given.items() if value is not None}


def parameters(body: bytes) -> dict[str, Any]:
    """Return the parameters in a body, by name.

    Raises:
        ApiError: It is not a JSON object, or a parameter is unknown or of another type.
    """
    given = as_object(body)
    for name, value in given.items():
        if name not in PARAMETERS:
            hint = did_you_mean(name, PARAMETERS)
            raise ApiError(400, f"{name[:50]!r}: unknown parameter.{hint}", name[:50])
        # a bool is an int in Python
        types = PARAMETERS[name]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            wanted = " or ".join(NAMES[each] for each in types if (each, len(types)) != (int, 2))
            raise _invalid(name, f"must be {wanted}")
    return given


def _invalid(name: str, reason: str, code: str | None = None) -> ApiError:
    return ApiError(400, f"{name}: {reason}", name, code)


def _within(given: Mapping[str, Any], name: str, default: int, least: int, most: int) -> int:
    value: int = given.get(name, default)
    if not least <= value <= most:
        raise _invalid(name, f"must be from {least} to {most}, not {value}")
    return value


def _settings(given: Mapping[str, Any], limits: Limits) -> SamplingSettings:
    """Return the settings of a request, whose defaults are OpenAI's."""
    chosen = {name: given[name] for name in SETTINGS if name in given}
    for name, value in chosen.items():
        if isinstance(value, int) and float in SETTINGS[name]:
            try:
                chosen[name] = float(value)
            except OverflowError:
                raise _invalid(name, "is too large") from None
    least = 0 if given.get("echo") else 1
    max_tokens = _within(given, "max_tokens", min(16, limits.max_tokens), least, limits.max_tokens)
    min_tokens = _within(given, "min_tokens", 0, 0, max_tokens)
    stop = given.get("stop", [])
    stop = [stop] if isinstance(stop, str) else stop
    if len(stop) > MOST_STOPS or not all(isinstance(each, str) for each in stop):
        raise _invalid("stop", f"must be a string, or a list of {MOST_STOPS} strings at most")
    if any(len(each) > LONGEST_STOP for each in stop):
        raise _invalid("stop", f"a string may have {LONGEST_STOP} characters at most")
    chosen |= {"stop": stop, "max_new_tokens": max_tokens, "min_new_tokens": min_tokens}
    with naming_flags(_parameter):
        try:
            return SamplingSettings(**{"temperature": 1.0, **chosen})
        except UsageError as error:
            raise ApiError(400, str(error), _parameter(error.option)) from error


def _prompts(given: Mapping[str, Any], tokenizer: Tokenizer, limits: Limits) -> list[list[int]]:
    if "prompt" not in given:
        raise _invalid("prompt", "is missing; give a string, token ids, or a list of those")
    prompt, unknown = given["prompt"], given.get("unknown", "error")
    is_ids = isinstance(prompt, list) and bool(prompt) and not isinstance(prompt[0], str | list)
    several = [prompt] if isinstance(prompt, str) or is_ids else prompt
    if not 1 <= len(several) <= MOST_TEXTS:
        raise _invalid("prompt", f"must be from 1 to {MOST_TEXTS} prompts, not {len(several)}")
    found = []
    for each in several:
        if isinstance(each, str):
            ids = _encoded(each, unknown, tokenizer)
        elif isinstance(each, list):
            size = tokenizer.vocab_size
            if not all(type(id_) is int and 0 <= id_ < size for id_ in each):
                raise _invalid("prompt", f"token ids must be integers from 0 to {size - 1}")
            ids = each
        else:
            raise _invalid("prompt", "must be a string, token ids, or a list of those")
        if len(ids) > limits.max_prompt:
            reason = f"has {len(ids)} tokens, more than this server's {limits.max_prompt}"
            raise _invalid("prompt", reason, "context_length_exceeded")
        found.append(ids)
    return found


def _encoded(text: str, unknown: Any, tokenizer: Tokenizer) -> list[int]:
    with naming_flags(_parameter):
        try:
            text.encode()
            ids: list[int] = encode_prompt(tokenizer, text, unknown).tolist()
        except UnicodeEncodeError as error:
            reason = "has half of a surrogate pair, which is no character"
            raise _invalid("prompt", reason) from error
        except UsageError as error:
            raise ApiError(400, str(error), error.option) from error
    return ids


def _parameter(option: str) -> str:
    """Return the API's name of an option of gptlit."""
    return option.replace("_new_tokens", "_tokens")
