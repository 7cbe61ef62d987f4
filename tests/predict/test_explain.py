"""`gptlit predict --explain`: probability, rank and alternatives of each token."""

import dataclasses
import io
import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gptlit.__main__ import main
from gptlit.insight.passages import ALTERNATIVES, Explained, Scored, explain
from gptlit.messages import UsageError
from gptlit.model.gpt import GPT, GPTConfig
from gptlit.predict.explain import as_text, summary
from gptlit.tokenizers.base import Tokenizer, TokenizerOptions
from gptlit.tokenizers.bytepair import BytePairTokenizer
from gptlit.tokenizers.characters import CharTokenizer
from gptlit.tokenizers.words import WordTokenizer
from tests.conftest import Result, Run, after_introduction
from tests.generation.by_keywords import generate_many

Call = Callable[..., Result]
TOKENIZER = CharTokenizer("\n abcdefg")


def net(tokenizer: Tokenizer, block_size: int = 8, scale: float = 5) -> GPT:
    torch.manual_seed(1)
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size, n_layer=2, n_head=2, n_embd=16, block_size=block_size
    )
    model = GPT(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)  # far from uniform, so that ranks are distinct
    return model


@pytest.fixture(scope="module")
def model() -> GPT:
    return net(TOKENIZER)


def test_each_token_against_a_plain_loop(model: GPT) -> None:
    """A full window keeps its last half; ranks and alternatives follow from sorted logits."""
    text = "abc gfe\nabcdefg a fad\nbee cab"
    explained = explain(model, TOKENIZER, text)
    assert "".join(token.token for token in explained.tokens) == explained.text == text
    window = [0]  # a newline precedes the text
    for token in explained.tokens:
        if len(window) > 8:
            window = window[-4:]
        with torch.no_grad():
            logs = model(torch.tensor([window]))[0, -1].log_softmax(-1)
        assert token.logprob == pytest.approx(logs[token.id].item(), abs=1e-5)
        order = logs.argsort(descending=True).tolist()
        assert order[token.rank - 1] == token.id  # type: ignore[operator]  # tested above
        order.remove(token.id)
        assert [other.id for other in token.alternatives] == order[:ALTERNATIVES]
        for other in token.alternatives:
            assert other.logprob == pytest.approx(logs[other.id].item(), abs=1e-5)
            assert other.token == TOKENIZER.decode([other.id])
        window = [*window, token.id]


@pytest.mark.parametrize("n", [1, 7, 8, 9, 12, 13, 40])
def test_a_generated_text_has_the_probabilities_it_was_drawn_with(model: GPT, n: int) -> None:
    (written,) = generate_many(model, TOKENIZER, [""], [3], max_new_tokens=n, scored=True)
    found = [token.logprob for token in explain(model, TOKENIZER, written.text).tokens]
    assert found == pytest.approx(written.logprobs, abs=1e-5)


def test_a_context_of_one_token() -> None:
    one = net(TOKENIZER, block_size=1)
    (written,) = generate_many(one, TOKENIZER, [""], [3], max_new_tokens=9, scored=True)
    found = [token.logprob for token in explain(one, TOKENIZER, written.text).tokens]
    assert found == pytest.approx(written.logprobs, abs=1e-5)


def test_metrics_of_a_uniform_model() -> None:
    """The loss is ln V, the perplexity V, and every token has rank 1."""
    explained = explain(net(TOKENIZER, scale=0), TOKENIZER, "abcabc\n")
    assert {token.rank for token in explained.tokens} == {1}
    assert explained.metrics == {
        "loss": pytest.approx(math.log(9)),
        "perplexity": pytest.approx(9),
        "bits_per_byte": pytest.approx(math.log2(9)),
    }


def test_the_start_that_a_first_token_is_predicted_from() -> None:
    newline = explain(net(TOKENIZER), TOKENIZER, "ab")
    assert newline.start == "\n"
    closed = CharTokenizer("abc", ["<EOS>"], eos=True)
    document = explain(net(closed), closed, "ab")
    assert document.start == "<EOS>"
    logs = net(closed)(torch.tensor([[0]]))[0, -1].log_softmax(-1)
    assert document.tokens[0].logprob == pytest.approx(logs[1].item(), abs=1e-5)
    # without an end of sequence and a newline it is not predicted, and not counted
    bare = CharTokenizer("abé")
    explained = explain(net(bare, scale=0), bare, "éab")
    assert (explained.start, explained.tokens[0]) == (None, Scored("é", 2))
    assert explained.metrics["bits_per_byte"] == pytest.approx(math.log2(3))
    assert explained.n_bytes == 2
    assert "the first not predicted" in summary(explained)
    alone = explain(net(bare), bare, "é")
    assert set(alone.metrics.values()) == {None}
    assert summary(alone) == "1 token, the first not predicted"
    assert "é" in "".join(as_text([alone], 80, colour=True))


def test_an_incomplete_character_is_shown_by_its_bytes() -> None:
    tokenizer = BytePairTokenizer.train(["é"], TokenizerOptions(kind="bpe", vocab_size=257))
    explained = explain(net(tokenizer, scale=0), tokenizer, "aé漢")
    tokens = [token.token for token in explained.tokens]
    assert tokens == ["a", "\\xc3", "\\xa9", "\\xe6", "\\xbc", "\\xa2"]
    assert explained.text == "".join(explained.pieces) == "aé漢"
    assert explained.n_bytes == 6
    assert explained.metrics["bits_per_byte"] == pytest.approx(math.log2(257))
    table = "".join(as_text([explained], 80, colour=False))
    assert "�" not in table
    assert "\\xc3" in table


