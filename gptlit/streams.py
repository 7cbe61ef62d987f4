"""Standard streams that handle missing files, other encodings, closed readers and progress bars.

Results that standard output doesn't accept raise `OutputLost`; the output of training
(`only_shown`) is dropped instead, with one line on stderr.
"""

import codecs
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
    """Standard output did not accept a complete result."""


class _Absent(io.TextIOBase):
    """Replaces a stream that is missing or closed."""

    def write(self, text: str) -> int:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))


class Stream:
    """Wraps a text stream: escapes characters that it can't encode, writes lines above bars.

    Args:
        beneath: Wrapped stream.
        drops: Drop text that can't be written instead of raising `OutputLost`.
        reports: Report dropped or escaped text in one line on stderr.
        is_for_bars: Progress bars are drawn on it, below all other text.
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
        self._held = ""  # incomplete line, to be written above a bar

    def __getattr__(self, name: str) -> Any:
        return getattr(self.beneath, name)

    # tqdm compares streams, or its own wrappers of them, to find the bars that are drawn on one
    def __eq__(self, other: object) -> bool:
        if isinstance(other, Stream):
            return self.beneath is other.beneath
        return True if self.beneath is other else NotImplemented

    def __hash__(self) -> int:
        return hash(self.beneath)

    def write(self, text: str) -> int:
        if not (self.failed and self.drops):
            with self._failing():
                self._put_above_bars(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:

        for line in lines:
            self.write(line)

    def flush(self) -> None:

        if not (self.failed and self.drops):
            with self._failing():
                self._put_above_bars("")
                self.beneath.flush()

    def end(self) -> None:
        """Write the incomplete line too, and drop what can't be written."""
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
            if text:  # flushing alone must not fail on a stream that accepts no text
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
    """Return a stream for progress bars, which are dropped if they can't be drawn."""
    if not isinstance(stream, Stream):
        return stream
    return Stream(stream.beneath, drops=True, reports=False, is_for_bars=True)


def _drawn_bars() -> Any:
    """Return tqdm's class if one of its bars is drawn on a stream of `for_bars`, else None."""
    tqdm = getattr(sys.modules.get("tqdm"), "tqdm", None)  # without the module there is no bar
    files = [getattr(bar, "fp", None) for bar in list(getattr(tqdm, "_instances", ()))]
    return tqdm if any(getattr(file, "is_for_bars", False) for file in files) else None


def use_utf8() -> None:
    """Restart Python in UTF-8 mode in an ASCII locale, where arguments could not be decoded."""
    if sys.flags.utf8_mode or not sys.executable:
        return
    if codecs.lookup(sys.getfilesystemencoding()).name == "ascii":
        os.environ["PYTHONUTF8"] = "1"  # for child processes
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


@contextlib.contextmanager
def usable(own_process: bool) -> Iterator[None]:
    """Replace the standard streams by `Stream`s while the block runs.

    Args:
        own_process: Whether the process runs this command only, so that file descriptors 0 to 2 may
            be changed. Closed ones are opened on the null device, since the next opened file would
            take their number; failed ones too, since Python writes their buffers when it exits.
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
    """Write what is left in a stream's buffer to the null device."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        descriptor = stream.fileno()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, descriptor)
        os.close(null)


@contextlib.contextmanager
def only_shown() -> Iterator[None]:
    """Drop text that standard output doesn't accept, with one line on stderr, and don't fail."""
    out: Any = sys.stdout
    if not isinstance(out, Stream):
        out = Stream(_present(out), drops=True)
    before, out.drops = out.drops, True
    with contextlib.redirect_stdout(out):
        try:
            yield
        finally:
            out.flush()
            out.drops = before or out.failed  # a stream that failed isn't used again
