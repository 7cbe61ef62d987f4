"""The options and the interface of tokenizers, and the special tokens."""

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from gptlit.messages import UsageError, as_strings, did_you_mean
from gptlit.plain_data import shown

Unknown = Literal["error", "skip"]
Kind = Literal["char", "word", "tiktoken", "bpe"]
END_OF_TEXT = "<|endoftext|>"
END_OF_SEQUENCE = "<EOS>"
UNKNOWN_WORD = "<UNK>"
NUMBER = "<NUM>"  # cleaning replaces numbers by it
LARGEST_VOCABULARY = 2**32  # ids are stored in 32 bits at most


@dataclass(frozen=True)
class TokenizerOptions:
    """Which tokenizer to make for a text.

    As a string: `char`, `word`, `word:reversible`, `tiktoken:gpt2`, `bpe:1024`.

    Args:
        kind: char, single characters; word, words between whitespace; tiktoken, a published
            byte-level BPE by name; bpe, a byte-level BPE trained on the training split.
        encoding: Published encoding of tiktoken: gpt2, cl100k_base, o200k_base, ...
        vocab_size: Vocabulary size of bpe, including <|endoftext|>.
        reversible: Keep line breaks and spaces as tokens of word, so that a poem keeps its lines.
        min_frequency: Occurrences below which a word becomes <UNK>, for word.
        special_tokens: Special tokens of char, word and bpe, such as <PAD> <BOS> <EOS> <UNK> <NUM>.
        eos: Close each document by a token: <EOS>, or <|endoftext|> of tiktoken and bpe.
    """

    kind: Kind = "char"
    encoding: str = "gpt2"
    vocab_size: int = 1024
    reversible: bool = False
    min_frequency: int = 1
    special_tokens: list[str] = field(default_factory=list)
    eos: bool = False

    def __post_init__(self) -> None:
        option = "data.tokenizer.special_tokens"
        special = as_strings(self.special_tokens, option)
        object.__setattr__(self, "special_tokens", special)
        if "" in special:
            reason = "an empty string cannot be a token; name one such as <PAD>"
            raise UsageError(reason, option, special)
        if self.kind == "tiktoken" and special:
            reason = "tiktoken's encodings have their own; leave it out, or take bpe"
            raise UsageError(reason, option, special)
        if self.min_frequency < 1:
            option = "data.tokenizer.min_frequency"
            raise UsageError("must be 1 or more", option, self.min_frequency)

    def special(self) -> list[str]:
        """Return the distinct special tokens, with <EOS> last if documents end with it."""
        tokens = [*self.special_tokens, END_OF_SEQUENCE] if self.eos else self.special_tokens
        return list(dict.fromkeys(tokens))


def parse_options(options: str | TokenizerOptions) -> TokenizerOptions:
    """Return options that are given as a string or as themselves.

    Raises:
        UsageError: The string is invalid.
    """
    if isinstance(options, TokenizerOptions):
        return options
    kind, _, detail = options.partition(":")
    if kind == "char" and not detail:
        return TokenizerOptions("char")
    if kind == "word" and detail in ("", "reversible"):
        return TokenizerOptions("word", reversible=bool(detail))
    if kind == "tiktoken":
        return TokenizerOptions("tiktoken", encoding=detail or "gpt2")
    if kind == "bpe" and re.fullmatch(r"\d*", detail):
        return TokenizerOptions("bpe", vocab_size=int(detail or 1024))
    kinds = get_args(Kind)
    problem = f"{detail!r} is not an option of {kind}" if kind in kinds else "unknown"
    choices = "choose from char, word, word:reversible, tiktoken:NAME and bpe:SIZE"
    hint = "" if kind in kinds else f".{did_you_mean(kind, kinds)}"
    raise UsageError(f"{problem}; {choices}{hint}", "data.tokenizer", options)


class UnknownPieces(UsageError):
    """A text has characters or words outside the vocabulary; `.pieces` lists them, sorted."""

    def __init__(self, pieces: Sequence[str], vocabulary: Sequence[str], unit: str) -> None:
        self.pieces = list(pieces)
        named = ", ".join(map(repr, self.pieces[:10]))
        named += f" and {len(self.pieces) - 10} more" if len(self.pieces) > 10 else ""
        known = ("" if unit == "characters" else " ").join(filter(str.isprintable, vocabulary))
        known = known if len(known) <= 100 else f"{known[:100]}..."
        super().__init__(f"{named} not in the vocabulary of {len(vocabulary)} {unit}: {known}")
        # pickled with the error: worker processes raise it, and the main process reports it
        self.args = (self.pieces, vocabulary, unit)


