"""What a user's path may be: a file, which ends; a pipe, which is copied once; and no device."""

import atexit
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from gptlit.corpora.text_encodings import by_mark
from gptlit.files import leftovers, replacing, writing
from gptlit.messages import UsageError, is_first_process, note, opt, progress

PIPE_BYTES = 4 << 30  # of a text; what a pipe gives without an end must not fill the disk
TEXT_BYTES = 64 << 20  # of prompts and configs, which are held in memory
BLOCK_BYTES = 1 << 20
A_DAY_S = 24 * 60 * 60
WAIT_S = 1.0  # without a byte, until a wait is announced
PIPES_FOLDER = "piped"  # of the copies, in the folder of the data
COPYING = ".pipe"  # ends the name of a copy that is not whole
COPIES = "GPTLIT_COPIES"  # by the pipes' paths; a variable, so that processes started have it too
_OPEN_FILE = re.compile(r"/dev/stdin|/dev/fd/\d+|/proc/(self|\d+)/fd/\d+")


def refuse_endless(path: Path, option: str, pipes: bool = False) -> None:
    """Refuse what a file is expected to be and isn't: devices and sockets, and pipes.

    What is missing, a folder, or not allowed is left to whoever opens it.

    Args:
        path: As the user gave it.
        option: What to call it in messages.
        pipes: Let pipes pass.

    Raises:
        UsageError: names what it is.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
        if not (os.path.exists(os.devnull) and path.samefile(os.devnull)):
            kind = "socket" if stat.S_ISSOCK(mode) else "device"
            raise UsageError(f"{option} {path}: is a {kind}, which has no end; name a file")
    elif stat.S_ISFIFO(mode) and not pipes:
        raise UsageError(
            f"{option} {path}: is a pipe, and this is read more than once; save what comes through "
            "it to a file and name that"
        )


def path_or_copy(path: str, option: str, folder: Path | None, at_most: int = PIPE_BYTES) -> str:
    """The path itself, or that of a copy where it can be read only once.

    That is a named pipe, and an open file of this process such as /dev/stdin or the shell's
    <(command). It is copied the first time; later this process, and those that it starts, get
    the same copy.

    Args:
        path: As the user gave it.
        option: What to call it in messages.
        folder: Where to put the copy, named by its hash; None for a folder that goes with the
            process.
        at_most: How many bytes are copied.

    Raises:
        UsageError: a device or a socket, an empty pipe, or one that gives too much.
    """
    given = Path(path).expanduser()
    key = str(given.absolute())
    copies = json.loads(os.environ.get(COPIES, "{}"))
    try:
        status = given.stat()
    except OSError:
        # a process that was started has not the open files of the one that started it
        return copies[key][-1] if key in copies else path
    refuse_endless(given, option, pipes=True)
    if not (stat.S_ISFIFO(status.st_mode) or (given.is_file() and _is_open_file(given))):
        return path
    identity = [status.st_dev, status.st_ino]
    if key in copies and copies[key][:2] == identity:
        return copies[key][-1]
    if not is_first_process():
        raise UsageError(
            f"{option} {path}: is a pipe, which one process alone can read; save what comes "
            "through it to a file and name that"
        )
    copy = str(_copied(given, option, folder, at_most))
    os.environ[COPIES] = json.dumps({**copies, key: [*identity, copy]})
    return copy


def read_text(path: str, option: str) -> str:
    """A small text of the user's, whole: a file, a pipe, or what is typed at a terminal.

    Raises:
        UsageError: a device or a socket, or too large.
        OSError: it can't be read.
        UnicodeDecodeError: not UTF-8, nor what its byte order mark says.
    """
    given = Path(path).expanduser()
    if not _is_terminal(given):
        given = Path(path_or_copy(path, option, None, TEXT_BYTES))
    with given.open("rb") as file:
        raw = file.read(TEXT_BYTES + 1)
    if len(raw) > TEXT_BYTES:
        raise UsageError(
            f"{option} {path}: is larger than {TEXT_BYTES >> 20} MiB, the most that is read of it; "
            "give a part of it"
        )
    return raw.decode(by_mark(raw) or "utf-8").replace("\r\n", "\n").replace("\r", "\n")


def in_all_processes(name: str, make: Callable[[], list[str]]) -> list[str]:
    """Texts that the first process makes, here and in the processes that it starts.

    Standard input, for one, can be read by one of them only.

    Args:
        name: Of the texts, to find them again by.
        make: Makes the texts.
    """
    copies = json.loads(os.environ.get(COPIES, "{}"))
    if is_first_process():
        texts = make()
        copy = _folder_of_process() / name
        copy.write_text(json.dumps(texts), encoding="utf-8")
        os.environ[COPIES] = json.dumps({**copies, name: [str(copy)]})
        return texts
    if name in copies:
        return list(json.loads(Path(copies[name][-1]).read_text(encoding="utf-8")))
    return make()  # a launcher outside has started this process, and not the first one


def refuse_endless_standard_input(option: str) -> None:
    """Refuse a standard input that is a device other than a terminal.

    Raises:
        UsageError: it is one.
    """
    try:
        descriptor = None if sys.stdin.isatty() else sys.stdin.fileno()
    except (OSError, ValueError, AttributeError):
        return  # it is closed, or a caller's own object
    if descriptor is not None:
        refuse_endless(Path(f"/dev/fd/{descriptor}"), option, pipes=True)


def _is_open_file(path: Path) -> bool:
    return bool(_OPEN_FILE.fullmatch(str(path.absolute())))


def _is_terminal(path: Path) -> bool:
    try:
        if not stat.S_ISCHR(path.stat().st_mode):
            return False
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOCTTY", 0))
    except OSError:
        return False
    try:
        return os.isatty(descriptor)
    finally:
        os.close(descriptor)


def _copied(path: Path, option: str, folder: Path | None, at_most: int) -> Path:
    """Copy a pipe under the name of its hash; nothing is left of what is not whole."""
    place = "TMPDIR" if folder is None else opt("data.data_dir")
    folder = folder or _folder_of_process()
    whole = folder / f"{os.getpid()}{COPYING}"
    for left in leftovers(folder, COPYING):
        if left.stat().st_mtime < time.time() - A_DAY_S:  # who still copies has written since
            left.unlink(missing_ok=True)
    digest, n_bytes = hashlib.sha256(), 0
    with (
        writing(place, folder),
        replacing(whole) as copy,
        progress(None, f"copying {path}") as bar,
    ):
        for block in _blocks(path, option):
            n_bytes += len(block)
            if n_bytes > at_most:
                raise UsageError(
                    f"{option} {path}: the pipe gave more than {at_most >> 20:,} MiB, the most "
                    "that is copied; save it to a file and name that"
                )
            digest.update(block)
            copy.write(block)
            bar.update(len(block))
        if not n_bytes:
            raise UsageError(
                f"{option} {path}: nothing came through the pipe; see whether the command that "
                "writes into it failed"
            )
    kinds = "".join(path.suffixes[-2:]) or ".txt"
    target = folder / f"{digest.hexdigest()[:16]}{kinds}"
    os.replace(whole, target)
    if place != "TMPDIR":
        note(f"{option} {path}: is a pipe, copied once to {target} ({n_bytes:,} bytes)")
    return target


def _blocks(path: Path, option: str) -> Iterator[bytes]:
    """What comes through a pipe; that nothing comes is announced."""
    waiting = f"waiting for {option} {path}: nothing has come through this pipe so far"
    timer = threading.Timer(WAIT_S, note, [f"{waiting}; Ctrl-C stops"])
    timer.daemon = True
    timer.start()
    try:
        # opening waits for whoever writes
        with path.open("rb", buffering=0) as file:
            while block := file.read(BLOCK_BYTES):
                timer.cancel()
                yield block
    except OSError as error:
        raise UsageError(f"{option} {path}: {error.strerror}; name a file") from error
    finally:
        timer.cancel()


def _folder_of_process() -> Path:
    """A temporary folder, removed when the process ends that made it."""
    folder, owner = Path(tempfile.mkdtemp(prefix="gptlit.")), os.getpid()

    def remove() -> None:
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder
