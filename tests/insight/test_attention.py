import pytest
import torch
from torch import Tensor, nn

from gptlit.insight.attention import attention_maps
from gptlit.model.attention import sdpa
from gptlit.model.gpt import GPT
from tests.model.test_gpt import KINDS, gpt, shifted


def values_and_outputs(model: GPT, ids: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The values of each layer, (n_head, T, head_size), and what attention makes of them."""
    seen: dict[str, list[Tensor]] = {"c_attn": [], "c_proj": []}
    hooks = []
    for block in model.h:

        def into(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            seen["c_attn"].append(output[0])

        def out(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            seen["c_proj"].append(inputs[0][0])

        hooks += [block.attn.c_attn.register_forward_hook(into)]
        hooks += [block.attn.c_proj.register_forward_hook(out)]
    with torch.no_grad():
        model(ids[None])
    for hook in hooks:
        hook.remove()
    config, T = model.config, len(ids)
    n_values = config.kv_heads * config.head_size
    values = [each[:, -n_values:].view(T, -1, config.head_size) for each in seen["c_attn"]]
    shared = config.n_head // config.kv_heads
    wide = [each.transpose(0, 1).repeat_interleave(shared, dim=0) for each in values]
    outputs = [each.view(T, config.n_head, -1).transpose(0, 1) for each in seen["c_proj"]]
    return list(zip(wide, outputs, strict=True))


KINDS_WITH_ATTENTION = {name: each for name, each in KINDS.items() if name != "tinylm"}
MORE = {
    "grouped": {"n_head": 4, "n_kv_head": 2, "n_embd": 32},
    "eager": {"attention": "eager"},
    "dropout": {"dropout": 0.5, "token_dropout": 0.2, "activation_checkpointing": True},
}


@pytest.mark.parametrize("kind", [*KINDS_WITH_ATTENTION, *MORE])
def test_maps_times_values_are_what_attention_computes(kind: str) -> None:
    """With as many channels in a head as positions, no other maps give the same."""
    options = {**KINDS, **MORE}[kind]
    model = shifted(gpt(**{"n_embd": 16, **options, "init": "unit"}))
    ids = torch.randint(11, (6,))
    maps = attention_maps(model, ids)
    layers = values_and_outputs(model, ids)
    assert maps.shape == (2, model.config.n_head, 6, 6)
    for own, (values, outputs) in zip(maps, layers, strict=True):
        torch.testing.assert_close(own @ values, outputs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(maps.sum(-1), torch.ones(maps.shape[:3]))
    assert (maps.triu(1) == 0).all()
    assert maps.std(dim=(2, 3)).min() > 0.01


def test_the_model_is_left_as_it_was() -> None:
    model = gpt(dropout=0.5).train()
    ids = torch.randint(11, (6,))
    torch.manual_seed(0)
    before = model(ids[None])
    first, second = attention_maps(model, ids), attention_maps(model, ids)
    assert torch.equal(first, second)
    assert model.training
    assert model.h[0].attn.attend is sdpa
    assert not first.requires_grad
    torch.manual_seed(0)
    assert torch.equal(model(ids[None]), before)
    with pytest.raises(ValueError, match="exceed block_size"):
        attention_maps(model, torch.zeros(7, dtype=torch.long))
    assert model.h[0].attn.attend is sdpa
    assert model.training


def test_a_model_without_attention_has_no_maps() -> None:
    ids = torch.randint(11, (5,))
    assert attention_maps(gpt(mixer="none"), ids).shape == (0, 2, 5, 5)
    assert attention_maps(gpt(n_layer=0), ids).shape == (0, 2, 5, 5)
