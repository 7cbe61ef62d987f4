"""The `gptlit` command finds the user's own classes in the folder of the config."""

import subprocess
import sys
from pathlib import Path

import pytest

from gptlit.cli.user_modules import importable
from tests.conftest import TINY

MINE = """
from lightning.pytorch import Callback
from helpfulmod import GREETING
class Mine(Callback):
    def on_train_start(self, trainer, module): print(GREETING)
"""


def test_the_command_finds_a_callback_next_to_its_config(tmp_path: Path, text_file: Path) -> None:
    """Modules that it imports are found too; other files of the current folder are not imported."""
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "ownmod.py").write_text(MINE)
    (folder / "helpfulmod.py").write_text("GREETING = 'mine is there'")
    (folder / "mine.yaml").write_text("trainer: {callbacks: [{class_path: ownmod.Mine}]}")
    (tmp_path / "omegaconf.py").write_text("open('ran', 'w')")  # which Lightning looks for
    command = Path(sys.executable).with_name("gptlit")
    words = ["fit", *TINY, "--config=configs/mine.yaml", "--trainer.max_steps=1"]
    done = subprocess.run(
        [command, *words, f"--data.path={text_file}"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "mine is there" in done.stdout
    assert not (tmp_path / "ran").exists()


def test_only_folders_with_a_named_module_are_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        (folder / "json.py").touch()  # must not replace Python's own module
    (one / "ownmod.py").touch()
    (other / "package_of_mine").mkdir()
    (other / "package_of_mine" / "parts.py").touch()
    (other / "data").mkdir()  # holds no modules
    before = list(sys.path)
    with importable(["trainer: {callbacks: [ownmod.Mine, json.JSONDecoder]}"], [one, other]):
        assert sys.path == [*before, str(one)]
    with importable(["package_of_mine.parts.Mine", "data.path"], [one, other]):
        assert sys.path == [*before, str(other)]
    with importable(["json.JSONDecoder", "data.path", "a/ownmod"], [one, other]):
        assert sys.path == before
    assert sys.path == before
