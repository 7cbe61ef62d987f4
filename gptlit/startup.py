"""What a process of gptlit's own does ahead of its command: UTF-8, and a Ctrl-C that counts.

Python can lose a Ctrl-C: the KeyboardInterrupt that it raises is ignored where C code imports a
module, in a `__del__` and in a callback of the garbage collector, and some C++ code aborts. While a
command's modules are imported nothing is to be cleaned up, so Ctrl-C ends the process at once; an
import later on is completed first; and an interrupt that was ignored is raised again.
"""

import _thread
import codecs
import contextlib
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

RETRY_S = 0.05
STOPPED = b"\ngptlit: stopped\n"


def use_utf8() -> None:
    """Begin again in Python's UTF-8 mode, in a locale whose only characters are ASCII.

    Python takes this mode itself in the locales C and POSIX, unless it is told not to. Without it
    the words of the command line are no text, and names of files can't be printed.
    """
    if sys.flags.utf8_mode or not sys.executable:
        return
    if codecs.lookup(sys.getfilesystemencoding()).name == "ascii":
        os.environ["PYTHONUTF8"] = "1"  # for processes that this one starts
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def leave_at_interrupt() -> None:
    """Let Ctrl-C end the process at once, by exit code 130, until `raise_at_interrupt`."""
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, _raise):
        signal.signal(signal.SIGINT, _leave)


def raise_at_interrupt() -> None:
    """Let Ctrl-C raise KeyboardInterrupt where no code can lose it, after `leave_at_interrupt`."""
    if signal.getsignal(signal.SIGINT) is _leave:
        sys.unraisablehook = _raise_again
        signal.signal(signal.SIGINT, _raise)


def _leave(number: int, frame: FrameType | None) -> None:
    with contextlib.suppress(OSError):
        os.write(2, STOPPED)
    os._exit(130)


def _raise(number: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _interrupt_soon()
            return
        frame = frame.f_back
    raise KeyboardInterrupt


def _raise_again(unraisable: Any) -> None:
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        _interrupt_soon()
    else:
        sys.__unraisablehook__(unraisable)


def _interrupt_soon() -> None:
    timer = threading.Timer(RETRY_S, _interrupt)
    timer.daemon = True
    timer.start()


def _interrupt() -> None:
    if os.name == "nt":
        _thread.interrupt_main()
    else:  # wakes the main thread where it waits for the system
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
