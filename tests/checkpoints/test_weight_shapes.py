"""Weights from files: sizes are compared before a model is built, and types of tensors."""

import dataclasses
import json
import pickle
import re
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gptlit as package
from gptlit.checkpoints import checkpoint
from gptlit.checkpoints.gpt2_names import to_gpt2_weights
from gptlit.checkpoints.weight_shapes import checked, is_finite, shapes
from gptlit.exports.hub_folder import write_hugging_face
from gptlit.exports.plain_files import write_safetensors
from gptlit.messages import UsageError
from gptlit.model.config import LARGEST_BLOCK, GPTConfig
from gptlit.model.gpt import GPT
from tests.checkpoints.test_gpt2_names import CHARACTERS, made
from tests.checkpoints.test_gpt2_names import TINY as SMALL
from tests.checkpoints.test_nanogpt import as_nanogpt
from tests.conftest import Result, Run

Call = Callable[..., Result]
ROTARY = dataclasses.replace(SMALL, positions="rotary")


# ---------------------------------------------------------------------- shapes are arithmetic


@settings(max_examples=60)
@given(
    options=st.fixed_dictionaries(
        {
            "vocab_size": st.integers(1, 3),
            "n_layer": st.integers(0, 2),
            "n_kv_head": st.sampled_from([None, 1, 2]),
            "block_size": st.integers(3, 5),
            "mlp_ratio": st.sampled_from([0.5, 4.0]),
            "mlp_hidden": st.sampled_from([None, 3]),
            "mixer": st.sampled_from(["attention", "none"]),
            "positions": st.sampled_from(["learned", "sinusoidal", "rotary", "none"]),
            "n_positions": st.sampled_from([None, 7]),
            "norm": st.sampled_from(["layer", "rms"]),
            "norm_weight": st.booleans(),
            "qk_norm": st.booleans(),
            "activation": st.sampled_from(["gelu", "swiglu"]),
            "bias": st.booleans(),
            "attn_proj": st.booleans(),
            "tie_weights": st.booleans(),
            "head_bias": st.booleans(),
            "token_shift": st.integers(0, 2),
        }
    )
)
def test_names_shapes_and_order_equal_the_models(options: dict[str, Any]) -> None:
    try:
        config = GPTConfig(**options, n_head=2, n_embd=4)
    except UsageError:
        return  # options that don't go together
    state = GPT(config).state_dict()
    assert list(shapes(config)) == [(name, tuple(each.shape)) for name, each in state.items()]
    assert list(checked(state, config)) == list(state)


# ---------------------------------------------------------------------- sizes that are not so


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def a_checkpoint(folder: Path, run: Run, **changes: Any) -> list[list[str]]:
    content = torch.load(run.folder / "checkpoints" / "last.ckpt", weights_only=True)
    content[checkpoint.KEY]["config"] |= changes
    content["hyper_parameters"] |= {n: v for n, v in changes.items() if n != "vocab_size"}
    torch.save(content, folder / "x.ckpt")
    text = f"--data.path={run.text}"
    return [
        ["predict", "--ckpt_path=x.ckpt"],
        ["validate", "--ckpt_path=x.ckpt", text],
        ["fit", "--ckpt_path=x.ckpt", text, "--trainer.max_steps=50"],
        ["export", "x.ckpt", "out"],
        ["fit", "--model.init_from=x.ckpt", text],
    ]


def a_nanogpt(folder: Path, run: Run, **changes: Any) -> list[list[str]]:
    content = as_nanogpt(GPT(SMALL))
    content["model_args"] |= changes
    torch.save(content, folder / "ckpt.pt")
    stoi = {letter: id_ for id_, letter in enumerate("abcdefgh")}
    (folder / "meta.pkl").write_bytes(pickle.dumps({"stoi": stoi}))
    return [["import", "nanogpt", "ckpt.pt", "meta.pkl", "--output=out"]]


