"""The values on a page of `gptlit look` are those of the model's tensors."""

import base64
import json
import math

import numpy as np
import pytest
import torch

from gptlit.insight.attention import attention_maps
from gptlit.insight.lens import logit_lens
from gptlit.look import content
from gptlit.model.gpt import GPT, GPTConfig
from gptlit.tokenizers.base import TokenizerOptions
from gptlit.tokenizers.bytepair import BytePairTokenizer
from gptlit.tokenizers.characters import CharTokenizer

TOKENIZER = CharTokenizer("\n abcdefg")
IDS = [0, 3, 4, 4, 1, 8, 2]


def net(vocab_size: int = TOKENIZER.vocab_size, **options: object) -> GPT:
    torch.manual_seed(1)
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 16, "init": "unit"}
    return GPT(GPTConfig(vocab_size=vocab_size, **{**sizes, **options})).eval()  # type: ignore[arg-type]  # any option


@torch.no_grad()
def test_probabilities_ranks_and_layers() -> None:
    model = net()
    values = content.content(model, TOKENIZER, IDS, True)
    assert json.loads(json.dumps(values, allow_nan=False))["ids"] == IDS
    shares = model(torch.tensor([IDS]))[0].softmax(-1)  # (7, 9)
    own = [shares[i, id_].item() for i, id_ in enumerate(IDS[1:])]
    assert values["nats"] == pytest.approx([-math.log(share) for share in own], rel=1e-3)
    ranks = [(shares[i] > own[i]).sum().item() + 1 for i in range(6)]
    assert values["rank"] == ranks
    entropies = -(shares * shares.log()).sum(-1)
    assert values["entropy"] == pytest.approx(entropies.tolist(), rel=1e-3)
    order = shares.argsort(descending=True)
    assert values["best"]["ids"] == order.tolist()  # the vocabulary is smaller than ALTERNATIVES
    sizes = shares.gather(1, order)
    for row, wanted in zip(values["best"]["probability"], sizes.tolist(), strict=True):
        assert row == pytest.approx(wanted, rel=1e-3)
    assert len(values["lens"]) == 3
    for layer, logits in zip(values["lens"], logit_lens(model, torch.tensor(IDS)), strict=True):
        shares = logits.softmax(-1)
        assert layer["ids"] == shares.argsort(descending=True)[:, : content.LENS].tolist()
        assert layer["next"] == pytest.approx(
            [shares[i, id_].item() for i, id_ in enumerate(IDS[1:])], rel=1e-3
        )
    assert values["lens"][-1]["next"] == pytest.approx(own, rel=1e-3)


def test_maps_are_rounded_to_8_bits() -> None:
    model = net(n_kv_head=1, positions="rotary")
    values = content.content(model, TOKENIZER, IDS, True)
    maps = attention_maps(model, torch.tensor(IDS))
    bytes_ = np.frombuffer(base64.b64decode(values["maps"]), np.uint8).reshape(2, 2, -1)
    assert (values["layers"], values["heads"]) == (2, 2)
    assert bytes_.shape[2] == 7 * 8 // 2
    for query in range(7):
        for key in range(query + 1):
            shown = bytes_[:, :, query * (query + 1) // 2 + key] / 255
            assert np.abs(shown - maps[:, :, query, key].numpy()).max() <= 0.5001 / 255


def test_neighbours_and_names() -> None:
    model = net()
    values = content.content(model, TOKENIZER, IDS, True)
    assert sorted(values["near"]) == sorted({*IDS})
    own = torch.nn.functional.cosine_similarity(
        model.wte.weight[3], model.wte.weight[values["near"][3]["ids"]]
    )
    assert values["near"][3]["cosine"] == pytest.approx(own.tolist(), rel=1e-3)
    assert 3 not in values["near"][3]["ids"]
    assert values["tokens"] == dict(enumerate(["⏎", "␣", *"abcdefg"]))
    assert values["pieces"] == list("bcc ga")


def test_parts_of_characters_have_names_and_pieces() -> None:
    tokenizer = BytePairTokenizer.train(["é"], TokenizerOptions(kind="bpe", vocab_size=257))
    ids = tokenizer.encode("aé").tolist()
    values = content.content(net(tokenizer.vocab_size), tokenizer, ids, False)
    assert values["pieces"] == ["a", "", "é"]
    assert [values["tokens"][id_] for id_ in ids] == ["a", "\\xc3", "\\xa9"]


@pytest.mark.parametrize("options", [{"mixer": "none"}, {"n_layer": 0}])
def test_a_model_without_attention_has_no_maps(options: dict[str, object]) -> None:
    values = content.content(net(**options), TOKENIZER, [3], False)
    assert (values["layers"], values["maps"], values["nats"]) == (0, "", [])
    assert len(values["best"]["ids"]) == 1


def test_the_tokens_of_a_page_fit_its_size() -> None:
    assert content.most_tokens(net()) == 16
    assert content.most_tokens(net(block_size=4096)) == content.MOST_TOKENS
    many = net(n_layer=40, n_head=40, n_embd=40, block_size=512)
    n = content.most_tokens(many)
    n_maps = 40 * 40
    assert n_maps * content.triangle(n) <= content.MAP_BYTES < n_maps * content.triangle(n + 1)


def test_the_start_of_a_text() -> None:
    assert content.start_of(TOKENIZER) == 0
    assert content.start_of(CharTokenizer("ab", ["<EOS>"], eos=True)) == 0
    assert content.start_of(CharTokenizer("ab")) is None
