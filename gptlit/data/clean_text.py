"""A text once cleaned, as one UTF-8 file on disk, and what has to be known of it to split it."""

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
    """A clean text on disk.

    Args:
        path: Of the UTF-8 file.
        n_chars: Characters in it.
        n_bytes: Bytes in it.
        characters: The distinct ones, in the order of their code points.
        ends: (n_documents, 2) int64, characters and bytes up to each document's end.
        marks: (n, 2) int64, the same for places about a million characters apart, from 0.
        report: What was normalised and what each step of cleaning removed, a line each.
    """

    path: Path
    n_chars: int
    n_bytes: int
    characters: str
    ends: np.ndarray
    marks: np.ndarray
    report: tuple[str, ...]

    def byte_at(self, char: int) -> int:
        """How many bytes come before a character."""
        mark_char, mark_byte = self.marks[np.searchsorted(self.marks[:, 0], char, "right") - 1]
        n = int(char - mark_char)
        with self.path.open("rb") as file:
            file.seek(mark_byte)
            # a character has four bytes at most; what is cut at the end is not needed
            text = file.read(4 * n).decode(errors="ignore")
        return int(mark_byte) + len(text[:n].encode())


def write(text: Text, path: Path, joined: bool) -> CleanText:
    """Read, clean and write a text in constant memory.

    Where the text can hold more than one document, line ends around each are dropped.

    Args:
        text: What to read.
        path: What to write.
        joined: Put a blank line between documents and a line end after the last. Otherwise
            nothing stands between them.

    Raises:
        UsageError: what is read is no text, or nothing of it is left.
    """
    documents = text.documents()
    cleaner = Cleaner(text.options.cleaning)
    many = documents.are_many or text.options.cleaning.paragraphs
    left: Iterator[Iterator[str]] = iter(documents)
    if text.options.cleaning != AS_IT_IS:
        left = (iter([document]) for document in cleaner("".join(blocks) for blocks in documents))
    n_bytes = sum(each.stat().st_size for each in text.files)  # packed ones go beyond it
    with path.open("wb") as file, progress(n_bytes, f"reading {text.name}") as bar:
        writer = _Writer(file, bar.update)
        for blocks in left:
            if not many:
                writer.write_all(blocks)
            elif (first := next(stripped := _stripped(blocks), None)) is not None:
                if writer.n_chars:
                    writer.write(BETWEEN_DOCUMENTS if joined else "")
                    writer.end_document()
                writer.write(first)
                writer.write_all(stripped)
        if writer.is_blank:
            raise UsageError(
                f"{text.option} {text.name}: the file is empty; name a text of a few thousand words"
            )
        writer.write(AT_THE_END if many and joined else "")
        writer.end_document()
        writer.flush()
    return CleanText(
        path,
        writer.n_chars,
        writer.n_bytes,
        "".join(map(chr, np.flatnonzero(writer.seen))),
        np.array(writer.ends, dtype=np.int64).reshape(-1, 2),
        np.array(writer.marks, dtype=np.int64).reshape(-1, 2),
        (*documents.notes, *(f"cleaning: {line}" for line in cleaner.report())),
    )


def _stripped(blocks: Iterator[str]) -> Iterator[str]:
    """The blocks without the line ends around them all; nothing if there is only white space."""
    held: str | None = ""  # at the beginning
    n_line_ends = 0  # behind the last character that is none
    for block in blocks:
        if held is not None:
            held = (held + block).lstrip("\n")
            if not held or (held.isspace() and len(held) < FLUSH_CHARS):
                continue
            block, held = held, None
        body = block.rstrip("\n")
        if body:
            yield from _line_ends(n_line_ends)
            n_line_ends = 0
            yield body
        n_line_ends += len(block) - len(body)


def _line_ends(n: int) -> Iterator[str]:
    for first in range(0, n, FLUSH_CHARS):
        yield "\n" * min(FLUSH_CHARS, n - first)


class _Writer:
    """Writes text and counts it; about a million characters are held back."""

    def __init__(self, file: IO[bytes], told: Callable[[int], Any]) -> None:
        self._file = file
        self._told = told
        self._held: list[bytes] = []
        self._n_held = 0
        self.n_chars = 0
        self.n_bytes = 0
        self.is_blank = True
        self.seen = np.zeros(LAST_CODE_POINT + 1, dtype=bool)
        self.ends = array("q")
        self.marks = array("q", [0, 0])

    def write(self, text: str) -> None:
        self.is_blank = self.is_blank and (not text or text.isspace())
        raw = text.encode()
        self._held.append(raw)
        self._n_held += len(text)
        self.n_chars += len(text)
        self.n_bytes += len(raw)
        if self._n_held >= FLUSH_CHARS:
            self.flush()

    def write_all(self, blocks: Iterator[str]) -> None:
        for block in blocks:
            self.write(block)

    def end_document(self) -> None:
        self.ends.extend((self.n_chars, self.n_bytes))

    def flush(self) -> None:
        raw = b"".join(self._held)
        self._held, self._n_held = [], 0
        # most characters are ASCII and known: deleting these first is the fastest way past them
        known = np.flatnonzero(self.seen[:128]).astype(np.uint8).tobytes()
        rest = raw.translate(None, delete=known)
        self.seen[np.frombuffer(rest.decode().encode("utf-32-le"), dtype="<u4")] = True
        self._file.write(raw)
        self._told(len(raw))
        self.marks.extend((self.n_chars, self.n_bytes))