def a_folder(folder: Path, run: Run, **changes: Any) -> list[list[str]]:
    write_hugging_face(GPT(SMALL), CHARACTERS, folder / "theirs")
    path = folder / "theirs" / "config.json"
    names = {"block_size": "n_positions"}
    new = {names.get(name, name): value for name, value in changes.items()}
    path.write_text(json.dumps({**json.loads(path.read_text()), **new}))
    return [["import", "hugging_face", "theirs", "--output=out"]]


def a_folder_of_ours(folder: Path, run: Run, **changes: Any) -> list[list[str]]:
    write_safetensors(GPT(ROTARY), CHARACTERS, folder / "ours")
    path = folder / "ours" / "gptlit.json"
    content = json.loads(path.read_text())
    content["config"] |= changes
    path.write_text(json.dumps(content))
    return [
        ["import", "hugging_face", "ours", "--output=out"],
        ["fit", "--model.init_from=ours", f"--data.path={run.text}"],
    ]


@pytest.mark.parametrize("format_", [a_checkpoint, a_nanogpt, a_folder, a_folder_of_ours])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layer": 10**9}, "n_layer is 1000000000, and they have"),
        ({"n_layer": 20_000}, "n_layer is 20000, and they have"),
        ({"n_layer": 2**31}, "n_layer 2147483648: must be below"),
        ({"n_layer": 10**400}, "n_layer of more than 64 bits: must be a whole number"),
        ({"block_size": 10**7}, f"block_size 10000000: must be at most {LARGEST_BLOCK}"),
        (
            {"vocab_size": 10**9},
            "wte.weight is of shape|a vocabulary of 1000000000, its",
        ),
        ({"vocab_size": -1}, "vocab_size -1: must be"),
        ({"n_embd": 2**24}, "wte.weight is of shape"),
    ],
    ids=str,
)
def test_sizes_are_compared_before_anything_is_built(
    monkeypatch: pytest.MonkeyPatch,
    run: Run,
    tmp_path: Path,
    gptlit: Call,
    format_: Any,
    changes: dict[str, Any],
    message: str,
) -> None:
    commands = format_(tmp_path, run, **changes)

    def build(self: GPT, config: GPTConfig) -> None:
        raise AssertionError(f"built {config}")

    monkeypatch.setattr(GPT, "__init__", build)
    before = peak_mb()
    for command in commands:
        result = gptlit(*command)
        assert result.code == 2, command
        (line,) = result.err.splitlines()
        assert re.search(message, line.replace("n_positions", "block_size")), command
        assert "batch_size" not in line
    assert peak_mb() - before < 300


# ---------------------------------------------------------------------- tensors that are no weights

# made of ones in the shape that the weight should have
TENSORS: dict[str, tuple[Callable[[torch.Tensor], Any], str]] = {
    "text": (lambda _: "x", "is a str, not a tensor"),
    "list": (lambda _: [1.0], "is a list, not a tensor"),
    "NaN": (lambda ones: ones * torch.nan, "is not finite"),
    "infinite": (lambda ones: ones.index_fill(0, torch.tensor(3), -torch.inf), "is not finite"),
    "NaN in half": (lambda ones: (ones * torch.nan).half(), "is not finite"),
    "too large": (lambda ones: ones.double() * 1e300, "is not finite"),
    "int8": (lambda ones: ones.to(torch.int8), "is a tensor of int8"),
    "int64": (lambda ones: ones.long(), "is a tensor of int64"),
    "bool": (lambda ones: ones.bool(), "is a tensor of bool"),
    "complex": (lambda ones: ones.to(torch.complex64), "is a tensor of complex64"),
    "float8": (lambda ones: ones.to(torch.float8_e4m3fn), "is a tensor of float8_e4m3fn"),
    "sparse": (torch.Tensor.to_sparse, "is a tensor of layout sparse_coo"),
    "sparse rows": (torch.Tensor.to_sparse_csr, "is a tensor of layout sparse_csr"),
    "no values": (lambda ones: torch.empty_like(ones, device="meta"), "is a tensor of no values"),
    "quantized": (
        lambda ones: torch.quantize_per_tensor(ones, 1.0, 0, torch.qint8),
        "is a tensor of quantized numbers",
    ),
    "one number": (lambda ones: torch.ones(1).expand_as(ones), "bytes by its shape (8, "),
}


