"""The moving average of weights, by hand."""

import pytest
import torch
from torch import nn

from gptlit.optim.ema import Average


def layer(value: float, dtype: torch.dtype = torch.float32) -> nn.Linear:
    linear = nn.Linear(1, 1, bias=False, dtype=dtype)
    fill(linear, value)
    return linear


def fill(linear: nn.Linear, value: float) -> None:
    with torch.no_grad():
        linear.weight.fill_(value)


def test_the_average_by_hand() -> None:
    """Decays 1/10, 2/11, 3/12, ... until they reach 0.3."""
    net = layer(1.0)
    average = Average(net, 0.3)
    wanted = 1.0
    weights = (2.0, -1.0, 4.0, 8.0, 3.0)
    for decay, weight in zip((1 / 10, 2 / 11, 3 / 12, 0.3, 0.3), weights, strict=True):
        fill(net, weight)
        average.update()
        wanted = decay * wanted + (1 - decay) * weight
        assert average.averaged()["weight"].item() == pytest.approx(wanted, rel=1e-6)
    assert average.updates == 5
    assert net.weight.item() == 3.0


def test_the_average_replaces_the_weights_and_is_removed() -> None:
    net = layer(1.0)
    average = Average(net, 0.9)
    fill(net, 2.0)
    average.update()
    kept = net.weight
    with average.applied():
        inside = net.weight.item()
        with average.applied():  # a sample within a validation
            assert net.weight.item() == inside
        assert net.weight.item() == inside
        assert average.raw()["weight"].item() == 2.0
    assert inside == pytest.approx(0.1 * 1.0 + 0.9 * 2.0)
    assert net.weight is kept
    assert net.weight.item() == 2.0
    with pytest.raises(RuntimeError), average.applied():
        raise RuntimeError
    assert net.weight.item() == 2.0


def test_half_precision_is_averaged_in_float32() -> None:
    """At 0.999 bfloat16 would lose an update; the weights are restored bit for bit."""
    net = layer(1.0, torch.bfloat16)
    average = Average(net, 0.999)
    average.updates = 10_000_000
    fill(net, 1.5)
    before = net.weight.detach().clone()
    for _ in range(10):
        average.update()
    averaged = average.averaged()["weight"]
    assert averaged.dtype == torch.float32
    assert averaged.item() == pytest.approx(1.5 - 0.5 * 0.999**10, rel=1e-5)
    with average.applied():
        assert net.weight.dtype == torch.bfloat16
    assert torch.equal(net.weight, before)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(3, 2)
        self.lm_head = nn.Linear(2, 3, bias=False)
        self.lm_head.weight = self.wte.weight


def test_resuming_is_exact_and_state_has_all_names() -> None:
    torch.manual_seed(0)
    net = Tied()
    average = Average(net, 0.5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    optimizer.register_step_post_hook(average.update)

    def train(steps: int) -> None:
        for step in range(steps):
            optimizer.zero_grad()
            (net.lm_head(net.wte.weight).tanh().sum() * (step + 1)).backward()
            optimizer.step()

    train(3)
    averaged = {name: value.clone() for name, value in average.averaged().items()}
    weights = {name: value.clone() for name, value in average.raw().items()}
    assert set(averaged) == set(weights) == set(net.state_dict())
    train(2)
    whole = average.averaged()["wte.weight"].clone()
    net.load_state_dict(weights)
    average.load(averaged, 3)
    train(2)
    assert average.updates == 5
    assert torch.equal(average.averaged()["lm_head.weight"], whole)
