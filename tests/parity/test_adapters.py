"""LoRA adapters that gptlit writes, in peft over transformers' classes, and the other way round."""

from pathlib import Path
from typing import Any

import pytest
import torch

from gptlit.checkpoints import adapters
from gptlit.checkpoints.weight_files import read_folder
from gptlit.exports.hub_folder import write_hugging_face
from gptlit.model.gpt import GPT, GPTConfig
from gptlit.tokenizers.characters import CharTokenizer
from tests.checkpoints.test_adapters import LLAMA, written

transformers = pytest.importorskip("transformers", reason="runs with `make parity`")
peft = pytest.importorskip("peft", reason="runs with `make parity`")
IDS = torch.tensor([[1, 5, 3, 2, 7, 0]])


@pytest.mark.parametrize("options", [{}, LLAMA])
@torch.no_grad()
def test_peft_computes_the_same(tmp_path: Path, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, plain = written(tmp_path / "adapter", **options)
    write_hugging_face(plain, CharTokenizer("abcdefghijk"), tmp_path / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(theirs(IDS).logits, model(IDS), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["GPT2", "Llama"])
@torch.no_grad()
def test_pefts_adapter_is_read(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    if kind == "GPT2":
        made = transformers.GPT2Config(vocab_size=11, n_embd=8, n_layer=2, n_head=2, n_positions=6)
        targets = ["c_attn", "c_proj"]
    else:
        made = transformers.LlamaConfig(
            vocab_size=11, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=12, max_position_embeddings=6,
        )  # fmt: skip
        targets = ["q_proj", "v_proj", "up_proj"]
    base = getattr(transformers, f"{kind}LMHeadModel" if kind == "GPT2" else "LlamaForCausalLM")(
        made
    )
    base.save_pretrained(tmp_path / "base")
    options = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=targets, fan_in_fan_out=kind == "GPT2",
        init_lora_weights=False,
    )  # fmt: skip
    theirs = peft.get_peft_model(base, options).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    config, state, _ = read_folder(tmp_path / "base")
    ours = GPT(config).eval()
    ours.load_state_dict(state)
    assert isinstance(config, GPTConfig)
    adapters.apply(ours, tmp_path / "adapter")
    torch.testing.assert_close(ours(IDS), theirs(IDS).logits, atol=1e-5, rtol=1e-5)
