"""LoRA adapters in peft's format; `make parity` loads them in peft."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from gptlit.checkpoints import adapters
from gptlit.checkpoints.weight_shapes import for_writing
from gptlit.messages import UsageError
from gptlit.model.gpt import GPT, GPTConfig
from tests.model.test_lora import TINY, random_changes

LLAMA = {
    "norm": "rms", "positions": "rotary", "activation": "swiglu", "bias": False, "n_kv_head": 1,
}  # fmt: skip


def written(folder: Path, **options: Any) -> tuple[GPT, GPT]:
    """A model with changes, whose adapter is written, and a copy without them."""
    config = GPTConfig(**{**vars(TINY), **options})
    model = random_changes(GPT(config).eval())
    adapters.write(config, model.state_dict(), folder, base="base")
    plain = GPT(GPTConfig(**{**vars(config), "lora_r": 0})).eval()
    state = plain.state_dict()
    plain.load_state_dict({name: model.state_dict()[name] for name in state})
    return model, plain


@pytest.mark.parametrize("options", [{}, LLAMA, {"norm": "rms"}])
@torch.no_grad()
def test_an_adapter_gives_the_model_back(tmp_path: Path, options: dict[str, Any]) -> None:
    model, plain = written(tmp_path / "a", **options)
    before = {name: each.clone() for name, each in plain.state_dict().items()}
    adapters.apply(plain, tmp_path / "a")
    _, expected = for_writing(model.config, model.state_dict())
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=1e-6)
        is_changed = name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
        assert torch.equal(tensor, before[name]) != is_changed


def test_names_and_options_are_pefts(tmp_path: Path) -> None:
    model, _ = written(tmp_path / "gpt2")
    options = json.loads((tmp_path / "gpt2" / adapters.CONFIG).read_text())
    assert options["target_modules"] == ["c_attn", "c_fc", "c_proj"]
    assert (options["r"], options["lora_alpha"], options["fan_in_fan_out"]) == (2, 6.0, True)
    assert options["base_model_name_or_path"] == "base"
    tensors = safetensors.torch.load_file(tmp_path / "gpt2" / adapters.WEIGHTS)
    name = "base_model.model.transformer.h.1.mlp.c_proj.lora_B.weight"
    assert torch.equal(tensors[name], model.get_parameter("h.1.mlp.c_proj.lora_B"))
    assert len(tensors) == 2 * 4 * 2
    model, _ = written(tmp_path / "llama", **LLAMA)
    tensors = safetensors.torch.load_file(tmp_path / "llama" / adapters.WEIGHTS)
    at = "base_model.model.model.layers.0.self_attn."
    first = model.get_parameter("h.0.attn.c_attn.lora_A")
    rows = model.get_parameter("h.0.attn.c_attn.lora_B")
    assert torch.equal(tensors[f"{at}v_proj.lora_A.weight"], first)
    assert torch.equal(tensors[f"{at}k_proj.lora_B.weight"], rows[8:12])
    assert len(tensors) == 2 * 7 * 2


def edited(folder: Path, **changes: Any) -> None:
    path = folder / adapters.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3': only LORA is read"),
        ({"use_rslora": True}, "use_rslora True"),
        ({"bias": "all"}, "bias 'all': only none"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save: adapters with it aren't read"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4': changes the"),
        ({"alora_invocation_tokens": [3]}, "alora_invocation_tokens: adapters with it"),
        ({"r": 0}, "r 0: must be 1 or more"),
        ({"r": "8"}, "r '8'"),
    ],
)
def test_other_adapters_are_refused(tmp_path: Path, changes: Any, reason: str) -> None:
    _, plain = written(tmp_path / "a")
    edited(tmp_path / "a", **changes)
    with pytest.raises(UsageError, match=f"adapter .*a: .*{reason}"):
        adapters.apply(plain, tmp_path / "a")


def test_another_models_adapter_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    written(tmp_path / "a")
    for options, reason in (
        (
            {"n_embd": 16},
            r"another model: h.0.attn.c_attn.weight of 24 x 8, and the model's has 48 x 16",
        ),
        ({"n_layer": 1}, r"changes transformer.h.1.attn.c_attn, which the model doesn't have"),
    ):
        other = GPT(GPTConfig(**{**vars(TINY), "lora_r": 0, **options}))  # type: ignore[arg-type]
        before = {name: each.clone() for name, each in other.state_dict().items()}
        with pytest.raises(UsageError, match=reason):
            adapters.apply(other, tmp_path / "a")
        assert all(torch.equal(each, before[name]) for name, each in other.state_dict().items())


def test_an_adapter_of_other_weights_is_warned_about(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, plain = written(tmp_path / "a")
    state = {name: each.clone() for name, each in plain.state_dict().items()}
    plain.to(torch.bfloat16)  # the same weights, rounded
    adapters.apply(plain, tmp_path / "a")
    assert capsys.readouterr().err == ""
    adapters.apply(plain, tmp_path / "a")  # a second time
    assert "was trained on other weights than this model's" in capsys.readouterr().err
    other = GPT(plain.config)
    adapters.adapted(other, tmp_path / "a")
    assert "was trained on other weights" in capsys.readouterr().err
    state["ln_f.weight"] += 1  # which it leaves alone
    other.load_state_dict(state)
    adapters.apply(other, tmp_path / "a")
    assert capsys.readouterr().err == ""
    with pytest.raises(UsageError, match="has changes by LoRA already; gptlit merge"):
        adapters.apply(model, tmp_path / "a")


def test_torn_and_missing_files(tmp_path: Path) -> None:
    _, plain = written(tmp_path / "a")
    path = tmp_path / "a" / adapters.WEIGHTS
    tensors = safetensors.torch.load_file(path)
    name = "base_model.model.transformer.h.0.attn.c_attn.lora_B.weight"
    for change, reason in (
        ({name: tensors[name] / 0}, "is not finite"),
        ({name: tensors[name][:, :1].contiguous()}, "lora_A and lora_B don't fit"),
        ({"x.weight": tensors[name].clone()}, "x.weight: only lora_A and lora_B are read"),
    ):
        safetensors.torch.save_file({**tensors, **change}, path)
        with pytest.raises(UsageError, match=reason):
            adapters.apply(plain, tmp_path / "a")
    path.write_bytes(b"torn")
    with pytest.raises(UsageError, match="torn, or not a safetensors file"):
        adapters.apply(plain, tmp_path / "a")
    with pytest.raises(UsageError, match=r"no adapter_config\.json in it"):
        adapters.apply(plain, tmp_path)
    with pytest.raises(UsageError, match="trained without LoRA"):
        adapters.write(plain.config, plain.state_dict(), tmp_path / "b", None)
