"""A run that is killed and resumed leaves the same files as an uninterrupted run."""

from pathlib import Path

import pytest

from tests.conftest import made_up_text
from tests.operations import KILLED, ended, killed, start


def with_text(folder: Path) -> Path:
    folder.mkdir()
    (folder / "t.txt").write_text(made_up_text(), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = with_text(tmp_path_factory.mktemp("whole") / "run")
    assert ended(start(folder, ["fit", *KILLED["rich"]], writes=False)) == 0
    return folder


@pytest.mark.parametrize("where", [0.42, 0.6, 0.8, 0.95])
def test_a_killed_and_resumed_run_leaves_the_same_files(
    whole: Path, tmp_path: Path, where: float
) -> None:
    """benchmarks/kill_everywhere.py kills at each operation, writes included."""
    at = int(where * int((whole.parent / "counted.txt").read_text()))
    became = killed(with_text(tmp_path / "run"), whole, KILLED["rich"], at, writes=False)
    assert became == "the same"
