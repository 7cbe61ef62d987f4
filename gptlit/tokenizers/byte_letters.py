"""Byte-level BPE as Hugging Face's files spell it: a letter for each byte, and pairs to merge."""

from collections.abc import Sequence
from functools import cache
from itertools import pairwise


@cache
def letter_of_byte() -> dict[int, str]:
    """Return a printable character for each byte.

    Source: Radford et al. 2019, `bytes_to_unicode` of their encoder.py.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + index) for index, byte in enumerate(others)
    }


@cache
def byte_of_letter() -> dict[str, int]:
    return {letter: byte for byte, letter in letter_of_byte().items()}


def spell(piece: bytes) -> str:
    return "".join(map(letter_of_byte().__getitem__, piece))


def unspell(word: str) -> bytes:
    return bytes(map(byte_of_letter().__getitem__, word))


def merges(pieces: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """Return the pairs that pieces of several bytes are merged from, in the order of their ranks.

    A piece is split into bytes, which the earlier merges join to its pair. A piece that they don't
    join to two parts has no pair, and is only used where a whole stretch of text equals it.
    """
    ranks = {piece: rank for rank, piece in enumerate(pieces)}
    pairs_by_rank = []
    for rank, piece in enumerate(pieces):
        parts = [piece[index : index + 1] for index in range(len(piece))]
        while len(parts) > 2:
            pairs = (left + right for left, right in pairwise(parts))
            best, at = min((ranks.get(pair, rank), index) for index, pair in enumerate(pairs))
            if best >= rank:
                break
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) == 2:
            pairs_by_rank.append((parts[0], parts[1]))
    return pairs_by_rank
