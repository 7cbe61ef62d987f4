"""The device of these tests, which the variable GPTLIT_TEST_DEVICE names: cuda, mps or cpu.

    GPTLIT_TEST_DEVICE=cuda python -m pytest tests/gpu

tests/__init__.py hides accelerators from all tests unless the variable names one. With cpu the same
tests run on the CPU, which tries the tests themselves.
"""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from gptlit.devices import accelerators
from tests import DEVICE
from tests.conftest import TINY, Result

SLOW = re.compile("test_(a_)?compiled|test_strategies")
FELL_BACK = re.compile("not captured|eagerly|torch.compile failed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if Path(__file__).parent in item.path.parents]
    for item in ours:
        item.add_marker(pytest.mark.gpu)
        # the versions of another machine may warn, and compiling warns of torch's own code
        item.add_marker(pytest.mark.filterwarnings("default"))
        # compiling and starting CUDA take their time
        item.add_marker(pytest.mark.timeout(240))
    # last, since make gpu stops the tests at their limit
    items.sort(key=lambda item: item in ours and SLOW.search(item.name) is not None)


@pytest.fixture(autouse=True, scope="session")
def device() -> str:
    """Return the type of the device; skip all tests where there is none."""
    if not DEVICE:
        pytest.skip("GPTLIT_TEST_DEVICE names no device; run make gpu")
    is_there = {
        "cpu": lambda: True,
        "cuda": torch.cuda.is_available,
        "mps": accelerators.mps_is_available,
    }
    if DEVICE not in is_there:
        pytest.fail(f"GPTLIT_TEST_DEVICE={DEVICE}: must be one of {', '.join(is_there)}")
    if not is_there[DEVICE]():
        pytest.skip(f"no {DEVICE} device on this machine")
    if DEVICE == "cuda":
        assert os.environ.get("CUDA_VISIBLE_DEVICES") != ""
    return DEVICE


def assert_not_eager(err: str, options: Sequence[object]) -> None:
    """Assert that no line reports steps that run eagerly after all, but with a gradient scaler."""
    if "--trainer.precision=16-mixed" not in options:
        assert [line for line in err.splitlines() if FELL_BACK.search(line)] == []


@pytest.fixture
def fit(gptlit: Callable[..., Result], text_file: Path, device: str) -> Callable[..., Result]:
    """Return a function that trains on one device for 4 steps, which other options replace.

    A captured or compiled step that falls back to an eager one fails the test: the figures would
    be right, and the GPU idle.
    """

    def train(*options: object, accelerator: str = device) -> Result:
        defaults = [f"--data.path={text_file}", "--trainer.max_steps=4", "--trainer.devices=1"]
        where = f"--trainer.accelerator={accelerator}"
        result = gptlit("fit", *TINY, *defaults, where, *options)
        assert result.code == 0, result.err
        assert_not_eager(result.err, options)
        return result

    return train
