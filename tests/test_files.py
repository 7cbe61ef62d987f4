import errno
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import filelock
import pytest

from gptlit.files import locked, replacing, write_atomically


def test_writing_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def interrupted() -> None:
        with replacing(path) as file:
            file.write(b"half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


class Busy(Exception):
    pass


def refuse() -> NoReturn:
    raise Busy


def test_a_lock_is_held_by_one_process_and_ends_with_it(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    code = f"""
import sys
from pathlib import Path
from gptlit.files import locked
with locked(Path({str(path)!r}), sys.exit):
    print("locked", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(Busy), locked(path, refuse):
            pass
        # one that waits gets the lock once the other process is killed
        with locked(path, other.kill):
            assert path.exists()
    with locked(path, refuse, remove=True):
        assert path.exists()
    assert not path.exists()


def test_without_locks_nothing_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def acquire(self: object, blocking: bool = True) -> NoReturn:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    with locked(tmp_path / ".lock", refuse, remove=True):
        pass
