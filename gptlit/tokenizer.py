"""Text to token ids and back. A tokenizer's state is plain data and lives in the checkpoint."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np

from gptlit.messages import UsageError

Unknown = Literal["error", "skip"]


class UnknownCharacters(UsageError):
    """A text holds characters outside the vocabulary; `.characters` lists them, sorted."""

    def __init__(self, characters: str, vocabulary: str) -> None:
        self.characters = characters
        shown = "".join(character for character in vocabulary if character.isprintable())
        shown = shown if len(shown) <= 100 else f"{shown[:100]}..."
        super().__init__(
            f"{_named(characters)} not in the vocabulary of {len(vocabulary)} characters: {shown}"
        )


def _named(characters: str, most: int = 10) -> str:
    named = ", ".join(repr(character) for character in characters[:most])
    return named + (f" and {len(characters) - most} more" if len(characters) > most else "")


class Tokenizer(ABC):
    """Ids 0 to vocab_size - 1 for the pieces of a text."""

    kind: str

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """The number of distinct ids."""

    @property
    @abstractmethod
    def start_id(self) -> int:
        """The id that an empty prompt starts from: the newline's, or 0 where there is none."""

    @abstractmethod
    def encode(self, text: str, unknown: Unknown = "error") -> np.ndarray:
        """(n,) uint32 ids. Unknown characters raise UnknownCharacters, or are skipped."""

    @abstractmethod
    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of some ids."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """All there is to know, as plain data; `from_state` is its inverse."""


class CharTokenizer(Tokenizer):
    """One id per character, in the order of their code points."""

    kind = "char"

    def __init__(self, characters: str) -> None:
        if list(characters) != sorted(set(characters)):
            raise ValueError("characters must be sorted and distinct")
        self.characters = characters
        self._codes = np.array([ord(character) for character in characters], dtype=np.uint32)

    @classmethod
    def train(cls, text: str) -> "CharTokenizer":
        """The vocabulary of all characters in `text`."""
        return cls("".join(map(chr, np.unique(_code_points(text)))))

    @property
    def vocab_size(self) -> int:
        return len(self.characters)

    @property
    def start_id(self) -> int:
        return max(self.characters.find("\n"), 0)

    def encode(self, text: str, unknown: Unknown = "error") -> np.ndarray:
        codes = _code_points(text)
        ids = np.searchsorted(self._codes, codes).astype(np.uint32)
        known = self._codes[np.minimum(ids, self.vocab_size - 1)] == codes
        if known.all():
            return ids
        if unknown == "error":
            strangers = "".join(map(chr, np.unique(codes[~known])))
            raise UnknownCharacters(strangers, self.characters)
        return ids[known]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        codes = self._codes[np.asarray(ids, dtype=np.int64)]
        return codes.astype("<u4").tobytes().decode("utf-32-le")

    def state(self) -> dict[str, Any]:
        return {"kind": self.kind, "characters": self.characters}


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


TokenizerKind = Literal["char"]
KINDS = get_args(TokenizerKind)


def train(kind: TokenizerKind, text: str) -> Tokenizer:
    """A tokenizer of the given kind for a whole text."""
    if kind != "char":
        raise UsageError(f"--data.tokenizer {kind}: unknown; choose from {', '.join(KINDS)}")
    return CharTokenizer.train(text)


def from_state(state: dict[str, Any]) -> Tokenizer:
    """The tokenizer that gave this `state()`."""
    if state.get("kind") != CharTokenizer.kind:
        raise UsageError(
            f"a tokenizer of kind {state.get('kind')!r} is unknown to this version of gptlit, "
            f"which has {', '.join(KINDS)}"
        )
    return CharTokenizer(state["characters"])
