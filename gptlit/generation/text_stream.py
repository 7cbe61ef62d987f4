"""A text while it is written: pieces of whole characters, up to a stop string or the end."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

from gptlit.tokenizers.base import Tokenizer


class Stopper:
    """Returns the pieces of a text up to the first stop string, which may span pieces."""

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = strings
        self._held = ""
        self.stopped = False

    def add(self, piece: str) -> str:
        """Add a piece; returns the part that can't belong to a stop string any more."""
        text = self._held + piece
        places = [place for string in self._strings if (place := text.find(string)) >= 0]
        if places:
            self.stopped, self._held = True, ""
            return text[: min(places)]
        # the longest end of the text that could begin a stop string is held back
        ends = (
            at
            for at in range(len(text))
            if any(string.startswith(text[at:]) for string in self._strings)
        )
        held_from = next(ends, len(text))
        self._held = text[held_from:]
        return text[:held_from]

    def end(self) -> str:
        """End the text; returns the part that was held back."""
        held, self._held = self._held, ""
        return held


@dataclass
class GeneratedText:
    """A text and its tokens; not frozen, since Lightning moves the results of `predict_step`.

    Args:
        prompt: Prompt as the model read it.
        text: Continuation.
        ids: Token ids of the continuation, without an end of sequence but with a stop string's,
            which `text` leaves out: a token may have the end of the one and the beginning of the
            other.
        logprobs: Log probability of each token by the model, before any sampling setting, in nats.
        entropies: Entropy of each token's distribution, in nats.
    """

    prompt: str
    text: str
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)

    @property
    def whole(self) -> str:
        """Prompt and continuation."""
        return self.prompt + self.text


class Draft:
    """A text that grows from its prompt to its end."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: Sequence[str]) -> None:
        self._spell = tokenizer.incremental_decoder()
        self._eos_id = tokenizer.eos_id
        self._stopper = Stopper(stop)
        self.prompt = "".join(self._spell(id_) for id_ in prompt)
        self.ended = False
        self._pieces: list[str] = []
        self._ids: list[int] = []
        self._scores: list[tuple[float, float]] = []

    def add(self, id_: int, score: tuple[float, float] | None = None) -> str:
        """Add a token; returns the text that it adds, "" after the end."""
        if self.ended or id_ == self._eos_id:
            return self.finish()
        self._ids.append(id_)
        if score is not None:
            self._scores.append(score)
        self._pieces.append(self._stopper.add(self._spell(id_)))
        self.ended = self._stopper.stopped
        return self._pieces[-1]

    def fork(self) -> "Draft":
        """Return a copy of the draft that grows independently."""
        other = copy.copy(self)
        other._spell, other._stopper = copy.copy(self._spell), copy.copy(self._stopper)
        other._pieces, other._ids = self._pieces.copy(), self._ids.copy()
        other._scores = self._scores.copy()
        return other

    def finish(self) -> str:
        """End the text; returns the part that was held back because of stop strings."""
        self.ended = True
        self._pieces.append(self._stopper.end())
        return self._pieces[-1]

    @property
    def written(self) -> GeneratedText:
        """The text so far."""
        logprobs, entropies = [list(each) for each in zip(*self._scores, strict=True)] or ([], [])
        return GeneratedText(self.prompt, "".join(self._pieces), self._ids, logprobs, entropies)
