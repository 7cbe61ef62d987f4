"""Token ids on disk, with a log of the finished tasks, so that encoding can resume."""

import json
import zlib
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from gptlit.data.parallel import Encoded
from gptlit.data.token_file import padding


@dataclass(frozen=True)
class LoggedTask:
    """A finished task's share of the files.

    Args:
        span: Index of the span of the text that it belongs to.
        n_bytes: Bytes of text.
        n_tokens: Number of ids.
        n_ends: Number of documents that end in it.
        n_unknown: Number of ids that stand for unknown pieces.
        crc: CRC-32 of its ids and document ends.
    """

    span: int
    n_bytes: int
    n_tokens: int
    n_ends: int
    n_unknown: int
    crc: int


class EncodeLog:
    """Appends ids and document ends to two files, and a line for each task to a third.

    On the files of an interrupted preparation it keeps the tasks that were written completely.

    Args:
        folder: Folder of the files `ids`, `ends` and `log`.
        dtype: Data type of the ids.
    """

    def __init__(self, folder: Path, dtype: np.dtype) -> None:
        self.tasks: list[LoggedTask] = []
        self._folder = folder
        self._itemsize = dtype.itemsize
        self._open_files = ExitStack()
        self._n_tokens = 0

    def __enter__(self) -> "EncodeLog":
        # writes in this mode are at the end of a file, wherever it was read
        self._ids, self._ends, self._log = files = [
            self._open_files.enter_context((self._folder / name).open("a+b"))
            for name in ("ids", "ends", "log")
        ]
        for file in files:
            file.seek(0)
        n_valid_bytes = 0
        for line in self._log:
            if not (task := self._read_task(line)):
                break
            self.tasks.append(task)
            self._n_tokens += task.n_tokens
            n_valid_bytes += len(line)
        self._log.truncate(n_valid_bytes)
        self._ids.truncate(self._n_tokens * self._itemsize)
        self._ends.truncate(8 * sum(task.n_ends for task in self.tasks))
        return self

    def __exit__(self, *_: object) -> None:
        self._open_files.close()

    def _read_task(self, line: bytes) -> LoggedTask | None:
        """Read a task's ids and ends; None if they or its line are incomplete."""
        try:
            task = LoggedTask(**json.loads(line))
        except (ValueError, TypeError):
            return None
        ids = self._ids.read(task.n_tokens * self._itemsize)
        ends = self._ends.read(8 * task.n_ends)
        return task if task.crc == zlib.crc32(ends, zlib.crc32(ids)) else None

    def add(self, encoded: Encoded) -> None:
        """Write the result of a task."""
        ends = (np.array(encoded.ends, dtype=np.int64) + self._n_tokens).tobytes()
        task = LoggedTask(
            encoded.span,
            encoded.n_bytes,
            len(encoded.ids),
            len(encoded.ends),
            encoded.n_unknown,
            zlib.crc32(ends, encoded.crc),
        )
        self._ids.write(encoded.ids.data)
        self._ends.write(ends)
        self._ids.flush()
        self._ends.flush()
        self._log.write(json.dumps(asdict(task)).encode() + b"\n")
        self._log.flush()
        self._n_tokens += task.n_tokens
        self.tasks.append(task)

    def finish(self) -> None:
        """Append the document ends to the ids, as `token_file.read` expects them."""
        self._ids.write(bytes(padding(self._n_tokens * self._itemsize)))
        self._ends.seek(0)
        while block := self._ends.read(1 << 20):
            self._ids.write(block)
        self._ids.flush()
