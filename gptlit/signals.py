"""Handles the signals that stop a process: Ctrl-C (SIGINT), SIGTERM, and SIGHUP of a terminal.

`caught` handles them while a command runs, so that the process always reports why it ends:

| signal                      | while a run trains                     | otherwise    |
| --------------------------- | -------------------------------------- | ------------ |
| the first                   | the run decides (`stopping.Stopping`)  | ends at once |
| a second Ctrl-C             | ends at once                           |              |
| a second SIGTERM or SIGHUP  | the process has `state.limit` s to end |              |
| a third Ctrl-C              | the process is killed                  | killed       |

"Ends at once" means that an exception is raised, which can be lost or delayed. Therefore a thread
watches the signals and kills the process after `state.limit` seconds. It also sends a signal again
if Python dropped its exception, or if it came during an import, where C code drops exceptions and
C++ code aborts at them.
"""

import atexit
import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from gptlit.messages import is_first_process

LIMIT_S = 30.0
POLL_S = 0.2
NAMES: dict[int, str] = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
if hasattr(signal, "SIGHUP"):  # Windows lacks it
    NAMES[signal.SIGHUP] = "SIGHUP"


def _message(number: int) -> str:
    return "stopped" if number == signal.SIGINT else f"stopped by {NAMES[number]}"


class Terminated(BaseException):
    """Raised by SIGTERM and SIGHUP, as `KeyboardInterrupt` is by Ctrl-C.

    Args:
        number: Number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(_message(number))
        self.exit_code = 128 + number  # the shells' convention


def exit_code(stop: BaseException) -> int:
    """Return the exit code of a process that ends by this exception."""
    return stop.exit_code if isinstance(stop, Terminated) else 128 + signal.SIGINT


@dataclass
class _State:
    """State of signal handling in this process."""

    on_signal: Callable[[int], None] | None = None  # handles a signal instead of ending at once
    is_over: bool = False  # the process is ending, so that signals are ignored
    is_watched: bool = False  # the thread runs
    is_disposable: bool = False  # nothing has to be cleaned up yet: the thread ends the process
    limit: float = LIMIT_S  # seconds in which the process has to end
    counted: list[int] = field(default_factory=list)  # signals since the start or `forget`
    deadline: float | None = None  # time.monotonic() at which the process is killed
    resend: int | None = None  # signal whose exception Python dropped, or that came in an import
    raised: BaseException | None = None  # exception of the last signal


state = _State()


def handle(number: int, frame: FrameType | None = None) -> None:
    """Pass a signal to `state.on_signal`, or end at once."""
    if not state.is_over:
        if state.on_signal is not None:
            state.on_signal(number)
        else:
            end_at_once(number, frame)


def end_at_once(number: int, frame: FrameType | None = None) -> None:
    """Raise KeyboardInterrupt or Terminated, or have the signal sent again after an import.

    Args:
        number: Number of the signal.
        frame: Frame that the signal interrupts.
    """
    if state.is_disposable:
        threading.Event().wait()  # the thread ends the process
    if state.is_watched and _is_importing(frame):
        state.resend = number
        return
    # a second exception would interrupt the clean-up of the first
    state.is_over = state.is_watched
    state.raised = KeyboardInterrupt() if number == signal.SIGINT else Terminated(number)
    raise state.raised


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def install(*always: int) -> None:
    """Install the handler of all signals that aren't ignored, as SIGHUP is under `nohup`.

    Args:
        *always: Signals that are handled even if they are ignored.
    """
    if threading.current_thread() is threading.main_thread():
        for number in NAMES:
            if number in always or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, handle)


def delegate(on_signal: Callable[[int], None] | None) -> None:
    """Pass signals' numbers to a function; with None, signals end the process at once."""
    state.on_signal = on_signal


def ending() -> None:
    """Ignore further signals, since the process is ending."""
    state.is_over = True


def forget() -> None:
    """Forget the signals so far, since the process continues."""
    state.on_signal, state.is_over = None, False
    state.deadline, state.resend, state.raised = None, None, None
    state.counted.clear()


@contextlib.contextmanager
def caught(own_process: bool) -> Iterator[None]:
    """Handle signals while the block runs.

    Args:
        own_process: Whether the process runs this command only: the thread then runs, and the
            handlers stay until the process has ended.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in NAMES}
    forget()
    install()
    if own_process and os.name == "posix" and not state.is_watched:
        _start_watching()
    try:
        yield
    finally:
        if own_process:
            ending()
        else:
            forget()
            for number, handler in before.items():
                if handler is not None:
                    signal.signal(number, handler)


@contextlib.contextmanager
def disposable() -> Iterator[None]:
    """Let the thread end the process during imports, which may replace or drop exceptions."""
    state.is_disposable = state.is_watched
    try:
        yield
    finally:
        state.is_disposable = False


@contextlib.contextmanager
def as_raised() -> Iterator[None]:
    """Raise the exception of a signal again if other code replaced it."""
    try:
        yield
    except BaseException as error:
        if state.raised is None or isinstance(error, KeyboardInterrupt | Terminated | SystemExit):
            raise
        raise state.raised from error


# ---------------------------------------------------------------------- the thread


def _start_watching() -> None:
    state.is_watched = True
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    # the C-level handler writes to it, whatever the main thread does
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader, threading.get_ident()), daemon=True).start()
    atexit.register(_ignore)  # registered first, hence called last
    usual_hook = sys.unraisablehook

    def resend_dropped(unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt | Terminated):
            state.resend = exit_code(unraisable.exc_value) - 128
        else:
            usual_hook(unraisable)

    sys.unraisablehook = resend_dropped


def _watch(reader: int, main_thread: int) -> None:
    while True:
        wait = POLL_S if state.counted else None
        if select.select([reader], [], [], wait)[0]:
            for number in os.read(reader, 64):
                if number in NAMES:
                    _count(number)
        if state.deadline is not None and time.monotonic() > state.deadline:
            _end(state.counted[-1], f"as it did not end within {state.limit:g} s")
        if state.resend is not None:
            number, state.resend, state.is_over = state.resend, None, False
            state.counted.remove(number)  # it is counted when it is sent again
            signal.pthread_kill(main_thread, number)


def _count(number: int) -> None:
    state.counted.append(number)
    if state.is_disposable:
        _end(number)
    if state.counted.count(signal.SIGINT) >= 3:
        _end(number, "at the third")
    at_once = state.on_signal is None or state.is_over
    if state.deadline is None and (at_once or len(state.counted) >= 2):
        state.deadline = time.monotonic() + state.limit


def _end(number: int, why: str = "") -> None:
    message = f"ended by {NAMES[number]}, {why}; saved files are kept" if why else _message(number)
    if is_first_process():
        with contextlib.suppress(OSError):  # a closed terminal
            line = "\n" if number == signal.SIGINT else ""  # after the terminal's ^C
            os.write(2, f"{line}gptlit: {message}\n".encode())
    os._exit(128 + number)


def _ignore() -> None:
    """Ignore signals while the interpreter exits, but not longer than `LIMIT_S`."""
    for number in NAMES:
        signal.signal(number, signal.SIG_IGN)
    signal.alarm(int(LIMIT_S))


def _in_child() -> None:
    """Restore the usual effects of signals in a forked process."""
    if state.is_watched:
        signal.set_wakeup_fd(-1)
    for number in NAMES:
        if signal.getsignal(number) is handle:
            usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, usual)
    state.is_watched = False
    forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
