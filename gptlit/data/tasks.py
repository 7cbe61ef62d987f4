"""Tasks: small parts of a cleaned text that can be tokenized by themselves.

A long document is cut at places where no tokenizer joins both sides, so that its ids are those
of the uncut document.
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from gptlit.data.clean_text import CleanText

TASK_BYTES = 1 << 18  # the arrays of such a task stay in the processor's cache
CHARACTER_BYTES = 4  # at most
LOOK_BACK_BYTES = (1 << 10, 1 << 16)  # searched for a place to cut, one after the other
# before the first character of a line, and before a single space between words: the patterns of
# published tokenizers, of rustbpe and of words all begin a new piece there
_CUTS = (re.compile(r"(?<=[^\s]\n)(?=[^\s/])"), re.compile(r"(?<=[^\s])(?= [^\s])"))


class Stretch(NamedTuple):
    """Bytes `first` to `end` of a text, which belong to one document."""

    first: int
    end: int
    is_continuation: bool  # whether the bytes before belong to the same document
    ends_document: bool


@dataclass(frozen=True)
class Task:
    """Consecutive stretches of the span with index `span`."""

    span: int
    path: Path
    stretches: list[Stretch]

    @property
    def n_bytes(self) -> int:
        return self.stretches[-1].end - self.stretches[0].first

    def texts(self) -> Iterator[tuple[str, Stretch]]:
        """Yield each stretch with its text."""
        start = self.stretches[0].first
        with self.path.open("rb") as file:
            file.seek(start)
            raw = file.read(self.n_bytes)
        for stretch in self.stretches:
            yield raw[stretch.first - start : stretch.end - start].decode(), stretch


def cut_into_stretches(text: CleanText, first: int, end: int, max_bytes: int) -> Iterator[Stretch]:
    """Yield the bytes from `first` to `end`, cut at the ends of documents and in long ones."""
    index = int(np.searchsorted(text.ends[:, 1], first, "right"))
    with text.path.open("rb") as file:
        while first < end:
            document_end = int(text.ends[index, 1])
            stop, is_continuation = min(document_end, end), False
            while stop - first > max_bytes:
                cut = _find_cut(file, first, first + max_bytes)
                yield Stretch(first, cut, is_continuation, False)
                first, is_continuation = cut, True
            yield Stretch(first, stop, is_continuation, stop == document_end)
            first = stop
            index += stop == document_end


def _find_cut(file: IO[bytes], first: int, end: int) -> int:
    """Return the best place to cut near `end`: the last beginning of a line, else the last space
    between words, else the beginning of the last character."""
    for pattern, n_bytes in itertools.product(_CUTS, LOOK_BACK_BYTES):
        at = max(first, end - n_bytes)
        file.seek(at)
        if (place := last_cut(file.read(end - at), pattern)) is not None:
            return at + place
    file.seek(end - CHARACTER_BYTES)
    last = file.read(CHARACTER_BYTES)
    return end - CHARACTER_BYTES + max(i for i, byte in enumerate(last) if _begins_char(byte))


def last_cut(raw: bytes, pattern: re.Pattern[str]) -> int | None:
    """Return the byte of the last match in UTF-8 text, which may begin or end inside a character;
    None if there is no match."""
    n_before = next((i for i, byte in enumerate(raw) if _begins_char(byte)), 0)
    text = raw[n_before:].decode(errors="ignore")
    places = [match.start() for match in pattern.finditer(text)]
    return n_before + len(text[: places[-1]].encode()) if places else None


def _begins_char(byte: int) -> bool:
    return byte & 0xC0 != 0x80


def cut_into_tasks(
    text: CleanText, first: int, end: int, span: int = 0, max_bytes: int = TASK_BYTES
) -> Iterator[Task]:
    """Yield the bytes from `first` to `end` in tasks of at most `max_bytes`."""
    stretches: list[Stretch] = []  # of the next task
    for stretch in cut_into_stretches(text, first, end, max_bytes):
        if stretches and stretch.end - stretches[0].first > max_bytes:
            yield Task(span, text.path, stretches)
            stretches = []
        stretches.append(stretch)
    if stretches:
        yield Task(span, text.path, stretches)
