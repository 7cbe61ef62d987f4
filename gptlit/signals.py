"""Signals that ask the process to stop: Ctrl-C (SIGINT), SIGTERM, and SIGHUP of a closed terminal.

`caught` handles them from the process's entry to its exit, so that none ends it without a message:

| signal                      | while a run trains                     | anywhere else |
| --------------------------- | -------------------------------------- | ------------- |
| the first                   | the run decides (`stopping.Stopping`)  | ends at once  |
| a second Ctrl-C             | ends at once                           |               |
| a second SIGTERM or SIGHUP  | the process has `state.limit` s to end |               |
| a third Ctrl-C              | the process is ended                   | it is ended   |

To end at once is to raise an exception, which can be lost or held up. So a thread that waits for
signals, and needs no help of the main thread, gives the process `state.limit` seconds from then on;
it also has the exception raised again that Python has dropped where none can be raised, and the one
that would have broken off an import, which C code drops and C++ code aborts at.
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
from types import FrameType
from typing import Any

from gptlit.messages import is_first_process

LIMIT_S = 30.0
POLL_S = 0.2
NAMES = {
    getattr(signal, name): told
    for name, told in (("SIGINT", "Ctrl-C"), ("SIGTERM", "SIGTERM"), ("SIGHUP", "SIGHUP"))
    if hasattr(signal, name)  # Windows has no SIGHUP
}


def _told(number: int) -> str:
    return "stopped" if number == signal.SIGINT else f"stopped by {NAMES[number]}"


class Terminated(BaseException):
    """SIGTERM or SIGHUP asks for the end; `KeyboardInterrupt` is that of Ctrl-C.

    Args:
        number: Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(_told(number))
        self.exit_code = 128 + number  # as shells have it


class _State:
    """What this process has been asked for.

    Args:
        taker: Decides about a signal, instead of ending at once.
        over: Whether the process ends anyway, and no signal is to interrupt it.
        watched: Whether the thread watches.
        limit: Seconds that the process has to end, once it has to.
        counted: The signals since the start, or since they were last forgotten.
        deadline: When the process is ended, by `time.monotonic`.
        dropped: A signal whose exception Python has dropped, or that came during an import.
        raised: The exception of a signal, once it was raised.
        disposable: Whether the process has nothing to clean up yet, so that the thread ends it.
    """

    def __init__(self) -> None:
        self.taker: Callable[[int], None] | None = None
        self.over = False
        self.watched = False
        self.limit = LIMIT_S
        self.counted: list[int] = []
        self.deadline: float | None = None
        self.dropped: int | None = None
        self.raised: BaseException | None = None
        self.disposable = False


state = _State()


def handle(number: int, frame: FrameType | None = None) -> None:
    """The handler of all these signals."""
    if state.over:
        return
    if state.taker is not None:
        state.taker(number)
    else:
        end_at_once(number, frame)


def end_at_once(number: int, frame: FrameType | None = None) -> None:
    """Raise the exception of a signal; while a module is imported, later.

    Args:
        number: Of the signal.
        frame: What it interrupts.

    Raises:
        KeyboardInterrupt, Terminated: where nothing is imported.
    """
    if state.disposable:
        threading.Event().wait()  # for the thread
    if state.watched and _imports(frame):
        state.dropped = number
        return
    # a second exception would break off what the first one still has to clean up
    state.over = state.watched
    state.raised = KeyboardInterrupt() if number == signal.SIGINT else Terminated(number)
    raise state.raised


def _imports(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def install(*always: int) -> None:
    """Handle the signals here, but not those that are ignored, as `nohup` has SIGHUP.

    Args:
        *always: Signals that are handled even then.
    """
    if threading.current_thread() is threading.main_thread():
        for number in NAMES:
            if number in always or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, handle)


def take(taker: Callable[[int], None] | None) -> None:
    """Let `taker` decide about signals, with their number; None: they end the process at once."""
    state.taker = taker


def ending() -> None:
    """Let no signal interrupt any more: the process ends anyway."""
    state.over = True


def forget() -> None:
    """Take the signals so far for answered: the process goes on."""
    state.taker, state.over = None, False
    state.deadline, state.dropped, state.raised = None, None, None
    state.counted.clear()


@contextlib.contextmanager
def caught(own_process: bool) -> Iterator[None]:
    """Handle the signals.

    Args:
        own_process: Whether the process is only there for this command: the handlers then stay
            until it has ended, and the thread watches.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in NAMES}
    forget()
    install()
    if own_process and os.name == "posix" and not state.watched:
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
    """While modules are imported, let the thread end the process: an import turns exceptions into
    others, or drops them."""
    state.disposable = state.watched
    try:
        yield
    finally:
        state.disposable = False


@contextlib.contextmanager
def as_raised() -> Iterator[None]:
    """Raise the exception of a signal again, where something has made another one of it."""
    try:
        yield
    except SystemExit:
        raise
    except BaseException as error:
        if state.raised is None or isinstance(error, KeyboardInterrupt | Terminated):
            raise
        raise state.raised from error


# ---------------------------------------------------------------------- the thread


def _start_watching() -> None:
    state.watched = True
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    # written to by the system's handler itself, whatever the main thread is doing
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader, threading.get_ident()), daemon=True).start()
    atexit.register(_ignore)  # the first to be registered is the last to be called
    report = sys.unraisablehook

    def dropped(unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt | Terminated):
            number = getattr(unraisable.exc_value, "exit_code", 128 + signal.SIGINT) - 128
            state.dropped = number
        else:
            report(unraisable)

    sys.unraisablehook = dropped


def _watch(reader: int, main_thread: int) -> None:
    while True:
        wait = POLL_S if state.counted else None
        if select.select([reader], [], [], wait)[0]:
            for number in os.read(reader, 64):
                if number in NAMES:
                    _count(number)
        if state.deadline is not None and time.monotonic() > state.deadline:
            _end(state.counted[-1], f"as it did not end within {state.limit:g} s")
        if state.dropped is not None:
            number, state.dropped, state.over = state.dropped, None, False
            state.counted.remove(number)  # it comes once more
            signal.pthread_kill(main_thread, number)


def _count(number: int) -> None:
    state.counted.append(number)
    if state.disposable:
        _end(number)
    if state.counted.count(signal.SIGINT) >= 3:
        _end(number, "at the third")
    at_once = state.taker is None or state.over
    if state.deadline is None and (at_once or len(state.counted) >= 2):
        state.deadline = time.monotonic() + state.limit


def _end(number: int, why: str = "") -> None:
    told = f"ended by {NAMES[number]}, {why}; what was saved stays" if why else _told(number)
    if is_first_process():
        with contextlib.suppress(OSError):  # a closed terminal
            line = "\n" if number == signal.SIGINT else ""  # behind the terminal's ^C
            os.write(2, f"{line}gptlit: {told}\n".encode())
    os._exit(128 + number)


def _ignore() -> None:
    """Let nothing interrupt the interpreter's own end, which a hang of its own can't hold up."""
    for number in NAMES:
        signal.signal(number, signal.SIG_IGN)
    signal.alarm(int(LIMIT_S))


def _in_child() -> None:
    """Let a forked process be its own: signals have their usual effects."""
    if state.watched:
        signal.set_wakeup_fd(-1)
    for number in NAMES:
        if signal.getsignal(number) is handle:
            usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, usual)
    state.watched = False
    forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def exit_code(stop: BaseException) -> int:
    """That of a process that ends by such an exception."""
    return stop.exit_code if isinstance(stop, Terminated) else 128 + signal.SIGINT
