"""Runs that end before their end: by Ctrl-C, SIGTERM, time, patience; and going on with them."""

import contextlib
import re
import shlex
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from gptlit import checkpoint
from gptlit.__main__ import main
from gptlit.callbacks import SampleText
from gptlit.training import LitGPT
from tests.conftest import TINY, Result, assert_same_run, made_up_text

Call = Callable[..., Result]
STEPS = 12
# an epoch of 5 steps; validations within epochs, and at the end of the second
EPOCHS_OF_5 = ["--model.block_size=64", "--data.batch_size=32", "--model.dropout=0.2"]
OPTIONS = [*TINY, *EPOCHS_OF_5, f"--trainer.max_steps={STEPS}", "--trainer.val_check_interval=2"]


@contextlib.contextmanager
def asking(number: int, where: type, hook: str, *, step: int) -> Iterator[None]:
    """While in it, a fit gets a signal at a hook, once, after so many steps."""
    original = getattr(where, hook)
    asked = []

    def hooked(self: Any, *arguments: Any, **options: Any) -> Any:
        trainer = arguments[0] if isinstance(arguments[0], L.Trainer) else self.trainer
        if trainer.state.fn == "fit" and trainer.global_step == step and not asked:
            asked.append(True)
            signal.raise_signal(number)
        return original(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, hook, hooked)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The folder of uninterrupted runs, by how many batches they accumulate."""
    cwd = tmp_path_factory.mktemp("whole")
    (cwd / "speeches.txt").write_text(made_up_text(), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        for accumulated in (1, 2):
            options = batches(accumulated)
            assert main(["fit", *OPTIONS, "--data.path=speeches.txt", *options]) == 0
    return {n: cwd / "lightning_logs" / f"version_{n - 1}" for n in (1, 2)}


def batches(accumulated: int) -> list[str]:
    return [
        f"--data.batch_size={32 // accumulated}",
        f"--trainer.accumulate_grad_batches={accumulated}",
    ]


def command_in(told: str) -> list[str]:
    """The command to go on with, as a run tells it."""
    found = re.search(r"^  go on   gptlit (fit .*)$", told, re.MULTILINE)
    assert found is not None, told
    return shlex.split(found[1])


CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


def stopped_and_gone_on(gptlit: Call, text: Path, accumulated: int, *asked: Any, step: int) -> int:
    """The step at which a run ended that was asked to, after it has gone on to its end."""
    number, where, hook = asked
    with asking(number, where, hook, step=step):
        stopped = gptlit("fit", *OPTIONS, f"--data.path={text}", *batches(accumulated))
    assert stopped.code == CODES[number], stopped.err
    assert "Traceback" not in stopped.err
    saved = checkpoint.read("lightning_logs/version_0/checkpoints/last.ckpt")["global_step"]
    by = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}[number]
    assert f"gptlit: stopped by {by} after step {saved}\n" in stopped.err
    assert signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL)
    gone_on = gptlit(*command_in(stopped.err))
    assert gone_on.code == 0, gone_on.err
    return saved


@pytest.mark.parametrize(
    ("number", "accumulated", "step"),
    [
        (signal.SIGINT, 1, 0),
        (signal.SIGINT, 1, 4),  # step 5 ends an epoch
        (signal.SIGTERM, 1, 6),  # step 7 lies between two validations
        (signal.SIGINT, 2, 2),
        (signal.SIGTERM, 2, 4),
    ],
)
def test_the_step_in_hand_is_finished(
    gptlit: Call, text_file: Path, whole: dict[int, Path], number: int, accumulated: int, step: int
) -> None:
    """Asked in the first of its batches; then gone on with as if nothing had been."""
    asked = (number, LitGPT, "training_step")
    assert stopped_and_gone_on(gptlit, text_file, accumulated, *asked, step=step) == step + 1
    assert_same_run(Path("lightning_logs/version_0"), whole[accumulated])


@pytest.mark.parametrize(
    ("where", "hook", "accumulated", "step"),
    [
        (LitGPT, "training_step", 1, 3),  # a validation is due after the step
        (LitGPT, "training_step", 1, 9),  # and an epoch's end
        (LitGPT, "validation_step", 1, 4),
        (LitGPT, "validation_step", 2, 10),
        (SampleText, "_write", 1, 6),
        (SampleText, "_write", 1, 5),  # of an epoch
        (SampleText, "_write", 2, 10),
    ],
)
def test_a_validation_is_made_once_and_whole(
    gptlit: Call,
    text_file: Path,
    whole: dict[int, Path],
    where: type,
    hook: str,
    accumulated: int,
    step: int,
) -> None:
    asked = (signal.SIGINT, where, hook)
    saved = stopped_and_gone_on(gptlit, text_file, accumulated, *asked, step=step)
    assert saved == step + (hook == "training_step" or step == 5)
    assert_same_run(Path("lightning_logs/version_0"), whole[accumulated])
