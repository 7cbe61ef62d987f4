"""`gptlit look`: checkpoints, texts, and where the page is written."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import gptlit as library
from gptlit.look import command
from tests.conftest import Result, Run

Call = Callable[..., Result]


def values_of(path: str | Path) -> dict[str, Any]:
    found = re.search('id="data">(.*?)</script>', Path(path).read_text(encoding="utf-8"))
    assert found
    return json.loads(found[1])


@pytest.fixture
def own(run: Run, gptlit: Call, tmp_path: Path) -> Call:
    """`gptlit` in a folder with a run, which may be written to."""
    shutil.copytree(run.folder, tmp_path / "lightning_logs" / "version_0")
    return gptlit


@pytest.mark.parametrize(
    "name", [(), ("last",), ("version_0",), ("lightning_logs/version_0/checkpoints/best.ckpt",)]
)
def test_the_page_of_a_run_is_in_its_folder(own: Call, name: tuple[str, ...]) -> None:
    result = own("look", *name, "--prompt", "the")
    assert result.code == 0, result.err
    assert result.out == "lightning_logs/version_0/look.html\n"
    assert result.err.startswith("gptlit: model lightning_logs/version_0/checkpoints/")
    values = values_of(result.out.strip())
    model, tokenizer = library.load(name[0] if name == ("last",) else "best")
    ids = [tokenizer.start_id, *tokenizer.encode("the")]
    assert (values["ids"], values["started"], values["pieces"]) == (ids, True, list("the"))
    logs = model(torch.tensor([ids]))[0].log_softmax(-1)
    own_nats = [-logs[i, id_].item() for i, id_ in enumerate(ids[1:])]
    assert values["nats"] == pytest.approx(own_nats, rel=1e-3)


def test_other_places_and_texts(own: Call) -> None:
    Path("prompt.txt").write_text("the <king>\n")
    shutil.copy("lightning_logs/version_0/checkpoints/best.ckpt", "mine.ckpt")
    for words, path in (
        (("mine.ckpt", "--prompt_file=prompt.txt", "--unknown=skip"), "look.html"),
        (
            ("mine.ckpt", "--prompt", "the <king>", "--output=a/b.html", "--unknown=skip"),
            "a/b.html",
        ),
    ):
        result = own("look", *words)
        assert (result.code, result.out) == (0, f"{path}\n"), result.err
        assert "dropped '<', '>'" in result.err
    assert "<title>the &lt;king&gt;</title>" in Path("a/b.html").read_text()
    assert Path("look.html").read_text() == Path("a/b.html").read_text()


def test_exported_weights(own: Call) -> None:
    assert own("export", "best", "exported", "--format=safetensors").code == 0
    result = own("look", "exported", "--prompt=the")
    assert (result.code, result.out) == (0, "look.html\n"), result.err
    assert own("look", "--prompt=the", "--output=best.html").code == 0
    assert values_of("look.html") == values_of("best.html")


def test_a_text_longer_than_the_context_is_cut(own: Call) -> None:
    result = own("look", "--prompt", "the king and the night")
    assert "warning: --prompt has 22 tokens; the page shows its last 8" in result.err
    values = values_of(result.out.strip())
    assert ("".join(values["pieces"]), values["started"]) == ("he night", False)
    full = own("look", "--prompt", "he night")
    assert "warning" not in full.err
    assert values_of(full.out.strip()) == values


def test_standard_input(own: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the\n")))
    result = own("look", "--prompt_file=-")
    assert values_of(result.out.strip())["pieces"] == list("the")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "there is no text to look at; give one by --prompt or --prompt_file"),
        (("--prompt=",), "there is no text to look at; give one by --prompt or --prompt_file"),
        (("--prompt=ß",), "--prompt: 'ß' not in the vocabulary of "),
        (("--prompt=ß", "--unknown=skip"), "--prompt ß: has no token of the model; give a text"),
        (("--prompt=a", "--output=a.png"), "--output a.png: must end in .html"),
        (("--prompt=a", "--prompt_file=b"), "--prompt: excludes --prompt_file; leave one out"),
        (("--prompt_file=nosuch",), "--prompt_file nosuch: No such file or directory"),
        (("nosuch", "--prompt=a"), "gptlit look nosuch: no such file; give a checkpoint's path"),
        (("empty", "--prompt=a"), "empty: has no checkpoint; name a run that has saved one"),
        (("folder", "--prompt=a"), "folder: "),
        (("lightning_logs/version_0/config.yaml", "--prompt=a"), "config.yaml: "),
        (("--propmt=a",), "--propmt: unknown option. Did you mean --prompt?"),
    ],
)
def test_wrong_input(own: Call, words: tuple[str, ...], message: str) -> None:
    shutil.copytree("lightning_logs/version_0", "empty")
    for path in Path("empty/checkpoints").glob("*.ckpt"):
        path.unlink()
    Path("folder").mkdir()
    result = own("look", *words)
    assert (result.code, result.out) == (2, ""), result.err
    assert message in result.err
    assert result.err.splitlines()[-1].startswith("gptlit: error: ")


def test_a_page_that_cannot_be_written(own: Call) -> None:
    Path("file").write_text("")
    result = own("look", "--prompt=the", "--output=file/look.html")
    assert result.code == 1
    assert "--output file/look.html: can't be written" in result.err


def test_a_long_title_is_shortened(own: Call) -> None:
    assert own("look", "--prompt", "the\nking " * 30, "--output=a.html").code == 0
    (title,) = re.findall("<title>(.*)</title>", Path("a.html").read_text())
    assert title.startswith("the ⏎ king the ⏎ king")
    assert len(title) == command.LONGEST_TITLE
