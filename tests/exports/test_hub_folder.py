"""Folders for transformers, without transformers; tests/parity compares the computed numbers."""

import ast
import dataclasses
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gptlit.checkpoints import checkpoint
from gptlit.checkpoints.tokenizer_files import write
from gptlit.checkpoints.weight_files import read_folder
from gptlit.exports import own_code
from gptlit.exports.hub_classes import CLASSES, holding, nearest, written_out
from gptlit.exports.hub_folder import write_hugging_face
from gptlit.messages import with_option_names
from gptlit.model.config import GPTConfig
from gptlit.model.gpt import GPT
from gptlit.tokenizers.characters import CharTokenizer
from gptlit.tokenizers.hugging_face import JsonTokenizer
from tests.checkpoints.test_gpt2_names import made
from tests.conftest import Result, Run
from tests.tokenizers.test_hugging_face import as_llama

CHARACTERS = CharTokenizer("abcdefg", ["<EOS>"], eos=True)
LLAMA = GPTConfig(
    8,
    n_layer=1,
    n_head=4,
    n_kv_head=2,
    n_embd=16,
    mlp_hidden=24,
    block_size=12,
    positions="rotary",
    position_base=500.0,
    norm="rms",
    norm_eps=1e-6,
    activation="swiglu",
    bias=False,
    tie_weights=False,
)


def exported(folder: Path, **options: Any) -> tuple[GPT, dict[str, Any], dict[str, torch.Tensor]]:
    model = made(dataclasses.replace(LLAMA, **options))
    write_hugging_face(model, CHARACTERS, folder / "out")
    config = json.loads((folder / "out" / "config.json").read_text())
    return model, config, load_file(folder / "out" / "model.safetensors")


def test_llamas_options_and_weights(tmp_path: Path) -> None:
    model, config, weights = exported(tmp_path)
    expected = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 8,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "hidden_act": "silu",
        "max_position_embeddings": 12,
        "rms_norm_eps": 1e-6,
        "rope_theta": 500.0,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "eos_token_id": 0,
        "bos_token_id": None,
        "dtype": "float32",
    }
    assert expected.items() <= config.items()
    assert config["rope_parameters"]["rope_theta"] == 500.0
    block, ours = "model.layers.0.", model.state_dict()
    c_attn, c_fc = ours["h.0.attn.c_attn.weight"], ours["h.0.mlp.c_fc.weight"]
    by_hand = {
        "model.embed_tokens.weight": ours["wte.weight"],
        f"{block}input_layernorm.weight": ours["h.0.ln_1.weight"],
        f"{block}self_attn.q_proj.weight": c_attn[:16],
        f"{block}self_attn.k_proj.weight": c_attn[16:24],
        f"{block}self_attn.v_proj.weight": c_attn[24:],
        f"{block}self_attn.o_proj.weight": ours["h.0.attn.c_proj.weight"],
        f"{block}post_attention_layernorm.weight": ours["h.0.ln_2.weight"],
        f"{block}mlp.gate_proj.weight": c_fc[:24],
        f"{block}mlp.up_proj.weight": c_fc[24:],
        f"{block}mlp.down_proj.weight": ours["h.0.mlp.c_proj.weight"],
        "model.norm.weight": ours["ln_f.weight"],
        "lm_head.weight": ours["lm_head.weight"],
    }
    assert weights.keys() == by_hand.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in by_hand.items())


def test_weights_that_gptlit_omits_are_written_out(tmp_path: Path) -> None:
    _, config, weights = exported(
        tmp_path, norm_weight=False, attn_proj=False, tie_weights=True, n_kv_head=None
    )
    assert config["tie_word_embeddings"]
    assert "lm_head.weight" not in weights
    assert torch.equal(weights["model.norm.weight"], torch.ones(16))
    assert torch.equal(weights["model.layers.0.self_attn.o_proj.weight"], torch.eye(16))
    own = json.loads((tmp_path / "out" / "gptlit.json").read_text())
    assert own["config"]["norm_weight"]


