"""WordTokenizer: one id per word between whitespace."""

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gptlit.tokenizers.base import (
    NUMBER,
    UNKNOWN_WORD,
    TokenizerOptions,
    Unknown,
    UnknownPieces,
    VocabularyTokenizer,
    check_distinct,
)


class WordTokenizer(VocabularyTokenizer):
    """Has ids for special tokens, then for words in sorted order; whitespace separates words.

    By default the kind of whitespace is lost, and words are decoded with one space between them.
    A reversible tokenizer has a token for each whitespace character, except that a single space
    between two words needs none.
    """

    kind = "word"
    separates_words = True

    def __init__(
        self,
        words: Sequence[str],
        special_tokens: Sequence[str] = (),
        reversible: bool = False,
        eos: bool = False,
    ) -> None:
        super().__init__(words, special_tokens, eos)
        check_distinct(words, "words")
        self.words = list(words)
        self.reversible = self.is_lossless = reversible
        # without special tokens: a word of the text that looks like one is an ordinary word
        self._ids = {word: id_ for id_, word in enumerate(self.words, len(self.special_tokens))}
        if NUMBER in self.special_ids:
            self._ids[NUMBER] = self.special_ids[NUMBER]

    @classmethod
    def train(cls, counts: Mapping[str, int], options: TokenizerOptions) -> "WordTokenizer":
        """Make a tokenizer from counts of words, without those below `min_frequency`."""
        special = options.special()
        if options.min_frequency > 1 and UNKNOWN_WORD not in special:
            special.append(UNKNOWN_WORD)
        frequent = {word for word, n in counts.items() if n >= options.min_frequency}
        words = sorted(frequent - {NUMBER} if NUMBER in special else frequent)
        return cls(words, special, options.reversible, options.eos)

    def _encode(self, text: str, unknown: Unknown) -> np.ndarray:
        return self._encode_words(_words(text, self.reversible), unknown)

    def encode_continuation(self, text: str) -> np.ndarray:
        return self._encode_words(_words(text, self.reversible, is_continuation=True), "error")

    def _encode_words(self, words: list[str], unknown: Unknown) -> np.ndarray:
        with contextlib.suppress(KeyError):
            known = map(self._ids.__getitem__, words)
            return np.fromiter(known, dtype=np.int64, count=len(words))
        ids = [self._ids.get(word, self.unknown_id) for word in words]
        if unknown == "error" and None in ids:
            raise UnknownPieces(sorted(set(words) - self._ids.keys()), self.tokens, "words")
        return np.array([id_ for id_ in ids if id_ is not None], dtype=np.int64)

    def incremental_decoder(self) -> Callable[[int], str]:
        return _Decoder(self.tokens)

    def _state(self) -> dict[str, Any]:
        return {
            "words": self.words,
            "special_tokens": self.special_tokens,
            "reversible": self.reversible,
        }


@dataclass
class _Decoder:
    """Inserts a space between two words."""

    tokens: Sequence[str]
    after_word: bool = False

    def __call__(self, id_: int) -> str:
        word = self.tokens[id_]
        space = " " if self.after_word and not word.isspace() else ""
        self.after_word = not word.isspace()
        return space + word


# words, and whitespace except a single space between two words
_WORDS_AND_SPACES = re.compile(r"\S+|[^\S ]|(?<!\S) | (?!\S)")


def _words(text: str, reversible: bool, is_continuation: bool = False) -> list[str]:
    if not reversible:
        return text.split()
    # the text before a continuation ends with a word, so a single space is no token here either
    starts_with_space = is_continuation and re.match(r" \S", text)
    return _WORDS_AND_SPACES.findall(text, 1 if starts_with_space else 0)


def count_words(text: str, reversible: bool, is_continuation: bool = False) -> Counter[str]:
    """Count the tokens of a text, which may be the next part of a document that was cut."""
    return Counter(_words(text, reversible, is_continuation))
