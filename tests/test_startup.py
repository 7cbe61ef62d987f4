"""Locales, working folders and interrupts before a command runs."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gptlit.__main__ import VERBS
from tests.conftest import TINY, Result, launched

Call = Callable[..., Result]


@pytest.mark.parametrize(
    ("verb", "module"),
    [
        ("data", "numpy"),
        ("predict", "torch"),
        ("predict", "torch._C"),
        ("fit", "lightning"),
        ("export", "yaml"),
    ],
)
def test_an_interrupt_during_imports_ends_the_process(verb: str, module: str) -> None:
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


def test_arguments_are_utf8_in_any_locale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_names_that_are_not_utf8_are_refused(gptlit: Call) -> None:
    name = os.fsdecode(b"caf\xe9.txt")
    for option in ("--data.path", "--trainer.default_root_dir"):
        # before any file is read or made
        refused = gptlit("fit", *TINY, f"{option}={name}")
        assert refused.code == 2
        assert refused.err == f"gptlit: error: {option} 'caf\\udce9.txt': not UTF-8 text\n"


def test_a_removed_working_folder_is_refused(
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
                "change to one that exists\n"
            )
        assert gptlit("--version").code == 0
    finally:
        os.chdir(home)
    assert launched(tmp_path, "data", "list").code == 0
