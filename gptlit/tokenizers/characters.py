"""CharTokenizer: one id per character."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gptlit.messages import UsageError
from gptlit.tokenizers.base import (
    NUMBER,
    TokenizerOptions,
    Unknown,
    UnknownPieces,
    VocabularyTokenizer,
)

DEFAULT = TokenizerOptions()


class CharTokenizer(VocabularyTokenizer):
    """Has ids for special tokens, then for characters in the order of their code points."""

    kind = "char"

    def __init__(
        self, characters: str, special_tokens: Sequence[str] = (), eos: bool = False
    ) -> None:
        if list(characters) != sorted(set(characters)):
            raise UsageError("its characters aren't sorted and distinct")
        super().__init__(characters, special_tokens, eos)
        self.characters = characters
        # ids by code point, -1 for unknown ones; all beyond the last share the last entry
        codes = _code_points(characters)
        self._ids = np.full(max(128, int(codes.max(initial=0)) + 2), -1, dtype=np.int64)
        self._ids[codes] = np.arange(len(codes)) + len(self.special_tokens)

    @classmethod
    def train(cls, text: str, options: TokenizerOptions = DEFAULT) -> "CharTokenizer":
        """Make a tokenizer whose vocabulary is all characters of a text."""
        characters = "".join(map(chr, np.unique(_code_points(text))))
        return cls(characters, options.special(), options.eos)

    def _encode(self, text: str, unknown: Unknown) -> np.ndarray:
        if NUMBER in self.special_ids and NUMBER in text:
            first, *rest = (self._encode_characters(part, unknown) for part in text.split(NUMBER))
            number = np.array([self.special_ids[NUMBER]])
            return np.concatenate([first, *(ids for part in rest for ids in (number, part))])
        return self._encode_characters(text, unknown)

    def _encode_characters(self, text: str, unknown: Unknown) -> np.ndarray:
        codes = _code_points(text)
        ids = self._ids.take(codes, mode="clip")
        is_unknown = ids < 0
        if not is_unknown.any():
            return ids
        if self.unknown_id is not None:
            ids[is_unknown] = self.unknown_id
        elif unknown == "error":
            pieces = list(map(chr, np.unique(codes[is_unknown])))
            raise UnknownPieces(pieces, self.characters, "characters")
        return ids[ids >= 0]

    def incremental_decoder(self) -> Callable[[int], str]:
        return self.tokens.__getitem__

    def _state(self) -> dict[str, Any]:
        special = {"special_tokens": self.special_tokens} if self.special_tokens else {}
        return {"characters": self.characters, **special}


def _code_points(text: str) -> np.ndarray:
    if text.isascii():
        return np.frombuffer(text.encode(), dtype=np.uint8)
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
