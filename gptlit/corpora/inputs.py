"""Reads the user's paths: pipes are copied once, devices are refused."""

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

MAX_PIPE_BYTES = 4 << 30  # of a text, so that an endless pipe does not fill the disk
MAX_TEXT_BYTES = 64 << 20  # of prompts and configs, which are held in memory
BLOCK_BYTES = 1 << 20
A_DAY_S = 24 * 60 * 60
WAIT_S = 1.0  # without a byte, before the wait is reported
PIPES_FOLDER = "piped"  # for copies, in the folder of the data
COPYING = ".pipe"  # suffix of unfinished copies
COPIES = "GPTLIT_COPIES"  # variable with the copies by path, which child processes inherit
_OPEN_FILE = re.compile(r"/dev/stdin|/dev/fd/\d+|/proc/(self|\d+)/fd/\d+")


def refuse_endless(path: Path, option: str, pipes: bool = False) -> None:
    """Raise UsageError if a path is a device other than /dev/null, a socket, or a pipe.

    Args:
        path: Path of the user.
        option: Name of the path in messages.
        pipes: Accept pipes.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return  # the function that opens the file reports it
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
        if not (os.path.exists(os.devnull) and path.samefile(os.devnull)):
            kind = "socket" if stat.S_ISSOCK(mode) else "device"
            raise UsageError(f"{option} {path}: is a {kind}, which has no end; name a file")
    elif stat.S_ISFIFO(mode) and not pipes:
        raise UsageError(
            f"{option} {path}: is a pipe, but the file is read more than once; save the pipe's "
            "output to a file and name that"
        )


def path_or_copy(
    path: str, option: str, folder: Path | None, max_bytes: int = MAX_PIPE_BYTES
) -> str:
    """Return the path itself, or that of a copy if it can be read only once.

    Named pipes and open files of this process, such as /dev/stdin or the shell's <(command), are
    copied once, for this process and its child processes.

    Args:
        path: Path of the user.
        option: Name of the path in messages.
        folder: Folder for the copy; None for a temporary one, removed when the process ends.
        max_bytes: Largest size of the copy.

    Raises:
        UsageError: The path is a device or a socket, or a pipe that is empty or gives too much.
    """
    source = Path(path).expanduser()
    key = str(source.absolute())
    copies = json.loads(os.environ.get(COPIES, "{}"))
    try:
        status = source.stat()
    except OSError:
        # a child process lacks the open files of its parent
        return copies[key][-1] if key in copies else path
    refuse_endless(source, option, pipes=True)
    if not (stat.S_ISFIFO(status.st_mode) or (source.is_file() and _OPEN_FILE.fullmatch(key))):
        return path
    identity = [status.st_dev, status.st_ino]
    if key in copies and copies[key][:2] == identity:
        return copies[key][-1]
    if not is_first_process():
        raise UsageError(
            f"{option} {path}: is a pipe, which only one process can read; save its output to "
            "a file and name that"
        )
    copy = str(_copied(source, option, folder, max_bytes))
    os.environ[COPIES] = json.dumps({**copies, key: [*identity, copy]})
    return copy


def read_text(path: str, option: str) -> str:
    """Read a small text of the user from a file, a pipe or a terminal.

    Raises:
        UsageError: The path is a device or a socket, or the text is too large.
        OSError: It can't be read.
        UnicodeDecodeError: It is neither UTF-8 nor in the encoding of its byte order mark.
    """
    source = Path(path).expanduser()
    if not _is_terminal(source):
        source = Path(path_or_copy(path, option, None, MAX_TEXT_BYTES))
    with source.open("rb") as file:
        raw = file.read(MAX_TEXT_BYTES + 1)
    if len(raw) > MAX_TEXT_BYTES:
        raise UsageError(
            f"{option} {path}: is larger than {MAX_TEXT_BYTES >> 20} MiB, the largest size that is "
            "read; give a part of it"
        )
    return raw.decode(by_mark(raw) or "utf-8").replace("\r\n", "\n").replace("\r", "\n")


def in_all_processes(name: str, make: Callable[[], list[str]]) -> list[str]:
    """Return the texts that the first process makes, also in its child processes.

    Args:
        name: Name by which the child processes find the texts.
        make: Function that makes the texts, for instance from standard input.
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
    return make()  # a launcher has started this process, not the first one


def refuse_endless_standard_input(option: str) -> None:
    """Raise UsageError if standard input is a device other than a terminal."""
    try:
        descriptor = None if sys.stdin.isatty() else sys.stdin.fileno()
    except (OSError, ValueError, AttributeError):
        return  # closed, or replaced by an object without a descriptor
    if descriptor is not None:
        refuse_endless(Path(f"/dev/fd/{descriptor}"), option, pipes=True)


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


def _copied(path: Path, option: str, folder: Path | None, max_bytes: int) -> Path:
    """Copy a pipe to a file named by its hash; an unfinished copy is removed."""
    folder_option = "TMPDIR" if folder is None else opt("data.data_dir")
    folder = folder or _folder_of_process()
    unfinished = folder / f"{os.getpid()}{COPYING}"
    for old in leftovers(folder, COPYING):
        if old.stat().st_mtime < time.time() - A_DAY_S:  # no process writes to it any more
            old.unlink(missing_ok=True)
    digest, n_bytes = hashlib.sha256(), 0
    with (
        writing(folder_option, folder),
        replacing(unfinished) as copy,
        progress(None, f"copying {path}") as bar,
    ):
        for block in _blocks(path, option):
            n_bytes += len(block)
            if n_bytes > max_bytes:
                raise UsageError(
                    f"{option} {path}: the pipe gave more than {max_bytes >> 20:,} MiB, the "
                    "largest size that is copied; save it to a file and name that"
                )
            digest.update(block)
            copy.write(block)
            bar.update(len(block))
        if not n_bytes:
            raise UsageError(
                f"{option} {path}: the pipe was empty; check whether the command that writes into "
                "it failed"
            )
    extension = "".join(path.suffixes[-2:]) or ".txt"
    target = folder / f"{digest.hexdigest()[:16]}{extension}"
    os.replace(unfinished, target)
    if folder_option != "TMPDIR":
        note(f"{option} {path}: is a pipe, copied once to {target} ({n_bytes:,} bytes)")
    return target


def _blocks(path: Path, option: str) -> Iterator[bytes]:
    """Yield the blocks of a pipe; report a wait for the first."""
    waiting = f"waiting for {option} {path}: the pipe has given nothing so far; Ctrl-C stops"
    timer = threading.Timer(WAIT_S, note, [waiting])
    timer.daemon = True
    timer.start()
    try:
        with path.open("rb", buffering=0) as file:  # waits for the writer
            while block := file.read(BLOCK_BYTES):
                timer.cancel()
                yield block
    except OSError as error:
        raise UsageError(f"{option} {path}: {error.strerror}; name a file") from error
    finally:
        timer.cancel()


def _folder_of_process() -> Path:
    """Make a temporary folder, which is removed when this process ends."""
    folder, owner = Path(tempfile.mkdtemp(prefix="gptlit.")), os.getpid()

    def remove() -> None:
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder
