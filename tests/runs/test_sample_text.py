"""When a run samples: at validations, and at the ends of epochs that are long enough."""

import errno
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gptlit.checkpoints import checkpoint
from gptlit.runs.sample_text import SampleText
from gptlit.training.run_length import validates_each_epoch
from tests.conftest import TINY, Result, curves

LAST = Path("lightning_logs/version_0/checkpoints/last.ckpt")
SAMPLES = Path("lightning_logs/version_0/samples.txt")
Call = Callable[..., Result]


@pytest.mark.parametrize(
    ("batches_per_epoch", "val_check_batch", "every_n_epoch", "expected"),
    [
        (61, 250, None, False),
        (250, 250, None, True),
        (1000, 250, None, True),
        (math.inf, 250, None, True),
        (1000, None, None, False),  # a time between validations
        (10, 10, 1, True),
        (10, 5, 1, True),
        (10, 10, 3, False),
    ],
)
def test_an_epoch_is_compared_with_the_interval_between_validations(
    batches_per_epoch: float,
    val_check_batch: int | None,
    every_n_epoch: int | None,
    expected: bool,
) -> None:
    trainer: Any = SimpleNamespace(
        enable_validation=True,
        num_training_batches=batches_per_epoch,
        val_check_batch=val_check_batch,
        check_val_every_n_epoch=every_n_epoch,
    )
    assert validates_each_epoch(trainer) is expected
    trainer.enable_validation = False
    assert validates_each_epoch(trainer)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        (["--trainer.val_check_interval=8"], [8]),  # longer than an epoch of 5 steps
        (["--trainer.val_check_interval=8", "--samples.at_epoch_end=true"], [5, 8, 10]),
        (["--trainer.val_check_interval=4"], [4, 5, 8, 10]),
        (["--trainer.val_check_interval=4", "--samples.at_epoch_end=false"], [4, 8]),
        (["--trainer.limit_val_batches=0"], [5, 10]),
    ],
)
def test_samples_at_the_end_of_epochs(
    gptlit: Call,
    text_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    steps: list[int],
) -> None:
    monkeypatch.setattr(SampleText, "EPOCH_STEPS", 1)
    epochs = ["--trainer.limit_train_batches=5", "--trainer.max_steps=10"]
    done = gptlit("fit", *TINY, f"--data.path={text_file}", *epochs, *options)
    assert done.code == 0, done.err
    found = re.findall(r"^=== step (\d+)", SAMPLES.read_text(), re.MULTILINE)
    assert [int(step) for step in found] == steps
    saved = checkpoint.read(LAST)["callbacks"]["SampleText"]
    assert saved.keys() == {"written_at"}  # the same state as in older versions


def test_a_sample_is_compared_with_the_training_text(
    gptlit: Call, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By exact figures, in all places that show a sample."""
    text = text_file.read_text()
    sample = "ROMEO:" + "!" * 40 + text[100:160]
    assert "!!" not in text

    def generate(*_: object, **__: object) -> str:
        return sample

    monkeypatch.setattr("gptlit.runs.sample_text.generate", generate)
    fit = ["fit", *TINY, f"--data.path={text_file}", "--trainer.max_steps=2"]
    assert "[[" in gptlit(*fit, '--samples.prompts=["ROMEO:"]').out
    marked = "ROMEO:" + "!" * 40 + f"[[{text[100:160]}]]"
    n_stretches = len(sample) - 31
    novelty = (n_stretches - (60 - 31)) / n_stretches
    head, written = SAMPLES.read_text().split("\n", 1)
    assert head.endswith(f", novelty {novelty:.3f}, longest copy 60 characters")
    assert written == f"{marked}\n\n"
    points = curves(SAMPLES.parent)
    (step, value), *_ = points["samples/novelty"]
    assert (step, float(value)) == (1, pytest.approx(novelty))
    assert [float(value) for _, value in points["samples/longest_copy"]] == [60.0]
    off = gptlit(*fit, "--samples.novelty=false")
    assert off.code == 0
    assert "[[" not in off.out
    assert "samples/novelty" not in curves(Path("lightning_logs/version_1"))


def test_a_full_disk_does_not_end_a_run_for_novelty(
    gptlit: Call, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("gptlit.data.novelty.IN_MEMORY", 0)
    monkeypatch.setattr("gptlit.data.novelty.tempfile.TemporaryFile", full)
    steps = ["--trainer.max_steps=4", "--trainer.val_check_interval=2"]
    result = gptlit("fit", *TINY, f"--data.path={text_file}", *steps)
    assert result.code == 0, result.err
    assert result.err.count("not compared with the training text: No space left on device") == 1
    assert SAMPLES.read_text().count("=== step") == 2


def test_a_resume_restores_the_curve_of_novelty(gptlit: Call, text_file: Path) -> None:
    steps = ["--trainer.max_steps=4", "--trainer.val_check_interval=2"]
    long = "--samples.max_new_tokens=60"  # samples with stretches of 32
    assert gptlit("fit", *TINY, f"--data.path={text_file}", *steps, long).code == 0
    before = curves(SAMPLES.parent)["samples/novelty"]
    for path in SAMPLES.parent.glob("events.*"):
        path.unlink()  # as a crash can leave it
    assert gptlit("fit", "--ckpt_path=last", "--trainer.max_steps=6").code == 0
    after = curves(SAMPLES.parent)["samples/novelty"]
    assert after[:2] == before
    assert [step for step, _ in after] == [1, 3, 5]
