"""The sizes of updates relative to the weights, by kind of matrix."""

import pytest
import torch

from gptlit.model.gpt import GPT, GPTConfig
from gptlit.optim.update_ratios import UpdateRatios


def test_ratios_are_those_of_all_layers_of_a_kind() -> None:
    torch.manual_seed(0)
    net = GPT(GPTConfig(vocab_size=7, n_layer=3, n_head=1, n_embd=4, block_size=3, zero_init=True))
    net.wpe.weight.requires_grad_(False)  # type: ignore[operator, union-attr]
    ratios = UpdateRatios(net.named_parameters())
    assert ratios.kinds == ["wte", "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
    assert ratios.end() == {}
    before = {name: weight.clone() for name, weight in net.state_dict().items()}
    ratios.begin()
    with torch.no_grad():
        for index, parameter in enumerate(net.parameters()):
            parameter += 0.01 * (1 + index) * torch.randn_like(parameter)
    found = ratios.end()
    for kind in ratios.kinds:
        names = [name for name in before if name.endswith(f"{kind}.weight")]
        assert len(names) == (1 if kind == "wte" else 3)
        now = torch.stack([net.state_dict()[name] for name in names])
        then = torch.stack([before[name] for name in names])
        assert found[kind] == pytest.approx(float((now - then).norm() / now.norm()), 1e-5)
    assert found["mlp.c_proj"] == pytest.approx(1.0)  # it was 0
    ratios.begin()
    assert {*ratios.end().values()} == {0.0}
    assert ratios.end() == {}
