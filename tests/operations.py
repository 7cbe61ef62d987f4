"""Counts the file operations of a run, and sends a signal at one of them."""

import atexit
import os
import shutil
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import gptlit.cli.fit  # noqa: F401  # imported before forking, hence once
from gptlit.__main__ import main
from tests.conftest import TINY, assert_same_run, some_time_passes

LIMIT_S = 120
GAP_S = 0.05
RUN = Path("lightning_logs", "version_0")
FIT = ["fit", *TINY, "--data.path=t.txt", "--trainer.max_steps=6", "--trainer.val_check_interval=3"]
N_STEPS = 9
EACH = [
    *TINY,
    "--data.path=t.txt",
    f"--trainer.max_steps={N_STEPS}",
    "--trainer.val_check_interval=3",
]
# options of the runs that are killed
KILLED = {
    "plain": [*EACH, "--model.dropout=0.1"],
    "rich": [
        *EACH,
        "--data.batch_size=2",
        "--trainer.accumulate_grad_batches=2",
        "--trainer.limit_train_batches=10",  # an epoch of five steps
        "--snapshot_every=2",
        "--keep_snapshots=2",
        "--early_stopping.patience=2",
        "--model.ema=0.9",
        "--model.optimizer=muon",
    ],
}
AUDITED = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree"}
CALLED = {"write", "writelines", "flush", "fsync", "truncate"}  # these have no audit events


class Operations:
    """Counts opens, renames, removals, writes, flushes and syncs under a folder, in all threads.

    Equal consecutive operations count once. The hooks stay until the process ends, so it should be
    a forked one.

    Args:
        folder: Folder of the files.
        do: Called before each operation with its number, from 0, and its name.
        writes: Whether writes, flushes and syncs count, which makes the process ten times slower.
    """

    def __init__(self, folder: Path, do: Callable[[int, str], None], writes: bool = True) -> None:
        self.n = 0
        self._last = ""
        self._folder = str(folder.resolve())
        self._do = do
        self._inside = threading.local()  # `do` may itself be an operation
        sys.addaudithook(self._audited)
        if writes:
            threading.setprofile(self._called)
            sys.setprofile(self._called)

    def _counted(self, name: str, path: object) -> None:
        if getattr(self._inside, "now", False):
            return
        self._inside.now = True
        try:
            operation = f"{name} {path!r}"
            if self._is_within(path) and operation != self._last:
                number, self.n, self._last = self.n, self.n + 1, operation
                self._do(number, operation)
        finally:
            self._inside.now = False

    def _is_within(self, path: object) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        return os.path.realpath(os.fsdecode(path)).startswith(self._folder)

    def _audited(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & 3):
            return  # opened for reading
        if event in AUDITED:
            self._counted(event, arguments[0])

    def _called(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "c_call" and argument.__name__ in CALLED:
            file = argument.__self__
            name = getattr(file, "name", None)
            if argument.__name__ == "fsync":
                name = self._folder
            self._counted(argument.__name__, name)


def start(
    folder: Path, arguments: list[str], number: int = 0, at: int = -1, writes: bool = True
) -> int:
    """Fork a process that runs gptlit in a folder and gets a signal twice; return its id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about forking with threads
        child = os.fork()
    if child:
        return child
    code = 1
    atexit._clear()  # handlers of the parent process
    try:
        os.chdir(folder)
        with Path("output.txt").open("a") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        # instead of the streams that pytest captures
        sys.stdout, sys.stderr = (os.fdopen(each, "w", closefd=False) for each in (1, 2))
        sys.argv = ["gptlit", *arguments]

        def do(operation: int, name: str) -> None:
            if operation == at:
                Path("../operation.txt").write_text(name)
                os.kill(os.getpid(), number)
                if at % 2:
                    threading.Timer(GAP_S, os.kill, (os.getpid(), number)).start()
            elif operation == at + 1 and at % 2 == 0:
                os.kill(os.getpid(), number)

        counted = Operations(folder, do, writes)
        code = main()
        (folder.parent / "counted.txt").write_text(str(counted.n))
        # as the interpreter does when it exits
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
    except BaseException:
        code = 99
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(code)


def ended(child: int) -> int | None:
    """Return the wait status of a process, or None if it didn't end in time."""
    limit = time.monotonic() + LIMIT_S
    while time.monotonic() < limit:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def judged(folder: Path, number: int, status: int | None) -> str:
    """Describe how a stopped run ended; a failure begins with BAD.

    The run has to end in time with the signal's exit code, or 0 if it was complete, and with a line
    that says so but no traceback. It has to leave no run, or one that resumes.
    """
    output = (folder / "output.txt").read_text()
    if status is None:
        return f"BAD: hangs: {output[-300:]!r}"
    if os.WIFSIGNALED(status):
        return f"BAD: ended by the raw signal {os.WTERMSIG(status)}: {output[-300:]!r}"
    code = os.WEXITSTATUS(status)
    lines = [line for line in output.splitlines() if line.startswith("gptlit: ")]
    said = any(word in line for line in lines for word in ("stopped", "ended by", "done at step"))
    if code not in (0, 128 + number) or not said or "Traceback" in output or "ignored in" in output:
        return f"BAD: code {code}: {output[-1500:]}"
    kind = "by its limit" if "did not end" in output else f"code {code}"
    if not (folder / RUN).exists():
        return f"{kind}, no run left"
    if not (folder / RUN / "checkpoints" / "last.ckpt").exists():
        return f"{kind}, nothing saved"
    again = ["fit", "--ckpt_path=last"]
    resumed = ended(start(folder, [*again, "--trainer.max_steps=7"], writes=False))
    if resumed != 0:
        return f"BAD: not resumed: {(folder / 'output.txt').read_text()[-1500:]}"
    return f"{kind}, resumes"


def killed(folder: Path, whole: Path, options: list[str], at: int, writes: bool = True) -> str:
    """Kill a run before an operation, resume it and describe the result.

    The description begins with BAD if the run differs from the uninterrupted one in `whole`.
    """
    output = folder / "output.txt"
    if ended(start(folder, ["fit", *options], signal.SIGKILL, at, writes)) != signal.SIGKILL:
        return f"BAD: not killed: {output.read_text()[-500:]}"
    last = folder / RUN / "checkpoints" / "last.ckpt"
    again = ["fit", "--ckpt_path=last"]
    if not last.exists():
        shutil.rmtree(folder / "lightning_logs", ignore_errors=True)
        again = ["fit", *options]
    elif torch.load(last, mmap=True)["global_step"] == N_STEPS:
        again = []
    some_time_passes(folder / RUN)
    if again and ended(start(folder, again, writes=False)) != 0:
        return f"BAD: not resumed: {output.read_text()[-500:]}"
    try:
        assert_same_run(folder / RUN, whole / RUN)
    except AssertionError as error:
        return f"BAD: differs: {' '.join(str(error).split())[:300]}"
    return "the same" if again else "at its end"
