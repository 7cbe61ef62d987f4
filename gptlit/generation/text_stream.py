"""A text while it is written: pieces that are never half a character, and where it ends."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

from gptlit.tokenizers.base import Tokenizer


class Stopper:
    """Passes a text on piece by piece, up to the first of some strings, wherever pieces end.

    Args:
        strings: What ends the text.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = strings
        self._held = ""
        self.stopped = False

    def add(self, piece: str) -> str:
        """What of the text so far is certain to be part of it, and wasn't told yet."""
        text = self._held + piece
        places = [place for string in self._strings if (place := text.find(string)) >= 0]
        if places:
            self.stopped, self._held = True, ""
            return text[: min(places)]
        # what could be the beginning of a string is held until it is clear
        n_held = max(
            (
                n
                for string in self._strings
                for n in range(1, min(len(string), len(text) + 1))
                if text.endswith(string[:n])
            ),
            default=0,
        )
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]

    def end(self) -> str:
        """What was held, when nothing comes after it."""
        held, self._held = self._held, ""
        return held


@dataclass
class Written:
    """A text that was written; not frozen, since Lightning moves what `predict_step` gives.

    Args:
        prompt: What it continues, as the model read it.
        text: The continuation.
        ids: Its tokens, an end of sequence left out; those of a stop string, of which `text` has
            nothing, are among them, since a token may hold the end of one and the beginning of the
            other.
        logprobs: The natural logarithm of each token's probability, by the model itself, before
            any setting of the sampling.
        entropies: Of each token's distribution, in nats.
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
    """A text on its way, from its prompt to what ends it."""

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
        """What one more token adds; nothing after the end."""
        if self.ended or id_ == self._eos_id:
            return self.finish()
        self._ids.append(id_)
        if score is not None:
            self._scores.append(score)
        self._pieces.append(self._stopper.add(self._spell(id_)))
        self.ended = self._stopper.stopped
        return self._pieces[-1]

    def fork(self) -> "Draft":
        """A draft of the same text so far that goes on on its own."""
        other = copy.copy(self)
        other._spell, other._stopper = copy.copy(self._spell), copy.copy(self._stopper)
        other._pieces, other._ids = self._pieces.copy(), self._ids.copy()
        other._scores = self._scores.copy()
        return other

    def finish(self) -> str:
        """What was held because it could have become a stop string."""
        self.ended = True
        self._pieces.append(self._stopper.end())
        return self._pieces[-1]

    @property
    def written(self) -> Written:
        """All of it, so far."""
        logprobs, entropies = [list(each) for each in zip(*self._scores, strict=True)] or ([], [])
        return Written(self.prompt, "".join(self._pieces), self._ids, logprobs, entropies)
