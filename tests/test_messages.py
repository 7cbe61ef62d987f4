"""Messages name arguments in Python, and flags on the command line."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gptlit as library
from gptlit.data.datamodule import TextDataModule
from gptlit.generation.settings import SamplingSettings
from gptlit.messages import RunError, UsageError, errors_naming, naming_flags, note, opt
from gptlit.model.gpt import GPTConfig
from gptlit.optim.optimizers import Recipe
from gptlit.parser import OneLineErrors
from gptlit.runs.sample_text import SampleText
from gptlit.tokenizers.base import TokenizerOptions, parse_options
from gptlit.training.module import LitGPT

OF_PYTHON: list[tuple[Callable[[], Any], str, str]] = [
    (lambda: SamplingSettings(top_k=0), "top_k 0: must", "--top_k 0: must"),
    (
        lambda: SamplingSettings(max_new_tokens=1, min_new_tokens=2),
        "min_new_tokens 2: must be 0 or more, and not above max_new_tokens 1",
        "--min_new_tokens 2: must be 0 or more, and not above --max_new_tokens 1",
    ),
    (
        lambda: GPTConfig(vocab_size=2, n_embd=6, n_head=4),
        "n_embd 6: must be a multiple of n_head 4",
        "--model.n_embd 6: must be a multiple of --model.n_head 4",
    ),
    (lambda: LitGPT(n_layer=-1), "n_layer -1", "--model.n_layer -1"),
    (
        lambda: Recipe(lr=1e-3, min_lr=1.0),
        "min_lr 1.0: must be from 0 to lr 0.001",
        "--model.min_lr 1.0: must be from 0 to --model.lr 0.001",
    ),
    (lambda: TextDataModule(batch_size=0), "batch_size 0", "--data.batch_size 0"),
    (lambda: TextDataModule(val_fraction=2), "val_fraction 2", "--data.val_fraction 2"),
    (
        lambda: TextDataModule(path="/no/such").prepare_data(),
        "path /no/such: No such",
        "--data.path /no/such: No such",
    ),
    (
        lambda: TokenizerOptions(min_frequency=0),
        "min_frequency 0",
        "--data.tokenizer.min_frequency 0",
    ),
    (lambda: parse_options("chars"), "tokenizer chars: unknown", "--data.tokenizer chars: unknown"),
    (
        lambda: SampleText(max_new_tokens=-1),
        "max_new_tokens -1",
        "--samples.max_new_tokens -1",
    ),
    (lambda: library.load("/no/such.ckpt"), "path /no/such.ckpt: no such", "--path /no/such"),
]


@pytest.mark.parametrize(("call", "in_python", "as_flags"), OF_PYTHON)
def test_options_are_named_as_they_are_given(
    call: Callable[[], Any], in_python: str, as_flags: str
) -> None:
    with pytest.raises(UsageError) as caught:
        call()
    assert str(caught.value).startswith(in_python)
    assert "--" not in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))  # as errors of other processes are
    assert str(again) == str(caught.value)
    with naming_flags():
        assert str(again).startswith(as_flags)
    assert str(again).startswith(in_python)


def test_values_are_shown_as_they_are_typed() -> None:
    error = UsageError("needs a number", "max_new_tokens", None)
    assert str(error) == "max_new_tokens None: needs a number"
    with naming_flags():
        assert str(error) == "--max_new_tokens null: needs a number"
        assert str(UsageError("is new", "data.eos", True)) == "--data.eos true: is new"
        assert str(UsageError("is missing", "ban")) == "--ban: is missing"
    assert str(UsageError("as it is: --this")) == "as it is: --this"


def test_notes_and_run_errors_name_options_too(capsys: pytest.CaptureFixture[str]) -> None:
    note(f"try a lower {opt('model.lr')}")
    assert capsys.readouterr().err == "gptlit: try a lower lr\n"
    error = RunError(f"try {opt('guard.diverged')} 2")
    assert str(error) == "try diverged 2"
    with naming_flags():
        assert str(error) == "try --guard.diverged 2"


def test_the_command_line_names_flags(gptlit: Callable[..., Any], tmp_path: Path) -> None:
    for arguments, message in (
        (["predict", "--ckpt_path=no.ckpt"], "--ckpt_path no.ckpt: no such file"),
        (["predict", "--top_k=0"], "--top_k 0: must be"),
        (["export", "no.ckpt", "out"], "gptlit export no.ckpt: no such file"),
        (["fit", "--model.init_from=no"], "--model.init_from no: no such file"),
        (["fit", "--samples.top_k=0"], "--samples.top_k 0: must be"),
        (["fit", "--data.tokenizer.min_frequency=0"], "--data.tokenizer.min_frequency 0: must"),
    ):
        result = gptlit(*arguments)
        assert result.code == 2
        assert result.err.startswith(f"gptlit: error: {message}"), result.err


def test_a_command_may_name_options_otherwise() -> None:
    error = UsageError(f"excludes {opt('data.column')}", "data.path", "a --data.path b")
    with (
        pytest.raises(UsageError, match=r"^--path a --data\.path b: excludes --column$"),
        errors_naming(lambda name: f"--{name.removeprefix('data.')}"),
    ):
        raise error


@pytest.mark.parametrize(
    ("error", "shorter"),
    [
        (UsageError("no such file; give another", "data.path", "a; b"), "path a; b: no such file"),
        (UsageError("a; b: no such file; give another"), "a; b: no such file"),
        (UsageError("varies nothing; give seeds"), "varies nothing"),
    ],
)
def test_a_remedy_is_left_out(error: UsageError, shorter: str) -> None:
    assert str(error.without_remedy()) == shorter


def test_a_parser_may_show_another_name() -> None:
    parser = OneLineErrors()
    parser.add_argument("--n", type=int, default=1)
    assert parser.parse_one("n", "2", "/n").n == 2
    with pytest.raises(UsageError, match="^/n --n: expected int$"):
        parser.parse_one("n", "--n", "/n")
