"""An ensemble against the mean of its nets' probabilities, in plain code."""

import pytest
import torch
from torch import Tensor

from gptlit.generation.decoding import Windows
from gptlit.generation.generate import generate
from gptlit.model.ensemble import Ensemble, log_mean
from gptlit.model.gpt import GPT
from gptlit.tokenizers.characters import CharTokenizer
from tests.generation.by_keywords import generate_many, search
from tests.generation.test_decoding import far_from_its_start

TOKENIZER = CharTokenizer("abcdefghijk")


@pytest.fixture
def nets() -> list[GPT]:
    """Three kinds of nets, of which one has a smaller block than the others."""
    return [far_from_its_start(kind).eval() for kind in ("gpt2", "modern", "tinylm")]


def mean_probabilities(nets: list[GPT], idx: Tensor) -> Tensor:
    total = torch.zeros(*idx.shape, 11)
    for net in nets:
        total += net(idx).exp() / net(idx).exp().sum(dim=-1, keepdim=True)
    return total / len(nets)


@torch.no_grad()
def test_logits_are_the_logarithm_of_the_mean(nets: list[GPT]) -> None:
    idx = torch.randint(11, (3, 6))
    ensemble = Ensemble(nets)
    wanted = mean_probabilities(nets, idx)
    torch.testing.assert_close(ensemble(idx).exp(), wanted)
    torch.testing.assert_close(ensemble(idx).softmax(-1), wanted)
    torch.testing.assert_close(ensemble(idx, last=True).exp(), wanted[:, -1:])


def test_unlikely_tokens_keep_their_logarithm() -> None:
    far = torch.tensor([0.0, -300.0, -500.0])
    torch.testing.assert_close(log_mean([far, far]), far)


def test_half_precision_is_widened() -> None:
    logits = torch.randn(2, 5, dtype=torch.bfloat16)
    assert log_mean([logits, logits]).dtype == torch.float32
    assert log_mean([logits.double()]).dtype == torch.float64


@torch.no_grad()
def test_decoding_equals_reading(nets: list[GPT]) -> None:
    """With a cache for each net, past the block and for rows of several lengths."""
    ensemble = Ensemble(nets)
    prompts = [torch.tensor(ids) for ids in ([1], [3, 4, 5, 6], [5, 6, 7])]
    cached, plain = Windows(ensemble, prompts), Windows(ensemble, prompts, use_cache=False)
    for ids in torch.randint(11, (17, 3)):
        torch.testing.assert_close(cached.logits(), plain.logits(), atol=1e-5, rtol=1e-5)
        for windows in (cached, plain):
            windows.append(ids)


def test_texts(nets: list[GPT]) -> None:
    ensemble = Ensemble(nets).eval()
    texts = {generate(ensemble, TOKENIZER, "ab", use_cache=cache) for cache in (True, False)}
    assert len(texts) == 1
    alone = [generate(net, TOKENIZER, "ab") for net in nets]
    assert texts.isdisjoint(alone)
    written = generate_many(ensemble, TOKENIZER, ["ab", "c"], [1337, 2], scored=True)
    assert {written[0].whole} == texts
    (best,) = search(ensemble, TOKENIZER, "ab", num_beams=2, max_new_tokens=5)
    assert len(best.text) == 5


def test_the_smallest_block_counts(nets: list[GPT]) -> None:
    small = GPT(nets[0].config.__class__(**{**vars(nets[0].config), "block_size": 4}))
    assert Ensemble([nets[0], small]).config.block_size == 4
    assert Ensemble([nets[0]]).config.block_size == 6


def test_one_vocabulary(nets: list[GPT]) -> None:
    other = GPT(nets[0].config.__class__(**{**vars(nets[0].config), "vocab_size": 12}))
    for members in ([nets[0], other], []):
        with pytest.raises(ValueError, match="same vocabulary"):
            Ensemble(members)
