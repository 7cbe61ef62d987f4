"""The config that a run writes can be read back by a resume."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback

from tests.cli.test_trusted_options import crafted, of_lightning
from tests.conftest import TINY, Result, Run

# warnings of Lightning's callbacks
pytestmark = pytest.mark.filterwarnings("ignore")

Call = Callable[..., Result]
FOLDER = Path("lightning_logs/version_0")
CPU = torch.device("cpu")


class Named(Callback):
    """Has an argument that may be a function or a string; jsonargparse can't write the string."""

    def __init__(self, how: Callable[[], None] | str) -> None: ...


class Placed(Callback):
    """Has an object as a default, which is read back as a string."""

    def __init__(self, times: int, device: torch.device | str | None = CPU) -> None: ...


class Untyped(Callback):
    """Has an object without a type as a default, which can't be written."""

    def __init__(self, times: int, device: Any = CPU) -> None: ...


def written() -> list[dict[str, object]]:
    return yaml.safe_load((FOLDER / "config.yaml").read_text())["trainer"]["callbacks"]


def resumed(gptlit: Call, text: Path, *options: str) -> tuple[Result, Result]:
    """Return the results of a run of 4 steps and of its resume to 6 without other options."""
    words = [*TINY, f"--data.path={text}", "--trainer.max_steps=4", *options]
    first = gptlit("fit", *words)
    assert first.code == 0, first.err
    trusted = "--trust_checkpoint=true"  # classes of this file
    second = gptlit("fit", "--ckpt_path=last", "--trainer.max_steps=6", trusted)
    assert second.code == 0, second.err
    return first, second


def left_out(result: Result) -> list[str]:
    return [
        line.removeprefix("gptlit: ").split(": can't be read back from config.yaml")[0]
        for line in result.err.splitlines()
        if "can't be read back" in line
    ]


@pytest.mark.parametrize("made", [Placed, Untyped])
def test_an_argument_that_cant_be_read_back_is_left_out(
    gptlit: Call, text_file: Path, made: type
) -> None:
    class_path = f"tests.cli.test_saved_options.{made.__name__}"
    words = [f"--trainer.callbacks+={class_path}", "--trainer.callbacks.times=2"]
    first, second = resumed(gptlit, text_file, *words)
    assert left_out(first) == left_out(second) == ["--trainer.callbacks.device"]
    (callback,) = written()
    assert callback == {"class_path": class_path, "init_args": {"times": 2}}


@pytest.mark.parametrize("device", [{}, {"device": "cpu"}, {"device": "device(type='cpu')"}])
def test_a_saved_class_that_is_refused_is_reported_in_one_line(
    gptlit: Call, run: Run, device: dict[str, str]
) -> None:
    """Earlier versions saved it; the run can be resumed if the callback is given again."""
    swa = of_lightning("callbacks.StochasticWeightAveraging", swa_lrs=0.1, **device)
    path = crafted(run, Path("a.ckpt"), {"trainer.callbacks": [swa]})
    words = ["fit", f"--ckpt_path={path}", "--trainer.max_steps=41"]
    for trust in ("false", "true"):
        result = gptlit(*words, f"--trust_checkpoint={trust}")
        assert result.code == 2
        (line,) = result.err.splitlines()
        assert "StochasticWeightAveraging" in line
        assert not Path("lightning_logs").exists()
    assert gptlit(*words, "--trainer.callbacks=[]").code == 0


def test_a_class_that_cant_be_read_back_is_left_out_of_its_list(
    gptlit: Call, text_file: Path
) -> None:
    """Its required argument is written as something else."""
    first, second = resumed(
        gptlit,
        text_file,
        "--trainer.callbacks+=EarlyStopping",
        "--trainer.callbacks.monitor=val/loss",
        "--trainer.callbacks+=tests.cli.test_saved_options.Named",
        "--trainer.callbacks.how=loudly",
    )
    assert left_out(first) == ["--trainer.callbacks tests.cli.test_saved_options.Named"]
    assert left_out(second) == []
    (kept,) = written()
    assert kept["class_path"] == "lightning.pytorch.callbacks.EarlyStopping"


def test_readable_options_are_written_unchanged(gptlit: Call, text_file: Path) -> None:
    first, _ = resumed(
        gptlit,
        text_file,
        "--trainer.callbacks+=EMAWeightAveraging",
        "--trainer.callbacks.decay=0.5",
        "--trainer.callbacks+=ModelCheckpoint",
        "--trainer.callbacks.train_time_interval=00:30:00",
        "--trainer.callbacks+=Timer",
        "--trainer.callbacks.duration=00:01:00:00",
    )
    assert left_out(first) == []
    ema, saving, timer = (each["init_args"] for each in written())
    assert isinstance(ema, dict)
    assert isinstance(saving, dict)
    assert timer == {"duration": "00:01:00:00", "interval": "step", "verbose": True}
    assert (ema["decay"], saving["train_time_interval"]) == (0.5, "0:30:00")
