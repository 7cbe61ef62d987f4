"""The config that a run writes is read back at once, so that a resume can read it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.callbacks import Callback

from tests.conftest import TINY, Result, read_metrics

# Lightning's callbacks warn of this and that
pytestmark = pytest.mark.filterwarnings("ignore")

Call = Callable[..., Result]
FOLDER = Path("lightning_logs/version_0")


class Named(Callback):
    """Does what is named, by a function or a word; jsonargparse can't write the word."""

    def __init__(self, how: Callable[[], None] | str) -> None: ...


def written() -> list[dict[str, object]]:
    return yaml.safe_load((FOLDER / "config.yaml").read_text())["trainer"]["callbacks"]


def went_on(gptlit: Call, text: Path, *options: str) -> tuple[Result, Result]:
    """A run of 4 steps, and what a resume to 6 without any other option gave."""
    words = [*TINY, f"--data.path={text}", "--trainer.max_steps=4", *options]
    first = gptlit("fit", *words)
    assert first.code == 0, first.err
    second = gptlit("fit", "--ckpt_path=last", "--trainer.max_steps=6")
    assert second.code == 0, second.err
    return first, second


def left_out(result: Result) -> list[str]:
    return [
        line.removeprefix("gptlit: ").split(": can't be read back from config.yaml")[0]
        for line in result.err.splitlines()
        if "can't be read back" in line
    ]


@pytest.mark.parametrize(
    ("name", "options", "unreadable"),
    [
        # whose device is an object
        ("StochasticWeightAveraging", ["swa_lrs=0.1", "swa_epoch_start=1"], "device"),
        # whose interval is an Enum, which can't even be written
        ("Timer", ["duration=00:01:00:00"], "interval"),
    ],
)
def test_an_argument_that_cant_be_read_back_is_left_out(
    gptlit: Call, text_file: Path, name: str, options: list[str], unreadable: str
) -> None:
    given = [f"--trainer.callbacks.{option}" for option in options]
    first, second = went_on(gptlit, text_file, f"--trainer.callbacks+={name}", *given)
    assert left_out(first) == left_out(second) == [f"--trainer.callbacks.{unreadable}"]
    (callback,) = written()
    assert callback["class_path"] == f"lightning.pytorch.callbacks.{name}"
    arguments = callback["init_args"]
    assert isinstance(arguments, dict)
    assert unreadable not in arguments
    assert options[0].split("=")[0] in arguments


def test_the_learning_rate_of_weight_averaging_goes_on(gptlit: Call, text_file: Path) -> None:
    """Its scheduler, which has taken the place of the run's own at the second epoch."""
    swa = ["--trainer.callbacks+=StochasticWeightAveraging", "--trainer.callbacks.swa_lrs=0.1"]
    swa += ["--trainer.callbacks.swa_epoch_start=1", "--trainer.limit_train_batches=3"]
    words = [*TINY, f"--data.path={text_file}", "--trainer.max_steps=6", "--snapshot_every=4"]
    words += ["--trainer.log_every_n_steps=1", "--model.warmup_steps=0"]
    assert gptlit("fit", *words, *swa).code == 0
    whole = [row["optim/lr"] for row in read_metrics(FOLDER) if row["optim/lr"]]
    result = gptlit("fit", f"--ckpt_path={FOLDER}/checkpoints/step_4.ckpt")
    assert result.code == 0, result.err
    assert "the learning rate goes on" not in result.err
    assert [row["optim/lr"] for row in read_metrics(FOLDER) if row["optim/lr"]] == whole
    assert len(set(whole)) > 1


def test_a_class_that_cant_be_read_back_is_left_out_of_its_list(
    gptlit: Call, text_file: Path
) -> None:
    """Its one argument is needed, and written as something else."""
    first, second = went_on(
        gptlit,
        text_file,
        "--trainer.callbacks+=EarlyStopping",
        "--trainer.callbacks.monitor=val/loss",
        "--trainer.callbacks+=tests.test_readable.Named",
        "--trainer.callbacks.how=loudly",
    )
    assert left_out(first) == ["--trainer.callbacks tests.test_readable.Named"]
    assert left_out(second) == []
    (kept,) = written()
    assert kept["class_path"] == "lightning.pytorch.callbacks.EarlyStopping"


def test_what_can_be_read_back_is_written_as_it_is(gptlit: Call, text_file: Path) -> None:
    first, _ = went_on(
        gptlit,
        text_file,
        "--trainer.callbacks+=EMAWeightAveraging",
        "--trainer.callbacks.decay=0.5",
        "--trainer.callbacks+=ModelCheckpoint",
        "--trainer.callbacks.train_time_interval=00:30:00",
        "--trainer.callbacks+=GradientAccumulationScheduler",
        "--trainer.callbacks.scheduling={0: 1}",
    )
    assert left_out(first) == []
    ema, saving, accumulation = (each["init_args"] for each in written())
    assert isinstance(ema, dict)
    assert isinstance(saving, dict)
    assert isinstance(accumulation, dict)
    assert (ema["decay"], saving["train_time_interval"]) == (0.5, "0:30:00")
    assert list(accumulation["scheduling"].values()) == [1]
