"""Llama-class folders in Hugging Face's format; `make parity` compares them with transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from gptlit.checkpoints.init_from import start_from
from gptlit.checkpoints.llama_names import from_llama, from_llama_weights
from gptlit.checkpoints.weight_files import read_folder
from gptlit.messages import UsageError
from gptlit.model.gpt import GPT, GPTConfig
from tests.checkpoints.reference_models import llama_logits, random_llama

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 11,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 9,
    "rms_norm_eps": 1e-3,
    "rope_theta": 500.0,
}
IDS = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6, 5])
SIZES = (2, 16, 4, 2, 24, 11)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@torch.no_grad()
def logits(config: GPTConfig, state: dict[str, Tensor]) -> Tensor:
    model = GPT(config).eval()
    model.load_state_dict(state)
    return model(IDS[None])[0]


@pytest.mark.parametrize("kind", ["llama", "llama, tied", "qwen2", "qwen3", "newer names"])
def test_logits_equal_an_independent_model(kind: str) -> None:
    options, weights = dict(LLAMA), random_llama(*SIZES)
    if kind == "llama, tied":
        options["tie_word_embeddings"] = True
        del weights["lm_head.weight"]
    elif kind == "qwen2":
        options["model_type"] = "qwen2"
        for n, (name, rows) in [
            (n, each) for n in (0, 1) for each in zip("qkv", (16, 8, 8), strict=True)
        ]:
            weights[f"model.layers.{n}.self_attn.{name}_proj.bias"] = torch.randn(rows)
    elif kind == "qwen3":
        options |= {"model_type": "qwen3", "head_dim": 4}
        weights = random_llama(*SIZES, qk_norm=True)
    elif kind == "newer names":
        options["rope_parameters"] = {
            "rope_type": "default",
            "rope_theta": options.pop("rope_theta"),
        }
    config = from_llama(options)
    state = from_llama_weights(weights, config)
    expected = llama_logits(weights, IDS, 4, eps=1e-3, base=500.0)
    torch.testing.assert_close(logits(config, state), expected, atol=1e-5, rtol=1e-5)


def test_a_folder_of_bfloat16_shards_is_read(tmp_path: Path) -> None:
    weights = {name: each.bfloat16() for name, each in random_llama(*SIZES).items()}
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)  # of older files
    names = sorted(weights)
    shards = {f"model-0000{n + 1}-of-00002.safetensors": names[n::2] for n in range(2)}
    for filename, part in shards.items():
        safetensors.torch.save_file({name: weights[name] for name in part}, tmp_path / filename)
    index = {name: filename for filename, part in shards.items() for name in part}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    config, state, tokenizer = read_folder(tmp_path)
    assert tokenizer is None
    assert (config.block_size, config.kv_heads, config.activation) == (9, 2, "swiglu")
    single = {name: each.float() for name, each in weights.items()}
    expected = llama_logits(single, IDS, 4, eps=1e-3, base=500.0)
    torch.testing.assert_close(logits(config, state), expected, atol=1e-5, rtol=1e-5)

    (tmp_path / next(iter(shards))).unlink()
    with pytest.raises(UsageError, match="no model-00001-of-00002.safetensors in it"):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"head_dim": 8}, "head_dim 8: only hidden_size / num_attention_heads .* 16 / 4"),
        ({"hidden_act": "gelu"}, "hidden_act gelu: only silu"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "rope_type llama3: only default"),
        ({"rope_scaling": {"type": "linear"}}, "rope_type linear"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5: only 1.0"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window True"),
        ({"num_attention_heads": 3}, "n_embd 16: must be a multiple of n_head 3"),
        ({"num_key_value_heads": 3}, "n_kv_head 3: must divide"),
        ({"hidden_size": "16"}, "hidden_size '16': must be a whole number"),
        ({"hidden_size": -16}, "hidden_size -16: must be a whole number above 0"),
        ({"rope_theta": "x"}, "rope_theta 'x': must be a number"),
        ({"rope_parameters": [1]}, "rope_parameters"),
    ],
)
def test_a_missing_part_is_named(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        from_llama(LLAMA | change)


def test_mistral_is_read_within_its_window() -> None:
    mistral = LLAMA | {"model_type": "mistral", "sliding_window": 5}
    assert from_llama(mistral).block_size == 5
    assert from_llama(mistral | {"sliding_window": None}).block_size == 9


def test_wrong_weights_are_refused() -> None:
    config, weights = from_llama(LLAMA), random_llama(*SIZES)
    name = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(UsageError, match=rf"lack {name}, of shape \(24, 16\)"):
        from_llama_weights({key: each for key, each in weights.items() if key != name}, config)
    with pytest.raises(UsageError, match=rf"{name} is of shape \(3, 16\)"):
        from_llama_weights(weights | {name: weights[name][:3]}, config)
    with pytest.raises(UsageError, match="have model.extra, which a GPT"):
        from_llama_weights(weights | {"model.extra": torch.ones(1)}, config)
    with pytest.raises(UsageError, match="not finite"):
        from_llama_weights(weights | {name: weights[name] / 0}, config)


def test_sizes_beyond_the_weights_take_no_memory(tmp_path: Path) -> None:
    large = LLAMA | {"num_hidden_layers": 2**31 - 1}
    with pytest.raises(UsageError, match=r"lack model\.layers\.2\.input_layernorm"):
        from_llama_weights(random_llama(*SIZES), from_llama(large))
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"hidden_size": 2**30}))
    safetensors.torch.save_file(random_llama(*SIZES), tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match=r"embed_tokens.weight is of shape \(11, 16\)"):
        read_folder(tmp_path)


def test_other_models_are_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma2"}))
    with pytest.raises(
        UsageError, match="init_from .*: config.json: model_type 'gemma2': only gpt2, "
    ):
        start_from(str(tmp_path), tmp_path)
