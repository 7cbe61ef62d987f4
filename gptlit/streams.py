"""Standard streams that every command can rely on.

`usable` prepares them once, at the entry: a stream that is missing is replaced, and a character
that a stream's encoding lacks is written as an escape. A result that standard output doesn't take
raises `OutputLost`. What a run merely shows while it trains (`only_shown`) is dropped instead, with
one line on stderr. While a progress bar is drawn, whole lines are written above it, whoever writes
them: warnings, logging and print() alike.
"""

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from gptlit.messages import note

STANDARD_OUTPUT = "standard output"


class OutputLost(OSError):
    """Standard output did not take the whole of a result."""


class _Absent(io.TextIOBase):
    """Stands for a stream that is missing or closed."""

    def write(self, text: str) -> int:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))


class Stream:
    """A text stream with a rule for what can't be encoded, and a rule for what can't be written.

    Attributes that are not listed here are those of the stream beneath.

    Args:
        beneath: The stream that is written to.
        drops: Whether text that can't be written is dropped, rather than `OutputLost` raised.
        reports: Whether one line on stderr reports that text is dropped or escaped.
        is_for_bars: Whether progress bars are drawn on it, which other text stands above.
    """

    def __init__(
        self, beneath: Any, drops: bool, reports: bool = True, is_for_bars: bool = False
    ) -> None:
        self.beneath = beneath
        self.drops = drops
        self.reports = reports
        self.is_for_bars = is_for_bars
        self.failed = False
        self._escapes = False
        self._held = ""  # the beginning of a line that will stand above a bar

    def __getattr__(self, name: str) -> Any:
        return getattr(self.beneath, name)

    # a progress bar has to recognise the stream that it is drawn on
    def __eq__(self, other: object) -> bool:
        if isinstance(other, Stream):
            return self.beneath is other.beneath
        # tqdm compares with a wrapper of its own, which knows what it wraps
        return True if self.beneath is other else NotImplemented

    def __hash__(self) -> int:
        return hash(self.beneath)

    def write(self, text: str) -> int:
        """Write a text; returns its length."""
        if not (self.failed and self.drops):
            with self._failing():
                self._put_above_bars(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Let the stream beneath deliver what was written."""
        if not (self.failed and self.drops):
            with self._failing():
                self._put_above_bars("")
                self.beneath.flush()

    def end(self) -> None:
        """Deliver also a line that has no end yet; what can't be delivered is dropped."""
        self.drops, self.reports = True, False
        held, self._held = self._held, ""
        if held and not self.failed:
            with self._failing():
                self._put(held)
        self.flush()

    def _put_above_bars(self, text: str) -> None:
        text, self._held = self._held + text, ""
        bars = None if self.is_for_bars else _drawn_bars()
        if bars is None:
            if text:  # a flush alone needs no stream that takes text
                self._put(text)
            return
        whole, end, self._held = text.rpartition("\n")
        if end:
            with bars.external_write_mode(self):
                self._put(whole + end)

    def _put(self, text: str) -> None:
        try:
            self.beneath.write(text)
        except UnicodeEncodeError:
            encoding = getattr(self.beneath, "encoding", None) or "ascii"
            self.beneath.write(text.encode(encoding, "backslashreplace").decode(encoding))
            if self.reports and not self._escapes:
                self._escapes = True
                note(
                    f"{STANDARD_OUTPUT} is {encoding}: characters that it lacks are written as "
                    "escapes; set PYTHONIOENCODING=utf-8 to write them as they are"
                )

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: the file object is closed
            self.failed = True
            number = getattr(error, "errno", None) or errno.EBADF
            reason = "closed" if number == errno.EBADF else os.strerror(number)
            if not self.drops:
                if isinstance(error, BrokenPipeError):
                    raise
                raise OutputLost(number, reason) from error
            if self.reports:
                note(f"{STANDARD_OUTPUT}: {reason}; the run continues without it")


def for_bars(stream: Any) -> Any:
    """The same stream for progress bars, one of which that can't be drawn is dropped."""
    if not isinstance(stream, Stream):
        return stream
    return Stream(stream.beneath, drops=True, reports=False, is_for_bars=True)


def _drawn_bars() -> Any:
    """tqdm's class where one of its bars is drawn on a stream `for_bars`, else None."""
    # only who has imported it can have drawn a bar
    tqdm = getattr(sys.modules.get("tqdm"), "tqdm", None)
    bars = list(getattr(tqdm, "_instances", ()))
    files = [getattr(bar, "fp", None) for bar in bars]
    return tqdm if any(getattr(file, "is_for_bars", False) for file in files) else None


@contextlib.contextmanager
def usable(own_process: bool) -> Iterator[None]:
    """Replace the standard streams by ones that can be relied on.

    Args:
        own_process: Whether the process is only there for this command, so that its file
            descriptors 0 to 2 may be changed: those that were closed are opened on the null
            device, since the next file to be opened would take their place, and so are those that
            failed, since Python would write what is left in their buffers when it ends.
    """
    if own_process:
        _occupy_closed_descriptors()
    with contextlib.ExitStack() as stack:
        out = Stream(_present(sys.stdout), drops=False)
        err = Stream(_present(sys.stderr), drops=True, reports=False)
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        if sys.stdin is None:
            null = stack.enter_context(open(os.devnull, encoding="utf-8"))
            stack.callback(setattr, sys, "stdin", None)
            sys.stdin = null
        try:
            yield
        finally:
            for stream in (out, err):
                stream.end()
                if own_process and stream.failed:
                    _discard(stream.beneath)


def _present(stream: Any) -> Any:
    if stream is None or getattr(stream, "closed", False):
        return _Absent()
    return stream.beneath if isinstance(stream, Stream) else stream


def _occupy_closed_descriptors() -> None:
    descriptor = 0
    while descriptor <= 2:
        descriptor = os.open(os.devnull, os.O_RDWR)
    os.close(descriptor)


def _discard(stream: Any) -> None:
    """Let the null device take what is left in a stream's buffer."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        descriptor = stream.fileno()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, descriptor)
        os.close(null)


@contextlib.contextmanager
def only_shown() -> Iterator[None]:
    """Drop what standard output doesn't take, with one line on stderr, instead of failing."""
    out = sys.stdout
    if not isinstance(out, Stream):
        out = Stream(_present(out), drops=True)
    assert isinstance(out, Stream)
    before, out.drops = out.drops, True
    with contextlib.redirect_stdout(out):
        try:
            yield
        finally:
            out.flush()
            # a stream that failed stays out of use
            out.drops = before or out.failed
