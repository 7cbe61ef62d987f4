"""gptlit used from Python, as in a notebook."""

import dataclasses
import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gptlit
from gptlit.generation.generate import generate_many, stream_generate
from gptlit.generation.settings import SamplingSettings
from gptlit.messages import UsageError
from gptlit.model.gpt import GPT, GPTConfig
from gptlit.runs.sample_text import SampleText
from gptlit.tokenizers.base import Tokenizer, TokenizerOptions
from gptlit.tokenizers.characters import CharTokenizer
from tests.conftest import Run

TOKENIZER = CharTokenizer("\n abcdefg")
SHORT: dict[str, Any] = {"max_new_tokens": 6}


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(TOKENIZER.vocab_size, n_layer=1, n_head=2, n_embd=8, block_size=16)).eval()


def test_the_ids_of_a_tokenizer_go_into_a_model_and_its_loss(model: GPT) -> None:
    ids = torch.tensor(TOKENIZER.encode("abc"))
    logits = model(ids[None])
    assert logits.shape == (1, 3, TOKENIZER.vocab_size)
    assert torch.nn.functional.cross_entropy(logits[0, :-1], ids[1:]).isfinite()


@pytest.mark.parametrize(
    "dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64]
)
def test_ids_of_any_integer_type(model: GPT, dtype: Any) -> None:
    ids = TOKENIZER.encode("abc")[None]
    assert torch.equal(model(torch.tensor(ids.astype(dtype))), model(torch.tensor(ids)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.complex64])
def test_ids_are_integers(model: GPT, dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(TypeError, match=f"^idx: token ids must be integers, not {name}"):
        model(torch.zeros(1, 3).to(dtype))
    with pytest.raises(ValueError, match=r"^idx: must have the shape \(B, T\), not \(3,\)"):
        model(torch.zeros(3, dtype=torch.int64))


def test_a_string_is_one_string_and_not_its_letters(model: GPT) -> None:
    for name in ("stop", "ban"):
        assert getattr(SamplingSettings(**{name: "JULIET"}), name) == ["JULIET"]
        assert getattr(SamplingSettings(**{name: ("a", "b")}), name) == ["a", "b"]
        for wrong in (3, [3], b"a"):
            with pytest.raises(UsageError, match=f"^{name} .*must be a string, or a list"):
                SamplingSettings(**{name: wrong})
    alone = gptlit.generate(model, TOKENIZER, "a", **SHORT)
    assert gptlit.generate(model, TOKENIZER, "a", stop="abcdefg", **SHORT) == alone
    written = gptlit.generate(model, TOKENIZER, "a", ban="b", max_new_tokens=40)
    assert "b" not in written
    assert TokenizerOptions(special_tokens="<PAD>").special_tokens == ["<PAD>"]  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="^dropout_at 'branch': must be a list"):
        GPTConfig(vocab_size=2, dropout_at="branch")  # type: ignore[arg-type]
    assert SampleText(prompts="ROMEO:").options.prompts == ["ROMEO:"]
    with pytest.raises(TypeError, match="^prompts: must be a list of strings, not one string"):
        generate_many(model, TOKENIZER, "ab", [1, 2])


def test_a_list_of_prompts_gives_a_list_of_texts(
    model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptlit.generation.generate.SAMPLES_AT_ONCE", 2)
    prompts = ["a", "", "abc", "a", "gg"]
    options = {"seed": 3, "temperature": 1.0, **SHORT}
    texts = gptlit.generate(model, TOKENIZER, prompts, **options)
    assert texts == [gptlit.generate(model, TOKENIZER, each, **options) for each in prompts]
    assert gptlit.generate(model, TOKENIZER, []) == []
    for wrong, kind in ((None, "NoneType"), (7, "int"), (b"a", "bytes")):
        with pytest.raises(TypeError, match=f"^prompt: must be a string or a list.* {kind}"):
            gptlit.generate(model, TOKENIZER, wrong)  # type: ignore[type-var]
    with pytest.raises(TypeError, match="^prompt: must be one string, not a int"):
        gptlit.generate(model, TOKENIZER, ["a", 3])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="^prompt: must be one string, not a list"):
        next(stream_generate(model, TOKENIZER, prompts))  # type: ignore[arg-type]


def test_a_tokenizer_takes_one_text() -> None:
    with pytest.raises(TypeError, match="^text: must be one string, not a list"):
        TOKENIZER.encode(["a"])  # type: ignore[arg-type]


def test_the_options_of_generate_are_those_of_sampling() -> None:
    """Names and defaults are defined in one dataclass."""
    parameters = inspect.signature(gptlit.generate).parameters
    assert not [each for each in parameters.values() if each.kind == each.VAR_KEYWORD]
    own = {"model", "tokenizer", "prompt", "seed", "unknown", "use_cache"}
    settings = dataclasses.asdict(SamplingSettings())
    assert set(parameters) == own | set(settings)
    for name, default in settings.items():
        found = parameters[name].default
        assert (list(found) if isinstance(default, list) else found) == default, name
        assert parameters[name].annotation is not inspect.Parameter.empty
        assert f"        {name}: " in (gptlit.generate.__doc__ or "")


def test_names_are_listed_without_importing_torch() -> None:
    code = "import sys, gptlit; print(dir(gptlit)); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    for name in ("'load'", "'generate'", "'__version__'"):
        assert name in done.stdout


def test_permissions_of_files_follow_the_umask(
    run: Run, gptlit: Callable[..., Any], tmp_path: Path
) -> None:
    mask = os.umask(0o027)
    try:
        best = run.folder / "checkpoints" / "best.ckpt"
        for form in ("safetensors", "hugging_face"):
            assert gptlit("export", best, form, f"--format={form}").code == 0
        assert gptlit("import", "hugging_face", "hugging_face", "--output=back.ckpt").code == 0
        assert gptlit("predict", "--ckpt_path=back.ckpt", "--output_file=t.txt").code == 0
    finally:
        os.umask(mask)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 8
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {"0o640"}


def test_load_returns_the_arguments_of_generate(run: Run) -> None:
    model, tokenizer = gptlit.load(run.folder / "checkpoints" / "last.ckpt")
    assert isinstance(model, GPT)
    assert isinstance(tokenizer, Tokenizer)
    assert not model.training
    texts = gptlit.generate(model, tokenizer, ["the", "king"], **SHORT)
    assert [text[:3] for text in texts] == ["the", "kin"]
    with pytest.raises(UsageError, match="unknown drop: must be error or skip"):
        gptlit.generate(model, tokenizer, "the", unknown="drop", **SHORT)  # type: ignore[arg-type]
