"""Token ids on their way to the disk, task by task, so that a stopped preparation can go on."""

import json
import zlib
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np

from gptlit.data.parallel import Encoded
from gptlit.data.token_file import padding


@dataclass(frozen=True)
class Done:
    """What a finished task has left on the disk.

    Args:
        part: The span of the text that it belongs to.
        n_bytes: Of text, that went in.
        n_tokens: That came out.
        n_ends: How many documents end in it.
        n_unknown: How many of the tokens stand for unknown pieces.
        crc: CRC-32 of its ids and of the documents' ends.
    """

    part: int
    n_bytes: int
    n_tokens: int
    n_ends: int
    n_unknown: int
    crc: int


class Journal:
    """Appends ids and documents' ends to two files, and a line for each task to a third.

    Opened on the files of an interrupted preparation it keeps what is whole of them.

    Args:
        folder: Where the files are: `ids`, `ends` and `journal`.
        dtype: Of the ids.
    """

    def __init__(self, folder: Path, dtype: np.dtype) -> None:
        self.done: list[Done] = []
        self._folder = folder
        self._itemsize = dtype.itemsize
        self._open = ExitStack()
        self._n_tokens = 0

    def __enter__(self) -> "Journal":
        self._ids, self._ends, self._lines = (
            self._open.enter_context(self._file(name)) for name in ("ids", "ends", "journal")
        )
        kept = 0
        for line in self._lines:
            if not (done := self._whole(line)):
                break
            self.done.append(done)
            self._n_tokens += done.n_tokens
            kept += len(line)
        self._lines.seek(kept)
        self._ids.seek(self._n_tokens * self._itemsize)
        self._ends.seek(8 * sum(done.n_ends for done in self.done))
        for file in (self._ids, self._ends, self._lines):
            file.truncate()
        return self

    def __exit__(
        self,
        type_: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._open.close()

    def _file(self, name: str) -> IO[bytes]:
        (self._folder / name).touch()
        return (self._folder / name).open("r+b")

    def _whole(self, line: bytes) -> Done | None:
        """The task that a line tells of, if what it left is whole; reads on in both files."""
        try:
            done = Done(**json.loads(line))
        except (ValueError, TypeError):
            return None
        ids = self._ids.read(done.n_tokens * self._itemsize)
        ends = self._ends.read(8 * done.n_ends)
        return done if done.crc == zlib.crc32(ends, zlib.crc32(ids)) else None

    def add(self, encoded: Encoded) -> None:
        """Write what a task gave."""
        ids = encoded.ids.data
        ends = (np.array(encoded.ends, dtype=np.int64) + self._n_tokens).tobytes()
        done = Done(
            encoded.part,
            encoded.n_bytes,
            len(encoded.ids),
            len(encoded.ends),
            encoded.n_unknown,
            zlib.crc32(ends, encoded.crc),
        )
        for file, content in (
            (self._ids, ids),
            (self._ends, ends),
            (self._lines, json.dumps(asdict(done)).encode() + b"\n"),
        ):
            file.write(content)
            file.flush()
        self._n_tokens += done.n_tokens
        self.done.append(done)

    def finish(self) -> None:
        """Put the documents' ends behind the ids, as `tokens.read` expects them."""
        self._ids.write(bytes(padding(self._n_tokens * self._itemsize)))
        self._ends.seek(0)
        while block := self._ends.read(1 << 20):
            self._ids.write(block)
        self._ids.flush()
