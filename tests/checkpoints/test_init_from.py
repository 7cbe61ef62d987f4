"""--model.init_from: a run that starts from given weights, with their sizes and tokenizer."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pooch
import pytest
import requests
import torch
import yaml

from gptlit.checkpoints import checkpoint, gpt2_names
from gptlit.checkpoints.init_from import PUBLISHED, crop_block_size, start_from, with_document_ends
from gptlit.cli.convert import import_
from gptlit.exports.command import main as export
from gptlit.exports.hub_folder import write_hugging_face
from gptlit.exports.plain_files import write_safetensors
from gptlit.messages import UsageError
from gptlit.model.gpt import GPT, GPTConfig
from gptlit.tokenizers.base import Tokenizer
from gptlit.tokenizers.bytepair import BytePairTokenizer
from gptlit.tokenizers.characters import CharTokenizer
from tests.checkpoints.test_gpt2_names import made
from tests.conftest import TINY, Result, Run, made_up_text

Call = Callable[..., Result]
# so small that a step hardly changes the weights
ONE_STEP = ["--trainer.max_steps=1", "--model.lr=1e-9", "--model.min_lr=0"]


@pytest.fixture(scope="module")
def own(run: Run) -> Path:
    return run.folder / "checkpoints" / "last.ckpt"


def fit(gptlit: Call, text: Path, *arguments: object) -> Result:
    # other sizes than the origin's are given, and ignored
    return gptlit("fit", *TINY, "--model.n_layer=3", f"--data.path={text}", *ONE_STEP, *arguments)


def trained(folder: str = "version_0") -> tuple[GPT, Tokenizer]:
    return checkpoint.load(Path(f"lightning_logs/{folder}/checkpoints/last.ckpt"))


def test_a_new_run_starts_from_a_checkpoint_with_another_text(
    gptlit: Call, own: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.txt"
    other.write_text(made_up_text(600, seed=5), encoding="utf-8")
    result = fit(gptlit, other, f"--model.init_from={own}", "--model.block_size=6")
    assert result.code == 0, result.err
    assert f"starting from {own}, with its tokenizer of " in result.err
    assert "its n_layer 1" in result.err
    (before, tokenizer), (after, same) = checkpoint.load(own), trained()
    assert same.state() == tokenizer.state()
    assert (after.config.n_layer, after.config.block_size) == (1, 6)
    for name, tensor in crop_block_size(before.state_dict(), before.config, 6).items():
        torch.testing.assert_close(after.state_dict()[name], tensor, atol=1e-6, rtol=0)
    saved = yaml.safe_load(Path("lightning_logs/version_0/config.yaml").read_text())
    assert (saved["model"]["init_from"], saved["model"]["n_layer"]) == (str(own), 1)


def test_a_new_run_starts_from_a_folder_and_resumes_without_it(
    gptlit: Call, own: Path, run: Run
) -> None:
    export([str(own), "exported"])
    result = fit(gptlit, run.text, "--model.init_from=exported")
    assert result.code == 0, result.err
    before, after = checkpoint.load(own)[0], trained()[0]
    assert after.config == before.config
    for name, tensor in before.state_dict().items():
        torch.testing.assert_close(after.state_dict()[name], tensor, atol=1e-6, rtol=0)
    shutil.rmtree("exported")
    result = gptlit("fit", "--ckpt_path=last", "--trainer.max_steps=2")
    assert result.code == 0, result.err
    assert gptlit("validate", "--ckpt_path=last").code == 0
    result = gptlit("fit", "--ckpt_path=last", "--trainer.max_steps=3", f"--model.init_from={own}")
    assert result.code == 2
    assert "give one of them" in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.block_size=9"], "--model.block_size 9: .* have 8 positions; use 8 or fewer"),
        (["--data.eos=true"], "--data.eos true: .* has no end-of-sequence token"),
        (["--model.init_from=nowhere"], "--model.init_from nowhere: no such file or folder"),
        (["--model.init_from=gpt3"], "one of gpt2, .*Did you mean gpt2"),
        (["--model.init_from=empty"], "--model.init_from empty: no config.json in it"),
        (["--model.init_from=torn.ckpt"], "--model.init_from torn.ckpt: torn, altered"),
    ],
)
def test_invalid_starts_are_refused(
    gptlit: Call, own: Path, run: Run, arguments: list[str], message: str
) -> None:
    Path("empty").mkdir()
    Path("torn.ckpt").write_bytes(own.read_bytes()[:1000])
    result = fit(gptlit, run.text, f"--model.init_from={own}", *arguments)
    assert result.code == 2
    (line,) = result.err.splitlines()
    with pytest.raises(UsageError, match=message):
        raise UsageError(line)
    assert not Path("lightning_logs").exists()


@pytest.fixture
def bytes_(monkeypatch: pytest.MonkeyPatch) -> BytePairTokenizer:
    """A small tokenizer instead of GPT-2's."""
    pieces = [bytes([byte]) for byte in range(256)]
    small = BytePairTokenizer("tiktoken", "gpt2", r"\S+|\s+", pieces, {"<|endoftext|>": 256})
    monkeypatch.setattr(BytePairTokenizer, "published", lambda *_: small)
    return small


