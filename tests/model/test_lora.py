"""LoRA's layers: which parameters, how many, and what they compute."""

import pytest
import torch
from torch.nn import functional as F

from gptlit.checkpoints.weight_shapes import for_writing, shapes
from gptlit.messages import UsageError
from gptlit.model import cost, lora
from gptlit.model.gpt import GPT, GPTConfig
from gptlit.optim.ema import Average
from gptlit.optim.optimizers import Recipe, groups

TINY = GPTConfig(
    11, n_layer=2, n_head=2, n_embd=8, block_size=6, lora_r=2, lora_alpha=6.0,
    lora_on=("c_attn", "c_proj", "c_fc"),
)  # fmt: skip


def random_changes(model: GPT) -> GPT:
    """Give changes that don't begin with zeros."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if lora.is_change(name):
                parameter.normal_()
    return model


def test_gpt2_small_has_294912_trained_parameters() -> None:
    """r (inputs + outputs) of c_attn for 12 layers: 8 x (768 + 2,304) x 12."""
    with torch.device("meta"):
        model = GPT(GPTConfig(50257, n_layer=12, n_head=12, n_embd=768, block_size=1024, lora_r=8))
    trained = {name for name, each in model.named_parameters() if each.requires_grad}
    assert cost.trainable(model) == 294_912
    assert trained == {f"h.{n}.attn.c_attn.lora_{x}" for n in range(12) for x in "AB"}
    [decayed, others] = groups(model, Recipe())
    assert sum(each.numel() for each in decayed["params"]) == 294_912
    assert others["params"] == []
    memory = cost.memory(model, 1, "32-true", averaged=True)
    assert (memory.gradients, memory.optimizer) == (4 * 294_912, 8 * 294_912)
    assert memory.average == 4 * 294_912


def test_the_base_draws_the_same_numbers() -> None:
    torch.manual_seed(1)
    model = GPT(TINY)
    torch.manual_seed(1)
    plain = GPT(GPTConfig(11, n_layer=2, n_head=2, n_embd=8, block_size=6))
    ids = torch.randint(11, (2, 6))
    for name, parameter in plain.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter)
    assert torch.equal(model(ids), plain(ids))  # B is zero
    assert [(name, tuple(each.shape)) for name, each in model.state_dict().items()] == [
        *shapes(TINY)
    ]


def test_a_layer_computes_the_papers_formula() -> None:
    layer = lora.LoRALinear(torch.nn.Linear(8, 12), TINY)
    torch.nn.init.normal_(layer.lora_B)
    x = torch.randn(5, 8)
    changed = layer.weight + 6.0 / 2 * layer.lora_B @ layer.lora_A
    torch.testing.assert_close(layer(x), F.linear(x, changed, layer.bias))


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
@torch.no_grad()
def test_merged_weights_equal_base_plus_changes(activation: str) -> None:
    config = GPTConfig(**{**vars(TINY), "activation": activation})
    model = random_changes(GPT(config).eval())
    merged_config, state = for_writing(config, model.state_dict())
    assert merged_config.lora_r == 0
    merged = GPT(merged_config).eval()
    merged.load_state_dict(state)
    ids = torch.randint(11, (3, 6))
    torch.testing.assert_close(merged(ids), model(ids), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(model(ids), GPT(merged_config)(ids))


def test_only_changes_get_gradients_and_averages() -> None:
    model = random_changes(GPT(TINY))
    average = Average(model, 0.9)
    assert average._values.keys() == {n for n, _ in model.named_parameters() if lora.is_change(n)}
    assert average.averaged().keys() == average.raw().keys() == model.state_dict().keys()
    assert torch.equal(average.averaged()["wte.weight"], model.wte.weight)
    model(torch.randint(11, (2, 6))).sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == lora.is_change(name)


def test_dropout_is_of_the_changes_inputs() -> None:
    config = GPTConfig(**{**vars(TINY), "lora_dropout": 0.5})
    model = random_changes(GPT(config))
    assert config.is_stochastic
    ids = torch.randint(11, (2, 6))
    assert not torch.equal(model(ids), model(ids))
    assert torch.equal(model.eval()(ids), model(ids))


def test_a_frozen_matrix_needs_no_gradient_products() -> None:
    plain, adapted = (
        GPT(GPTConfig(11, n_embd=8, n_head=2)),
        GPT(GPTConfig(11, n_embd=8, n_head=2, lora_r=1)),
    )
    forward = cost.flops_per_token(adapted)
    added = 4 * (8 + 24)  # rows of A and B in 4 layers
    assert forward == cost.flops_per_token(plain) + 2 * added
    frozen = cost.matmul_parameters(plain)
    assert cost.training_flops_per_token(adapted) == 3 * forward - 2 * frozen


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"lora_r": 9}, "lora_r 9: must be from 0 to n_embd 8"),
        ({"lora_r": -1}, "lora_r -1"),
        ({"lora_alpha": 0.0}, "lora_alpha 0.0: must be above 0"),
        ({"lora_dropout": 1.0}, "lora_dropout 1.0"),
        ({"lora_on": ()}, "lora_on .*: names no matrix of this model"),
        ({"lora_on": ("c_attn",), "mixer": "none"}, "names no matrix of this model"),
        ({"lora_on": ("wte",)}, "lora_on"),
        ({"token_dropout": 0.1}, "token_dropout 0.1: needs lora_r 0"),
    ],
)
def test_invalid_options(options: dict[str, object], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        GPTConfig(**{**vars(TINY), **options})  # type: ignore[arg-type]
