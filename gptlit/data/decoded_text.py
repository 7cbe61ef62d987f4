"""The decoded text of a token file, of which any stretch can be read without decoding the rest."""

from collections.abc import Iterator

import numpy as np

from gptlit.data.token_file import Pieces
from gptlit.tokenizers.base import Tokenizer

CHUNK = 1 << 14  # tokens that are decoded at once


class DecodedText:
    """The UTF-8 bytes of the pieces of a token file, one piece after the other.

    Args:
        ids: (n,) token ids, memory-mapped; a chunk of them at a time is in memory.
        pieces: (n_pieces, 2) first and last-plus-one token of each piece, in their order.
        tokenizer: Tokenizer of the ids.
    """

    def __init__(self, ids: np.ndarray, pieces: Pieces, tokenizer: Tokenizer) -> None:
        self._ids = ids
        table = [tokenizer.piece(id_) for id_ in range(tokenizer.vocab_size)]
        self._is_word: np.ndarray | None = None
        if tokenizer.separates_words:
            self._is_word = np.array([not piece.decode().isspace() for piece in table])
            table += [b" " + piece for piece in table]  # after a word
        self._lengths = np.array([len(piece) for piece in table])
        self._offsets = self._lengths.cumsum() - self._lengths
        self._bytes = np.frombuffer(b"".join(table), dtype=np.uint8)
        self._starts = pieces[:, 0]
        # pieces that follow each other in the file, such as documents, are read together
        is_first = np.r_[True, pieces[1:, 0] != pieces[:-1, 1]]
        is_last = np.r_[is_first[1:], True]
        spans = zip(pieces[is_first, 0], pieces[is_last, 1], strict=True)
        self._chunks = [
            (first, min(first + CHUNK, end))
            for start, end in spans
            for first in range(start, end, CHUNK)
        ]
        self._first_bytes = np.zeros(1, dtype=np.int64)  # of the chunks decoded so far, and the end

    def chunks(self) -> Iterator[np.ndarray]:
        """Yield the bytes of the whole text in parts; to be read once before `read`."""
        ends = [0]
        for first, end in self._chunks:
            decoded, _ = self._decode(first, end)
            ends.append(ends[-1] + len(decoded))
            yield decoded
        self._first_bytes = np.array(ends)

    def read(self, start: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the bytes from `start` to before `end`, and whether each begins a piece."""
        first, last = np.searchsorted(self._first_bytes, [start, end - 1], "right") - 1
        chunks = self._chunks[first : last + 1]
        parts = [self._decode(*chunk) for chunk in chunks]
        before = self._first_bytes[first]
        texts, starts = (
            np.concatenate(each)[start - before : end - before] for each in zip(*parts, strict=True)
        )
        return texts, starts

    def _decode(self, first: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the bytes of the tokens of a chunk, and whether each begins a piece."""
        ids = self._ids[first:end].astype(np.int64)
        low, high = np.searchsorted(self._starts, [first, end])
        begins = self._starts[low:high] - first  # the tokens that begin a piece
        if self._is_word is not None:
            words = self._is_word[ids]
            after_word = np.r_[first > 0 and self._is_word[self._ids[first - 1]], words[:-1]]
            after_word[begins] = False
            ids += self._is_word.size * (words & after_word)
        lengths = self._lengths[ids]
        ends = lengths.cumsum()
        # of each byte, its place in the table
        places = np.repeat(self._offsets[ids] - (ends - lengths), lengths) + np.arange(ends[-1])
        is_start = np.zeros(len(places) + 1, dtype=bool)
        is_start[ends[begins] - lengths[begins]] = True
        return self._bytes[places], is_start[:-1]
