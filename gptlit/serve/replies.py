"""Replies of the API: the parts of a choice as they come, and the objects that hold them."""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gptlit.generation.prompts import prompt_tensor, rule_ids
from gptlit.generation.running_batch import Drawn, Row
from gptlit.generation.text_stream import Draft
from gptlit.insight.passages import Scores
from gptlit.model.gpt import GPT
from gptlit.serve.engine import Event, Job
from gptlit.serve.protocol import ApiError, Asked
from gptlit.tokenizers.base import Tokenizer

LEAST_LOGPROB = -9999.0  # JSON has no infinity


@dataclass
class _Token:
    """A token whose text may still belong to a stop string."""

    drawn: Drawn
    name: str
    piece: str
    offset: int
    likeliest: list[tuple[str, int, float]]


@dataclass
class Part:
    """A part of a choice: text, tokens and why it ends.

    Args:
        text: Text that was added.
        tokens: Tokens that were added.
        finish: Why the choice ends, with its last part.
    """

    text: str = ""
    tokens: list[_Token] = field(default_factory=list)
    finish: str | None = None

    def __add__(self, other: "Part") -> "Part":
        tokens = self.tokens + other.tokens
        return Part(self.text + other.text, tokens, other.finish or self.finish)


class _Start:
    """A prompt, made ready once for all of its texts."""

    def __init__(self, ids: Sequence[int], asked: Asked, model: GPT, tokenizer: Tokenizer) -> None:
        self.ids, self.model = ids, model
        self.draft = Draft(tokenizer, ids, asked.settings.stop)
        self.spell = tokenizer.incremental_decoder()
        for id_ in ids:
            self.spell(id_)
        self.prompt = prompt_tensor(model, tokenizer, np.array(ids, dtype=np.int64))
        self.rules = rule_ids(tokenizer, asked.settings)


def choices_of(asked: Asked, model: GPT, tokenizer: Tokenizer) -> list["Choice"]:
    """Return the choices of a reply: all texts of the first prompt, then those of the others."""
    starts = [_Start(ids, asked, model, tokenizer) for ids in asked.prompts]
    several = [start for start in starts for _ in range(asked.n)]
    return [Choice(index, start, asked, tokenizer) for index, start in enumerate(several)]


class Choice:
    """A text of a reply, which grows by the engine's events.

    Args:
        index: Its place in the reply.
        start: Its prompt.
        asked: The request.
        tokenizer: The model's tokenizer.
    """

    def __init__(self, index: int, start: "_Start", asked: Asked, tokenizer: Tokenizer) -> None:
        self.index, self.prompt, self.n_written = index, start.ids, 0
        self._asked, self._model, self._tokenizer = asked, start.model, tokenizer
        self._draft = start.draft.fork()
        self._held: list[_Token] = []
        self._shown = len(self._draft.prompt)
        # of the next token
        self._offset = 0 if asked.echo else self._shown
        self._spell = tokenizer.incremental_decoder() if asked.echo else copy.copy(start.spell)
        seed = asked.seed + index % asked.n
        self.row = Row(start.prompt, asked.settings, seed, start.rules, asked.logprobs)

    def job(self, receive: Any) -> Job:
        """Return the job that writes the text; `receive` gets this choice and its events."""
        is_scored = self._asked.echo and self._asked.logprobs is not None
        return Job(
            self._model, self.row, self._draft, lambda event: receive(self, event), is_scored
        )

    def begin(self) -> Part:
        """Return the first part, which is there before any event: the prompt, if it is echoed."""
        if not self._asked.echo:
            return Part()
        if self._asked.logprobs is not None:
            return Part()  # comes with its scores
        return Part(self._draft.prompt, [self._token(Drawn(id_)) for id_ in self.prompt])

    def add(self, event: Event) -> Part:
        """Return the part that an event adds.

        Raises:
            ApiError: The text can't be written.
        """
        if event.error:
            raise ApiError(500, f"the text can't be written: {event.error}")
        part = Part(event.text, finish=event.finish)
        if event.prompt_scores is not None:
            part.text = self._draft.prompt + part.text
            part.tokens = [self._token(each) for each in self._scored(event.prompt_scores)]
        if event.drawn is not None:
            self.n_written += 1
            self._held.append(self._token(event.drawn))
        self._shown += len(event.text)
        is_stopped = event.finish == "stop"
        while self._held and self._is_shown(self._held[0], is_stopped, event.finish == "length"):
            part.tokens.append(self._held.pop(0))
        return part

    def _is_shown(self, token: _Token, is_stopped: bool, is_over: bool) -> bool:
        if is_over:
            return True
        if is_stopped:  # tokens of a stop string are left out
            return token.offset < self._shown
        return token.offset + len(token.piece) <= self._shown

    def _scored(self, scores: Scores) -> list[Drawn]:
        """Return the prompt's tokens with their scores, of which the first has none."""
        columns = (scores.logprobs, scores.best, scores.best_logprobs)
        rows = zip(self.prompt[1:], *(column.tolist() for column in columns), strict=True)
        first = [Drawn(id_) for id_ in self.prompt[:1]]
        n = self._asked.logprobs
        return first + [
            Drawn(id_, logprob, tuple(zip(best[:n], values[:n], strict=True)))
            for id_, logprob, best, values in rows
        ]

    def _token(self, drawn: Drawn) -> _Token:
        likeliest = [
            (self._name(id_, copy.copy(self._spell)(id_)), id_, value) for id_, value in drawn.best
        ]
        piece = self._spell(drawn.id)
        token = _Token(drawn, self._name(drawn.id, piece), piece, self._offset, likeliest)
        self._offset += len(piece)
        return token

    def _name(self, id_: int, piece: str) -> str:
        r"""Return the text of a token, or its bytes, as bytes:\xe2, if they are no whole text."""
        data = self._tokenizer.piece(id_)
        # between words there is a space that no token has
        if piece.encode() in (data, b" " + data):
            return piece
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def as_json(self, part: Part) -> dict[str, Any]:
        """Return a part of the choice, or the whole of it, as an object of a reply."""
        asked = self._asked
        found: dict[str, Any] = {"text": part.text, "index": self.index, "logprobs": None}
        found |= {"finish_reason": part.finish}
        if asked.logprobs is not None:
            found["logprobs"] = _logprobs(part.tokens, asked)
        if asked.returns_ids:
            found["token_ids"] = [token.drawn.id for token in part.tokens]
            found["pieces"] = [token.piece for token in part.tokens]
        return found


