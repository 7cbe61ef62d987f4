"""`make` installs once."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def planned(folder: Path, goal: str) -> str:
    # a make above this one would hand its flags down
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    done = subprocess.run(
        ["make", "--dry-run", goal, "ARGS=--some flag"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    return done.stdout


@pytest.mark.parametrize("goal", ["train", "test"])
def test_a_bare_clone_is_set_up_and_the_second_time_nothing_is_installed(
    tmp_path: Path, goal: str
) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    first = planned(tmp_path, goal)
    assert "-m venv .venv" in first
    assert "--constraint constraints.txt --editable ." in first
    assert ("[dev]" in first) == (goal == "test")
    assert "--some flag" in first
    (tmp_path / ".venv").mkdir()
    for stamp in (".made", ".installed", ".installed-dev"):
        (tmp_path / ".venv" / stamp).touch()
    second = planned(tmp_path, goal)
    assert "pip" not in second
    assert "venv .venv" not in second
    assert "--some flag" in second