@pytest.mark.parametrize("options", [{}, {"bias": True, "norm": "layer"}, {"qk_norm": True}])
def test_writing_out_changes_no_number(options: dict[str, Any]) -> None:
    ours = made(dataclasses.replace(LLAMA, norm_weight=False, attn_proj=False, **options))
    config, state = written_out(ours.config, ours.state_dict())
    model = GPT(config).eval()
    model.load_state_dict(state)
    ids = torch.randint(8, (2, 12))
    torch.testing.assert_close(model(ids), ours(ids), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("options", "architecture"),
    [
        ({"qk_norm": True}, "Qwen3ForCausalLM"),
        ({"qk_norm": True, "bias": True}, None),
        ({"positions": "none"}, "SmolLM3ForCausalLM"),
        ({"activation": "relu2"}, "ArceeForCausalLM"),
        ({"activation": "relu2", "qk_norm": True}, "ApertusForCausalLM"),
        ({"logit_softcap": 15.0}, "VaultGemmaForCausalLM"),
        ({"logit_softcap": 15.0, "bias": True}, None),
        ({"norm": "layer"}, "StableLmForCausalLM"),
        ({"norm": "layer", "activation": "relu2"}, "NemotronForCausalLM"),
        ({"norm": "layer", "activation": "gelu"}, "Starcoder2ForCausalLM"),
        ({"norm": "layer", "activation": "gelu", "positions": "learned", "n_kv_head": None},
         "GPT2LMHeadModel"),
        ({"norm": "layer", "activation": "gelu", "positions": "learned"}, None),
        ({"token_shift": 1}, None),
        ({"head_bias": True}, None),
        ({"norm_place": "post"}, None),
        ({"positions": "sinusoidal"}, None),
    ],
    ids=str,
)  # fmt: skip
def test_the_class_of_a_config(options: dict[str, Any], architecture: str | None) -> None:
    config = dataclasses.replace(LLAMA, **options)
    kind = holding(config)
    assert (kind and kind.architecture) == architecture


def test_each_class_is_needed() -> None:
    """Each is the first to hold some config."""
    variants: list[dict[str, Any]] = [
        {"norm": norm, "activation": act, "qk_norm": qk, "positions": place, "logit_softcap": cap}
        for norm in ("layer", "rms")
        for act in ("gelu", "relu2", "swiglu")
        for qk in (False, True)
        for place in ("rotary", "learned", "none")
        for cap in (None, 5.0)
    ]
    plain = dataclasses.replace(LLAMA, n_kv_head=None)
    found = {holding(dataclasses.replace(plain, **each)) for each in variants}
    assert found == {*CLASSES, None}


