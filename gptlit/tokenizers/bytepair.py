"""BytePairTokenizer: byte-level BPE, published or trained."""

import codecs
import contextlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptlit.messages import UsageError
from gptlit.plain_data import shown
from gptlit.terminal import count_of
from gptlit.tokenizers import published
from gptlit.tokenizers.base import (
    END_OF_TEXT,
    LARGEST_VOCABULARY,
    NUMBER,
    Kind,
    Tokenizer,
    TokenizerOptions,
    Unknown,
    check_distinct,
)


class BytePairTokenizer(Tokenizer):
    """Byte-level BPE, run by tiktoken: published (tiktoken) or trained on the text (bpe).

    Args:
        kind: tiktoken or bpe.
        name: Name of the encoding.
        pattern: Regular expression that splits a text into stretches, within which bytes merge.
        pieces: Bytes of each rank, in order; None for unused ranks.
        special_tokens: Ids of the special tokens. A text that spells one is encoded as text.
        eos: Close each document by <|endoftext|>.
    """

    def __init__(
        self,
        kind: Kind,
        name: str,
        pattern: str,
        pieces: Sequence[bytes | None],
        special_tokens: dict[str, int],
        eos: bool = False,
    ) -> None:
        import tiktoken

        self.kind = kind
        self.name = name
        self.pattern = pattern
        self.pieces = list(pieces)
        self.special_tokens = dict(special_tokens)
        self.special_ids = self.special_tokens
        self.eos_id = self.special_tokens[END_OF_TEXT] if eos else None
        ranks = {piece: rank for rank, piece in enumerate(self.pieces) if piece is not None}
        # for any pattern: no stretch is empty, and a character that it misses is a stretch
        stretches = rf"\G(?:{pattern})(?!\G)|\G[\s\S]"
        self._encoding = tiktoken.Encoding(
            name, pat_str=stretches, mergeable_ranks=ranks, special_tokens=self.special_tokens
        )

    @classmethod
    def train(cls, texts: Iterable[str], options: TokenizerOptions) -> "BytePairTokenizer":
        """Learn the merges that fill `vocab_size` from the parts of a text.

        Raises:
            UsageError: `vocab_size` is too small, or too large for the text.
        """
        special = dict.fromkeys([END_OF_TEXT, *options.special_tokens])
        size, short = options.vocab_size - len(special), f"bpe:{options.vocab_size}"
        if size < 256:
            least = f"{256 + len(special)}: 256 bytes and {count_of(len(special), 'special token')}"
            raise UsageError(f"must be at least {least}", "data.tokenizer", short)
        if options.vocab_size > LARGEST_VOCABULARY:
            most = f"at most {LARGEST_VOCABULARY}; a few thousand suit a small model"
            raise UsageError(f"ids have 32 bits, so {most}", "data.tokenizer", short)
        import rustbpe

        trainer = rustbpe.Tokenizer()
        # a small buffer, since a part may have a quarter of a megabyte
        trainer.train_from_iterator(iter(texts), size, buffer_size=64)
        ranks = sorted(trainer.get_mergeable_ranks(), key=lambda pair: pair[1])
        if len(ranks) < size:
            raise UsageError(
                f"the training text gives only {len(ranks) + len(special)} tokens; give that many "
                "or fewer, or a longer text",
                "data.tokenizer",
                short,
            )
        pieces = [bytes(piece) for piece, _ in ranks]
        ids = {token: size + index for index, token in enumerate(special)}
        return cls("bpe", short, trainer.get_pattern(), pieces, ids, options.eos)

    @classmethod
    def published(cls, name: str, folder: Path, eos: bool = False) -> "BytePairTokenizer":
        """Make a tokenizer from one of tiktoken's encodings.

        Raises:
            UsageError: The name is unknown, or its files can't be fetched.
        """
        encoding = published.published(name, folder)
        ranks = encoding._mergeable_ranks
        pieces: list[bytes | None] = [None] * (max(ranks.values()) + 1)
        for piece, rank in ranks.items():
            pieces[rank] = piece
        special = encoding._special_tokens
        return cls("tiktoken", name, encoding._pat_str, pieces, special, eos)

    @property
    def vocab_size(self) -> int:
        return self._encoding.n_vocab

    def _encode(self, text: str, unknown: Unknown) -> np.ndarray:
        special = {NUMBER} & self.special_tokens.keys()
        try:
            ids = self._encoding.encode_to_numpy(
                text, allowed_special=special, disallowed_special=()
            )
        except ValueError as error:
            raise UsageError(
                f"the tokenizer's pattern {shown(self.pattern)} can't split this text: "
                f"{' '.join(str(error).split())}"
            ) from error
        return ids.astype(np.int64)

    def piece(self, id_: int) -> bytes:
        with contextlib.suppress(KeyError):  # unused ids have no bytes
            return self._encoding.decode_single_token_bytes(id_)
        return b""

    def incremental_decoder(self) -> Callable[[int], str]:
        return Utf8Decoder(self.piece)

    def _state(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "pattern": self.pattern,
            "pieces": [piece and piece.decode("latin-1") for piece in self.pieces],
            "special_tokens": self.special_tokens,
        }


@dataclass
class Utf8Decoder:
    """Holds back the bytes of an incomplete character."""

    piece: Callable[[int], bytes]
    held: bytes = b""

    def __call__(self, id_: int) -> str:
        held = self.held + self.piece(id_)
        text, n_used = codecs.utf_8_decode(held, "replace", False)
        self.held = held[n_used:]
        return text


def check_byte_pairs(
    pattern: str, pieces: Sequence[bytes | None], special_tokens: Mapping[str, int]
) -> None:
    """Raise UsageError if tiktoken would fail with these arguments of `BytePairTokenizer`."""
    import tiktoken

    used = [piece for piece in pieces if piece is not None]
    check_distinct(used, "pieces")
    if missing := {bytes([byte]) for byte in range(256)} - set(used):
        raise UsageError(f"its pieces lack the byte {shown(min(missing))}")
    if b"" in used:
        raise UsageError("a piece is empty")
    check_distinct(list(special_tokens.values()), "special_tokens")
    for token, id_ in special_tokens.items():
        if not token or not 0 <= id_ < LARGEST_VOCABULARY:
            raise UsageError(f"its special token {shown(token)} has the id {shown(id_)}")
        if id_ < len(pieces) and pieces[id_] is not None:
            raise UsageError(f"its special token {shown(token)} has a piece's id, {id_}")
    if re.search(r"(?<!\\)(\\\\)*\\K", pattern):
        raise UsageError(r"its pattern has \K, which allows empty stretches of text")
    try:
        tiktoken.Encoding("", pat_str=pattern, mergeable_ranks={b" ": 0}, special_tokens={})
    except ValueError as error:
        raise UsageError(f"its pattern {shown(pattern)}: {' '.join(str(error).split())}") from error
