"""`gptlit import nanogpt`: reads nanoGPT's checkpoints, and runs no code in them."""

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from gptlit.checkpoints import checkpoint
from gptlit.cli.convert import import_
from gptlit.messages import UsageError
from gptlit.model.gpt import GPT, GPTConfig
from gptlit.tokenizers.bytepair import BytePairTokenizer
from tests.checkpoints.test_gpt2_names import made
from tests.conftest import Result

CHARACTERS = "\n abcde"
TINY = GPTConfig(vocab_size=7, n_layer=2, n_head=2, n_embd=8, block_size=6, dropout=0.2)


def as_nanogpt(model: GPT, prefix: str = "") -> dict[str, Any]:
    """The checkpoint that nanoGPT's train.py would have saved."""
    state = {
        name if name.startswith("lm_head") else f"transformer.{name}": tensor
        for name, tensor in model.state_dict().items()
    }
    state["transformer.h.0.attn.bias"] = torch.ones(1, 1, 6, 6)  # the mask, without flash
    config = model.config
    sizes = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size", "bias", "dropout")
    return {
        "model": OrderedDict((prefix + name, tensor) for name, tensor in state.items()),
        "optimizer": {"state": {}, "param_groups": []},
        "model_args": {name: getattr(config, name) for name in sizes},
        "iter_num": 2000,
        "best_val_loss": torch.tensor(1.47),
        "config": {"dataset": "shakespeare_char", "device": "cpu"},
    }


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with nanoGPT's ckpt.pt and meta.pkl."""
    torch.save(as_nanogpt(made(TINY), "_orig_mod."), tmp_path / "ckpt.pt")
    put_meta(tmp_path, {letter: id_ for id_, letter in enumerate(CHARACTERS)})
    return tmp_path


def put_meta(folder: Path, stoi: Any) -> None:
    meta = {"vocab_size": len(stoi), "itos": {id_: key for key, id_ in stoi.items()}, "stoi": stoi}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))


def imported(folder: Path, *arguments: object) -> Path:
    meta = () if "meta.pkl" in map(str, arguments) else (folder / "meta.pkl",)
    output = folder / "out.ckpt"
    import_([*map(str, ("nanogpt", folder / "ckpt.pt", *meta, f"--output={output}"))])
    return output


@pytest.mark.parametrize("bias", [True, False])
def test_a_nanogpt_checkpoint_gives_the_same_logits(
    tmp_path: Path, files: Path, bias: bool
) -> None:
    theirs = made(GPTConfig(7, n_layer=2, n_head=2, n_embd=8, block_size=6, bias=bias))
    torch.save(as_nanogpt(theirs, "_orig_mod." if bias else ""), files / "ckpt.pt")
    model, tokenizer = checkpoint.load(imported(files))
    assert model.config == theirs.config
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])
    assert model.lm_head.weight is model.wte.weight
    assert tokenizer.encode("abc\n").tolist() == [2, 3, 4, 0]
    ids = torch.randint(7, (2, 6))
    assert torch.equal(model(ids), theirs(ids))


def test_an_imported_model_predicts_and_validates(
    gptlit: Any, files: Path, text_file: Path
) -> None:
    path = imported(files)
    options = ["--ckpt_path", path, "--prompt", "ab", "--max_new_tokens", 5]
    alone: Result = gptlit("predict", *options)
    by_trainer: Result = gptlit(
        "predict", *options, "--trainer.devices", 1, "--trainer.accelerator", "cpu"
    )
    assert (alone.code, by_trainer.code) == (0, 0), by_trainer.err
    assert alone.out == by_trainer.out
    assert alone.out.startswith("ab")
    (files / "text.txt").write_text("abc deb cad\n" * 40)
    measured: Result = gptlit("validate", "--ckpt_path", path, "--data.path", files / "text.txt")
    assert measured.code == 0, measured.err
    assert "val/bits_per_byte" in measured.out


def test_an_imported_model_can_not_be_resumed_but_started_from(gptlit: Any, files: Path) -> None:
    path = imported(files)
    (files / "text.txt").write_text("abc deb cad\n" * 40)
    result = gptlit("fit", "--ckpt_path", path, "--data.path", files / "text.txt")
    assert result.code == 2
    assert f"--model.init_from {path}" in result.err
    assert len(result.err.splitlines()) == 1
    assert not Path("lightning_logs").exists()


