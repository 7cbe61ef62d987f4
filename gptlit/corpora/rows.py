"""Documents from records: the lines of .jsonl, the arrays of .json, the rows of .csv and .tsv.

One record is held in memory at a time; it may have at most RECORD_CHARS characters.
"""

import csv
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from gptlit.messages import UsageError, did_you_mean, opt
from gptlit.terminal import count_of

RECORD_CHARS = 1 << 25
MAX_LISTED = 20  # fields or columns that a message names
_NOT_SPACE = re.compile(r"[^ \t\n\r]")
_CUT_OFF_CHARS = 16  # an error this near to the end of the text read so far can be due to the cut


TextsOf = Callable[[Any, str], Iterable[str]]  # the texts of a record, and its place for messages


def text_in(field: str) -> TextsOf:
    """Return a function that finds the text of a record in a field."""
    return lambda record, where: [_text_in(record, where, field)]


def json_lines(blocks: Iterator[str], field: str, texts_of: TextsOf) -> Iterator[str]:
    """Yield the texts of a .jsonl file, which has a JSON object in each line.

    Args:
        blocks: Blocks of the file.
        field: Field that is expected, for messages.
        texts_of: Finds the texts of an object.

    Raises:
        UsageError: A line is not an object with that field, or is too long.
    """
    for number, line in enumerate(_lines(blocks), start=1):
        if line.strip():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise _not_a_record(f"line {number}", field) from error
            yield from texts_of(record, f"line {number}")


def json_records(blocks: Iterator[str], field: str, texts_of: TextsOf) -> Iterator[str]:
    """Yield the texts of a .json file: an array of objects, or objects one after the other.

    Args:
        blocks: Blocks of the file.
        field: Field that is expected, for messages.
        texts_of: Finds the texts of an object.

    Raises:
        UsageError: The file has other content, or an object is too long.
    """
    values = _JsonValues(blocks)
    is_array = values.skip("[")
    number = 0
    while (sign := values.peek()) and not (is_array and sign == "]"):
        if is_array and number and not values.skip(","):
            raise UsageError(
                f"record {number} is not followed by a comma or a ]; save the file as valid JSON"
            )
        number += 1
        yield from texts_of(values.value(number, field), f"record {number}")
    if is_array and not values.skip("]"):
        raise UsageError(
            f"it ends within its array, after record {number}; look for a complete copy"
        )
    if is_array and values.peek():
        raise UsageError("something follows its array; save the file as valid JSON")


def table_rows(
    blocks: Iterator[str], column: str | None, separators: str, report: Callable[[str], None]
) -> Iterator[str]:
    """Yield the texts of a table whose first row names its columns.

    Args:
        blocks: Blocks of the file.
        column: Column that holds the text; None for "text", or the only one.
        separators: Possible separators of columns, of which the commonest in the first row is used.
        report: Function that is called with a line on an assumption.

    Raises:
        UsageError: There is no such column, or a row is too long or invalid.
    """
    lines = _lines(blocks)
    head: list[str] = []  # blank lines, and the first row
    for line in lines:
        head.append(line if line.strip() else "")
        if head[-1]:
            break
    separator = max(separators, key=re.sub('"[^"]*"', "", head[-1]).count)
    if separator != separators[0]:
        report(f"columns are separated by {separator!r}")
    n_chars = 0

    def counted() -> Iterator[str]:
        nonlocal n_chars
        for line in itertools.chain(head, lines):
            n_chars += len(line) + 1
            if n_chars > RECORD_CHARS:
                raise UsageError(
                    f"line {reader.line_num} is in a row of more than {RECORD_CHARS:,} characters; "
                    "a quotation mark that is never closed can be the reason"
                )
            yield f"{line}\n"

    csv.field_size_limit(
        max(csv.field_size_limit(), RECORD_CHARS)
    )  # a setting of the whole process
    reader = csv.reader(counted(), delimiter=separator, strict=True)
    try:
        header = [name.strip() for name in next(filter(None, reader), [])]
        if not header:
            return  # an empty text is refused later
        index = _column(header, column)
        for row in reader:
            n_chars = 0
            if len(row) > index:
                yield _clean(row[index])
            elif row:
                raise UsageError(
                    f"line {reader.line_num} has {count_of(len(row), 'column')}, and the first "
                    f"row has {len(header)}"
                )
    except csv.Error as error:
        raise UsageError(f"line {reader.line_num} is not a row of a table ({error})") from error


