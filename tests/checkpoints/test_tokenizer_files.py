"""Tokenizers in Hugging Face's files; `make parity` compares them with transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from gptlit.checkpoints.tokenizer_files import GPT2_PATTERN, merges, read, write
from gptlit.messages import UsageError
from gptlit.tokenizers.base import TokenizerOptions
from gptlit.tokenizers.bytepair import BytePairTokenizer
from gptlit.tokenizers.characters import CharTokenizer
from gptlit.tokenizers.hugging_face import JsonTokenizer
from gptlit.tokenizers.words import WordTokenizer

TEXT = "It is the east, and Juliet is the sun. 1595!\n\tcosì è più naïve 🙂 \n" * 3


def trained() -> BytePairTokenizer:
    return BytePairTokenizer.train([TEXT], TokenizerOptions(kind="bpe", vocab_size=300))


def as_gpt2() -> BytePairTokenizer:
    ours = trained()
    return BytePairTokenizer("tiktoken", "x", GPT2_PATTERN, ours.pieces, ours.special_tokens)


def test_merges_are_recovered_from_pieces() -> None:
    letters = [b"a", b"b", b"c", b"d"]
    pieces = [*letters, b"bc", b"ab", b"abc", b"bcd", b"abcd"]
    assert merges(pieces) == [(b"b", b"c"), (b"a", b"b"), (b"a", b"bc"), (b"bc", b"d"),
                              (b"abc", b"d")]  # fmt: skip
    # what no merge makes
    assert merges([b"a", b"b", b"c", b"abc"]) == []


@pytest.mark.parametrize("make", [trained, as_gpt2])
def test_a_written_tokenizer_reads_back_equal(tmp_path: Path, make: Any) -> None:
    ours = make()
    write(ours, tmp_path, 8)
    assert (tmp_path / "vocab.json").exists() == (make is as_gpt2)
    for forms in range(2 if make is as_gpt2 else 1):
        back = read(tmp_path, 300)
        assert back is not None
        assert (back.pieces, back.special_tokens) == (ours.pieces, ours.special_tokens)
        assert back.encode(TEXT).tolist() == ours.encode(TEXT).tolist()
        if not forms:
            (tmp_path / "merges.txt").unlink(missing_ok=True)


def test_the_pair_is_in_gpt2s_letters(tmp_path: Path) -> None:
    write(as_gpt2(), tmp_path, 8)
    vocab = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    assert [vocab[letter] for letter in "!aĠĊÿ"] == [33, 97, 32, 10, 255]
    assert vocab["<|endoftext|>"] == 299
    lines = (tmp_path / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#version: 0.2"
    assert len(lines) == 1 + 299 - 256
    assert "Ġ t" in lines


def test_a_folder_without_files(tmp_path: Path) -> None:
    assert read(tmp_path, 300) is None


@pytest.mark.parametrize(
    ("tokenizer", "text"),
    [(CharTokenizer("ab", ["<UNK>"]), "abba"), (WordTokenizer(["a", "b"], [], True), "a b b")],
)
def test_other_kinds_are_read_by_the_tokenizers_package(
    tmp_path: Path, tokenizer: Any, text: str
) -> None:
    write(tokenizer, tmp_path, 8)
    reason = "not a byte-level BPE.*; and by the tokenizers package: .*"
    if tokenizer.kind == "word":
        with pytest.raises(UsageError, match=f"{reason}its tokens don't join to a text"):
            read(tmp_path, tokenizer.vocab_size)
        return
    back = read(tmp_path, tokenizer.vocab_size)
    assert back is not None
    assert back.encode(text).tolist() == tokenizer.encode(text).tolist()
    assert back.decode(back.encode(text)) == text


def changed(path: Path, change: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def special_first(content: Any) -> None:
    content["model"]["vocab"] = {word: id_ + 1 for word, id_ in content["model"]["vocab"].items()}
    content["added_tokens"][0]["id"] = 0
    content["model"]["vocab"]["<|endoftext|>"] = 0


def swapped(content: Any) -> None:
    content["model"]["merges"].reverse()


def lowercased(content: Any) -> None:
    content["pre_tokenizer"]["pretokenizers"].insert(
        0, {"type": "Digits", "individual_digits": True}
    )


@pytest.mark.parametrize("change", [special_first, swapped, lowercased])
def test_the_tokenizers_package_runs_what_tiktoken_can_not(tmp_path: Path, change: Any) -> None:
    write(trained(), tmp_path, 8)
    changed(tmp_path / "tokenizer.json", change)
    back = read(tmp_path, 300)
    assert isinstance(back, JsonTokenizer)
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert back.encode(TEXT).tolist() == library.encode(TEXT).ids
    assert back.decode(back.encode(TEXT)) == TEXT


def test_a_tokenizer_without_a_model(tmp_path: Path) -> None:
    write(trained(), tmp_path, 8)
    changed(tmp_path / "tokenizer.json", lambda content: content.pop("model"))
    with pytest.raises(UsageError, match="tokenizer.json has no model"):
        read(tmp_path, 300)


def test_a_torn_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UsageError, match="its tokenizer: tokenizer.json: not JSON"):
        read(tmp_path, 300)
