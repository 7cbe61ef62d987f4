import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gptlit.corpora import Text
from gptlit.messages import UsageError
from gptlit.metrics import text_figures
from gptlit.tokenizer import BytePairTokenizer, CharTokenizer, TokenizerOptions, parse_options
from gptlit.tokens import TokenFile, prepare, split_text


def text(content: str, name: str = "made up.txt") -> Text:
    return Text(name, content, hashlib.sha256(content.encode()).hexdigest())


def prepared(folder: Path, content: str = "abcdefghij", **options: Any) -> TokenFile:
    settings = {
        "tokenizer": TokenizerOptions(),
        "val_fraction": 0.1,
        "test_fraction": 0.0,
        "own_texts": {},
    }
    return prepare(text(content), folder, **{**settings, **options})


def test_tiny_shakespeare_splits_as_published() -> None:
    parts = split_text("x" * 1_115_394, 0.1, 0.0)
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 1_003_854,
        "val": 111_540,
        "test": 0,
    }


@pytest.mark.parametrize(
    ("fractions", "wanted"),
    [
        ((0.1, 0.0), ("abcdefghi", "j", "")),
        ((0.0, 0.0), ("abcdefghij", "", "")),
        ((0.2, 0.1), ("abcdefg", "hi", "j")),
        ((0.0, 0.3), ("abcdefg", "", "hij")),
    ],
)
def test_splits_follow_each_other(
    fractions: tuple[float, float], wanted: tuple[str, str, str]
) -> None:
    assert tuple(split_text("abcdefghij", *fractions).values()) == wanted


@pytest.mark.parametrize(
    ("fractions", "told"),
    [((1.0, 0), "val_fraction 1.0"), ((0, -0.1), "test_fraction -0.1"), ((0.5, 0.5), "nothing")],
)
def test_fractions_that_can_not_work(fractions: tuple[float, float], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        split_text("abc", *fractions)


def test_the_file_holds_the_text_as_small_numbers(tmp_path: Path) -> None:
    tokens = prepared(tmp_path, "hello world", val_fraction=0.3)
    assert isinstance(tokens.ids, np.memmap)
    assert tokens.ids.dtype == np.uint16
    assert tokens.tokenizer.decode(tokens.split("train")) == "hello w"
    assert tokens.tokenizer.decode(tokens.split("val")) == "orld"
    assert tokens.tokenizer.vocab_size == len(set("hello world"))
    assert tokens.provenance["sizes"]["val"] == {"characters": 4, "bytes": 4, "unknown": 0}


def test_a_large_vocabulary_takes_larger_numbers(tmp_path: Path) -> None:
    content = "".join(map(chr, range(0x10000, 0x10000 + 2**16 + 1)))
    tokens = prepared(tmp_path, content, val_fraction=0.0)
    assert tokens.ids.dtype == np.uint32
    assert tokens.tokenizer.decode(tokens.ids) == content


def test_prepared_once_and_again_when_anything_changes(tmp_path: Path) -> None:
    prepared(tmp_path)
    (made,) = tmp_path.glob("*.bin")
    before = made.stat().st_mtime_ns
    prepared(tmp_path)
    assert made.stat().st_mtime_ns == before
    changes: list[dict[str, Any]] = [
        {"content": "abcdefghik"},
        {"val_fraction": 0.2},
        {"test_fraction": 0.1},
        {"tokenizer": CharTokenizer("abcdefghijk")},
        {"own_texts": {"val": text("abc")}},
    ]
    for count, change in enumerate(changes, start=2):
        prepared(tmp_path, **change)
        assert len(list(tmp_path.glob("*.bin"))) == count, change


@pytest.mark.parametrize("suffix", [".bin", ".json"])
@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_damaged_file_is_made_anew(tmp_path: Path, suffix: str, damage: str) -> None:
    whole = prepared(tmp_path).ids.tolist()
    (path,) = tmp_path.glob(f"*{suffix}")
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-3])
    assert prepared(tmp_path).ids.tolist() == whole


def test_what_stands_before_a_split(tmp_path: Path) -> None:
    tokens = prepared(tmp_path, "ab\ncdefghij", val_fraction=0.2)
    start = tokens.tokenizer.start_id
    assert tokens.tokenizer.decode([start]) == "\n"
    assert tokens.input_before("train") == start
    assert tokens.input_before("val") == int(tokens.split("train")[-1])
    own = prepared(tmp_path, "ab\ncd", val_fraction=0.0, own_texts={"val": text("xy")})
    assert own.input_before("val") == own.tokenizer.start_id
    # the vocabulary is that of all texts
    assert own.tokenizer.decode(own.split("val")) == "xy"


def test_a_text_that_a_finished_tokenizer_can_not_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="made up.txt: 'c' not in the vocabulary"):
        prepared(tmp_path, "abcd", tokenizer=CharTokenizer("ab"))


@pytest.mark.parametrize("short", ["char", "word", "word:reversible", "bpe:260", "tiktoken"])
def test_bits_per_byte_of_a_uniform_guess_is_the_closed_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: str
) -> None:
    """nats per token ln(V), over the bytes of the span: tokens * log2(V) / bytes."""
    content = "a rose is a rose is a rosé\n" * 8
    options: Any = parse_options(short)
    if short == "tiktoken":
        options = BytePairTokenizer.train(content, parse_options("bpe:264"))
    tokens = prepared(tmp_path, content, tokenizer=options, val_fraction=0.25)
    vocab_size, n_bytes = (
        tokens.tokenizer.vocab_size,
        len(content[int(0.75 * len(content)) :].encode()),
    )
    figures = text_figures(torch.tensor(math.log(vocab_size)), tokens.bytes_per_token("val"))
    wanted = tokens.size("val") * math.log2(vocab_size) / n_bytes
    assert figures["bits_per_byte"].item() == pytest.approx(wanted, rel=1e-6)
    assert tokens.provenance["sizes"]["val"]["bytes"] == n_bytes


def test_the_share_of_unknown_words_is_known(tmp_path: Path) -> None:
    options = TokenizerOptions(kind="word", min_frequency=2)
    sizes = prepared(tmp_path, "a a a a a a b c d", tokenizer=options, val_fraction=0.3).provenance
    assert sizes["sizes"]["train"]["unknown"] == 0
    assert sizes["sizes"]["val"]["unknown"] == 3
