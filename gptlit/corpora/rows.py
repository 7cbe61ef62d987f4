"""Records to documents: the rows of .jsonl, the arrays of .json, the tables of .csv and .tsv.

One record is held in memory at a time, and it may have RECORD_CHARS characters at most.
"""

import csv
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from gptlit.messages import UsageError, did_you_mean, opt

RECORD_CHARS = 1 << 25
LISTED = 20  # fields or columns that a message names at most
_SPACE = re.compile(r"[ \t\n\r]*")
# how near to the end of a text a JSON error may lie that more of the text would mend
_CUT_OFF_CHARS = 16


def json_lines(blocks: Iterator[str], field: str) -> Iterator[str]:
    """The texts of .jsonl, a JSON object a line.

    Args:
        blocks: Of the file.
        field: Which of an object's fields holds the text.

    Raises:
        UsageError: a line is no such object, or too long.
    """
    for number, line in enumerate(_lines(blocks), start=1):
        if line.strip():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise _no_record(f"line {number}", field) from error
            yield _text_in(record, f"line {number}", field)


def json_records(blocks: Iterator[str], field: str) -> Iterator[str]:
    """The texts of .json: an array of objects, or objects one after the other.

    Args:
        blocks: Of the file.
        field: Which of an object's fields holds the text.

    Raises:
        UsageError: it is something else, or an object is too long.
    """
    values = _JsonValues(blocks)
    in_array = values.peek() == "["
    if in_array:
        values.skip()
    number = 0
    while (sign := values.peek()) and not (in_array and sign == "]"):
        number += 1
        if number > 1 and in_array:
            if sign != ",":
                raise UsageError(f"record {number - 1} is not followed by a comma or a ]: not JSON")
            values.skip()
        yield _text_in(values.value(number, field), f"record {number}", field)
    if in_array:
        if not sign:
            raise UsageError(f"it ends within its array, after record {number}: not whole")
        values.skip()
        if values.peek():
            raise UsageError("something follows its array: not JSON")


def table_rows(
    blocks: Iterator[str], column: str | None, separators: str, say: Callable[[str], None]
) -> Iterator[str]:
    """The texts of a table whose first row names its columns.

    Args:
        blocks: Of the file.
        column: Which holds the text; with None it is "text", or the only one.
        separators: Of columns; the one that the first row has most of is meant, in doubt the
            first of them.
        say: Takes what was assumed.

    Raises:
        UsageError: there is no such column, a row is too long, or not a row.
    """
    lines = _lines(blocks)
    first, n_blank = "", 0
    for first in lines:
        if first.strip():
            break
        n_blank += 1
    separator = max(separators, key=re.sub('"[^"]*"', "", first).count)
    if separator != separators[0]:
        say(f"columns are separated by {separator!r}")
    n_chars = 0

    def counted() -> Iterator[str]:
        nonlocal n_chars
        for line in itertools.chain(itertools.repeat("", n_blank), [first], lines):
            n_chars += len(line) + 1
            if n_chars > RECORD_CHARS:
                raise UsageError(
                    f"line {reader.line_num} is in a row of more than {RECORD_CHARS:,} characters; "
                    "a quotation mark that is never closed can be the reason"
                )
            yield f"{line}\n"

    csv.field_size_limit(max(csv.field_size_limit(), RECORD_CHARS))  # the whole process's
    reader = csv.reader(counted(), delimiter=separator, strict=True)
    try:
        header = [name.strip() for name in next(filter(None, reader), [])]
        if not header:
            return  # who reads the documents refuses an empty text
        index = _column(header, column)
        for row in reader:
            n_chars = 0
            if len(row) > index:
                yield _clean(row[index])
            elif row:
                raise UsageError(
                    f"line {reader.line_num} has {len(row)} columns, and the first row has "
                    f"{len(header)}"
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
    more = f" and {len(listed) - LISTED} more" if len(listed) > LISTED else ""
    return ", ".join(repr(name[:40]) for name in listed[:LISTED]) + more


def _lines(blocks: Iterator[str]) -> Iterator[str]:
    # str.splitlines also splits where JSON's strings may go on, at U+2028 for one
    begun: list[str] = []
    n_chars, number = 0, 1
    for block in blocks:
        head, *rest = block.split("\n")
        begun.append(head)
        n_chars += len(head)
        for line in rest:
            yield "".join(begun)
            begun, n_chars, number = [line], len(line), number + 1
        if n_chars > RECORD_CHARS:
            raise _too_long(f"line {number}")
    yield "".join(begun)


def _too_long(where: str) -> UsageError:
    return UsageError(
        f"{where} has more than {RECORD_CHARS:,} characters, the most that a record may have; "
        "divide its text, or save it as a .txt file, which may have any size"
    )


def _no_record(where: str, field: str, record: Any = None) -> UsageError:
    fields = f" (its fields are {_listed(record)})" if isinstance(record, dict) else ""
    return UsageError(
        f"{where} is no JSON object with a text as its {field!r}{fields}; "
        f"{opt('data.jsonl_field')} names another field"
    )


def _text_in(record: Any, where: str, field: str) -> str:
    if not isinstance(record, dict) or not isinstance(text := record.get(field), str):
        raise _no_record(where, field, record)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{where} escapes half a character ({error.object[error.start]!r}), which is no text"
        ) from error
    return _clean(text)


def _clean(text: str) -> str:
    return text.replace("\0", "").replace("\r\n", "\n").replace("\r", "\n")


class _JsonValues:
    """The JSON values in a text that comes in blocks, one after the other."""

    def __init__(self, blocks: Iterator[str]) -> None:
        self._blocks = blocks
        self._text = ""
        self._at = 0
        self._decode = json.JSONDecoder().raw_decode

    def peek(self) -> str:
        """The next character that is not white space; "" at the end."""
        while True:
            match = _SPACE.match(self._text, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read_more():
                return ""

    def skip(self) -> None:
        """Pass by one character."""
        self._at += 1

    def _read_more(self) -> bool:
        block = next(self._blocks, "")
        self._text, self._at = self._text[self._at :] + block, 0
        return bool(block)

    def value(self, number: int, field: str) -> Any:
        """The next value, which is record `number`."""
        self.peek()
        while True:
            try:
                value, self._at = self._decode(self._text, self._at)
                return value
            except RecursionError as error:
                raise _no_record(f"record {number}", field) from error
            except json.JSONDecodeError as error:
                n_chars = len(self._text) - self._at
                is_cut_off = (
                    error.msg.startswith("Unterminated")
                    or error.pos > len(self._text) - _CUT_OFF_CHARS
                )
                if is_cut_off and n_chars > RECORD_CHARS:
                    raise _too_long(f"record {number}") from error
                # decoded anew once there is twice as much of it
                if not is_cut_off or not self._read_until(2 * n_chars):
                    raise UsageError(f"record {number} is not JSON ({error.msg})") from error
            except ValueError as error:  # a number of thousands of digits
                reason = str(error).partition(";")[0]
                raise UsageError(f"record {number} can't be read ({reason})") from error

    def _read_until(self, n_chars: int) -> bool:
        has_more = False
        while len(self._text) - self._at < n_chars and self._read_more():
            has_more = True
        return has_more
