"""A cleaned text as one UTF-8 file on disk, with the positions needed to split it."""

import itertools
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from gptlit.corpora.catalog import Text
from gptlit.corpora.cleaning import AS_IT_IS, Cleaner
from gptlit.messages import UsageError, progress

FLUSH_CHARS = 1 << 20
LAST_CODE_POINT = 0x10FFFF
BETWEEN_DOCUMENTS = "\n\n"
AT_THE_END = "\n"


@dataclass(frozen=True)
class CleanText:
    """A cleaned text on disk.

    Args:
        path: Path of the UTF-8 file.
        n_chars: Number of characters.
        n_bytes: Number of bytes.
        characters: Distinct characters, in the order of their code points.
        ends: (n_documents, 2) int64, characters and bytes up to the end of each document.
        marks: (n, 2) int64, characters and bytes up to places a million characters apart, from 0.
        report: Lines on what was normalised and what each step of cleaning removed.
    """

    path: Path
    n_chars: int
    n_bytes: int
    characters: str
    ends: np.ndarray
    marks: np.ndarray
    report: tuple[str, ...]

    def byte_at(self, char: int) -> int:
        """Return the number of bytes before a character."""
        mark_char, mark_byte = self.marks[np.searchsorted(self.marks[:, 0], char, "right") - 1]
        n = int(char - mark_char)
        with self.path.open("rb") as file:
            file.seek(mark_byte)
            # a character has at most four bytes; one that is cut at the end is not needed
            text = file.read(4 * n).decode(errors="ignore")
        return int(mark_byte) + len(text[:n].encode())


def write(text: Text, path: Path, joined: bool) -> CleanText:
    """Read, clean and write a text in constant memory.

    If the text can have several documents, line breaks at the ends of each are dropped. The texts
    of examples are written as they are.

    Args:
        text: Text to read.
        path: Path of the file to write.
        joined: Write an empty line between documents and a line break after the last, instead of
            nothing.

    Raises:
        UsageError: The files are not text, or cleaning leaves nothing.
    """
    documents = text.documents()
    cleaning = text.options.cleaning
    cleaner = Cleaner(cleaning)
    are_examples = text.options.format != "text"
    are_many = (documents.are_many or cleaning.paragraphs) and not are_examples
    cleaned: Iterator[Iterator[str]] = iter(documents)
    if cleaning != AS_IT_IS:
        whole = ("".join(blocks) for blocks in documents)
        cleaned = (iter([document]) for document in cleaner(whole))
    n_bytes = sum(file.stat().st_size for file in text.files)  # packed files exceed it
    with path.open("wb") as file, progress(n_bytes, f"reading {text.name}") as bar:
        writer = _Writer(file, bar.update)
        for blocks in cleaned:
            if are_many:
                blocks = _stripped(blocks)
                if (first := next(blocks, None)) is None:
                    continue
                if writer.n_chars:
                    writer.write(BETWEEN_DOCUMENTS if joined else "")
                    writer.end_document()
                blocks = itertools.chain([first], blocks)
            for block in blocks:
                writer.write(block)
            if are_examples:
                writer.end_document()
        if not are_examples:
            writer.write(AT_THE_END if are_many and joined else "")
            writer.end_document()
        writer.flush()
    characters = "".join(map(chr, np.flatnonzero(writer.seen)))
    if not characters.strip():
        raise UsageError(
            f"{text.option} {text.name}: the file is empty; name a text of a few thousand words"
        )
    return CleanText(
        path,
        writer.n_chars,
        writer.n_bytes,
        characters,
        np.array(writer.ends, dtype=np.int64).reshape(-1, 2),
        np.array(writer.marks, dtype=np.int64).reshape(-1, 2),
        (*documents.notes, *(f"cleaning: {line}" for line in cleaner.report())),
    )


def _stripped(blocks: Iterator[str]) -> Iterator[str]:
    """Yield a document's blocks without the line breaks at its ends; nothing if it is blank."""
    beginning: str | None = ""  # None after the first block that is yielded
    n_line_breaks = 0  # read but not yielded, as they may be the last
    for block in blocks:
        if beginning is not None:
            beginning = (beginning + block).lstrip("\n")
            if not beginning or (beginning.isspace() and len(beginning) < FLUSH_CHARS):
                continue
            block, beginning = beginning, None
        body = block.rstrip("\n")
        if body:
            for first in range(0, n_line_breaks, FLUSH_CHARS):
                yield "\n" * min(FLUSH_CHARS, n_line_breaks - first)
            n_line_breaks = 0
            yield body
        n_line_breaks += len(block) - len(body)


class _Writer:
    """Writes and counts text, about a million characters at a time."""

    def __init__(self, file: IO[bytes], report_bytes: Callable[[int], Any]) -> None:
        self._file = file
        self._report_bytes = report_bytes
        self._pending: list[bytes] = []
        self._n_pending = 0
        self.n_chars = 0
        self.n_bytes = 0
        self.seen = np.zeros(LAST_CODE_POINT + 1, dtype=bool)
        self.ends = array("q")
        self.marks = array("q", [0, 0])

    def write(self, text: str) -> None:
        raw = text.encode()
        self._pending.append(raw)
        self._n_pending += len(text)
        self.n_chars += len(text)
        self.n_bytes += len(raw)
        if self._n_pending >= FLUSH_CHARS:
            self.flush()

    def end_document(self) -> None:
        self.ends.extend((self.n_chars, self.n_bytes))

    def flush(self) -> None:
        raw = b"".join(self._pending)
        self._pending, self._n_pending = [], 0
        # most characters are ASCII and were seen before: deleting them first is fastest
        seen_ascii = np.flatnonzero(self.seen[:128]).astype(np.uint8).tobytes()
        rest = raw.translate(None, delete=seen_ascii)
        self.seen[np.frombuffer(rest.decode().encode("utf-32-le"), dtype="<u4")] = True
        self._file.write(raw)
        self._report_bytes(len(raw))
        self.marks.extend((self.n_chars, self.n_bytes))
