"""The chart of losses that a terminal shows at a run's end."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from gptlit.runs.run_end import CURVE_ROWS, loss_curve
from gptlit.terminal import width
from tests.conftest import TINY, Result, Run
from tests.pseudo_terminal import seen

Call = Callable[..., Result]
BRAILLE = re.compile("[\u2801-\u28ff]")


@pytest.mark.parametrize("columns", [60, 80])
def test_a_terminal_shows_a_chart_before_the_summary(
    text_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, columns: int
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["fit", *TINY, f"--data.path={text_file}", "--max_steps=12", "--val_check_interval=4"]
    lines = seen(columns, monkeypatch, *words).lines
    end = next(index for index, line in enumerate(lines) if line.startswith("gptlit: done"))
    drawn = [line for line in lines[:end] if "│" in line or "┤" in line]
    assert len(drawn) == CURVE_ROWS
    assert any(BRAILLE.search(line) for line in drawn)
    assert sum(re.split("[│┤]", line)[1].count("o") for line in drawn) == 3  # validations
    assert all(width(line) < columns for line in lines[end - CURVE_ROWS - 4 : end])
    assert lines[end - 1].split() == ["⠤⠤⠤", "train/loss", "⠤o⠤", "val/loss"]


def test_a_pipe_shows_none(text_file: Path, gptlit: Call) -> None:
    done = gptlit("fit", *TINY, f"--data.path={text_file}", "--trainer.max_steps=4")
    assert done.code == 0
    assert not BRAILLE.search(done.out + done.err)


def test_the_chart_fits_and_has_eight_rows(run: Run) -> None:
    table = run.folder / "metrics.csv"
    for columns in (30, 60, 200):
        lines = loss_curve(table, columns)
        assert max(map(width, lines)) < columns
        assert CURVE_ROWS + 3 <= len(lines) <= CURVE_ROWS + 5
    assert loss_curve(run.folder / "nosuch.csv", 80) == []
