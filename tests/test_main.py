from collections.abc import Callable

import pytest

import gptlit as package
from gptlit.__main__ import VERBS
from gptlit.predict import command
from tests.conftest import Result

Call = Callable[..., Result]


def test_version_and_help(gptlit: Call) -> None:
    assert gptlit("--version").out == f"gptlit {package.__version__}\n"
    told = gptlit("--help")
    assert told.code == 0
    for verb in VERBS:
        assert verb in told.out
    assert max(map(len, told.out.splitlines())) <= 80


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
    told = gptlit(verb, "--help")
    assert told.code == 0
    assert option in told.out


def test_ctrl_c(gptlit: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(argv: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "main", interrupted)
    result = gptlit("predict")
    assert result.code == 130
    assert "Traceback" not in result.err