def test_a_model_of_no_class_has_its_own_code_and_a_line_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, config, weights = exported(
        tmp_path, token_shift=2, norm="layer", activation="relu2", tie_weights=True
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert "token_shift 2 stands in the way of NemotronForCausalLM" in line
    assert "trust_remote_code=True" in line
    assert config["auto_map"]["AutoModelForCausalLM"] == "modeling_gptlit.GPTLitForCausalLM"
    assert config["token_shift"] == 2
    assert weights.keys() == {f"gpt.{name}" for name in model.state_dict()} - {"gpt.lm_head.weight"}
    written = (tmp_path / "out" / "modeling_gptlit.py").read_text()
    assert written == own_code.source()


@pytest.mark.parametrize("options", [{}, {"qk_norm": True}, {"token_shift": 2, "bias": True}])
def test_a_folder_reads_back_bit_for_bit(tmp_path: Path, options: dict[str, Any]) -> None:
    model, _, _ = exported(tmp_path, **options)
    config, state, tokenizer = read_folder(tmp_path / "out")
    assert config == model.config
    assert tokenizer is not None
    assert tokenizer.state() == CHARACTERS.state()
    assert all(torch.equal(state[name], each) for name, each in model.state_dict().items())


def test_a_tokenizer_of_a_published_model_is_written_as_it_was(tmp_path: Path) -> None:
    content = as_llama()
    write(JsonTokenizer("x", content, 512), tmp_path, 8)
    assert json.loads((tmp_path / "tokenizer.json").read_text()) == json.loads(content)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["eos_token"] == "</s>"


def test_the_nearest_class_lacks_the_fewest_options() -> None:
    kind, options = nearest(dataclasses.replace(LLAMA, token_shift=1, head_bias=True))
    assert kind.model_type == "llama"
    assert with_option_names(options) == "head_bias true, token_shift 1"


def test_the_written_code_is_whole_and_needs_only_torch_and_transformers() -> None:
    tree = ast.parse(own_code.source())
    modules = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name) or ""
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
    }
    found = {name.partition(".")[0] for name in modules}
    assert found >= {"torch", "transformers"}
    assert found - {"torch", "transformers"} <= sys.stdlib_module_names
    assert "gptlit." not in own_code.source().partition('"""\n')[2]
    # transformers itself isn't here; everything above its frame runs as it stands
    plain = [
        node
        for node in tree.body
        if not (isinstance(node, ast.ImportFrom) and (node.module or "").startswith("transformers"))
    ]
    names = [getattr(node, "name", "") for node in plain]
    frame = names.index("GPTLitConfig")
    made_here: dict[str, Any] = {"__name__": "plain"}
    sys.modules["plain"] = types.ModuleType("plain")  # which dataclasses look up
    exec(compile(ast.Module(plain[:frame], []), "plain", "exec"), made_here)
    del sys.modules["plain"]
    ours = made(dataclasses.replace(LLAMA, token_shift=2, qk_norm=True))
    options = dataclasses.asdict(ours.config)
    model = made_here["GPT"](made_here["GPTConfig"](**options)).eval()
    model.load_state_dict(ours.state_dict())
    ids = torch.randint(8, (2, 12))
    assert torch.equal(model(ids), ours(ids))


@pytest.mark.parametrize(("dtype", "size"), [("f32", 4), ("f16", 2), ("bf16", 2)])
def test_types_of_weights(gptlit: Callable[..., Result], run: Run, dtype: str, size: int) -> None:
    path = run.folder / "checkpoints" / "last.ckpt"
    result = gptlit("export", path, "out", "--dtype", dtype)
    assert result.code == 0, result.err
    weights = load_file("out/model.safetensors")
    assert {tensor.element_size() for tensor in weights.values()} == {size}
    config = json.loads(Path("out/config.json").read_text())
    assert config["dtype"] == str(next(iter(weights.values())).dtype).removeprefix("torch.")


def test_a_file_of_torch_is_plain_data(gptlit: Callable[..., Result], run: Run) -> None:
    path = run.folder / "checkpoints" / "last.ckpt"
    assert gptlit("export", path, "out", "--format=torch").code == 0
    content = torch.load("out/model.pt", weights_only=True)
    model, tokenizer = checkpoint.load(path)
    assert GPTConfig(**content["config"]) == model.config
    assert content["tokenizer"] == tokenizer.state()
    assert all(
        torch.equal(tensor, model.state_dict()[name])
        for name, tensor in content["state_dict"].items()
    )


def test_onnx_without_its_packages(
    gptlit: Callable[..., Result], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    path = run.folder / "checkpoints" / "last.ckpt"
    result = gptlit("export", path, "out", "--format=onnx")
    assert result.code == 2
    assert "--format onnx: needs the packages onnx and onnxscript: pip install" in result.err
    assert "--dtype f16: --format onnx has f32 only" in (
        gptlit("export", path, "out", "--format=onnx", "--dtype=f16").err
    )
    assert not list(Path().glob("*out*"))
