"""metrics.csv, read as far as it is whole: a full disk or a crash can have cut it anywhere."""

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

from gptlit.files import write_atomically

Row = dict[str, str]


def read(path: Path) -> tuple[list[str], list[Row]]:
    """The columns and rows of a file; of one that isn't there, none."""
    return parse(path.read_bytes() if path.is_file() else b"")


def by_step(path: Path, metric: str) -> dict[int, float]:
    """Values of a metric by the number of steps made before each, from a metrics.csv."""
    # steps are logged from 0, and a validation under the step before it
    return {int(row["step"]) + 1: float(row[metric]) for row in read(path)[1] if row.get(metric)}


def parse(content: bytes) -> tuple[list[str], list[Row]]:
    """The columns of a table and its rows up to the first that isn't whole.

    If the header isn't whole, there are none.
    """
    # what follows the last line end is a part of a line
    lines_ended = content.rpartition(b"\n")[0].decode(errors="replace")
    header: list[str] = []
    rows: list[Row] = []
    try:
        for line in csv.reader(io.StringIO(lines_ended, newline="")):
            if not header:
                if "step" not in line:
                    break
                header = line
                continue
            row = dict(zip(header, line, strict=False))
            if len(line) != len(header) or not _is_whole(row):
                break
            rows.append(row)
    except csv.Error:
        pass  # a field above csv's limit, which readers of texts raise for the whole process
    return header, rows


def _is_whole(row: Row) -> bool:
    """Whether a row has a step, and beside it numbers or nothing."""
    try:
        for value in filter(None, row.values()):
            float(value)
    except ValueError:
        return False
    return bool(re.fullmatch("[0-9]{1,18}", row["step"]))


def is_cut(path: Path) -> bool:
    """Whether a file's last line isn't whole."""
    if not path.is_file() or not path.stat().st_size:
        return path.is_file()
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read() != b"\n"


def write(path: Path, header: Sequence[str], rows: Sequence[Row]) -> None:
    """Replace a table as a whole, if it is another; one without columns is no file."""
    content = as_csv(header, rows)
    if not header:
        path.unlink(missing_ok=True)
    elif not path.is_file() or path.read_bytes() != content:
        write_atomically(path, content)


def as_csv(header: Sequence[str], rows: Sequence[Row]) -> bytes:
    """A table as the content of a file."""
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, header)
    writer.writeheader()
    writer.writerows(rows)
    return table.getvalue().encode()
