"""Text for a terminal: widths, tables, line wrapping, colours, durations."""

import itertools
import json
import os
import re
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from typing import IO, Any

SEPARATOR = "---\n"  # between texts
MARKS = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥"})


def columns() -> int:
    """Return the width of the terminal; without one, $COLUMNS or 80."""
    return shutil.get_terminal_size().columns


def columns_of(file: IO[str]) -> int | None:
    """Return the width of the terminal that a stream writes to, or None if it writes elsewhere."""
    try:
        return os.get_terminal_size(file.fileno()).columns or None
    except (AttributeError, OSError, ValueError):
        return None


def folded(text: str, columns: int) -> str:
    """Break lines that are too long at whitespace, and indent their continuations.

    A line `  name    value` is continued below its value. A command of gptlit is continued by a
    backslash, so that it can be pasted into a shell. A word that is too long, such as a path,
    stays whole.
    """
    return "\n".join(part for line in text.split("\n") for part in _folded(line, columns))


def _folded(line: str, columns: int) -> list[str]:
    head = re.findall(r"^(?: *\S+ {2,}| *)", line)[0]
    text = line.removeprefix(head)
    if width(line) <= columns or not text:
        return [line]
    end = " \\" if text.startswith("gptlit ") else ""
    above, margin = [], " " * (len(head) or 2)
    if head.strip() and len(head) + max(map(width, text.split())) > columns - len(end):
        above, head, margin = [head.rstrip()], " " * 4, " " * 4  # the value starts on the next line
    wrapper = textwrap.TextWrapper(columns - len(end), head, margin)
    wrapper.break_long_words = wrapper.break_on_hyphens = False
    return [*above, *f"{end}\n".join(wrapper.wrap(text)).split("\n")]


class WordWrapper:
    """Wraps a text at whitespace while it is written piece by piece.

    A word is held until it ends or fills a line, since it moves to the next line if it doesn't fit.

    Args:
        columns: Width of the terminal.
    """

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._used = 0  # columns of the current line
        self._spaces = ""  # before the word
        self._word = ""

    def add(self, piece: str) -> str:
        """Return the text that can be written once this piece is known."""
        return "".join(map(self._next, piece))

    def _next(self, character: str) -> str:
        if character in " \n":
            ready = self.end()
            if character == "\n":
                self._used, self._spaces = 0, ""
                return ready + "\n"
            self._spaces += character
            return ready
        self._word += character
        # the terminal itself breaks a word that is longer than a line
        return self.end() if width(self._word) >= self._columns else ""

    def end(self) -> str:
        """Return the rest of the text: the word that is held, after a line break if need be."""
        if not self._word:
            return ""
        ready, size = self._spaces + self._word, width(self._word)
        # without spaces it is the rest of a word that is longer than a line
        if self._used and self._spaces and self._used + len(self._spaces) + size > self._columns:
            ready, self._used = f"\n{self._word}", size
        else:
            # between 1 and columns: a full line differs from an empty one
            self._used = (self._used + len(self._spaces) + size - 1) % self._columns + 1
        self._spaces = self._word = ""
        return ready


def wrap_words(text: str, columns: int) -> str:
    """Wrap a text so that no word crosses the edge of the terminal."""
    wrapper = WordWrapper(columns)
    return wrapper.add(text) + wrapper.end()


def in_colour(file: IO[str]) -> bool:
    """Whether a stream is a terminal with colours, and NO_COLOR (no-color.org) isn't set."""
    return file.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def visible(piece: str) -> str:
    """Replace whitespace by visible signs, and an empty text by a dot."""
    return printable(piece.translate(MARKS)) or "·"


def printable(text: str, one_line: bool = False) -> str:
    """Escape control characters, and line breaks too if the text is to be one line."""
    kept = "" if one_line else "\n"
    return "".join(c if c.isprintable() or c in kept else repr(c)[1:-1] for c in text)


def _width(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def width(text: str) -> int:
    """Return the columns of a line: two for a wide character, none for a combining one."""
    return len(text) if text.isascii() else sum(map(_width, text))


def padded(text: str, columns: int, right: bool = False) -> str:
    """Pad a line to a width in columns, with its text on the left or on the right."""
    spaces = " " * (columns - width(text))
    return spaces + text if right else text + spaces


def column_widths(rows: Iterable[Sequence[str]]) -> list[int]:
    """Return the width of each column's longest cell."""
    return [max(map(width, column)) for column in zip(*rows, strict=True)]


def align_row(cells: Sequence[str], widths: Sequence[int], left: Collection[int]) -> str:
    """Return a line of a table; columns are aligned left if their indices are in `left`."""
    pairs = enumerate(zip(cells, widths, strict=True))
    return "  ".join(padded(cell, n, index not in left) for index, (cell, n) in pairs).rstrip()


def align_columns(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> list[str]:
    """Return the lines of a table; columns are aligned left if their indices are in `left`."""
    widths = column_widths(rows)
    return [align_row(row, widths, left) for row in rows]


def shortened(text: str, columns: int) -> str:
    """Cut a line that is wider than a number of columns."""
    return text if width(text) <= columns else text[: _fitting(text, columns - 1)] + "…"


def _fitting(line: str, columns: int) -> int:
    """Return how many characters of a line fit."""
    ends = itertools.accumulate(map(_width, line))
    return sum(1 for _ in itertools.takewhile(lambda end: end <= columns, ends))


def wrapped(text: str, columns: int) -> list[str]:
    """Break a text into lines no wider than a number of columns, at whitespace where possible."""
    lines = []
    for line in printable(text.expandtabs(4)).split("\n"):
        rest = line
        while width(rest) > columns:
            end = max(1, _fitting(rest, columns))
            space = rest.rfind(" ", 0, end + 1)
            end = space if rest[: max(space, 0)].strip() else end
            lines.append(rest[:end].rstrip(" "))
            rest = rest[end:].lstrip(" ")
        lines.append(rest)
    return lines


def duration(seconds: float) -> str:
    """Format seconds: 45 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def count_of(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless the number is 1."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def format_value(value: Any, null: str = "null") -> str:
    """Format an option's value as it is typed: text, true, 3e-05, null."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else null if value is None else json.dumps(value)


def write_stream(pieces: Iterable[str], at_once: bool = False) -> None:
    """Write a text to standard output and end its last line.

    Args:
        pieces: Parts of the text.
        at_once: Whether each piece is flushed, as it always is in a terminal.
    """
    columns = columns_of(sys.stdout)
    wrapper = None if columns is None else WordWrapper(columns)
    last = ""
    for piece in pieces:
        sys.stdout.write(wrapper.add(piece) if wrapper else piece)
        last = piece or last
        if at_once or sys.stdout.isatty():
            sys.stdout.flush()
    if wrapper:
        sys.stdout.write(wrapper.end())
    if not last.endswith("\n"):
        sys.stdout.write("\n")
    sys.stdout.flush()
