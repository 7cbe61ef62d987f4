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

from gptlit.exports import gguf_file, onnx_graphs
from gptlit.exports.hub_classes import CLASSES, holding
from gptlit.exports.hub_folder import write_hugging_face
from gptlit.model.gpt import GPT, GPTConfig, KVCache
from gptlit.tokenizers.base import Tokenizer
from gptlit.tokenizers.characters import CharTokenizer
from tests.exports.test_tokenizers import CL100K, PARTS
from tests.exports.test_tokenizers import trained as of_pattern
from tests.parity.test_transformers import TEXTS, TOKENIZERS

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


# ---------------------------------------------------------------------- llama.cpp

LLAMA_CPP = [
    ({}, "llama", 1e-3),
    ({"n_kv_head": 2, "tie_weights": True, "position_base": 500.0}, "llama", 1e-3),
    ({"bias": True, "n_kv_head": 1, "norm_eps": 1e-3}, "llama", 1e-3),
    ({"norm_weight": False, "attn_proj": False, "mlp_hidden": 40}, "llama", 1e-3),
    ({"qk_norm": True, "n_kv_head": 2}, "qwen3", 1e-3),
    ({**UNGATED, "n_kv_head": 2, "tie_weights": True}, "arcee", 1e-3),
    ({**UNGATED, **LAYER, "norm_weight": False}, "nemotron", 1e-3),
    ({**UNGATED, **LAYER, "bias": True, "tie_weights": True}, "nemotron", 1e-3),
    (LAYER, "stablelm", 1e-3),
    # its table of gelu has half precision
    ({**LAYER, "activation": "gelu_tanh", "bias": True, "n_kv_head": 2}, "starcoder2", 5e-3),
    ({**LAYER, "activation": "gelu_tanh", "positions": "learned", "bias": True}, "gpt2", 5e-3),
    (
        {**LAYER, "activation": "gelu", "positions": "learned", "n_positions": 70,
         "tie_weights": True},
        "gpt2",
        5e-3,
    ),
]  # fmt: skip
# 128 channels, since blocks of q8_0 have 32 numbers
FOR_LLAMA_CPP = dataclasses.replace(TINY, n_embd=128, block_size=64)
PUBLISHED_END = CharTokenizer(CHARACTERS.characters + "é—🙂", ["<PAD>", "<EOS>"], eos=True)


def in_llama_cpp(model: GPT, tokenizer: Tokenizer, folder: Path, dtype: str = "f32") -> Any:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python isn't installed")
    gguf_file.fill(model, tokenizer, folder, dtype)
    defaults = llama_cpp.llama_model_default_params

    def without_amx() -> Any:
        # 8-bit weights of any origin crash it where a sandbox has AMX's instructions but not AMX
        params = defaults()
        params.use_extra_bufts = False
        return params

    llama_cpp.llama_cpp.llama_model_default_params = without_amx
    return llama_cpp.Llama(
        str(folder / gguf_file.FILENAME),
        n_ctx=model.config.block_size,
        logits_all=True,
        verbose=False,
        n_threads=1,
        type_k=0,  # keys and values in float32 too
        type_v=0,
        flash_attn=False,
    )


def logits_there(theirs: Any, ids: list[int], vocab_size: int) -> Tensor:
    theirs.reset()
    theirs.eval(ids)
    return torch.tensor(theirs.scores[: len(ids), :vocab_size].copy())


@pytest.mark.parametrize(("options", "architecture", "within"), LLAMA_CPP, ids=str)
def test_llama_cpp_computes_the_same(
    tmp_path: Path, options: dict[str, Any], architecture: str, within: float
) -> None:
    config = dataclasses.replace(FOR_LLAMA_CPP, **options)
    model = made(config)
    theirs = in_llama_cpp(model, CHARACTERS, tmp_path)
    assert theirs.metadata["general.architecture"] == architecture
    ids = ids_of(config, config.block_size)[:1]
    with torch.no_grad():
        apart = (model(ids)[0] - logits_there(theirs, ids[0].tolist(), config.vocab_size)).abs()
    assert float(apart.max()) < within
    prompt = CHARACTERS.decode(ids[0, :5].tolist())
    n = config.block_size - 5
    text = theirs.create_completion(prompt, max_tokens=n, temperature=0.0)["choices"][0]["text"]
    assert text == CHARACTERS.decode(greedy(model, ids[:, :5], n)[0, 5:].tolist())


