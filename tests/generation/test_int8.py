from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gptlit.generation.generate import generate
from gptlit.generation.int8 import Int8Linear, pack_int8
from gptlit.tokenizers.characters import CharTokenizer
from tests.generation.by_keywords import generate_samples
from tests.model.test_gpt import gpt


def test_weights_that_are_integers_times_a_scale_are_exact() -> None:
    """127 steps of 2^-7 are exact in 8 bits, so that the layer computes the same."""
    linear = nn.Linear(64, 5)
    with torch.no_grad():
        linear.weight.copy_(torch.randint(-127, 128, (5, 64)) / 128)
        linear.weight[:, 0] = 127 / 128
    packed = Int8Linear(linear)
    assert torch.equal(packed.weight, linear.weight)
    x = torch.randint(-8, 9, (3, 64)) / 8  # exact in bfloat16
    wanted = F.linear(x, linear.weight).bfloat16().float() + linear.bias
    assert torch.equal(packed(x), wanted)


@pytest.mark.parametrize("size", [(128, 96), (10, 7), (50, 150), (100, 300), (24, 24), (126, 65)])
def test_tokens_and_windows_of_any_size_give_the_same_within_rounding(size: Any) -> None:
    """The kernel needs rows of a multiple of 16, which few small models have."""
    torch.manual_seed(0)
    linear = nn.Linear(*size, bias=False)
    packed = Int8Linear(linear)
    # half a step of the largest weight of each output
    steps = (packed.weight - linear.weight).abs() / (linear.weight.abs().amax(1, keepdim=True))
    assert 0.2 / 127 < steps.max() < 0.8 / 127
    x = torch.randn(40, size[0])
    wanted = F.linear(x.bfloat16().float(), packed.weight)
    torch.testing.assert_close(packed(x), wanted, atol=2e-3, rtol=2**-8)
    torch.testing.assert_close(packed(x[None])[0], F.linear(x, packed.weight))


def test_no_row_depends_on_the_others() -> None:
    packed = Int8Linear(nn.Linear(100, 30))
    x = torch.randn(13, 100)
    for n in (1, 2, 5):
        assert torch.equal(torch.cat([packed(rows) for rows in x.split(n)]), packed(x))


def test_a_sample_is_the_same_alone_and_in_any_batch() -> None:
    model, tokenizer = gpt(n_embd=20, block_size=12), CharTokenizer("\nabcdefghij")
    pack_int8(model)
    alone = [generate(model, tokenizer, "ab", seed=seed, max_new_tokens=60) for seed in range(9)]
    together = generate_samples(model, tokenizer, "ab", seeds=range(9), max_new_tokens=60)
    assert together == alone
    assert len(set(alone)) == 9


def test_every_linear_layer_of_a_model_is_packed() -> None:
    model, plain = gpt(n_embd=16), gpt(n_embd=16)
    pack_int8(model)
    kinds = [type(module) for module in model.modules()]
    assert nn.Linear not in kinds
    assert kinds.count(Int8Linear) == 2 * 4 + 1
    idx = torch.randint(11, (3, 6))
    torch.testing.assert_close(model(idx), plain(idx), atol=0.02, rtol=0.05)
    assert len(generate(model, CharTokenizer("\nabcdefghij"), "ab", max_new_tokens=20)) == 22
