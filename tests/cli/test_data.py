"""`gptlit data`: the statistics of a text."""

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gptlit.cli.data import entropy_bits
from gptlit.corpora.catalog import CORPORA
from tests.conftest import Result, made_up_text

Call = Callable[..., Result]


def rows(result: Result) -> dict[str, list[str]]:
    """Return the cells of the printed table by the name of their row."""
    lines = [line for line in result.out.splitlines()[1:] if "  " in line]
    return {
        line.strip().split("  ")[0]: line.strip().split("  ", 1)[1].split() for line in lines[1:]
    }


def test_entropy() -> None:
    assert entropy_bits(np.array([1, 1, 1, 1])) == 2
    assert entropy_bits(np.array([5, 0])) == 0
    assert entropy_bits(np.array([3, 1])) == pytest.approx(2 - 0.75 * math.log2(3))


def test_the_statistics_of_a_text(gptlit: Call, text_file: Path) -> None:
    result = gptlit("data", text_file, "--tokenizer", "[char,word,bpe:300]")
    assert result.code == 0, result.err
    found, text = rows(result), made_up_text()
    n_bytes, words = len(text.encode()), text.split()
    assert found["characters"] == [f"{len(text):,}"] * 3
    assert found["bytes"] == [f"{n_bytes:,}"] * 3
    assert found["vocabulary"][0] == str(len(set(text)))
    assert found["tokens"][0] == f"{len(text):,}"
    assert int(found["tokens"][2].replace(",", "")) < len(text)
    assert found["train"][0] == f"{int(0.9 * len(text)):,}"
    assert len(words) <= int(found["tokens"][1].replace(",", "")) <= len(words) + 1
    counts = Counter(text)
    bits = -sum(n * math.log2(n / len(text)) for n in counts.values())
    assert float(found["bits per byte, unigram"][0]) == pytest.approx(bits / n_bytes, abs=6e-4)
    uniform = len(text) * math.log2(len(counts)) / n_bytes
    assert float(found["bits per byte, uniform"][0]) == pytest.approx(uniform, abs=6e-4)
    assert not Path("lightning_logs").exists()


def test_pieces_side_by_side(gptlit: Call, text_file: Path) -> None:
    tokenizers = "[char,word,word:reversible,bpe:300]"
    printed = gptlit("data", text_file, f"--tokenizer={tokenizers}", "--tokenize=the king\nzé").out
    lines = {line.split()[0]: line.split(maxsplit=1)[1] for line in printed.splitlines()}
    assert lines["char"] == "10 tokens: t|h|e|␣|k|i|n|g|⏎|é   unknown: z"
    assert lines["word"] == "2 tokens: the|␣king   unknown: zé"
    assert lines["word:reversible"] == "3 tokens: the|␣king|⏎   unknown: zé"
    assert lines["bpe:300"].replace("|", "").replace("·", "").endswith("the␣king⏎zé")


def test_the_known_corpora(gptlit: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPTLIT_DATA_DIR", raising=False)
    lines = gptlit("data", "list").out.splitlines()
    assert [line.split()[0] for line in lines] == list(CORPORA)
    assert all("public domain; not fetched yet" in line for line in lines)
