"""`gptlit fit --minutes`: the chosen number of steps, and a run that the trial did not change."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gptlit.messages import UsageError
from gptlit.runs import time_budget
from gptlit.runs.time_budget import Length, Measured, fitting
from gptlit.training.module import LitGPT
from tests.conftest import TINY, Result, Run, assert_same_run

Call = Callable[..., Result]
STEP, VALIDATION = 0.5, 0.25  # seconds of a batch
MEASURED = Measured(step=0.1, validation=2.0, start=4.0, probe=10.0, steps_per_epoch=50)


def seconds(length: Length, measured: Measured) -> float:
    parts = length.n_steps * measured.step + length.n_validations * measured.validation
    return measured.probe + measured.start + parts


@pytest.mark.parametrize("minutes", [1, 5, 60])
@pytest.mark.parametrize("validation", [0.0, 2.0, 7.0])
@pytest.mark.parametrize("keeps", [False, True])
def test_a_run_fills_its_time(minutes: float, validation: float, keeps: bool) -> None:
    measured = replace(MEASURED, validation=validation)
    length = fitting(minutes, measured, 3000, 500, keeps_interval=keeps)
    unused = 60 * minutes * 0.95 - seconds(length, measured)
    assert 0 <= unused < max(validation, 6 * measured.step) + measured.step
    assert length.interval == (500 if keeps else length.n_steps // length.n_validations)
    if not keeps:
        assert length.n_steps % length.interval == 0  # the last validation is at the end
        assert length.n_validations * validation <= max(0.2 * 60 * minutes, validation)
        assert length.n_validations <= 6


def test_validations_are_as_many_as_before_if_they_are_short() -> None:
    measured = replace(MEASURED, validation=0.01)
    assert fitting(5, measured, 3000, 500, keeps_interval=False).n_validations == 6
    assert fitting(5, measured, 0, 500, keeps_interval=False).n_validations == 1


@pytest.mark.parametrize("keeps", [False, True])
def test_a_time_that_is_too_short(keeps: bool) -> None:
    with pytest.raises(UsageError, match=r"too short for a step of 0\.1 s .* give 0\.3 or more"):
        fitting(0.2, MEASURED, 3000, 500, keeps_interval=keeps)
    assert fitting(0.3, MEASURED, 3000, 500, keeps_interval=keeps).n_steps >= 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A clock that passes with the batches of the model, not with the time."""
    now = [0.0]

    def passing(name: str, of_batch: float) -> None:
        original = getattr(LitGPT, name)

        def step(self: LitGPT, batch: Any, batch_idx: int, *more: int) -> Any:
            now[0] += of_batch
            return original(self, batch, batch_idx, *more)

        monkeypatch.setattr(LitGPT, name, step)

    passing("training_step", STEP)
    passing("validation_step", VALIDATION)
    monkeypatch.setattr(time_budget, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    return


@pytest.mark.usefixtures("clock")
def test_the_run_is_the_one_that_is_given_its_steps(gptlit: Call, text_file: Path) -> None:
    own = "{model: {decay_steps: 150}, samples: {min_interval: 10}, trainer: {max_steps: 200}}"
    Path("own.yaml").write_text(own)
    options = [*TINY, f"--data.path={text_file}", "--model.dropout=0.1", "--config=own.yaml"]
    options += ["--trainer.accumulate_grad_batches=2", "--model.min_lr=1e-4"]
    found = gptlit("fit", *options, "--minutes=0.5")
    assert found.code == 0, found.err
    (line,) = [line for line in found.err.splitlines() if "--minutes" in line]
    described = re.fullmatch(
        r"gptlit: --minutes 0\.5: (\d+) steps of 1000\.0 ms and (\d+) validations? of (\S+) s", line
    )
    assert described, line
    n_steps, n_validations = int(described[1]), int(described[2])
    # five steps to warm up, three timed ones and a validation
    validation = float(described[3])
    left = 28.5 - 8 - validation - n_steps - n_validations * validation
    assert 0 <= left < max(validation, n_validations) + 1
    rows = dict(re.findall(r"(\w+\.\w+) \d+ -> (\d+)$", found.out, re.MULTILINE))
    assert int(rows["trainer.max_steps"]) == n_steps
    assert int(rows["model.decay_steps"]) == round(150 * n_steps / 200)
    assert int(rows["model.warmup_steps"]) == round(20 * n_steps / 200)
    assert int(rows["samples.min_interval"]) == max(1, round(10 * n_steps / 200))
    again = gptlit("fit", *options, *(f"--{name}={value}" for name, value in rows.items()))
    assert again.code == 0, again.err
    one, other = Path("lightning_logs/version_0"), Path("lightning_logs/version_1")
    assert_same_run(one, other)
    # the run resumes with its own steps, and without another trial
    done = gptlit("fit", f"--ckpt_path={one / 'checkpoints' / 'last.ckpt'}")
    assert f"trainer.max_steps {n_steps}" in done.err
    assert "--minutes" not in done.err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (
            ["fit", "--trainer.max_steps=9"],
            "chooses the number of steps; leave --trainer.max_steps",
        ),
        (["fit", "--trainer.max_epochs=1"], "leave --trainer.max_epochs out"),
        (["fit", "--preflight"], "is not used with --preflight"),
        (["fit", "--trainer.fast_dev_run=true"], "is not used with --trainer.fast_dev_run"),
        (["summary"], "is not used with a verb other than fit"),
        (["fit", "--trainer.devices=2"], "measures one process; give --trainer.max_steps"),
    ],
)
def test_options_that_minutes_do_not_go_with(
    gptlit: Call, text_file: Path, words: list[str], reason: str
) -> None:
    options = [*TINY, f"--data.path={text_file}", "--trainer.accelerator=cpu"]
    result = gptlit(*words, "--minutes=5", *options)
    assert (result.code, result.err.count("--minutes 5")) == (2, 1)
    assert reason in result.err
    assert not Path("lightning_logs").exists()


@pytest.mark.parametrize("minutes", ["-1", "nan", "inf"])
def test_minutes_that_are_no_time(gptlit: Call, minutes: str) -> None:
    result = gptlit("fit", f"--minutes={minutes}")
    assert (result.code, "--minutes" in result.err) == (2, True)


def test_a_resumed_run_has_its_number_of_steps(gptlit: Call, run: Run) -> None:
    last = f"--ckpt_path={run.folder / 'checkpoints' / 'last.ckpt'}"
    result = gptlit("fit", "--minutes=5", last)
    assert result.code == 2
    assert (
        "--minutes 5.0: is not used with --ckpt_path, which resumes a run with its own number"
        in (result.err)
    )
