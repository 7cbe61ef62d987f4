"""Reading and writing metrics.csv, which a full disk or a crash can have cut anywhere."""

import csv
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path

from gptlit.files import write_atomically

Row = dict[str, str]


def read(path: Path) -> tuple[list[str], list[Row]]:
    """Read a file's columns and intact rows; none if there is no file."""
    return parse(path.read_bytes() if path.is_file() else b"")


def by_step(path: Path, metric: str) -> dict[int, float]:
    """Values of a metric by the number of steps made before each, from a metrics.csv."""
    # steps are logged from 0, and a validation under the step before it
    return {int(row["step"]) + 1: float(row[metric]) for row in read(path)[1] if row.get(metric)}


def mean(rows: Sequence[Row], metric: str) -> float:
    """Return the mean of a metric over a table's rows; NaN if it was not logged."""
    values = [float(row[metric]) for row in rows if row.get(metric)]
    return math.fsum(values) / len(values) if values else math.nan


def parse(content: bytes) -> tuple[list[str], list[Row]]:
    """Parse a table's columns and its rows up to the first incomplete one.

    An incomplete header gives no columns and no rows.
    """
    complete_lines = content.rpartition(b"\n")[0].decode(errors="replace")
    header: list[str] = []
    rows: list[Row] = []
    try:
        for line in csv.reader(io.StringIO(complete_lines, newline="")):
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
        pass  # a field above csv's limit, which the process may have raised for reading texts
    return header, rows


def _is_whole(row: Row) -> bool:
    """Whether a row has a step, and numbers or empty cells otherwise."""
    try:
        for value in filter(None, row.values()):
            float(value)
    except ValueError:
        return False
    return bool(re.fullmatch("[0-9]{1,18}", row["step"]))


def is_cut(path: Path) -> bool:
    """Whether a file's last line is incomplete."""
    if not path.is_file() or not path.stat().st_size:
        return path.is_file()
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read() != b"\n"


def write(path: Path, header: Sequence[str], rows: Sequence[Row]) -> None:
    """Write a table atomically if it differs from the file; without columns remove the file."""
    content = as_csv(header, rows)
    if not header:
        path.unlink(missing_ok=True)
    elif not path.is_file() or path.read_bytes() != content:
        write_atomically(path, content)


def as_csv(header: Sequence[str], rows: Sequence[Row]) -> bytes:
    """Encode a table as CSV."""
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, header)
    writer.writeheader()
    writer.writerows(rows)
    return table.getvalue().encode()
