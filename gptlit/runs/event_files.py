"""TensorBoard's event files: a writer without a thread, and the repair of damaged files.

TensorBoard's own writer has a thread, which prints a traceback when a disk is full.
"""

import io
import itertools
import os
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.writer import FileWriter

from gptlit.files import write_atomically
from gptlit.messages import note

PATTERN = "events.out.tfevents.*"
FLUSH_BYTES = 1 << 20
_numbers = itertools.count()


class _EventFile:
    """Replaces `EventFileWriter`; appends its records to the file when it is flushed.

    After a failure, reported in one line, nothing more is written; a resume restores the curves
    from metrics.csv.
    """

    def __init__(self, folder: Path) -> None:
        name = f"{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        self._path = folder / PATTERN.replace("*", name)
        self._pending = io.BytesIO()
        self._failed = False
        self.add_event(_version(wall_time=time.time()))

    def get_logdir(self) -> str:
        return str(self._path.parent)

    def add_event(self, event: Event) -> None:
        RecordWriter(self._pending).write(event.SerializeToString())
        if self._pending.getbuffer().nbytes > FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        pending, self._pending = self._pending.getvalue(), io.BytesIO()
        if self._failed or not pending:
            return
        try:
            with self._path.open("ab", buffering=0) as file:
                while pending:
                    pending = pending[file.write(pending) :]
        except OSError as error:
            self._failed = True
            note(
                f"warning: {self._path}: {error.strerror}; the run continues without TensorBoard's "
                "curves, which are restored from metrics.csv when it is resumed"
            )

    def close(self) -> None:
        self.flush()


class _FileWriter(FileWriter):
    def __init__(self, folder: str) -> None:
        self.event_writer = _EventFile(Path(folder))


class Writer(SummaryWriter):
    """torch's SummaryWriter, whose events are written by `flush`, in the calling thread."""

    # torch declares both as None
    file_writer: Any
    all_writers: Any

    def _get_file_writer(self) -> FileWriter:
        if self.file_writer is None:
            writer = _FileWriter(self.log_dir)
            self.file_writer, self.all_writers = writer, {writer.get_logdir(): writer}
            if self.purge_step is not None:
                for event in _purge_mark(self.purge_step):
                    writer.add_event(event)
                self.purge_step = None
        return self.file_writer


def _version(**fields: float) -> Event:
    return Event(file_version="brain.Event:2", **fields)


def _purge_mark(step: int) -> list[Event]:
    """Return events that make TensorBoard drop a step and later ones."""
    return [_version(step=step), Event(step=step, session_log=SessionLog(status=SessionLog.START))]


def logged(folder: Path, n_steps: int) -> list[Event]:
    """Read the summaries of a run's first steps from all its event files, as far as intact."""
    events: list[Event] = []
    for path in sorted(folder.glob(PATTERN)):
        for event in LegacyEventFileLoader(str(path)).Load() if path.stat().st_size else ():
            if event.HasField("session_log"):
                events = [before for before in events if before.step < event.step]
            elif event.HasField("summary") and event.step < n_steps:
                events.append(event)
    return events


def rewrite(folder: Path, events: Iterable[Event]) -> None:
    """Replace all event files of a run by one with these summaries, sorted by step."""
    files = sorted(folder.glob(PATTERN))
    content = io.BytesIO()
    ordered = sorted(events, key=lambda event: event.step)
    first = ordered[0].wall_time if ordered else time.time()
    for event in [_version(wall_time=first), *_purge_mark(0), *ordered]:
        RecordWriter(content).write(event.SerializeToString())
    # the first file's name, so that it is read first
    path = files[0] if files else folder / PATTERN.replace("*", f"{first:010.0f}.repaired")
    write_atomically(path, content.getvalue())
    for left in files[1:]:
        left.unlink()
