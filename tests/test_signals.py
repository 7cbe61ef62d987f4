"""Processes that signals stop at any moment: their exit codes, messages and files."""

import os
import pty
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from gptlit.__main__ import main
from gptlit.checkpoints import checkpoint
from gptlit.training.module import LitGPT
from tests.conftest import TINY, Result, Run, made_up_text
from tests.operations import FIT, ended, judged, start

Call = Callable[..., Result]
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
SAID = {signal.SIGINT: "stopped", signal.SIGTERM: "stopped by SIGTERM",
        signal.SIGHUP: "stopped by SIGHUP"}  # fmt: skip


# ---------------------------------------------------------------------- at each file operation


@pytest.fixture(scope="module")
def n_operations(tmp_path_factory: pytest.TempPathFactory) -> int:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert ended(start(with_text(folder), FIT)) == 0
    return int((folder.parent / "counted.txt").read_text())


def with_text(folder: Path) -> Path:
    folder.mkdir()
    (folder / "t.txt").write_text(made_up_text(), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("number", "where"),
    [
        (signal.SIGTERM, 0.0),
        (signal.SIGINT, 0.15),
        (signal.SIGHUP, 0.3),
        (signal.SIGINT, 0.6),
        (signal.SIGTERM, 0.75),
        (signal.SIGINT, 0.995),
    ],
)
def test_a_run_ends_cleanly_at_any_operation(
    tmp_path: Path, n_operations: int, number: int, where: float
) -> None:
    """Tests a few operations; benchmarks/stop_everywhere.py tests all."""
    folder = with_text(tmp_path / "run")
    at = int(where * n_operations)
    became = judged(folder, number, ended(start(folder, FIT, number, at)))
    assert not became.startswith("BAD"), became


# ---------------------------------------------------------------------- outside of training

PROCESS = """
import atexit, hashlib, os, signal, sys, time, types
from gptlit import signals
from gptlit.__main__ import main

class Dropping:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

def importing(number):
    class Finder:
        def find_spec(self, name, path=None, target=None):
            if name == "gptlit.cli.data":
                os.kill(os.getpid(), number)
                time.sleep(60)  # a long import
    sys.meta_path.insert(0, Finder())

def doing(work):
    sys.modules["gptlit.cli.data"] = survey = types.ModuleType("gptlit.cli.data")
    import gptlit.cli
    gptlit.cli.data, survey.main = survey, lambda arguments: work()

def ready():
    print("ready", flush=True)

def stuck():
    while True:
        try:
            ready()
            hashlib.pbkdf2_hmac("sha256", b"", b"", 1 << 30)  # no signal interrupts it
        except BaseException:
            pass

def dropped():
    Dropping()
    time.sleep(60)

def importing_later():
    class Finder:
        def find_spec(self, name, path=None, target=None):
            if name == "colorsys":
                signal.raise_signal(signal.SIGINT)
    sys.meta_path.insert(0, Finder())
    try:
        import colorsys
    except BaseException:
        os._exit(99)
    time.sleep(60)

def translated():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    except BaseException:
        raise RuntimeError("error: initialization failed")

def at_exit():
    atexit.register(os.kill, os.getpid(), signal.SIGTERM)

sys.argv = ["gptlit", "data"]
"""


def process(code: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", f"{PROCESS}\n{code}\nsys.exit(main())"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outcome(code: str) -> tuple[int, str]:
    with process(code) as running:
        _, message = running.communicate(timeout=50)
    return running.returncode, message


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_during_imports(number: int) -> None:
    """tests/test_startup.py tests Ctrl-C."""
    assert outcome(f"importing({int(number)})") == (128 + number, f"gptlit: {SAID[number]}\n")


def test_an_exception_that_python_drops_is_raised_again() -> None:
    assert outcome("doing(dropped)") == (130, "gptlit: stopped\n")


def test_a_later_import_is_completed_first() -> None:
    assert outcome("doing(importing_later)") == (130, "gptlit: stopped\n")


def test_an_exception_that_other_code_replaced() -> None:
    assert outcome("doing(translated)") == (143, "gptlit: stopped by SIGTERM\n")


def test_a_signal_after_the_command_changes_nothing() -> None:
    assert outcome("doing(at_exit)") == (0, "")


@pytest.mark.parametrize("number", SIGNALS)
def test_an_ignored_signal_stays_ignored(number: int) -> None:
    """nohup ignores SIGHUP, and shells ignore Ctrl-C for background jobs."""
    ignoring = f"signal.signal({int(number)}, signal.SIG_IGN)"
    work = f"doing(lambda: os.kill(os.getpid(), {int(number)}))"
    assert outcome(f"{ignoring}; {work}") == (0, "")


def test_a_process_that_hangs_is_ended() -> None:
    """Even if the main thread never runs the signal's handler."""
    with process("signals.state.limit = 0.3; doing(stuck)") as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        running.send_signal(signal.SIGTERM)
        _, message = running.communicate(timeout=50)
    assert running.returncode == 143
    assert message == (
        "gptlit: ended by SIGTERM, as it did not end within 0.3 s; saved files are kept\n"
    )


def test_a_third_ctrl_c_ends_a_process_that_hangs() -> None:
    with process("doing(stuck)") as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        while running.poll() is None:
            running.send_signal(signal.SIGINT)
        _, message = running.communicate()
    assert running.returncode == 130
    assert message == "\ngptlit: ended by Ctrl-C, at the third; saved files are kept\n"


@pytest.mark.parametrize("number", SIGNALS)
def test_an_evaluation_is_stopped(
    gptlit: Call, run: Run, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(LitGPT, "validation_step", lambda *_: signal.raise_signal(number))
    result = gptlit("validate", f"--ckpt_path={run.folder}/checkpoints/last.ckpt")
    assert (result.code, result.out) == (128 + number, "")
    assert result.err == f"gptlit: {SAID[number]}\n"


# ---------------------------------------------------------------------- a closed terminal


def test_a_closed_terminal_saves_the_run(tmp_path: Path, text_file: Path) -> None:
    """SIGHUP arrives, and standard output fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about forking with threads
        child, terminal = pty.fork()
    if not child:
        os.chdir(tmp_path)
        sys.stdout = sys.stderr = open(1, "w", closefd=False)  # noqa: SIM115  # replaces pytest's
        steps = ["--trainer.max_steps=10000000", "--trainer.val_check_interval=10000000"]
        os._exit(main(["fit", *TINY, f"--data.path={text_file}", *steps]))
    message = b""
    while b"first loss" not in message:
        message += os.read(terminal, 1024)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 129
    last = tmp_path / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt"
    assert checkpoint.read(last)["global_step"] > 0