def _column(header: list[str], column: str | None) -> int:
    if column is None and len(header) == 1:
        return 0
    wanted = "text" if column is None else column
    if wanted in header:
        return header.index(wanted)
    raise UsageError(
        f"has no column {wanted!r}, but {_listed(header)}; {opt('data.column')} names the one that "
        f"holds the text.{did_you_mean(wanted, header)}"
    )


def _listed(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - MAX_LISTED} more" if len(listed) > MAX_LISTED else ""
    return ", ".join(repr(name[:40]) for name in listed[:MAX_LISTED]) + more


def _lines(blocks: Iterator[str]) -> Iterator[str]:
    # str.splitlines also splits at characters that JSON's strings may have, such as U+2028
    parts: list[str] = []
    n_chars, number = 0, 1
    for block in blocks:
        head, *rest = block.split("\n")
        parts.append(head)
        n_chars += len(head)
        for line in rest:
            yield "".join(parts)
            parts, n_chars, number = [line], len(line), number + 1
        if n_chars > RECORD_CHARS:
            raise _too_long(f"line {number}")
    yield "".join(parts)


def _too_long(where: str) -> UsageError:
    return UsageError(
        f"{where} has more than {RECORD_CHARS:,} characters, the most that a record may have; "
        "divide its text, or save it as a .txt file, which may have any size"
    )


def _not_a_record(where: str, field: str, record: Any = None) -> UsageError:
    fields = f" (its fields are {_listed(record)})" if isinstance(record, dict) else ""
    return UsageError(
        f"{where} is not a JSON object with a text in its field {field!r}{fields}; "
        f"{opt('data.jsonl_field')} names another field"
    )


def _text_in(record: Any, where: str, field: str) -> str:
    if not isinstance(record, dict) or not isinstance(text := record.get(field), str):
        raise _not_a_record(where, field, record)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{where} has a lone surrogate ({error.object[error.start]!r}); remove it"
        ) from error
    return _clean(text)


def _clean(text: str) -> str:
    return text.replace("\0", "").replace("\r\n", "\n").replace("\r", "\n")


class _JsonValues:
    """Reads JSON values, one after the other, from the blocks of a text."""

    def __init__(self, blocks: Iterator[str]) -> None:
        self._blocks = blocks
        self._text = ""
        self._at = 0
        self._decode = json.JSONDecoder().raw_decode

    def peek(self) -> str:
        """Return the next character that is not whitespace; "" at the end."""
        while not (found := _NOT_SPACE.search(self._text, self._at)):
            self._at = len(self._text)
            if not self._read_more():
                return ""
        self._at = found.start()
        return found[0]

    def skip(self, character: str) -> bool:
        """Skip the next character if it is this one; return whether it is."""
        if is_next := self.peek() == character:
            self._at += 1
        return is_next

    def _read_more(self) -> bool:
        block = next(self._blocks, "")
        self._text, self._at = self._text[self._at :] + block, 0
        return bool(block)

    def value(self, number: int, field: str) -> Any:
        """Return the next value, which is record `number`."""
        self.peek()
        while True:
            try:
                value, self._at = self._decode(self._text, self._at)
                return value
            except RecursionError as error:
                raise _not_a_record(f"record {number}", field) from error
            except json.JSONDecodeError as error:
                n_chars = len(self._text) - self._at
                is_cut_off = (
                    error.msg.startswith("Unterminated")
                    or error.pos > len(self._text) - _CUT_OFF_CHARS
                )
                if is_cut_off and n_chars > RECORD_CHARS:
                    raise _too_long(f"record {number}") from error
                # decoded again when twice as much of it has been read
                if not is_cut_off or not self._read_until(2 * n_chars):
                    raise UsageError(f"record {number} is not JSON ({error.msg})") from error
            except ValueError as error:  # a number with thousands of digits
                reason = str(error).partition(";")[0]
                raise UsageError(f"record {number} can't be read ({reason})") from error

    def _read_until(self, n_chars: int) -> bool:
        has_more = False
        while len(self._text) - self._at < n_chars and self._read_more():
            has_more = True
        return has_more