@pytest.mark.parametrize(("dtype", "within"), [("f16", 0.01), ("bf16", 0.1), ("q8_0", 0.2)])
def test_smaller_types_of_llama_cpp_are_close(tmp_path: Path, dtype: str, within: float) -> None:
    model = made(FOR_LLAMA_CPP)
    theirs = in_llama_cpp(model, CHARACTERS, tmp_path, dtype)
    ids = ids_of(model.config, 40)[:1]
    with torch.no_grad():
        ours = model(ids)[0]
    apart = ours - logits_there(theirs, ids[0].tolist(), model.config.vocab_size)
    assert 0 < float(apart.abs().max() / ours.abs().max()) < within


def test_q8_0_is_what_llama_cpp_makes_of_f32(tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python isn't installed")
    from gguf import GGUFReader

    model = made(FOR_LLAMA_CPP)
    for dtype in ("f32", "q8_0"):
        (tmp_path / dtype).mkdir()
        gguf_file.fill(model, CHARACTERS, tmp_path / dtype, dtype)
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0
    source, target = (str(tmp_path / name).encode() for name in ("f32/model.gguf", "theirs.gguf"))
    assert llama_cpp.llama_model_quantize(source, target, parameters) == 0
    ours, theirs = (
        {each.name: each for each in GGUFReader(path).tensors}
        for path in (tmp_path / "q8_0" / "model.gguf", tmp_path / "theirs.gguf")
    )
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].tensor_type == tensor.tensor_type
        assert (ours[name].data == tensor.data).all()


@pytest.mark.parametrize("kind", ["char", "char, special", "bpe", "tiktoken", "gpt2", "cl100k"])
def test_llama_cpp_gives_the_same_ids(tmp_path: Path, kind: str) -> None:
    made_by: dict[str, Any] = {
        **TOKENIZERS,
        "char, special": lambda: PUBLISHED_END,
        "cl100k": lambda: of_pattern(CL100K),
    }
    ours: Tokenizer = made_by[kind]()
    theirs = in_llama_cpp(
        made(dataclasses.replace(FOR_LLAMA_CPP, vocab_size=ours.vocab_size)), ours, tmp_path
    )
    known = set(ours.characters) if isinstance(ours, CharTokenizer) else None

    @hypothesis.settings(max_examples=150, deadline=None, derandomize=True)
    @hypothesis.example("".join(TEXTS))
    @given(st.lists(st.sampled_from(PARTS) | st.text(max_size=4), max_size=12).map("".join))
    def check(text: str) -> None:
        if known is not None:
            text = "".join(each for each in text if each in known)
        text = text.replace("\0", "")  # which ends a string of C
        ids = ours.encode(text).tolist()
        assert theirs.tokenize(text.encode(), add_bos=False, special=False) == ids
        assert theirs.detokenize(ids, special=True).decode(errors="replace") == text

    check()


# ---------------------------------------------------------------------- ONNX


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "options",
    [
        {"n_kv_head": 2},
        {"token_shift": 3, **UNGATED, **LAYER, "qk_norm": True, "n_kv_head": 1},
        {**LAYER, "positions": "learned", "activation": "gelu", "bias": True, "tie_weights": True,
         "norm_place": "post", "logit_softcap": 5.0},
        {"mixer": "none", "positions": "sinusoidal"},
    ],
    ids=str,
)  # fmt: skip
def test_graphs_of_onnx_compute_the_same(tmp_path: Path, options: dict[str, Any]) -> None:
    """With any number of rows and positions, at once and in steps of any length."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime isn't installed")
    config = dataclasses.replace(TINY, **options)
    model = made(config)
    onnx_graphs.fill(model, CHARACTERS, tmp_path)
    whole = onnxruntime.InferenceSession(tmp_path / onnx_graphs.WHOLE)
    for rows, length in ((1, 1), (1, 7), (5, 2), (3, config.block_size)):
        ids = torch.randint(config.vocab_size, (rows, length))
        with torch.no_grad():
            expected = model(ids).numpy()
        (given,) = whole.run(None, {"input_ids": ids.numpy()})
        assert given.shape == expected.shape
        assert abs(given - expected).max() < 1e-4
    assert (tmp_path / onnx_graphs.CACHED).exists() == (config.mixer == "attention")
    if config.mixer == "none":
        return
    cached = onnxruntime.InferenceSession(tmp_path / onnx_graphs.CACHED)
    names = [each.name for each in cached.get_inputs()]
    assert names == ["input_ids", "past", *(["before"] if config.token_shift else [])]
    cache = [each.numpy() for each in onnx_graphs.empty_cache(config, rows=3).values()]
    at = 0
    for n in (5, 1, 1, 7, 1, 9):
        step = ids[:, at : at + n].numpy()
        logits, *cache = cached.run(None, dict(zip(names, [step, *cache], strict=True)))
        assert abs(logits - expected[:, at : at + n]).max() < 1e-4
        at += n
    assert at == config.block_size
