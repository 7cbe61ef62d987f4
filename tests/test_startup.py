"""Locales, working folders and interrupts that a command meets before it begins."""

import importlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gptlit import startup
from gptlit.__main__ import VERBS
from tests.conftest import TINY, Result, launched

Call = Callable[..., Result]


@pytest.fixture
def interrupts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ctrl-C as in a process of gptlit's own whose modules are imported."""
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    startup.leave_at_interrupt()
    startup.raise_at_interrupt()
    yield
    signal.signal(signal.SIGINT, before)


def wait_for_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt):
        threading.Event().wait(50)


@pytest.mark.usefixtures("interrupts")
def test_an_interrupt_lets_an_import_be_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import signal\nsignal.raise_signal(signal.SIGINT)\nwhole = True\n"
    (tmp_path / "interrupted_module.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("interrupted_module")
    assert module.whole
    wait_for_interrupt()


@pytest.mark.usefixtures("interrupts")
def test_an_interrupt_that_python_ignores_is_raised_again() -> None:
    class Closing:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    closing = Closing()
    del closing
    wait_for_interrupt()


@pytest.mark.usefixtures("interrupts")
def test_elsewhere_an_interrupt_is_raised_at_once() -> None:
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_an_ignored_interrupt_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as nohup has it
    try:
        startup.leave_at_interrupt()
        startup.raise_at_interrupt()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("verb", "module"),
    [
        ("data", "numpy"),
        ("predict", "torch"),
        ("predict", "torch._C"),
        ("fit", "lightning"),
        ("export", "json"),
    ],
)
def test_an_interrupt_while_modules_are_imported_ends_the_process(verb: str, module: str) -> None:
    code = f"""
import os, signal, sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
for name in [name for name in sys.modules if name.split(".")[0] == {module!r}]:
    del sys.modules[name]
sys.meta_path.insert(0, Interrupt())
sys.argv = ["gptlit", {verb!r}]
from gptlit.__main__ import main
sys.exit(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=55)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "\ngptlit: stopped\n")


def test_letters_of_the_command_line_are_utf8_in_any_locale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "thé.txt"
    text.write_text("thé\n" * 200, encoding="utf-8")
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for name, value in plain.items():
        monkeypatch.setenv(name, value)
    words = ["data", "thé.txt", "--tokenizer=char", "--tokenize=éΩ"]
    done = subprocess.run(
        [sys.executable, "-m", "gptlit", *words], cwd=tmp_path, capture_output=True, timeout=55
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode() == "char  1 tokens: é   unknown: Ω\n"


def test_names_that_are_no_text_are_refused(gptlit: Call) -> None:
    name = os.fsdecode(b"caf\xe9.txt")
    for option in ("--data.path", "--trainer.default_root_dir"):
        # before anything is read or made
        refused = gptlit("fit", *TINY, f"{option}={name}")
        assert refused.code == 2
        assert refused.err == f"gptlit: error: {option} 'caf\\udce9.txt': not UTF-8 text\n"


def test_a_working_folder_that_is_gone_is_refused(
    gptlit: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    home = os.getcwd()
    os.chdir(gone)
    try:
        gone.rmdir()
        for verb in VERBS:
            refused = gptlit(verb)
            assert (refused.code, refused.out) == (2, "")
            assert refused.err == (
                "gptlit: error: the working folder can't be found (No such file or directory); "
                "change into one that exists\n"
            )
        assert gptlit("--version").code == 0
    finally:
        os.chdir(home)
    assert launched(tmp_path, "data", "list").code == 0
