"""Masked and wrong input tokens: how many, which ones, and only in training."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gptlit.checkpoints.weight_files import read_folder
from gptlit.exports.hub_folder import write_hugging_face
from gptlit.exports.plain_files import write_safetensors
from gptlit.model.config import GPTConfig
from gptlit.model.gpt import GPT
from gptlit.model.input_noise import InputNoise
from gptlit.tokenizers.characters import CharTokenizer

V = 7
MASKED = V  # as an id


def config(**options: object) -> GPTConfig:
    sizes = {"vocab_size": V, "n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 64}
    return GPTConfig(**{**sizes, **options})  # type: ignore[arg-type]  # any option


def inputs_after(idx: Tensor, **options: float) -> Tensor:
    """The ids that a model sees in training; MASKED where it sees the mask."""
    noise = InputNoise(config(n_embd=V + 1, n_head=1, **options))
    rows = torch.eye(V + 1)
    if noise.mask is not None:
        noise.mask.data = rows[MASKED:]
    embedded = noise(idx, torch.nn.Embedding.from_pretrained(rows[:V]))
    return embedded.argmax(dim=-1)


def assert_share(chosen: Tensor, p: float) -> None:
    deviation = (p * (1 - p) / chosen.numel()) ** 0.5
    assert abs(chosen.float().mean().item() - p) <= 4 * deviation


@pytest.mark.parametrize(("masked", "wrong"), [(0.1, 0.0), (0.0, 0.3), (0.15, 0.25)])
def test_the_shares_of_masked_and_wrong_tokens(masked: float, wrong: float) -> None:
    torch.manual_seed(0)
    idx = torch.randint(V, (400, 500))
    seen = inputs_after(idx, token_dropout=masked, token_noise=wrong)
    assert_share(seen == MASKED, masked)
    others = seen[(seen != idx) & (seen != MASKED)]
    assert_share((seen != idx) & (seen != MASKED), wrong * (1 - 1 / V))
    # independent of their neighbours: two in a row are as frequent as chance has it
    assert_share((seen[:, 1:] == MASKED) & (seen[:, :-1] == MASKED), masked**2)
    for token in range(V) if wrong else ():
        instead = others[idx[(seen != idx) & (seen != MASKED)] != token]
        assert_share(instead == token, 1 / (V - 1))


def test_a_model_without_noise_is_the_same_in_evaluation() -> None:
    torch.manual_seed(3)
    plain = GPT(config())
    torch.manual_seed(3)
    noisy = GPT(config(token_dropout=0.3, token_noise=0.3))
    assert noisy.num_parameters() == plain.num_parameters() + 8
    assert noisy.state_dict().keys() - plain.state_dict().keys() == {"noise.mask"}
    idx = torch.randint(V, (2, 64))
    before = torch.get_rng_state()
    torch.testing.assert_close(noisy.eval()(idx), plain.eval()(idx), atol=0, rtol=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.allclose(noisy.train()(idx), noisy(idx))


@pytest.mark.parametrize(("init", "deviation"), [("gpt2", 0.02), ("unit", 1), ("torch", 1)])
def test_the_mask_begins_as_an_embedding(init: str, deviation: float) -> None:
    torch.manual_seed(0)
    mask = GPT(config(token_dropout=0.1, init=init, n_embd=1000)).noise.mask  # type: ignore[union-attr]
    assert mask is not None
    assert mask.std().item() == pytest.approx(deviation, rel=0.1)


def test_the_mask_learns_and_hidden_tokens_do_not() -> None:
    model = GPT(config(token_dropout=0.5, tie_weights=False)).train()
    assert model.noise is not None
    assert model.noise.mask is not None
    model.noise.masked = 1.0
    model(torch.randint(V, (2, 64))).sum().backward()
    assert model.wte.weight.grad is not None
    assert not model.wte.weight.grad.any()
    assert model.noise.mask.grad is not None
    assert model.noise.mask.grad.abs().sum() > 0


@pytest.mark.parametrize("write", [write_safetensors, write_hugging_face])
def test_exports_have_no_mask(write: object, tmp_path: Path) -> None:
    model = GPT(config(token_dropout=0.2, token_noise=0.1)).eval()
    write(model, CharTokenizer("abcdefg"), tmp_path / "out")  # type: ignore[operator]
    read_config, state, _ = read_folder(tmp_path / "out")
    assert read_config == dataclasses.replace(model.config, token_dropout=0.0)
    written = GPT(read_config).eval()
    written.load_state_dict(state)
    idx = torch.randint(V, (2, 64))
    torch.testing.assert_close(written(idx), model(idx), atol=0, rtol=0)
