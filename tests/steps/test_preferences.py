"""DPO's loss against an independent formula, and its reference."""

import math

import pytest
import torch
from torch import Tensor

from gptlit.data.loaders import IGNORED
from gptlit.model.gpt import GPT, GPTConfig
from gptlit.steps.preferences import Preferences, compare, log_probabilities
from tests.model.test_lora import random_changes

CONFIG = GPTConfig(11, n_layer=1, n_head=2, n_embd=8, block_size=6)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    inputs, targets = torch.randint(11, (4, 6)), torch.randint(11, (4, 6))
    targets[:, :2] = IGNORED
    targets[1, 4:] = IGNORED
    return inputs, targets


def by_hand(net: GPT, row: Tensor, target: Tensor) -> float:
    """The log-probability of a row's answer, one token after the other."""
    with torch.no_grad():
        logits = net.eval()(row[None])[0].double()
    total = 0.0
    for place, id_ in enumerate(target.tolist()):
        if id_ != IGNORED:
            total += float(logits[place, id_] - torch.logsumexp(logits[place], 0))
    return total


def test_the_loss_is_equation_7(batch: tuple[Tensor, Tensor]) -> None:
    inputs, targets = batch
    net, reference, beta = GPT(CONFIG), GPT(CONFIG), 0.3
    with torch.no_grad():
        found = Preferences(beta, reference).compared(net, inputs, targets)
    for pair in range(2):
        policy, before = (
            [by_hand(each, inputs[row], targets[row]) for row in (2 * pair, 2 * pair + 1)]
            for each in (net, reference)
        )
        margin = beta * ((policy[0] - before[0]) - (policy[1] - before[1]))
        assert float(found.margin[pair]) == pytest.approx(margin, abs=1e-5)
        assert float(found.loss[pair]) == pytest.approx(math.log1p(math.exp(-margin)), abs=1e-5)
        assert float(found.is_right[pair]) == float(margin > 0)


def test_gradients_move_towards_the_chosen_answer(batch: tuple[Tensor, Tensor]) -> None:
    inputs, targets = batch
    net, reference = GPT(CONFIG), GPT(CONFIG)
    reference.load_state_dict(net.state_dict())
    preferences = Preferences(0.1, reference)
    loss, same = preferences.of_batch(net, inputs, targets)
    assert loss.item() == same.item() == pytest.approx(math.log(2))
    assert float(preferences.accuracy) == float(preferences.margin) == 0
    loss.backward()
    assert all(parameter.grad is None for parameter in reference.parameters())
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad)
    preferences.of_batch(net, inputs, targets)
    assert float(preferences.margin) > 0


def test_a_net_with_lora_is_its_own_reference(batch: tuple[Tensor, Tensor]) -> None:
    inputs, targets = batch
    config = GPTConfig(**{**vars(CONFIG), "lora_r": 2, "dropout": 0.5, "lora_dropout": 0.5})
    net = random_changes(GPT(config))
    base = GPT(CONFIG)
    base.load_state_dict({name: net.state_dict()[name] for name in base.state_dict()})
    torch.manual_seed(1)
    one = Preferences(0.3, None).compared(net, inputs, targets)
    torch.manual_seed(1)
    other = Preferences(0.3, base).compared(net, inputs, targets)
    torch.testing.assert_close(one.margin, other.margin)
    assert net.training
    assert not one.margin.eq(0).any()


def test_padding_is_no_pair(batch: tuple[Tensor, Tensor]) -> None:
    inputs, targets = batch
    targets[2:] = IGNORED
    found = Preferences(0.3, GPT(CONFIG)).compared(GPT(CONFIG), inputs, targets)
    assert found.is_pair.tolist() == [1, 0]


def test_half_precision_is_summed_in_float32() -> None:
    logits = torch.zeros(1, 4, 3, dtype=torch.bfloat16)
    found = log_probabilities(logits, torch.zeros(1, 4, dtype=torch.long))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor([-4 * math.log(3)]))
    assert compare(found.repeat(2), found.repeat(2), 0.1, torch.ones(1)).loss.dtype == torch.float32
