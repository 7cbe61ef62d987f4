"""Apple's GPUs have no float64: simulated on the CPU by an error where an operation makes one."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import gptlit
from gptlit.devices import accelerators
from gptlit.generation.beam_search import search
from gptlit.generation.settings import BeamSettings
from gptlit.model.config import GPTConfig
from gptlit.model.gpt import GPT
from gptlit.model.positions import Rotary, SinusoidalPositions
from tests.conftest import Run

ON_THE_CPU = ("aten.rand", "aten.stack")  # of the streams of random numbers, on any device


class WithoutFloat64(TorchDispatchMode):
    """Raises MPS's error where the result of an operation is in float64."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            is_wide = isinstance(each, torch.Tensor) and each.dtype == torch.float64
            if is_wide and not str(func).startswith(ON_THE_CPU):
                raise TypeError(f"Cannot convert a MPS Tensor to float64 dtype: {func}")
        return result


@pytest.fixture
def without_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(accelerators, "widest_float", lambda device: torch.float32)
    with WithoutFloat64():
        yield


def test_the_widest_float_of_devices() -> None:
    assert accelerators.widest_float(torch.device("mps")) == torch.float32
    assert accelerators.widest_float(torch.device("cpu")) == torch.float64
    assert accelerators.widest_float(torch.device("cuda")) == torch.float64


def test_the_simulation_raises(without_float64: None) -> None:
    with pytest.raises(TypeError, match="float64"):
        torch.ones(1).double()


@pytest.fixture(scope="module")
def loaded(run: Run) -> tuple[GPT, Any]:
    return gptlit.load(run.folder / "checkpoints" / "last.ckpt")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0},
        {"top_k": 5, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.9},
        {"repetition_penalty": 1.1, "frequency_penalty": 0.1},
    ],
)
def test_texts_are_sampled(
    loaded: tuple[GPT, Any], without_float64: None, options: dict[str, Any]
) -> None:
    assert gptlit.generate(*loaded, "the", max_new_tokens=12, **options)


def test_a_seed_writes_the_same_text(
    loaded: tuple[GPT, Any], request: pytest.FixtureRequest
) -> None:
    exact = gptlit.generate(*loaded, "the", max_new_tokens=40, seed=3)
    request.getfixturevalue("without_float64")
    assert gptlit.generate(*loaded, "the", max_new_tokens=40, seed=3) == exact


def test_the_last_number_of_a_stream_rounds_to_one() -> None:
    """In float32 a number can be 1; it draws the last token that has a probability."""
    from gptlit.generation.sampling import draw

    logits = torch.tensor([[0.0, 0.0, -torch.inf]])
    assert draw(logits, torch.ones(1)).item() == 1


def test_beams_are_searched(loaded: tuple[GPT, Any], without_float64: None) -> None:
    settings = BeamSettings(num_beams=3, max_new_tokens=5)
    assert search(*loaded, "the", settings)


@pytest.mark.parametrize("positions", [Rotary, SinusoidalPositions])
def test_positions_are_built_on_the_device_from_angles_of_the_cpu(positions: Any) -> None:
    """Lightning builds the net in a `with device:` block; meta stands for an Apple GPU."""
    config = GPTConfig(vocab_size=5, n_embd=16, n_head=2, block_size=8)
    with torch.device("meta"):
        built = positions(config)
    assert {each.device.type for each in built.buffers()} == {"meta"}
