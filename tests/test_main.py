from collections.abc import Callable

import pytest

import gptlit as package
from gptlit.__main__ import VERBS
from gptlit.predict import command
from tests.conftest import Result

Call = Callable[..., Result]


def test_version_and_help(gptlit: Call) -> None:
    assert gptlit("--version").out == f"gptlit {package.__version__}\n"
    result = gptlit("--help")
    assert result.code == 0
    for verb in VERBS:
        assert verb in result.out
    assert max(map(len, result.out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("verb", "option"),
    [
        ("fit", "--model.n_embd"),
        ("validate", "--ckpt_path"),
        ("test", "--data.test_path"),
        ("predict", "--top_k"),
    ],
)
def test_a_verbs_help_names_its_options(gptlit: Call, verb: str, option: str) -> None:
    result = gptlit(verb, "--help")
    assert result.code == 0
    assert option in result.out


def test_ctrl_c(gptlit: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(argv: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "main", interrupted)
    result = gptlit("predict")
    assert result.code == 130
    assert "Traceback" not in result.err