def as_published(folder: Path, tokenizer: Tokenizer) -> GPT:
    """A tiny GPT-2 with the two files that are fetched."""
    sizes: dict[str, Any] = {"n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 16}
    model = made(GPTConfig(tokenizer.vocab_size, **sizes, activation="gelu_tanh"))
    write_hugging_face(model, tokenizer, folder)
    for path in folder.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            path.unlink()
    return model


def test_published_weights_from_a_folder_of_the_user(
    gptlit: Call,
    text_file: Path,
    bytes_: BytePairTokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = as_published(tmp_path / "mine" / "gpt2-medium", bytes_)
    monkeypatch.setenv("GPTLIT_DATA_DIR", str(tmp_path / "mine"))
    result = fit(gptlit, text_file, "--model.init_from=gpt2-medium", "--data.eos=true")
    assert result.code == 0, result.err
    after, tokenizer = trained()
    assert tokenizer.eos_id == 256
    assert (after.config.activation, after.config.block_size) == ("gelu_tanh", 8)
    torch.testing.assert_close(after.wte.weight, model.wte.weight, atol=1e-6, rtol=0)
    torch.testing.assert_close(after.wpe.weight, model.wpe.weight[:8], atol=1e-6, rtol=0)


def test_published_weights_are_fetched_once(
    bytes_: BytePairTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = as_published(tmp_path / "hub", bytes_)
    asked = []

    class Hub:
        def __init__(self, **_: Any) -> None: ...

        def __call__(self, address: str, file: Any, _: Any) -> None:
            asked.append(address)
            file.write((tmp_path / "hub" / address.rsplit("/")[-1]).read_bytes())

    monkeypatch.setattr(pooch, "HTTPDownloader", Hub)
    for _ in range(2):
        origin = start_from("gpt2-xl", tmp_path / "data")
        assert torch.equal(origin.state["wte.weight"], model.wte.weight)
    place = "https://huggingface.co/openai-community/gpt2-xl/resolve/main"
    assert asked == [f"{place}/config.json", f"{place}/model.safetensors"]


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unreachable:
        def __init__(self, **_: Any) -> None: ...

        def __call__(self, *_: Any) -> None:
            raise requests.ConnectionError

    monkeypatch.setattr(pooch, "HTTPDownloader", Unreachable)
    message = (
        r"^init_from gpt2: could not fetch https://huggingface.co/.* \(ConnectionError\); "
        r"put config.json and model.safetensors by hand into .*data/weights/gpt2, or name a folder"
    )
    with pytest.raises(UsageError, match=message):
        start_from("gpt2", tmp_path / "data")
    assert not list(tmp_path.rglob("*.*"))


def test_the_vocabulary_is_checked_against_the_tokenizer(
    bytes_: BytePairTokenizer, tmp_path: Path
) -> None:
    model = made()  # 8 tokens
    write_hugging_face(model, CharTokenizer("abcdefgh"), tmp_path / "chars")
    for name in ("gptlit.json", "tokenizer.json"):
        (tmp_path / "chars" / name).unlink()
    with pytest.raises(UsageError, match="chars: .*a vocabulary of 8, its tokenizer of 257"):
        start_from(str(tmp_path / "chars"), tmp_path)


def test_a_folder_imported_and_exported_is_the_same(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    export([str(own), "exported"])
    import_(["hugging_face", "exported"])
    (ours, tokenizer), (back, same) = checkpoint.load(own), checkpoint.load("exported.ckpt")
    assert back.config == ours.config
    assert same.state() == tokenizer.state()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, back.state_dict()[name])
    with pytest.raises(UsageError, match="gptlit export nowhere.ckpt: no such file"):
        export(["nowhere.ckpt", "x"])
    with pytest.raises(UsageError, match="meta.pkl: a folder has its own tokenizer; leave it out"):
        import_(["hugging_face", "exported", "meta.pkl", "--output=y.ckpt"])


def test_learned_positions_are_cropped(tmp_path: Path) -> None:
    model = made()
    cropped = crop_block_size(model.state_dict(), model.config, 4)
    assert torch.equal(cropped["wpe.weight"], model.wpe.weight[:4])
    rotary = made(GPTConfig(8, n_layer=1, n_head=2, n_embd=8, block_size=6, positions="rotary"))
    state = rotary.state_dict()
    assert crop_block_size(state, rotary.config, 12).keys() == state.keys()
    write_safetensors(rotary, CharTokenizer("abcdefgh"), tmp_path / "rotary")
    assert start_from(str(tmp_path / "rotary"), tmp_path).config == rotary.config


def test_documents_are_closed_where_the_vocabulary_allows_it(bytes_: BytePairTokenizer) -> None:
    assert with_document_ends(bytes_).eos_id == 256
    chars = CharTokenizer("ab", ["<PAD>", "<EOS>"])
    assert with_document_ends(chars).eos_id == 1
    closed = CharTokenizer("ab", ["<EOS>"], eos=True)
    assert with_document_ends(closed) is closed


def test_published_names() -> None:
    assert PUBLISHED == ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
    assert gpt2_names.from_hugging_face({}) == GPTConfig(
        50257,
        n_layer=12,
        n_head=12,
        n_embd=768,
        block_size=1024,
        activation="gelu_tanh",
        dropout=0.1,
    )