def test_words() -> None:
    tokenizer = WordTokenizer(["\n", "be", "or", "to"], reversible=True)
    explained = explain(net(tokenizer, scale=0), tokenizer, "to be\nor")
    assert [token.token for token in explained.tokens] == ["to", "be", "\n", "or"]
    assert explained.pieces == ["to", " be", "\n", "or"]
    assert explained.metrics["bits_per_byte"] == pytest.approx(4 * 2 / 8)
    forgetful = WordTokenizer(["be", "or", "to"])
    assert explain(net(forgetful), forgetful, "to be").start is None


def test_nothing_to_explain(model: GPT) -> None:
    with pytest.raises(UsageError, match="^explain: there is no text; give one by prompt"):
        explain(model, TOKENIZER, "")


def call(gptlit: Call, run: Run, *options: Any) -> Result:
    result = gptlit("predict", "--ckpt_path", run.folder / "checkpoints/last.ckpt", *options)
    return (
        dataclasses.replace(result, err=after_introduction(result.err))
        if result.code == 0
        else result
    )


def test_a_line_for_each_token_and_a_summary(gptlit: Call, run: Run) -> None:
    result = call(gptlit, run, "--explain", "--prompt=the king")
    assert (result.code, result.err) == (0, "")
    head, *lines = result.out.splitlines()
    assert head.split() == ["token", "prob", "nats", "rank", "likeliest", "others"]
    assert [line[0] for line in lines[:8]] == list("the␣king")
    nats = [float(line.split()[2]) for line in lines[:8]]
    match = re.fullmatch(
        r"loss (\S+) nats per token, perplexity (\S+), (\S+) bits per byte; 8 tokens, the first "
        r"predicted from a newline",
        " ".join(lines[9:]),
    )
    assert match
    loss, perplexity, bits = map(float, match.groups())
    assert loss == pytest.approx(sum(nats) / 8, abs=0.005)
    assert perplexity == pytest.approx(math.exp(loss), rel=1e-3)
    assert bits == pytest.approx(loss / math.log(2), abs=1e-3)
    assert "\x1b" not in result.out


def test_a_text_longer_than_the_context(gptlit: Call, run: Run) -> None:
    result = call(gptlit, run, "--explain", "--prompt=the king and the night")
    assert result.err == ""
    assert "context 8, its last 4 kept when full" in " ".join(result.out.split())


def test_as_jsonl_in_a_file(gptlit: Call, run: Run) -> None:
    options = ["--prompt=the", "--prompt=king", "--format=jsonl", "--output_file=texts.jsonl"]
    assert call(gptlit, run, "--explain", *options).out == ""
    the, king = map(json.loads, Path("texts.jsonl").read_text(encoding="utf-8").splitlines())
    assert (the["text"], king["text"]) == ("the", "king")
    assert [token["token"] for token in king["tokens"]] == list("king")
    nats = [-token["logprob"] for token in king["tokens"]]
    assert king["loss"] == pytest.approx(sum(nats) / 4)
    assert len(king["tokens"][0]["alternatives"]) == ALTERNATIVES


def test_options_that_do_not_apply_are_reported(gptlit: Call, run: Run) -> None:
    plain = call(gptlit, run, "--explain", "--prompt=the")
    result = call(gptlit, run, "--explain", "--prompt=the", "--temperature=2", "--greedy")
    assert result.out == plain.out
    assert "without --temperature, --greedy" in result.err
    skipped = call(gptlit, run, "--explain", "--prompt=theß", "--unknown=skip")
    assert skipped.out == plain.out
    assert "dropped 'ß'" in skipped.err
    assert call(gptlit, run, "--explain").code == 2


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_tokens_are_coloured_in_a_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    path = run.folder / "checkpoints" / "last.ckpt"
    arguments = ["predict", f"--ckpt_path={path}", "--explain", "--prompt=the king\nQ"]
    outputs = []
    for colour in (True, False):
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("NO_COLOR", "" if colour else "1")
        terminal = Terminal()
        monkeypatch.setattr(sys, "stdout", terminal)
        assert main(["predict", *arguments[1:], "--unknown=skip"]) == 0
        outputs.append(terminal.getvalue())
    coloured, plain = outputs
    assert "\x1b" not in plain
    # the text itself precedes the table
    bare = re.sub(r"\x1b\[[\d;]*m", "", coloured)
    assert bare.startswith("the king\n")
    assert bare.endswith(plain)


@pytest.mark.parametrize(
    ("share", "code"), [(0.5, "32"), (0.49, "33"), (0.1, "33"), (0.05, "31"), (0.001, "31;7")]
)
def test_each_colour_begins_at_its_probability(share: float, code: str) -> None:
    token = Scored("x", 1, math.log(share), 1)
    shown = "".join(as_text([Explained("x", ["x"], [token], "\n", 1, 8)], 80, colour=True))
    assert shown.startswith(f"\x1b[{code}mx\x1b[0m\n")


@pytest.mark.parametrize("columns", [20, 40, 60])
def test_as_many_alternatives_as_fit_are_shown(model: GPT, columns: int) -> None:
    lines = "".join(as_text([explain(model, TOKENIZER, "abc")], columns, False)).splitlines()
    counts = {len(re.findall(r"%", line)) - 1 for line in lines[1:4]}
    assert all(len(line) <= max(columns, 45) for line in lines)
    assert min(counts) >= (0 if columns == 20 else 1)
    assert max(counts) <= ALTERNATIVES