class Tokenizer(ABC):
    """Maps text to ids from 0 to vocab_size - 1 and back.

    Attributes:
        kind: Kind of the tokenizer, as in `TokenizerOptions`, or hugging_face.
        special_ids: Ids of the special tokens by name. No text is encoded to them, except <NUM>.
        is_lossless: Whether decoding restores every byte of a text.
        separates_words: Whether decoding inserts a space between two tokens but whitespace.
        unknown_id: Id of <UNK>, or None without that token.
        eos_id: Id that closes each document, or None.
    """

    kind: str
    special_ids: dict[str, int]
    is_lossless = True
    separates_words = False
    unknown_id: int | None = None
    eos_id: int | None = None

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of distinct ids."""

    @property
    def start_id(self) -> int:
        """Id before the first token of a text: of a document's end, else a newline's, else 0."""
        if self.eos_id is not None:
            return self.eos_id
        ids = self.encode("\n", "skip")
        return int(ids[0]) if len(ids) and int(ids[0]) != self.unknown_id else 0

    def encode(self, text: str, unknown: Unknown = "error") -> np.ndarray:
        """Encode a text; special tokens that it spells, except <NUM>, are ordinary text.

        Args:
            text: One text.
            unknown: "error" raises on unknown pieces, "skip" leaves them out. A tokenizer with
                <UNK> encodes them as that instead.

        Returns:
            (n,) int64 ids.

        Raises:
            UnknownPieces: The text has pieces outside the vocabulary.
            TypeError: The text is not a string.
        """
        return self._encode(checked_text(text), unknown)

    def encode_continuation(self, text: str) -> np.ndarray:
        """Encode the next part of a document that was cut (see `data.tasks`)."""
        return self.encode(text)

    @abstractmethod
    def _encode(self, text: str, unknown: Unknown) -> np.ndarray: ...

    @abstractmethod
    def piece(self, id_: int) -> bytes:
        """Return the UTF-8 bytes of one token, which can be a part of a character."""

    @abstractmethod
    def incremental_decoder(self) -> Callable[[int], str]:
        """Return a function that decodes a text id by id, and never returns half a character.

        Its results, joined, are the text. `copy.copy` copies the function with its state.
        """

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Decode ids into a text."""
        decode = self.incremental_decoder()
        return "".join(decode(int(id_)) for id_ in ids)

    def state(self) -> dict[str, Any]:
        """Return the tokenizer as plain data; `state.from_state` is the inverse."""
        eos = {} if self.eos_id is None else {"eos": True}
        return {"kind": self.kind, **self._state(), **eos}

    @abstractmethod
    def _state(self) -> dict[str, Any]:
        """Return what the kind of tokenizer adds to `state`."""


class VocabularyTokenizer(Tokenizer):
    """A tokenizer with a list of tokens: special tokens, then the pieces of texts.

    Args:
        pieces: Distinct pieces, in the order of their ids.
        special_tokens: Distinct special tokens, which have the first ids.
        eos: Close each document by <EOS>.
    """

    def __init__(self, pieces: Sequence[str], special_tokens: Sequence[str], eos: bool) -> None:
        check_distinct(special_tokens, "special_tokens")
        self.special_tokens = list(special_tokens)
        self.special_ids = {token: id_ for id_, token in enumerate(self.special_tokens)}
        self.tokens = [*self.special_tokens, *pieces]
        self.unknown_id = self.special_ids.get(UNKNOWN_WORD)
        self.eos_id = self.special_ids[END_OF_SEQUENCE] if eos else None

    @property
    def vocab_size(self) -> int:
        return len(self.tokens)

    def piece(self, id_: int) -> bytes:
        return self.tokens[id_].encode()


def checked_text(text: str, name: str = "text") -> str:
    """Return the text if it is a string, or raise TypeError."""
    if not isinstance(text, str):
        raise TypeError(f"{name}: must be one string, not a {type(text).__name__}")
    return text


def check_distinct(values: Sequence[Any], name: str) -> None:
    """Raise UsageError if a value occurs twice."""
    if len(set(values)) < len(values):
        [(value, _)] = Counter(values).most_common(1)
        raise UsageError(f"{name} hold {shown(value)} twice")
