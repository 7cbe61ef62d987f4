"""A small text, a small trained run, and `gptlit` called in-process."""

import contextlib
import csv
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import hypothesis
import pytest
import torch

from gptlit.__main__ import main
from gptlit.checkpoints import checkpoint
from gptlit.training.logged_metrics import TIMED
from tests import DEVICE
from tests.browser import browser, chromium  # noqa: F401  # fixtures
from tests.recorded_graphs import recorded_graphs  # noqa: F401  # a fixture

# no deadline, since no test may depend on the machine's speed, and the same examples in each run;
# `--hypothesis-profile explore` looks for new ones
hypothesis.settings.register_profile("gptlit", deadline=None, derandomize=True)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=2000)
hypothesis.settings.load_profile("gptlit")

# tiny models are fastest on one thread, whatever else the machine runs
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of processes that tests start

WORDS = ["the", "king", "and", "thy", "love", "shall", "speak", "of", "night", "or", "day"]
GPT2_TINY = Path(__file__).parent / "fixtures" / "gpt2_tiny.yaml"
TINY = [
    f"--config={GPT2_TINY}",
    "--model.n_layer=1",
    "--model.n_head=2",
    "--model.n_embd=16",
    "--model.block_size=8",
    "--data.batch_size=4",
    "--data.val_fraction=0.1",
    "--samples.max_new_tokens=12",
    "--trainer.log_every_n_steps=2",
]


def made_up_text(n_words: int = 2500, seed: int = 0) -> str:
    """Return speeches of random words, some with a character of two bytes."""
    pick = random.Random(seed)
    lines = []
    for index in range(n_words // 10):
        if index % 4 == 0:
            lines.append(f"\n{pick.choice(['ROMEO', 'JULIET', 'FOOL'])}:")
        line = " ".join(pick.choice(WORDS) for _ in range(10))
        lines.append(line.capitalize() + pick.choice([".", ",", "!", " é."]))
    return "\n".join(lines) + "\n"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    elsewhere = [item for item in items if "tests/gpu/" not in item.path.as_posix()]
    if DEVICE in ("cuda", "mps") and elsewhere:
        raise pytest.UsageError(f"GPTLIT_TEST_DEVICE={DEVICE} is for tests/gpu; name that folder")


@pytest.fixture(autouse=True)
def process_left_as_it_was() -> Iterator[None]:
    """Restore variables and threads that Lightning's launchers set for later processes."""
    with mock.patch.dict(os.environ):
        yield
    torch.set_num_threads(1)


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "speeches.txt"
    path.write_text(made_up_text(), encoding="utf-8")
    return path


@dataclass
class Result:
    """Exit code and output of a call of `gptlit`."""

    code: int
    out: str
    err: str


@pytest.fixture
def gptlit(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """Return a function that calls `gptlit` in-process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Result:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


def after_introduction(err: str) -> str:
    """Return the standard error of `gptlit predict` without the line that names the model."""
    first, _, rest = err.partition("\n")
    assert first.startswith("gptlit: model ")
    return rest


def launched(cwd: Path, *arguments: str, stdin: str | None = None) -> Result:
    """Call `gptlit` in its own process, and kill the processes that it leaves.

    Args:
        cwd: Working folder.
        arguments: Arguments of `gptlit`.
        stdin: Content of its standard input; None for the tests' own standard input.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "gptlit", *arguments],
        cwd=cwd,
        stdin=None if stdin is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(stdin, timeout=50)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return Result(process.returncode, out, err)


def read_metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def timeless(folder: Path) -> list[dict[str, str]]:
    """Return the rows of metrics.csv without timings."""
    return [
        {name: value for name, value in row.items() if not name.startswith(TIMED)}
        for row in read_metrics(folder)
    ]


def curves(folder: Path) -> dict[str, list[tuple[int, str]]]:
    """Return the points of each metric and text, without timings, as TensorBoard shows them."""
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [
            (event.step, str(tensor_util.make_ndarray(event.tensor_proto)))
            for event in events.Tensors(tag)
        ]
        for tag in events.Tags()["tensors"]
        if not tag.startswith((*TIMED, "_hparams_"))
    }


def some_time_passes(folder: Path) -> None:
    """Make event files one minute older, since TensorBoard orders files by seconds."""
    for path in folder.glob("events.out.tfevents.*"):
        prefix, seconds, rest = re.split(r"(?<=tfevents\.)(\d+)", path.name)
        path.rename(path.with_name(f"{prefix}{int(seconds) - 60}{rest}"))


def assert_same_run(one: Path, other: Path, but: str = "-") -> None:
    """Assert that two runs have logged, written and saved the same, bit for bit.

    Timings, names of event files and the runs' working folders may differ, and so may `but`, a
    pattern of options' names.
    """
    assert timeless(one) == timeless(other)
    assert curves(one) == curves(other)
    for name in ("samples.txt", "config.yaml", "hparams.yaml"):
        ours, theirs = (moved((run / name).read_text(), but) for run in (one, other))
        assert ours == theirs, name
    names, others = (sorted(path.name for path in run.rglob("*.ckpt")) for run in (one, other))
    assert names == others
    for name in names:
        ours, theirs = (
            moved(checkpoint.read(run / "checkpoints" / name), but) for run in (one, other)
        )
        assert_equal(ours, theirs, name)


def moved(content: Any, but: str) -> Any:
    """Return saved content as if the run was /run, started in /, without the options `but`."""
    if isinstance(content, dict):
        kept = {key: value for key, value in content.items() if not re.fullmatch(but, str(key))}
        return {moved(key, but): moved(value, but) for key, value in kept.items()}
    if isinstance(content, list | tuple):
        return type(content)(moved(each, but) for each in content)
    if not isinstance(content, str):
        return content
    # version_N, or a run of a study
    content = re.sub(r"\S*/lightning_logs/(version_\d+|\w+/[\w=]+)", "/run", content)
    option = rf"^( *){but}:.*\n(?:\1[ -].*\n)*"  # and the lines of its list or block
    content = re.sub(option, "", content, flags=re.MULTILINE)
    return re.sub(r"/\S*/(?=\w+\.txt)", "/", content)  # the text's folder


def assert_equal(one: Any, other: Any, where: str) -> None:
    """Assert that nested dicts, lists and tensors are equal, bit for bit."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}[{key!r}]")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{where}[{index}]")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where


@dataclass
class Run:
    """A finished run: its working folder, its own folder and its text."""

    cwd: Path
    folder: Path
    text: Path


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Train for 40 steps with validations at 20 and 40; tests must not write to the run."""
    cwd = tmp_path_factory.mktemp("run")
    text = cwd / "speeches.txt"
    text.write_text(made_up_text(), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        options = ["--trainer.max_steps=40", "--trainer.val_check_interval=20"]
        assert main(["fit", *TINY, f"--data.path={text}", *options, "--snapshot_every=10"]) == 0
    return Run(cwd, cwd / "lightning_logs" / "version_0", text)
