"""What a terminal can show: widths, visible white space, colours, text piece by piece."""

import itertools
import os
import shutil
import sys
import unicodedata
from collections.abc import Iterable
from typing import IO

SEPARATOR = "---\n"  # between texts
MARKS = {" ": "␣", "\n": "⏎", "\t": "⇥"}


def columns() -> int:
    """The width of the terminal; $COLUMNS, or else 80, where there is none."""
    return shutil.get_terminal_size().columns


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
    """How many characters of a line fit, at least one."""
    ends = itertools.accumulate(map(_width, line))
    return max(1, sum(1 for _ in itertools.takewhile(lambda end: end <= columns, ends)))


def wrapped(text: str, columns: int) -> list[str]:
    """The lines of a text, none longer than so many columns, broken at blanks where possible."""
    lines = []
    for line in printable(text.expandtabs(4)).split("\n"):
        rest = line
        while width(rest) > columns:
            end = _fitting(rest, columns)
            blank = rest.rfind(" ", 0, end + 1)
            end = blank if rest[: max(blank, 0)].strip() else end
            lines.append(rest[:end].rstrip(" "))
            rest = rest[end:].lstrip(" ")
        lines.append(rest)
    return lines


def put_stream(pieces: Iterable[str], at_once: bool = False) -> None:
    """Write a text to standard output and end its last line; in a terminal, or `at_once`, each
    piece as it comes."""
    at_once = at_once or sys.stdout.isatty()
    last = ""
    for piece in pieces:
        sys.stdout.write(piece)
        last = piece or last
        if at_once:
            sys.stdout.flush()
    if not last.endswith("\n"):
        sys.stdout.write("\n")
    sys.stdout.flush()
