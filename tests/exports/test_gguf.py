"""GGUF files, read back by the package gguf; tests/parity runs them in llama.cpp."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader

from gptlit.exports import gguf_file, gguf_tokenizer, modelfile
from gptlit.messages import UsageError
from gptlit.tokenizers.base import Tokenizer
from gptlit.tokenizers.characters import CharTokenizer
from gptlit.tokenizers.words import WordTokenizer
from tests.checkpoints.test_gpt2_names import made
from tests.conftest import Result, Run
from tests.exports.test_hub_folder import LLAMA
from tests.exports.test_tokenizers import CL100K, GPT2_PATTERN, O200K, trained

CLOSED = CharTokenizer("abcdefg", ["<EOS>"], eos=True)
OPEN = CharTokenizer("\nabcdeé")


def written(
    folder: Path, tokenizer: Tokenizer = CLOSED, dtype: str = "f32", **options: Any
) -> tuple[Any, GGUFReader, dict[str, Any]]:
    """The model, the file's reader, and its values by name without the architecture's."""
    model = made(dataclasses.replace(LLAMA, vocab_size=tokenizer.vocab_size, **options))
    gguf_file.fill(model, tokenizer, folder, dtype)
    reader = GGUFReader(folder / gguf_file.FILENAME)
    values = {name: field.contents() for name, field in reader.fields.items()}
    return model, reader, values


def tensors(reader: GGUFReader) -> dict[str, torch.Tensor]:
    return {each.name: torch.tensor(each.data) for each in reader.tensors}


def test_options_and_tokens(tmp_path: Path) -> None:
    _, _, values = written(tmp_path)
    expected = {
        "general.architecture": "llama",
        "llama.context_length": 12,
        "llama.embedding_length": 16,
        "llama.block_count": 1,
        "llama.feed_forward_length": 24,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.rope.dimension_count": 4,
        "llama.rope.freq_base": 500.0,
        "llama.attention.layer_norm_rms_epsilon": pytest.approx(1e-6),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": ["<EOS>", *"abcdefg"],
        "tokenizer.ggml.token_type": [3, *[1] * 7],
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
    }
    assert expected == {name: values[name] for name in expected}


def test_queries_and_keys_have_llamas_own_order_of_channels(tmp_path: Path) -> None:
    model, reader, _ = written(tmp_path)
    found, ours = tensors(reader), model.state_dict()
    c_attn = ours["h.0.attn.c_attn.weight"]
    # channels (i, i + 2) of heads of 4 become neighbours
    order = torch.tensor([0, 2, 1, 3])
    queries = torch.cat([head[order] for head in c_attn[:16].split(4)])
    keys = torch.cat([head[order] for head in c_attn[16:24].split(4)])
    assert torch.equal(found["blk.0.attn_q.weight"], queries)
    assert torch.equal(found["blk.0.attn_k.weight"], keys)
    assert torch.equal(found["blk.0.attn_v.weight"], c_attn[24:])
    assert torch.equal(found["output.weight"], ours["lm_head.weight"])
    assert len(found) == 12


@pytest.mark.parametrize(
    ("options", "architecture", "names"),
    [
        ({"tie_weights": True}, "llama", {"blk.0.ffn_gate.weight"}),
        ({"qk_norm": True}, "qwen3", {"blk.0.attn_q_norm.weight"}),
        ({"activation": "relu2"}, "arcee", {"blk.0.ffn_up.weight"}),
        ({"norm": "layer"}, "stablelm", {"blk.0.attn_norm.bias", "output.weight"}),
        (
            {"norm": "layer", "activation": "relu2", "tie_weights": True},
            "nemotron",
            {"output_norm.bias", "output.weight"},
        ),
        ({"norm": "layer", "activation": "gelu_tanh"}, "starcoder2", {"blk.0.ffn_norm.bias"}),
        (
            {"norm": "layer", "activation": "gelu_tanh", "positions": "learned", "n_kv_head": None},
            "gpt2",
            {"position_embd.weight", "blk.0.attn_qkv.bias"},
        ),
    ],
)
def test_architectures(
    tmp_path: Path, options: dict[str, Any], architecture: str, names: set[str]
) -> None:
    model, reader, values = written(tmp_path, **options)
    assert values["general.architecture"] == architecture
    found = tensors(reader)
    assert names <= found.keys()
    # nothing is added to the weights of norms, as Nemotron's class of transformers does
    assert torch.equal(found["blk.0.attn_norm.weight"], model.state_dict()["h.0.ln_1.weight"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token_shift": 2}, "token_shift 2 stands in the way of its llama; .*format hf writes"),
        ({"logit_softcap": 5.0}, "none with .*logit_softcap 5"),
        ({"positions": "none"}, "none with .*positions none"),
        ({"activation": "relu"}, "its arcee has relu2 instead of .*activation relu"),
        ({"activation": "relu2", "bias": True}, "its arcee has no biases"),
    ],
)
def test_models_that_llama_cpp_can_not_run_are_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        written(tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_a_text_always_ends_by_a_token_that_is_never_the_likeliest(tmp_path: Path) -> None:
    model, reader, values = written(tmp_path, OPEN, tie_weights=True)
    assert values["tokenizer.ggml.tokens"] == ["Ċ", *"abcde", "Ã©", "<|endoftext|>"]
    assert values["tokenizer.ggml.merges"] == ["Ã ©"]
    assert values["tokenizer.ggml.eos_token_id"] == 7
    head = tensors(reader)["token_embd.weight"]
    assert torch.equal(head[:7], model.wte.weight)
    logits = torch.randn(50, 16) @ head.t()
    assert (logits[:, 7] < logits[:, :7].max(1).values).all()


def test_merges_stay_within_a_character() -> None:
    ours = gguf_tokenizer.vocabulary(CharTokenizer("aé—🙂"))
    assert ours.tokens == ["a", "Ã©", "âĢĶ", "ðŁĻĤ"]
    assert [left + right for left, right in ours.merges] == [
        "Ã©", "âĢ", "âĢĶ", "ðŁ", "ðŁĻ", "ðŁĻĤ"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "split"),
    [(None, "llama-bpe"), (GPT2_PATTERN, "gpt-2"), (CL100K, "llama-bpe"), (O200K, "gpt-4o")],
)
def test_splits(pattern: str | None, split: str) -> None:
    tokenizer = trained(pattern)
    found = gguf_tokenizer.vocabulary(tokenizer)
    assert found.split == split
    assert found.end == tokenizer.special_ids["<|endoftext|>"]
    assert len(found.tokens) == tokenizer.vocab_size


def test_other_tokenizers_are_refused() -> None:
    with pytest.raises(UsageError, match="no tokenizer like the model's word; it can have char"):
        gguf_tokenizer.vocabulary(WordTokenizer(["a"]))
    with pytest.raises(UsageError, match=r"doesn't have the tokenizer's regular expression \\w"):
        gguf_tokenizer.vocabulary(trained(r"\w+"))


@pytest.mark.parametrize(("dtype", "kind"), [("f16", "F16"), ("bf16", "BF16"), ("q8_0", "Q8_0")])
def test_matrices_are_smaller_and_vectors_are_not(tmp_path: Path, dtype: str, kind: str) -> None:
    _, reader, _ = written(tmp_path, dtype=dtype, n_embd=32, mlp_hidden=40)
    kinds = {each.name: each.tensor_type.name for each in reader.tensors}
    assert kinds["blk.0.attn_q.weight"] == kinds["token_embd.weight"] == kind
    assert kinds["output_norm.weight"] == "F32"
    # 40 numbers aren't whole blocks of 32
    assert kinds["blk.0.ffn_down.weight"] == ("F16" if dtype == "q8_0" else kind)


def test_the_folder_and_the_commands_of_ollama(gptlit: Callable[..., Result], run: Run) -> None:
    result = gptlit("export", run.folder / "checkpoints" / "last.ckpt", "My run", "--format=gguf")
    assert result.code == 0, result.err
    assert {path.name for path in Path("My run").iterdir()} >= {"model.gguf", "Modelfile"}
    assert "gptlit: ollama create my-run -f 'My run/Modelfile'\n" in result.err
    assert "gptlit: ollama run my-run ROMEO:\n" in result.err
    lines = Path("My run/Modelfile").read_text().splitlines()
    assert lines[0] == "FROM ./model.gguf"
    assert "PARAMETER num_ctx 8" in lines


def test_names_of_ollama() -> None:
    assert modelfile.commands(Path("/x/Ünï"), "a b")[1] == "ollama run n 'a b'"
    assert modelfile.commands(Path("/x/日本"), "a")[1] == "ollama run gptlit a"


def test_q8_0_is_refused_elsewhere(gptlit: Callable[..., Result], run: Run) -> None:
    path = run.folder / "checkpoints" / "last.ckpt"
    result = gptlit("export", path, "out", "--dtype=q8_0")
    assert result.code == 2
    assert "--dtype q8_0: --format hf has f32, f16 and bf16; --format gguf has q8_0" in result.err
    assert not Path("out").exists()


def test_without_the_package(
    gptlit: Callable[..., Result], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gguf", None)
    path = run.folder / "checkpoints" / "last.ckpt"
    result = gptlit("export", path, "out", "--format=gguf")
    assert result.code == 2
    assert "pip install 'gptlit[gguf]'" in result.err
    assert not list(Path().glob("*out*"))
