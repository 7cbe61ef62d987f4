"""Hashes of files, atomic writes, locks, and the folder of the shipped configs."""

import contextlib
import errno
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from gptlit.messages import RunError

WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of file systems on some networks


def configs_folder() -> Path:
    """Return the folder of the shipped configs.

    An installed package contains it; in a source tree it is next to the package.
    """
    package = Path(__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def sha256_of(path: Path) -> str:
    """Return a file's sha256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that replaces `path` when the block succeeds, and is removed otherwise.

    The temporary file is in the folder of `path`, hence on the same file system. It is synced to
    disk before the replacement and the folder after it, so that both survive a power cut.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        give_usual_mode(Path(temporary))
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk's error names no file
        raise
    if os.name != "nt":  # where folders can't be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path` completely or not at all."""
    with replacing(path) as file:
        file.write(content)


@contextlib.contextmanager
def writing(option: str, path: str | Path) -> Iterator[None]:
    """Raise a RunError that names the option if the block can't write the option's path."""
    try:
        yield
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise RunError(
            f"{option} {path}: can't be written ({error.strerror}); name another place"
        ) from error


def is_locked(path: Path) -> bool:
    """Whether another process holds the lock of `locked`; not where this user can't open its file.

    Where none does, the lock is held for a moment.
    """

    def busy() -> None:
        raise BlockingIOError

    if not path.is_file():
        return False
    try:
        with locked(path, busy):
            return False
    except BlockingIOError:
        return True
    except OSError:
        return False


def leftovers(folder: Path, suffix: str) -> list[Path]:
    """Return the temporary files of `replacing` that killed processes left in a folder."""
    return list(folder.glob(f".*{suffix}.????????"))


def give_usual_mode(path: Path) -> None:
    """Set a file's permissions to those that `open` gives a new file under the process's umask."""
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(path, 0o666 & ~mask)


@contextlib.contextmanager
def locked(path: Path, when_busy: Callable[[], None], remove: bool = False) -> Iterator[None]:
    """Hold a lock that one process can have at a time; the lock ends with the process.

    Args:
        path: Path of the lock's file. Where its file system has no locks, nothing is locked.
        when_busy: Function that is called if another process holds the lock; unless it raises an
            error, the lock is waited for.
        remove: Whether the file is removed when the lock is released.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            when_busy()
            lock.acquire()
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
    try:
        yield
    finally:
        if remove and lock.is_locked:
            with contextlib.suppress(OSError):  # Windows doesn't remove open files
                path.unlink()
        lock.release()
