import pytest
import torch

from gptlit.model import GPT, GPTConfig
from gptlit.optim import adamw, parameter_groups, warmup_cosine


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 0.0),
        (50, 1.5e-4),
        (100, 3e-4),
        (2550, 1.65e-4),
        (5000, 3e-5),
        (5001, 3e-5),
        (9999, 3e-5),
    ],
)
def test_the_schedule_of_the_course(step: int, rate: float) -> None:
    assert 3e-4 * warmup_cosine(100, 5000, 0.1)(step) == pytest.approx(rate, rel=1e-9)


def test_schedules_without_warmup_or_cosine() -> None:
    assert warmup_cosine(0, 10, 0.1)(0) == 1
    assert [warmup_cosine(4, 4, 0.5)(step) for step in range(6)] == [0, 0.25, 0.5, 0.75, 0.5, 0.5]
    assert [warmup_cosine(10, 4, 0.5)(step) for step in (4, 9, 10)] == [0.4, 0.9, 0.5]


def test_only_matrices_decay() -> None:
    model = GPT(GPTConfig(vocab_size=7, n_layer=1, n_head=1, n_embd=4, block_size=3))
    decayed, undecayed = parameter_groups(model.named_parameters(), 0.1)
    assert decayed["weight_decay"] == 0.1
    assert undecayed["weight_decay"] == 0
    assert {p.dim() for p in decayed["params"]} == {2}
    assert {p.dim() for p in undecayed["params"]} == {1}
    together = decayed["params"] + undecayed["params"]
    assert sum(p.numel() for p in together) == model.num_parameters()


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_is_adamw_by_hand(fused: bool) -> None:
    layer = torch.nn.Linear(2, 1)
    with torch.no_grad():
        layer.weight.fill_(2.0)
        layer.bias.fill_(3.0)
    optimizer = adamw(layer, lr=0.1, betas=(0.9, 0.99), weight_decay=0.5, fused=fused)
    for parameter in layer.parameters():
        parameter.grad = torch.full_like(parameter, 4.0)
    optimizer.step()
    # at the first step the update is lr * sign(grad), whatever the betas
    expected = torch.full((1, 2), 2.0 * (1 - 0.1 * 0.5) - 0.1)
    torch.testing.assert_close(layer.weight.detach(), expected)
    torch.testing.assert_close(layer.bias.detach(), torch.tensor([2.9]))
