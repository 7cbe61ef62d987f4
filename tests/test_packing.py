import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gptlit.generation import generate
from gptlit.packing import MOST_ROWS, Int8Linear, pack_int8
from gptlit.tokenizer import CharTokenizer
from tests.test_model import gpt


def test_weights_that_are_integers_times_a_scale_stay_as_they_are() -> None:
    """127 steps of 2^-7: exact in 8 bits, so that the layer computes what it did."""
    linear = nn.Linear(64, 5)
    with torch.no_grad():
        linear.weight.copy_(torch.randint(-127, 128, (5, 64)) / 128)
        linear.weight[:, 0] = 127 / 128
    packed = Int8Linear(linear)
    assert torch.equal(packed.weight, linear.weight)
    x = torch.randint(-8, 9, (2, 3, 64)) / 8  # exact in bfloat16
    wanted = F.linear(x, linear.weight).bfloat16().float() + linear.bias
    assert torch.equal(packed(x), wanted)


@pytest.mark.parametrize("n_rows", [1, MOST_ROWS, MOST_ROWS + 1, 40])
def test_any_number_of_rows_gives_the_same_within_its_rounding(n_rows: int) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(128, 96, bias=False)
    packed = Int8Linear(linear)
    # half a step of the largest weight of each output
    steps = (packed.weight - linear.weight).abs() / (linear.weight.abs().amax(1, keepdim=True))
    assert 0.4 / 127 < steps.max() < 0.8 / 127
    x = torch.randn(n_rows, 128)
    wanted = F.linear(x.bfloat16().float(), packed.weight)
    torch.testing.assert_close(packed(x), wanted, atol=1e-3, rtol=2**-8)


def test_every_linear_layer_of_a_model_is_packed_and_it_writes() -> None:
    model, plain = gpt(n_embd=16), gpt(n_embd=16)
    pack_int8(model)
    kinds = [type(module) for module in model.modules()]
    assert nn.Linear not in kinds
    assert kinds.count(Int8Linear) == 2 * 4 + 1
    idx = torch.randint(11, (3, 6))
    torch.testing.assert_close(model(idx), plain(idx), atol=0.02, rtol=0.05)
    assert len(generate(model, CharTokenizer("\nabcdefghij"), "ab", max_new_tokens=20)) == 22