def all_formats(run: Run, folder: Path, make: Callable[[torch.Tensor], Any]) -> list[list[str]]:
    """Commands that read a weight named wte that `make` made, from each format."""
    content = torch.load(run.folder / "checkpoints" / "last.ckpt", weights_only=True)
    content["state_dict"]["net.wpe.weight"] = make(torch.ones(8, 16))
    torch.save(content, folder / "x.ckpt")
    commands = [
        ["predict", "--ckpt_path=x.ckpt"],
        ["fit", "--ckpt_path=x.ckpt", "--trainer.max_steps=50"],
        *a_nanogpt(folder, run),
        *a_folder(folder, run),
    ]
    made_ = {"transformer.wpe.weight": make(torch.ones(6, 8))}
    content = as_nanogpt(made(SMALL))
    torch.save({**content, "model": content["model"] | made_}, folder / "ckpt.pt")
    weights = to_gpt2_weights(made(SMALL).state_dict(), SMALL) | made_
    (folder / "theirs" / "model.safetensors").unlink()
    torch.save(weights, folder / "theirs" / "pytorch_model.bin")
    return commands


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", TENSORS)
def test_invalid_weights_are_refused_by_name(
    run: Run, tmp_path: Path, gptlit: Call, kind: str
) -> None:
    make, message = TENSORS[kind]
    for command in all_formats(run, tmp_path, make):
        result = gptlit(*command)
        assert result.code == 2, command
        (line,) = result.err.splitlines()
        assert "wpe.weight" in line
        assert message.replace("(8, ", "(" if "import" in command else "(8, ") in line, command
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_precisions_are_read(
    run: Run, tmp_path: Path, gptlit: Call, dtype: torch.dtype
) -> None:
    predict, _, *imports = all_formats(run, tmp_path, lambda ones: ones.to(dtype))
    for command in (predict, *imports):
        assert gptlit(*command).code == 0, command
        (tmp_path / "out").unlink(missing_ok=True)


def test_non_finite_safetensors(tmp_path: Path, run: Run, gptlit: Call) -> None:
    import safetensors.torch

    (command,) = a_folder(tmp_path, run)
    path = tmp_path / "theirs" / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    for tensor in (tensors["transformer.ln_f.bias"] * torch.nan, torch.ones(8, dtype=torch.int8)):
        safetensors.torch.save_file({**tensors, "transformer.ln_f.bias": tensor}, path)
        result = gptlit(*command)
        assert result.code == 2
        assert "ln_f.bias is " in result.err


def test_many_weights_in_one_place(tmp_path: Path, run: Run, gptlit: Call) -> None:
    (command,) = a_nanogpt(tmp_path, run)
    content = as_nanogpt(made(SMALL))
    store = torch.zeros(100)  # enough for any one of the blocks' vectors, not for all of them
    content["model"] = {
        name: store[: tensor.numel()] if tensor.numel() <= 24 else tensor
        for name, tensor in content["model"].items()
    }
    torch.save(content, tmp_path / "ckpt.pt")
    result = gptlit(*command)
    assert (result.code, "more than the file has for it" in result.err) == (2, True)


def test_finite_is_told_of_any_layout() -> None:
    numbers = torch.arange(12.0).view(3, 4)
    assert all(map(is_finite, (numbers, numbers.t(), numbers[:, ::2], numbers[:0])))
    numbers[1, 2] = torch.nan
    assert not is_finite(numbers.t())
    assert is_finite(numbers[:, :2])


# ---------------------------------------------------------------------- archives