def test_without_meta_the_tokenizer_is_gpt2s_padded(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = [bytes([byte]) for byte in range(256)]
    bytes_ = BytePairTokenizer("tiktoken", "gpt2", r"\S+|\s+", pieces, {"<|endoftext|>": 256})
    monkeypatch.setattr(BytePairTokenizer, "published", lambda *_: bytes_)
    model = made(GPTConfig(264, n_layer=1, n_head=2, n_embd=8, block_size=6))
    torch.save(as_nanogpt(model), files / "ckpt.pt")
    import_(["nanogpt", str(files / "ckpt.pt")])
    ours, tokenizer = checkpoint.load(files / "ckpt.ckpt")
    assert ours.config.vocab_size == tokenizer.vocab_size == 264
    assert torch.equal(ours.wte.weight, model.wte.weight)
    torch.save(as_nanogpt(made(TINY)), files / "ckpt.pt")
    with pytest.raises(UsageError, match="a vocabulary of 7, its tokenizer of 257; give the meta"):
        import_(["nanogpt", str(files / "ckpt.pt"), f"--output={files / 'other.ckpt'}"])


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["EVIL"],)


def test_crafted_files_run_no_code(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVIL", str(files / "made by evil"))
    (files / "meta.pkl").write_bytes(pickle.dumps({"stoi": Evil()}))
    with pytest.raises(UsageError, match="meta.pkl: refused: .*names posix.mkdir"):
        imported(files)
    for content in ({**as_nanogpt(made(TINY)), "config": Evil()}, Evil()):
        torch.save(content, files / "ckpt.pt")
        with pytest.raises(UsageError, match="ckpt.pt: refused"):
            imported(files)
    (files / "ckpt.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UsageError, match="ckpt.pt: "):
        imported(files)
    assert sorted(path.name for path in files.iterdir()) == ["ckpt.pt", "meta.pkl"]


@pytest.mark.parametrize(
    ("stoi", "message"),
    [
        ({letter: id_ for id_, letter in enumerate("edcba\n ")}, "order of their code points"),
        ({letter: id_ + 1 for id_, letter in enumerate(CHARACTERS)}, "numbered from 0"),
        ({"ab": 0, "c": 1}, "aren't single characters"),
        (
            {letter: id_ for id_, letter in enumerate("abc")},
            "has 3 characters, and the model has a",
        ),
        ({1: 0}, "no table stoi of characters"),
    ],
)
def test_vocabularies_that_do_not_fit_are_refused(files: Path, stoi: Any, message: str) -> None:
    put_meta(files, stoi)
    with pytest.raises(UsageError, match=f"meta.pkl: .*{message}"):
        imported(files)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x80\x04]", pickle.dumps([])])
def test_torn_vocabularies(files: Path, content: bytes) -> None:
    (files / "meta.pkl").write_bytes(content)
    with pytest.raises(UsageError, match="gptlit import nanogpt: meta.pkl: "):
        imported(files)


def test_missing_and_torn_checkpoints(files: Path) -> None:
    whole = (files / "ckpt.pt").read_bytes()
    for torn in (b"", b"nonsense", whole[:500], whole[: len(whole) // 2]):
        (files / "ckpt.pt").write_bytes(torn)
        with pytest.raises(UsageError, match="gptlit import nanogpt: ckpt.pt: "):
            imported(files)
    (files / "ckpt.pt").unlink()
    with pytest.raises(UsageError, match="ckpt.pt: no such file"):
        imported(files)


def test_a_checkpoint_of_another_program_is_refused(files: Path) -> None:
    whole = as_nanogpt(made(TINY))
    head = whole["model"].pop("lm_head.weight")
    torch.save(whole, files / "ckpt.pt")
    imported(files).unlink()  # a tied head may be missing
    for content, message in (
        ({"state_dict": {}}, "not a checkpoint of nanoGPT"),
        ([1], "not a checkpoint of nanoGPT"),
        ({**whole, "model_args": {"n_layer": 2}}, "model_args has no n_head"),
        ({**whole, "model_args": {**whole["model_args"], "n_layer": 1}}, "weights have h.1"),
        ({**whole, "model_args": {**whole["model_args"], "block_size": 5}}, "wpe.weight is of"),
        ({**whole, "model": {**whole["model"], "lm_head.weight": head + 1}}, "isn't wte.weight"),
        ({**whole, "model": {"transformer.wte.weight": head}}, "the weights lack wpe.weight"),
    ):
        torch.save(content, files / "ckpt.pt")
        with pytest.raises(UsageError, match=message):
            imported(files)


def test_existing_files_are_not_overwritten(files: Path) -> None:
    path = imported(files)
    before = path.read_bytes()
    with pytest.raises(UsageError, match="--output .*out.ckpt: exists already"):
        imported(files)
    assert path.read_bytes() == before
    with pytest.raises(UsageError, match="import nanogbt: unknown.* Did you mean nanogpt?"):
        import_(["nanogbt", "ckpt.pt"])
