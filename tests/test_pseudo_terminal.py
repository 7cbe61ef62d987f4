"""Commands in terminals of 80 and 60 columns."""

import logging
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import lightning as L
import pytest
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from gptlit.messages import note
from gptlit.runs.progress_bar import REDRAW_SECONDS
from tests.conftest import TINY, Result, Run
from tests.pseudo_terminal import Terminal, seen

RUN = [*TINY, "--trainer.max_steps=20", "--trainer.val_check_interval=10"]
QUIET = ["--trainer.val_check_interval=1000", "--samples.prompts=[]"]
BLOCK = ("device", "precision", "model", "text", "step", "batches", "input", "target")


@pytest.fixture
def inside(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Terminal]:
    """Call `gptlit` in a terminal and in the folder of a text, text.txt."""
    monkeypatch.chdir(text_file.parent)
    text_file.rename("text.txt")
    return lambda columns, *arguments: seen(columns, monkeypatch, *arguments)


def assert_well_set(terminal: Terminal) -> None:
    """Assert that no word was cut at the edge, and that no bar remained."""
    for line in terminal.lines:
        # a full line may have been broken by the terminal
        assert len(line) < terminal.columns or "%|" in line, terminal.text
    bars = [line for line in terminal.lines if "%|" in line]
    assert all(line.startswith("step ") for line in bars)


@pytest.mark.parametrize("columns", [80, 60])
def test_fit_and_resume(inside: Callable[..., Terminal], columns: int) -> None:
    fit = inside(columns, "fit", *RUN, "--data.path=text.txt")
    assert_well_set(fit)
    names = [line.split()[0] for line in fit.lines if re.match(r"  \S", line)]
    assert tuple(names[: len(BLOCK)]) == BLOCK  # the start-up block comes first
    assert [line for line in fit.lines if line.startswith("step 20/20 100%|")]
    assert [line for line in fit.lines if line.startswith("step 20: val/loss")]
    assert re.search(r"^gptlit: done at step 20$", fit.text, re.MULTILINE)
    assert re.search(r"^  time    \d+ s$", fit.text, re.MULTILINE)
    assert "lightning_logs/version_0/checkpoints/best.ckpt" in fit.words

    # the bar counts the whole run, from the end of the first part
    resumed = inside(columns, "fit", "--ckpt_path=last", "--trainer.max_steps=30")
    assert_well_set(resumed)
    bars = [frame for frame in resumed.frames if frame.startswith("step ") and "%" in frame]
    assert bars[0].startswith("step 20/30  67%")
    assert bars[-1].startswith("step 30/30 100%")
    assert "?" not in "".join(bars)
    assert all(len(bar.rstrip("\x1b[A")) <= columns for bar in bars)


def test_a_bar_counts_all_epochs(inside: Callable[..., Terminal]) -> None:
    options = ["--trainer.max_steps=-1", "--trainer.max_epochs=2", "--data.batch_size=400"]
    fit = inside(80, "fit", *RUN, *options, "--data.path=text.txt")
    ends = re.findall(r"^step (\d+)/(\d+) 100%", fit.text, re.MULTILINE)
    per_epoch = re.search(r"([\d,]+) steps per epoch", " ".join(fit.text.split()))
    assert per_epoch
    assert ends == [(str(2 * int(per_epoch[1])),) * 2]


def test_a_run_without_a_known_end_is_counted(inside: Callable[..., Terminal]) -> None:
    options = ["--trainer.max_steps=-1", "--trainer.max_time=00:00:00:01", "--model.decay_steps=9"]
    fit = inside(60, "fit", *RUN, *QUIET, *options, "--data.path=text.txt")
    assert_well_set(fit)
    counted = re.search(r"^step ([\d,]+) 00:0\d", fit.text, re.MULTILINE)
    done = re.search(r"after step ([\d,]+)", fit.text)
    assert counted
    assert done
    assert counted[1] == done[1]


@pytest.mark.parametrize("columns", [80, 60])
def test_validate_and_predict(
    inside: Callable[..., Terminal], run: Run, gptlit: Callable[..., Result], columns: int
) -> None:
    path = run.folder / "checkpoints" / "best.ckpt"
    validate = inside(columns, "validate", f"--ckpt_path={path}")
    assert not [line for line in validate.lines if "%|" in line]
    assert re.search(r"^val/loss +\d\.\d{6}$", validate.text, re.MULTILINE)

    options = [f"--ckpt_path={path}", "--prompt=the king", "--max_new_tokens=300"]
    plain = gptlit("predict", *options)
    for more in ([], ["--num_samples=1", "--weights=int8"]):
        predict = inside(columns, "predict", *options, *more)
        assert "gptlit: model" in predict.text
        # the same words, wrapped at another width
        written = predict.text[predict.text.index("the king") :]
        if not more:
            assert written.split() == plain.out.split()
        assert max(map(len, written.split("\n"))) <= columns


@pytest.mark.parametrize("columns", [80, 60])
def test_a_summary(inside: Callable[..., Terminal], columns: int) -> None:
    summary = inside(columns, "summary", *RUN, "--data.path=text.txt")
    assert_well_set(summary)
    assert {"parameters", "masked", "scores)", "time"} <= summary.words


def test_messages_are_printed_above_the_bar(inside: Callable[..., Terminal]) -> None:
    fit = inside(80, "fit", *RUN, "--data.path=text.txt", "--model.lr=3", "--guard.diverged=1.001")
    warned = [line for line in fit.lines if "warning" in line]
    assert warned
    assert all(line.startswith("gptlit: warning: step ") for line in warned)


class Loud(Callback):
    """Prints lines in all possible ways, and one line in two parts."""

    SAYS: ClassVar[list[Callable[[], object]]] = [
        # as warnings.warn and logging do without pytest
        lambda: logging.StreamHandler().handle(logging.makeLogRecord({"msg": "said by logging"})),
        lambda: rank_zero_info("said by Lightning"),
        lambda: print("said by print"),
        lambda: print("said by print, to stderr", file=sys.stderr),
        lambda: (sys.stderr.write("said in "), sys.stderr.write("two parts\n")),
        lambda: note("said by gptlit"),
    ]

    def on_train_batch_end(self, trainer: L.Trainer, *_: object, **__: object) -> None:
        time.sleep(REDRAW_SECONDS)  # so that the bar is drawn again
        if trainer.global_step > 1 and self.SAYS[trainer.global_step - 2 :]:
            self.SAYS[trainer.global_step - 2]()


def test_lines_of_other_code_are_printed_above_the_bar(inside: Callable[..., Terminal]) -> None:
    more = [f"--trainer.callbacks={__name__}.Loud", "--trainer.max_steps=8"]
    fit = inside(60, "fit", *TINY, *QUIET, *more, "--data.path=text.txt")
    assert_well_set(fit)
    said = [line.removeprefix("INFO: ") for line in fit.lines if "said " in line]
    assert said == [
        "said by logging",
        "said by Lightning",
        "said by print",
        "said by print, to stderr",
        "said in two parts",
        "gptlit: said by gptlit",
    ]
    assert len([line for line in fit.lines if "%|" in line]) == 1
