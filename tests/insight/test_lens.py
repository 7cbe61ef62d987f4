import pytest
import torch

from gptlit.insight.lens import logit_lens, residual_stream
from tests.model.test_gpt import KINDS, gpt, shifted


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_layer_gives_the_logits_and_others_those_of_a_shorter_model(kind: str) -> None:
    model = shifted(gpt(**KINDS[kind], n_layer=3, dropout=0.3))
    ids = torch.randint(11, (6,))
    lens = list(logit_lens(model, ids))
    assert torch.equal(lens[-1], model(ids[None])[0])
    assert len(lens) == 4
    for n in range(3):
        shorter = gpt(**KINDS[kind], n_layer=n)
        own = shorter.state_dict()
        shorter.load_state_dict({name: model.state_dict()[name] for name in own})
        torch.testing.assert_close(lens[n], shorter(ids[None])[0], atol=1e-5, rtol=1e-5)


def test_the_stream_is_without_dropout_and_leaves_no_hooks() -> None:
    model = gpt(dropout=0.5).train()
    ids = torch.randint(11, (6,))
    one, other = residual_stream(model, ids), residual_stream(model, ids)
    assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))
    assert torch.equal(one[0], model.wte.weight[ids] + model.wpe.weight)
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())
