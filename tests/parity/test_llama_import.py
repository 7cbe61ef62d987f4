"""Llama-class models and nanochat's, as transformers writes them, against gptlit's GPT."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gptlit.checkpoints.nanochat import _config, _from_nanochat
from gptlit.checkpoints.weight_files import read_folder
from gptlit.model.gpt import GPT

transformers = pytest.importorskip("transformers", reason="runs with `make parity`")
SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 16,
}
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("Llama", {}),
    ("Llama", {"tie_word_embeddings": True, "rms_norm_eps": 1e-3, "num_key_value_heads": 4}),
    ("Llama", {"attention_bias": True, "mlp_bias": True, "rope_theta": 500.0}),
    ("Mistral", {"sliding_window": None}),
    ("Qwen2", {}),
    ("Qwen3", {"head_dim": 8, "tie_word_embeddings": True}),
]


@torch.no_grad()
def perturbed(model: Any) -> Any:
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model.eval()


@torch.no_grad()
def assert_same_logits(config: Any, state: dict[str, Tensor], theirs: Any) -> None:
    ours = GPT(config).eval()
    ours.load_state_dict(state)
    ids = torch.randint(config.vocab_size, (3, config.block_size))
    torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_a_folder_of_transformers(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    made = getattr(transformers, f"{kind}Config")(**{**SIZES, **options})
    theirs = perturbed(getattr(transformers, f"{kind}ForCausalLM")(made))
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    config, state, _ = read_folder(tmp_path)
    assert_same_logits(config, state, theirs)


def test_nanochat() -> None:
    eps = torch.finfo(torch.float32).eps
    made = transformers.NanoChatConfig(
        **{**SIZES, "intermediate_size": 128}, rms_norm_eps=eps, final_logit_softcapping=15.0
    )
    theirs = perturbed(transformers.NanoChatForCausalLM(made))
    names = {"model.embed_tokens": "transformer.wte", "model.layers": "transformer.h",
             "self_attn.o_proj": "attn.c_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
             **{f"self_attn.{name}_proj": f"attn.c_{name}" for name in "qkv"}}  # fmt: skip
    state = {}
    for name, tensor in theirs.state_dict().items():
        for their_name, ours in names.items():
            name = name.replace(their_name, ours)
        state[name] = tensor
    config = _config(
        {"sequence_len": 16, "vocab_size": 40, "n_layer": 3, "n_head": 4, "n_kv_head": 2,
         "n_embd": 32}
    )  # fmt: skip
    assert_same_logits(config, _from_nanochat(state, config), theirs)
