"""TensorBoard's event files: a writer without a thread, and the repair of damaged files.

TensorBoard's own writer has a thread, which prints a traceback when a disk is full.
"""

import io
import itertools
import os
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
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

    def close(self) -> None:
        """Flush; the figures of the whole run follow, in the same file."""
        self.flush()


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


# ---------------------------------------------------------------------- the HParams tab


def session_start(options: Mapping[str, Any]) -> Summary:
    """Return the summary of a run's options, of those that are plain values.

    There is none of an experiment, so that TensorBoard takes the options and scalars of all runs
    that it shows, and lists first the options that differ.
    """
    from tensorboard.plugins.hparams import metadata
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionStartInfo

    info = SessionStartInfo(start_time_secs=time.time())
    for name, value in options.items():
        if isinstance(value, bool):
            info.hparams[name].bool_value = value
        elif isinstance(value, int | float):
            info.hparams[name].number_value = value
        elif isinstance(value, str):
            info.hparams[name].string_value = value
    return _of_session(metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=info))


def session_end() -> Summary:
    """Return the summary of a run that was trained to its end."""
    from tensorboard.plugins.hparams import api_pb2, metadata
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo

    info = SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=time.time())
    return _of_session(metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=info))


def _of_session(tag: str, data: Any) -> Summary:
    # tensorboard.plugins.hparams.summary would import TensorFlow where it is installed
    from tensorboard.plugins.hparams import metadata

    value = Summary.Value(
        tag=tag, metadata=metadata.create_summary_metadata(data), tensor=metadata.NULL_TENSOR
    )
    return Summary(value=[value])


def differs(summary: Summary, start: Summary) -> bool:
    """Whether a summary is that of other options than those in `start`."""
    from tensorboard.plugins.hparams import metadata

    if summary.value[0].tag != metadata.SESSION_START_INFO_TAG:
        return False
    one, other = (
        metadata.parse_session_start_info_plugin_data(each.value[0].metadata.plugin_data.content)
        for each in (summary, start)
    )
    return dict(one.hparams) != dict(other.hparams)