def rewritten(path: Path, change: Callable[[zipfile.ZipInfo, bytes], Any]) -> None:
    """Write a file of torch.save again, each member as `change` has it."""
    with zipfile.ZipFile(path) as archive:
        members = [(info, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for info, content in members:
            info.compress_type = zipfile.ZIP_STORED
            archive.writestr(info, change(info, content))


def bomb(info: zipfile.ZipInfo, content: bytes) -> bytes:
    if not info.filename.endswith("/data/0"):
        return content
    info.compress_type = zipfile.ZIP_DEFLATED
    return bytes(40 * 2**20)  # 40 KB in the file


def squeezed(info: zipfile.ZipInfo, content: bytes) -> bytes:
    if info.filename.endswith("data.pkl"):
        info.compress_type = zipfile.ZIP_DEFLATED
    return content


@pytest.mark.parametrize(
    ("change", "message"),
    [(bomb, "data/0 in it, of 41,943,040 bytes, is larger than"), (squeezed, "is compressed")],
)
def test_members_that_are_larger_than_the_file(
    run: Run, tmp_path: Path, gptlit: Call, change: Any, message: str
) -> None:
    commands = all_formats(run, tmp_path, lambda ones: ones)
    for path in ("x.ckpt", "ckpt.pt", "theirs/pytorch_model.bin"):
        rewritten(tmp_path / path, change)
    before = peak_mb()
    for command in commands:
        result = gptlit(*command)
        assert result.code == 2, command
        (line,) = result.err.splitlines()
        assert message in line
    with pytest.raises(UsageError, match=message):
        package.load(tmp_path / "x.ckpt")
    assert peak_mb() - before < 300


def test_a_resume_from_python_believes_no_more(run: Run, tmp_path: Path) -> None:
    from gptlit.training.module import LitGPT

    all_formats(run, tmp_path, lambda ones: ones)
    model = LitGPT.load_from_checkpoint(tmp_path / "x.ckpt")
    assert torch.equal(model.net.wpe.weight, torch.ones(8, 16))
    rewritten(tmp_path / "x.ckpt", bomb)
    with pytest.raises(UsageError, match="x.ckpt: refused: .*data/0 in it"):
        LitGPT.load_from_checkpoint(tmp_path / "x.ckpt")


# ---------------------------------------------------------------------- meta.pkl


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04Nr\xff\xff\xff\x0f.",  # a part with the number 2**28: 4.2 GB
        b"\x80\x04Np268435455\n.",
        b"\x80\x05\x96" + (2**33).to_bytes(8, "little") + b".",  # 8 GB of bytes to come
        b"\x80\x04\x8e" + (2**33).to_bytes(8, "little") + b".",
        b"\x80\x04\x8d" + (2**33).to_bytes(8, "little") + b".",
        b"\x80\x05\x96" + (2**10).to_bytes(8, "little") + bytes(2**10) + b".",
        b"\x80\x04" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".",  # nested 100,000 deep
        b"\x80\x04}\x8c\x04stoi}\x8c\x03\xed\xa0\x80K\x00ss.",  # half a character
    ],
    ids=range(8),
)
def test_a_vocabulary_of_a_few_bytes_takes_no_gigabytes(
    run: Run, tmp_path: Path, gptlit: Call, content: bytes
) -> None:
    (command,) = a_nanogpt(tmp_path, run)
    (tmp_path / "meta.pkl").write_bytes(content)
    before = peak_mb()
    result = gptlit(*command)
    assert result.code == 2
    (line,) = result.err.splitlines()
    assert "meta.pkl: " in line
    assert peak_mb() - before < 300


def test_a_vocabulary_file_of_any_size(run: Run, tmp_path: Path, gptlit: Call) -> None:
    (command,) = a_nanogpt(tmp_path, run)
    with (tmp_path / "meta.pkl").open("wb") as file:
        file.truncate(3 * 2**30)
    assert "meta.pkl: refused: " in gptlit(*command).err
