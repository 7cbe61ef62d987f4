"""Export and import of weights: Hugging Face's folders, and safetensors of any model."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from gptlit.checkpoints.gpt2_names import (
    from_gpt2_weights,
    pad_vocabulary,
    to_gpt2_weights,
    to_hugging_face,
)
from gptlit.checkpoints.weight_files import (
    OWN,
    WEIGHTS,
    read_folder,
)
from gptlit.checkpoints.weight_shapes import shapes
from gptlit.exports.hub_folder import write_hugging_face
from gptlit.exports.plain_files import write_safetensors
from gptlit.messages import UsageError
from gptlit.model.gpt import GPT, GPTConfig
from gptlit.tokenizers.bytepair import BytePairTokenizer
from gptlit.tokenizers.characters import CharTokenizer

CHARACTERS = CharTokenizer("\n abcdeé")
TINY = GPTConfig(vocab_size=8, n_layer=2, n_head=2, n_embd=8, block_size=6)


def made(config: GPTConfig = TINY) -> GPT:
    """A model without weights of zero or one."""
    torch.manual_seed(0)
    model = GPT(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    return model


def assert_equal(model: GPT, config: GPTConfig, state: dict[str, torch.Tensor]) -> None:
    assert config == model.config
    assert list(state) == list(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    GPT(config).load_state_dict(state)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_hugging_face(made(), CHARACTERS, tmp_path / "exported")
    return tmp_path / "exported"


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False, "tie_weights": False},
        {"activation": "gelu_tanh", "n_positions": 9, "dropout": 0.1, "dropout_at": ("block",)},
        {"mlp_hidden": 12, "norm_eps": 1e-6, "init": "torch", "n_layer": 0},
    ],
    ids=str,
)
def test_export_and_import_of_hugging_faces_folder_is_bit_identical(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    model = made(dataclasses.replace(TINY, **options))
    write_hugging_face(model, CHARACTERS, tmp_path / "exported")
    config, state, tokenizer = read_folder(tmp_path / "exported")
    assert_equal(model, config, state)
    assert tokenizer is not None
    assert tokenizer.state() == CHARACTERS.state()


def test_export_and_import_as_safetensors_is_bit_identical_for_any_model(tmp_path: Path) -> None:
    parts: dict[str, Any] = {"positions": "rotary", "norm": "rms", "activation": "swiglu"}
    parts |= {"n_kv_head": 1, "qk_norm": True, "token_shift": 2, "logit_softcap": 15.0}
    model = made(dataclasses.replace(TINY, **parts, bias=False))
    write_safetensors(model, CHARACTERS, tmp_path / "exported")
    assert {path.name for path in (tmp_path / "exported").iterdir()} == {WEIGHTS, OWN}
    config, state, tokenizer = read_folder(tmp_path / "exported")
    assert_equal(model, config, state)
    assert tokenizer is not None
    assert tokenizer.state() == CHARACTERS.state()


def test_hugging_face_has_all_weights_and_four_of_a_block_transposed() -> None:
    untied = dataclasses.replace(TINY, tie_weights=False)
    ours = made(untied).state_dict()
    theirs = to_gpt2_weights(ours, untied)
    assert set(theirs) == {"lm_head.weight"} | {
        f"transformer.{name}" for name, _ in shapes(untied) if name != "lm_head.weight"
    }
    assert theirs["transformer.h.1.mlp.c_fc.weight"].shape == (8, 32)  # (inputs, outputs)
    assert theirs["transformer.h.0.attn.c_attn.bias"].shape == (24,)
    assert len(theirs) == 5 + 2 * 12
    equal = [
        torch.equal(theirs.get(f"transformer.{name}", ours[name]), ours[name]) for name in ours
    ]
    assert equal.count(False) == 4 * 2


def test_a_folder_is_read_without_gptlits_own_file(folder: Path) -> None:
    (folder / OWN).unlink()
    config, state, _ = read_folder_but_tokenizer(folder)
    assert_equal(made(), config, state)


def read_folder_but_tokenizer(folder: Path) -> Any:
    (folder / "tokenizer.json").unlink(missing_ok=True)  # by characters, which only we can read
    return read_folder(folder)


def test_gptlits_own_file_is_used_only_if_the_folder_agrees(folder: Path) -> None:
    edit(folder / "config.json", activation_function="gelu_new")
    assert read_folder(folder)[0].activation == "gelu_tanh"


def test_names_as_published_without_prefix_and_with_masks(folder: Path) -> None:
    state = to_gpt2_weights(made().state_dict(), TINY)
    published = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    published["h.0.attn.bias"] = torch.ones(1, 1, 6, 6)
    published["h.0.attn.masked_bias"] = torch.tensor(-1e4)
    assert_equal(made(), TINY, from_gpt2_weights(published, TINY, conv1d=True))


@pytest.mark.parametrize("old", [False, True])
def test_a_bin_is_read_in_either_format_of_torch(folder: Path, old: bool) -> None:
    (folder / WEIGHTS).unlink()
    theirs = to_gpt2_weights(made().state_dict(), TINY)
    path = folder / "pytorch_model.bin"
    torch.save(theirs, path, _use_new_zipfile_serialization=not old)
    assert_equal(made(), *read_folder(folder)[:2])


def test_weights_in_pieces(folder: Path) -> None:
    import safetensors.torch

    theirs = safetensors.torch.load_file(folder / WEIGHTS)
    names = {name: f"piece-{index % 2}.safetensors" for index, name in enumerate(theirs)}
    for piece in set(names.values()):
        mine = {name: theirs[name] for name in theirs if names[name] == piece}
        safetensors.torch.save_file(mine, folder / piece)
    (folder / WEIGHTS).unlink()
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": names}))
    assert_equal(made(), *read_folder(folder)[:2])
    (folder / "piece-1.safetensors").unlink()
    with pytest.raises(UsageError, match="no piece-1.safetensors in it"):
        read_folder(folder)


def test_half_precision_becomes_single() -> None:
    theirs = {
        name: tensor.half() for name, tensor in to_gpt2_weights(made().state_dict(), TINY).items()
    }
    state = from_gpt2_weights(theirs, TINY, conv1d=True)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    assert torch.equal(state["wte.weight"], made().wte.weight.half().float())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positions": "rotary"}, "^positions rotary: Hugging Face's GPT-2 has learned only"),
        ({"norm": "rms"}, "^norm rms"),
        ({"norm_place": "post"}, "^norm_place post"),
        ({"norm_weight": False, "bias": False}, "^norm_weight false"),
        (
            {"activation": "swiglu"},
            "^activation swiglu: Hugging Face's GPT-2 has relu2, relu, gelu, gelu_tanh only",
        ),
        ({"n_kv_head": 1}, "^n_kv_head 1: Hugging Face's GPT-2 has 2 only"),
        ({"qk_norm": True}, "^qk_norm true"),
        ({"head_bias": True}, "^head_bias true"),
        ({"attn_proj": False}, "^attn_proj false"),
        ({"mixer": "none"}, "^mixer none"),
        ({"logit_softcap": 30.0}, "^logit_softcap 30.0: Hugging Face's GPT-2 has null only"),
        ({"token_shift": 2}, "^token_shift 2"),
    ],
)
def test_options_that_gpt2s_class_lacks_are_refused_by_name(
    options: dict[str, Any], message: str
) -> None:
    config = dataclasses.replace(TINY, **options)
    with pytest.raises(UsageError, match=f"{message}.*format safetensors"):
        to_hugging_face(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, "model_type 'bert': only gpt2, llama, "),
        ({"activation_function": "silu"}, "activation_function silu: only .*gelu_new"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True"),
        ({"n_embd": "16"}, "config.json: n_embd '16': must be a whole number"),
        ({"n_head": 0}, "n_head 0: must be a whole number"),
        ({"n_layer": 3}, "lack h.2.ln_1.weight, .*n_layer is 3, and they have 2 layers"),
        ({"n_layer": 1}, "the weights have h.1.attn.c_attn.bias, .* and 9 more, which"),
        ({"n_embd": 4}, r"wte.weight is of shape \(8, 8\); by its sizes it should be \(8, 4\)"),
    ],
)
def test_invalid_folders_are_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit(folder / "config.json", **changes)
    with pytest.raises(UsageError, match=message):
        read_folder(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b"{", "config.json: not JSON"),
        ("config.json", b"[]", "config.json: must be an object of options"),
        (OWN, b"{}", "gptlit.json: has no config"),
        (WEIGHTS, b"nonsense", "model.safetensors: torn"),
        (WEIGHTS, b"", "model.safetensors: torn"),
        (WEIGHTS, None, "no model.safetensors in it, nor a pytorch_model.bin"),
    ],
)
def test_torn_and_missing_files(
    folder: Path, name: str, content: bytes | None, message: str
) -> None:
    (folder / name).write_bytes(content) if content is not None else (folder / name).unlink()
    with pytest.raises(UsageError, match=message):
        read_folder(folder)


def test_a_folder_without_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / OWN).unlink()
    with pytest.raises(UsageError, match="no config.json in it"):
        read_folder(folder)


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["EVIL"],)


def test_a_crafted_bin_runs_no_code(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVIL", str(tmp_path / "made by evil"))
    (folder / WEIGHTS).unlink()
    torch.save({"wte.weight": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match="pytorch_model.bin: refused"):
        read_folder(folder)
    assert not (tmp_path / "made by evil").exists()


def test_an_untied_head_is_refused_where_the_config_ties_it() -> None:
    theirs = to_gpt2_weights(made().state_dict(), TINY) | {"lm_head.weight": torch.zeros(8, 8)}
    with pytest.raises(UsageError, match="lm_head.weight isn't wte.weight"):
        from_gpt2_weights(theirs, TINY, conv1d=True)


def test_a_vocabulary_may_be_padded() -> None:
    pieces = [bytes([byte]) for byte in range(256)]
    ours = BytePairTokenizer("tiktoken", "bytes", r"\S+|\s+", pieces, {"<|endoftext|>": 256})
    padded = pad_vocabulary(ours, 260)
    assert padded.vocab_size == 260
    assert padded.decode([104, 105, 259]) == "hi<|unused_259|>"
    assert padded.encode("hi<|unused_259|>").tolist() == ours.encode("hi<|unused_259|>").tolist()
    assert pad_vocabulary(ours, 257) is ours
    with pytest.raises(UsageError, match="a vocabulary of 100, its tokenizer of 257"):
        pad_vocabulary(ours, 100)
    with pytest.raises(UsageError, match="a vocabulary of 9, its tokenizer of 8"):
        pad_vocabulary(CHARACTERS, 9)


def test_nothing_is_overwritten(folder: Path) -> None:
    before = (folder / WEIGHTS).read_bytes()
    for write in (write_hugging_face, write_safetensors):
        with pytest.raises(UsageError, match="exists already"):
            write(made(), CHARACTERS, folder)
    assert (folder / WEIGHTS).read_bytes() == before
    shutil.rmtree(folder)
    folder.mkdir()
    write_safetensors(made(), CHARACTERS, folder)
    assert [path.name for path in folder.parent.iterdir()] == ["exported"]


def test_compiled_and_eager_models_save_the_same_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    # the compiler's back end doesn't matter here, and takes seconds to import
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    eager, compiled = made(), made()
    compiled.compile()
    assert list(compiled.state_dict()) == list(eager.state_dict())
    compiled.load_state_dict(eager.state_dict())
    eager.load_state_dict(compiled.state_dict())
    # torch.compile(model), as in nanoGPT, changes the names
    wrapped = {f"_orig_mod.{name}": tensor for name, tensor in made().state_dict().items()}
    assert_equal(made(), TINY, from_gpt2_weights(wrapped, TINY, conv1d=False))
