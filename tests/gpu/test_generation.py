"""Writing on a GPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gptlit.devices.accelerators import fastest
from gptlit.generation.generate import generate_chunks, generate_step
from gptlit.generation.settings import SamplingSettings
from gptlit.model.config import GPTConfig
from gptlit.model.gpt import GPT
from tests.conftest import Result

Call = Callable[..., Result]
PENALTIES = {"repetition_penalty": 1.3, "frequency_penalty": 0.2, "min_new_tokens": 3}


def written(model: GPT, batch: int, n_tokens: int = 24, use_cache: bool = True) -> torch.Tensor:
    """Return (B, n_tokens) ids, which pass the model's block."""
    device = next(model.parameters()).device
    prompts = torch.zeros(batch, 1, dtype=torch.long, device=device)
    settings = SamplingSettings(max_new_tokens=n_tokens)
    steps = generate_step(model, prompts, settings, range(batch), use_cache)
    return torch.stack([ids.cpu() for ids, _ in steps], dim=1)


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    config = GPTConfig(vocab_size=65, n_layer=2, n_head=2, n_embd=32, block_size=16)
    return GPT(config).eval()


def test_the_texts_of_a_cpu(model: GPT, device: str) -> None:
    # in float32 a tie or a draw at the very border of two tokens is all that may differ
    on_cpu = written(model, 4)
    on_device = written(model.to(device), 4)
    assert (on_cpu == on_device).float().mean() > 0.9


@pytest.mark.parametrize("batch", [1, 3])
def test_cached_and_uncached(model: GPT, device: str, batch: int) -> None:
    model = model.to(device)
    cached, uncached = written(model, batch), written(model, batch, use_cache=False)
    assert torch.equal(cached, uncached)


@pytest.mark.parametrize("lengths", [(1,), (3, 3, 3), (1, 9, 20)])
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"temperature": 0},
        {"top_k": 5, "top_p": 0.9, "min_p": 0.05, "typical_p": 0.9},
        PENALTIES,
    ],
)
def test_captured_steps_write_the_texts_of_plain_steps(
    model: GPT, device: str, lengths: tuple[int, ...], values: dict[str, Any]
) -> None:
    """In float32, past the block; a second time with the graphs of the first, and once again."""
    model = model.to(device)
    prompts = [torch.arange(length, device=device) for length in lengths]
    seeds = range(len(lengths))
    for n_tokens in (70, 70, 3):
        settings = SamplingSettings(max_new_tokens=n_tokens, **values)
        rules: dict[str, Any] = {"banned": [7], "forced": [1, 2], "eos_id": 0}
        plain = [ids.cpu() for ids, _ in generate_step(model, prompts, settings, seeds, **rules)]
        chunks = [each.ids for each in generate_chunks(model, prompts, settings, seeds, **rules)]
        assert torch.equal(torch.cat(chunks), torch.stack(plain))
    if device == "cuda":
        assert len(chunks) < n_tokens


def test_bfloat16_weights(model: GPT, device: str) -> None:
    ids = written(model.to(device).to(torch.bfloat16), 2)
    assert ids.shape == (2, 24)
    assert 0 <= int(ids.min()) <= int(ids.max()) < 65


def test_predict_uses_the_device(fit: Call, gptlit: Call, device: str) -> None:
    fit()
    assert fastest() == device
    options = ["--ckpt_path=last", "--prompt=the", "--max_new_tokens=20"]
    result = gptlit("predict", *options)
    assert result.code == 0, result.err
    assert result.out.startswith("the")
    through = gptlit("predict", *options, f"--trainer.accelerator={device}", "--trainer.devices=1")
    assert through.code == 0, through.err


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_predict_in_a_precision(fit: Call, gptlit: Call, device: str, precision: str) -> None:
    """Through the Trainer, whose autocast surrounds captured steps; prompts differ in length."""
    if device == "mps" and precision != "32-true":
        pytest.skip("32 bits only on mps")
    fit()
    where = [f"--trainer.accelerator={device}", "--trainer.devices=1"]
    options = [*where, f"--trainer.precision={precision}", "--max_new_tokens=40"]
    Path("prompts.txt").write_text("the\nthere\n")
    result = gptlit("predict", "--ckpt_path=last", "--prompt_file=prompts.txt", "--lines", *options)
    assert result.code == 0, result.err
    assert "runs eagerly" not in result.err


def test_a_checkpoint_of_the_device_writes_on_a_cpu(
    fit: Call, gptlit: Call, tmp_path: Path
) -> None:
    fit()
    result = gptlit(
        "predict", "--ckpt_path=last", "--prompt=the", "--max_new_tokens=20",
        "--trainer.accelerator=cpu", "--trainer.devices=1",
    )  # fmt: skip
    assert result.code == 0, result.err
