"""Exported models in transformers, at tiny random sizes: equal logits, and equal greedy texts.

In an environment of its own, by `make parity`.
"""

import dataclasses
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gptlit.exports.hub_classes import CLASSES, holding
from gptlit.exports.hub_folder import write_hugging_face
from gptlit.model.gpt import GPT, GPTConfig, KVCache
from gptlit.tokenizers.characters import CharTokenizer

transformers = pytest.importorskip("transformers", reason="runs with `make parity`")
WITHIN = 1e-5
CHARACTERS = CharTokenizer("".join(sorted(set("abcdefghijklmnopqrstuvwxyz .,\n"))))
TINY = GPTConfig(
    vocab_size=CHARACTERS.vocab_size,
    n_layer=2,
    n_head=4,
    n_embd=32,
    block_size=24,
    positions="rotary",
    norm="rms",
    activation="swiglu",
    bias=False,
    tie_weights=False,
)
UNGATED = {"activation": "relu2"}
LAYER = {"norm": "layer"}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


def made(config: GPTConfig) -> GPT:
    """A model without weights of zero or one."""
    torch.manual_seed(1)
    model = GPT(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def ids_of(config: GPTConfig, length: int) -> Tensor:
    return torch.randint(config.vocab_size, (3, length))


@torch.no_grad()
def greedy(model: GPT, prompt: Tensor, n: int) -> Tensor:
    cache = KVCache(model.config, prompt.size(0), model.wte.weight)
    ids, new = prompt, prompt
    for _ in range(n):
        new = model(new, cache, last=True)[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat([ids, new], dim=1)
    return ids


def check(model: GPT, folder: Path, expected: str) -> Any:
    """Export a model, and compare it with what transformers loads."""
    config = model.config
    assert write_hugging_face(model, CHARACTERS, folder) == expected
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, output_loading_info=True
    )
    assert type(theirs).__name__ == expected
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = ids_of(config, config.block_size)
    with torch.no_grad():
        ours = model(ids)
        given = theirs.eval()(ids, use_cache=False).logits
        assert float((ours - given).abs().max()) < WITHIN
        prompt = ids[:, :5]
        n = config.block_size - 5
        text = theirs.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=n,
            pad_token_id=0,
        )
    assert text.tolist() == greedy(model, prompt, n).tolist()
    return theirs


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "LlamaForCausalLM"),
        ({"n_kv_head": 2, "tie_weights": True, "position_base": 500.0}, "LlamaForCausalLM"),
        ({"n_kv_head": 1, "bias": True, "norm_eps": 1e-3}, "LlamaForCausalLM"),
        ({"norm_weight": False, "attn_proj": False, "mlp_hidden": 40}, "LlamaForCausalLM"),
        ({"qk_norm": True, "n_kv_head": 2}, "Qwen3ForCausalLM"),
        ({"qk_norm": True, "norm_weight": False, "tie_weights": True}, "Qwen3ForCausalLM"),
        ({"positions": "none", "bias": True}, "SmolLM3ForCausalLM"),
        ({**UNGATED, "n_kv_head": 2, "bias": True}, "ArceeForCausalLM"),
        ({"activation": "gelu", "tie_weights": True}, "ArceeForCausalLM"),
        ({**UNGATED, "qk_norm": True}, "ApertusForCausalLM"),
        ({"activation": "gelu_tanh", "qk_norm": True, "n_kv_head": 2}, "ApertusForCausalLM"),
        ({"logit_softcap": 5.0, "n_kv_head": 2}, "VaultGemmaForCausalLM"),
        ({"logit_softcap": 3.0, "tie_weights": True}, "VaultGemmaForCausalLM"),
        ({**UNGATED, **LAYER}, "NemotronForCausalLM"),
        ({**UNGATED, **LAYER, "bias": True, "n_kv_head": 1}, "NemotronForCausalLM"),
        ({**UNGATED, **LAYER, "norm_weight": False}, "NemotronForCausalLM"),
        ({**LAYER, "activation": "gelu", "bias": True}, "Starcoder2ForCausalLM"),
        ({**LAYER, "activation": "relu", "n_kv_head": 2}, "Starcoder2ForCausalLM"),
        (LAYER, "StableLmForCausalLM"),
        ({**LAYER, "n_kv_head": 2, "tie_weights": True}, "StableLmForCausalLM"),
        (
            {**LAYER, "positions": "learned", "activation": "gelu", "bias": True},
            "GPT2LMHeadModel",
        ),
        (
            {**LAYER, "positions": "learned", "activation": "relu2", "norm_weight": False,
             "attn_proj": False, "n_positions": 30},
            "GPT2LMHeadModel",
        ),
        ({"token_shift": 3, **UNGATED, **LAYER, "norm_weight": False}, "GPTLitForCausalLM"),
        ({"token_shift": 1, "n_kv_head": 2, "logit_softcap": 4.0}, "GPTLitForCausalLM"),
        ({"norm_place": "post", "positions": "sinusoidal", "bias": True}, "GPTLitForCausalLM"),
        ({"positions": "learned", "head_bias": True, "tie_weights": True}, "GPTLitForCausalLM"),
        ({"mixer": "none", "positions": "learned"}, "GPTLitForCausalLM"),
        ({"mixer": "none", "positions": "learned", "n_layer": 0}, "GPTLitForCausalLM"),
        ({"token_dropout": 0.1, "token_noise": 0.1, "token_shift": 2}, "GPTLitForCausalLM"),
    ],
    ids=str,
)  # fmt: skip
def test_an_exported_model_computes_the_same(
    tmp_path: Path, options: dict[str, Any], expected: str
) -> None:
    check(made(dataclasses.replace(TINY, **options)), tmp_path / "folder", expected)


CONFIGS = st.builds(
    dict,
    n_layer=st.integers(1, 3),
    n_kv_head=st.sampled_from([None, 1, 2, 4]),
    mlp_hidden=st.integers(1, 70),
    positions=st.sampled_from(["rotary", "rotary", "rotary", "learned", "none", "sinusoidal"]),
    position_base=st.floats(10, 1e6),
    norm=st.sampled_from(["layer", "rms"]),
    norm_weight=st.booleans(),
    norm_eps=st.sampled_from([1e-6, 1e-5, 1e-2]),
    qk_norm=st.sampled_from([False, False, True]),
    activation=st.sampled_from(["gelu", "gelu_tanh", "relu", "relu2", "swiglu", "swiglu"]),
    bias=st.booleans(),
    attn_proj=st.booleans(),
    tie_weights=st.booleans(),
    head_bias=st.sampled_from([False, False, False, True]),
    logit_softcap=st.sampled_from([None, None, None, 4.0]),
    token_shift=st.sampled_from([0, 0, 0, 2]),
)


@pytest.mark.timeout(300)
@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
@given(options=CONFIGS)
def test_any_config_computes_the_same(
    tmp_path_factory: pytest.TempPathFactory, options: dict[str, Any]
) -> None:
    config = dataclasses.replace(TINY, **options)
    kind = holding(config)
    expected = kind.architecture if kind else "GPTLitForCausalLM"
    check(made(config), tmp_path_factory.mktemp("config") / "folder", expected)


def test_each_class_is_one_of_transformers() -> None:
    for kind in CLASSES:
        found = getattr(transformers, kind.architecture)
        assert found.config_class.model_type == kind.model_type
