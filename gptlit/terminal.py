"""What a terminal can show: widths, visible white space, colours, text piece by piece."""

import itertools
import os
import re
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Iterable
from typing import IO

SEPARATOR = "---\n"  # between texts
MARKS = {" ": "␣", "\n": "⏎", "\t": "⇥"}


def columns() -> int:
    """The width of the terminal; $COLUMNS, or else 80, where there is none."""
    return shutil.get_terminal_size().columns


def columns_of(file: IO[str]) -> int | None:
    """The width of the terminal that a stream is shown in; None where it isn't shown in one."""
    try:
        return os.get_terminal_size(file.fileno()).columns or None
    except (AttributeError, OSError, ValueError):
        return None


def folded(text: str, columns: int) -> str:
    """A text whose longer lines are broken at blanks, continued under where they begin.

    That is under its value in a line `  name    value`. A value that is a command of gptlit is
    continued as a shell reads it, by a backslash. A longer word than fits, such as a path that is
    to be copied, stays whole.
    """
    return "\n".join(part for line in text.split("\n") for part in _folded(line, columns))


def _folded(line: str, columns: int) -> list[str]:
    name = re.match(r" *\S+ {2,}", line) or re.match(r" *", line)
    assert name is not None
    head, text = name[0], line[name.end() :]
    if width(line) <= columns or not text:
        return [line]
    above, margin = [], " " * (len(head) or 2)
    if head.strip() and len(head) + max(map(width, text.split())) > columns:
        above, head, margin = [head.rstrip()], " " * 4, " " * 4  # too wide to stand beside it
    more = " \\" if text.startswith("gptlit ") else ""
    parts = textwrap.wrap(
        text,
        columns - len(more),
        initial_indent=head,
        subsequent_indent=margin,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [*above, *(part + more for part in parts[:-1]), parts[-1]]


class WordWrapper:
    """Breaks a text at blanks while it is written piece by piece.

    A word that began where it doesn't fit is written on the next line, so that it is
    held until the word ends or fills a line.

    Args:
        columns: Of the terminal.
    """

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._at = 0  # the columns of the line that are taken
        self._blanks = ""  # in front of the word
        self._word = ""

    def add(self, piece: str) -> str:
        """What is certain of the text so far, and wasn't given yet."""
        return "".join(map(self._next, piece))

    def _next(self, character: str) -> str:
        if character in " \n":
            given = self.end()
            if character == "\n":
                self._at, self._blanks = 0, ""
                return given + "\n"
            self._blanks += character
            return given
        self._word += character
        # one that fills a line is broken by the terminal, wherever it stands
        return self.end() if width(self._word) >= self._columns else ""

    def end(self) -> str:
        """What was held."""
        if not self._word:
            return ""
        given, size = self._blanks + self._word, width(self._word)
        # without blanks it is the rest of a word that fills more than a line
        if self._at and self._blanks and self._at + len(self._blanks) + size > self._columns:
            given, self._at = f"\n{self._word}", size
        else:
            # a full line is not the same as an empty one: what comes next needs a new line
            self._at = (self._at + len(self._blanks) + size - 1) % self._columns + 1
        self._blanks = self._word = ""
        return given


def broken(text: str, columns: int) -> str:
    """A text whose words don't cross the edge of a terminal."""
    folder = WordWrapper(columns)
    return folder.add(text) + folder.end()


def in_colour(file: IO[str]) -> bool:
    """Whether to colour what goes there: a terminal, and NO_COLOR (no-color.org) isn't set."""
    return file.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def visible(piece: str) -> str:
    """A piece with its white space visible; one that spells nothing is a dot."""
    return printable("".join(MARKS.get(c, c) for c in piece)) or "·"


def printable(text: str) -> str:
    """A text whose control characters, but for line ends, are escaped."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def _width(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def width(text: str) -> int:
    """The columns that a line takes: two for a wide character, none for one that combines."""
    return len(text) if text.isascii() else sum(map(_width, text))


def padded(text: str, columns: int, right: bool = False) -> str:
    """A line of at least so many columns, its text at the left, or at the right."""
    blanks = " " * (columns - width(text))
    return blanks + text if right else text + blanks


def shortened(text: str, columns: int) -> str:
    """A line of at most so many columns, cut where it would be longer."""
    if width(text) <= columns:
        return text
    return text[: _fitting(text, columns - 1)] + "…"


def _fitting(line: str, columns: int) -> int:
    """How many characters of a line fit."""
    ends = itertools.accumulate(map(_width, line))
    return sum(1 for _ in itertools.takewhile(lambda end: end <= columns, ends))


def wrapped(text: str, columns: int) -> list[str]:
    """The lines of a text, none longer than so many columns, broken at blanks where possible."""
    lines = []
    for line in printable(text.expandtabs(4)).split("\n"):
        rest = line
        while width(rest) > columns:
            end = max(1, _fitting(rest, columns))
            blank = rest.rfind(" ", 0, end + 1)
            end = blank if rest[: max(blank, 0)].strip() else end
            lines.append(rest[:end].rstrip(" "))
            rest = rest[end:].lstrip(" ")
        lines.append(rest)
    return lines


def duration(seconds: float) -> str:
    """45 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def put_stream(pieces: Iterable[str], at_once: bool = False) -> None:
    """Write a text to standard output and end its last line; in a terminal, or `at_once`, each
    piece as it comes."""
    columns = columns_of(sys.stdout)
    folder = None if columns is None else WordWrapper(columns)
    at_once = at_once or sys.stdout.isatty()
    last = ""
    for piece in pieces:
        sys.stdout.write(folder.add(piece) if folder else piece)
        last = piece or last
        if at_once:
            sys.stdout.flush()
    if folder:
        sys.stdout.write(folder.end())
    if not last.endswith("\n"):
        sys.stdout.write("\n")
    sys.stdout.flush()