def _logprobs(tokens: Sequence[_Token], asked: Asked) -> dict[str, Any]:
    found: dict[str, Any] = {
        "tokens": [token.name for token in tokens],
        "token_logprobs": [_finite(token.drawn.logprob) for token in tokens],
        "top_logprobs": None,
        "text_offset": [token.offset for token in tokens],
    }
    if asked.logprobs:
        found["top_logprobs"] = [_by_name(token) for token in tokens]
    if asked.returns_ids:
        found["likeliest"] = [
            [[id_, name, _finite(value)] for name, id_, value in token.likeliest]
            for token in tokens
        ]
    return found


def _by_name(token: _Token) -> dict[str, float | None] | None:
    """Return the log probabilities of the likeliest tokens, and of the token itself."""
    if token.drawn.logprob is None:
        return None
    found: dict[str, float | None] = {}
    for name, _, value in token.likeliest:
        found.setdefault(name, _finite(value))  # tokens may have the same name
    found.setdefault(token.name, _finite(token.drawn.logprob))
    return found


def _finite(value: float | None) -> float | None:
    return None if value is None else max(value, LEAST_LOGPROB)


@dataclass(frozen=True)
class Reply:
    """The entries that all objects of a reply have in common."""

    id: str
    created: int
    model: str
    seed: int

    def body(self, choices: Sequence[Mapping[str, Any]], usage: Any = ...) -> dict[str, Any]:
        """Return an object of the reply; without usage it has no such entry."""
        body: dict[str, Any] = {"id": self.id, "object": "text_completion", **vars(self)}
        return body | {"choices": [*choices]} | ({} if usage is ... else {"usage": usage})


def usage_of(asked: Asked, choices: Sequence[Choice]) -> dict[str, int]:
    """Return the numbers of tokens of a request; a prompt counts once, also for several texts."""
    n_prompt = sum(map(len, asked.prompts))
    n_written = sum(choice.n_written for choice in choices)
    total = n_prompt + n_written
    return {"prompt_tokens": n_prompt, "completion_tokens": n_written, "total_tokens": total}


def sse(content: Any) -> bytes:
    """Return a server-sent event."""
    return b"data: " + as_bytes(content) + b"\n\n"


def as_bytes(content: Any) -> bytes:
    """Return a value as JSON."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
