import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptlit.tokenizers.base import (
    TokenizerOptions,
    UnknownPieces,
)
from gptlit.tokenizers.characters import CharTokenizer
from gptlit.tokenizers.state import from_state

# Tiny Shakespeare's first 50 characters, its 65 distinct ones, and its first ids in session4
FIRST = "First Citizen:\nBefore we proceed any further, hear me speak"[:50]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
DISTINCT = "\n !$&',-.3:;?" + LETTERS.upper() + LETTERS
IDS = [
    18, 47, 56, 57, 58, 1, 15, 47, 58, 47, 64, 43, 52, 10, 0, 14, 43, 44, 53, 56, 43, 1, 61, 43, 1,
    54, 56, 53, 41, 43, 43, 42, 1, 39, 52, 63, 1, 44, 59, 56, 58, 46, 43, 56, 6, 1, 46, 43, 39, 56,
]  # fmt: skip


def test_the_ids_of_session4() -> None:
    tokenizer = CharTokenizer.train("".join(reversed(DISTINCT)) + FIRST)
    assert tokenizer.vocab_size == 65
    assert tokenizer.characters == DISTINCT
    assert tokenizer.encode(FIRST).tolist() == IDS


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_round_trip(text: str) -> None:
    tokenizer = CharTokenizer.train(text)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert ids.dtype == np.int64
    assert set(ids.tolist()) == set(range(tokenizer.vocab_size))
    assert from_state(tokenizer.state()).encode(text).tolist() == ids.tolist()


@given(st.text(max_size=30), st.text(min_size=1, max_size=30))
def test_unknown_characters_are_reported_or_dropped(text: str, vocabulary: str) -> None:
    tokenizer = CharTokenizer("".join(sorted(set(vocabulary))))
    kept = "".join(character for character in text if character in vocabulary)
    assert tokenizer.decode(tokenizer.encode(text, "skip")) == kept
    unknown = "".join(sorted(set(text) - set(vocabulary)))
    if unknown:
        with pytest.raises(UnknownPieces) as caught:
            tokenizer.encode(text)
        assert "".join(caught.value.pieces) == unknown
        assert repr(unknown[0]) in str(caught.value)


def test_the_start_id_is_a_newline_or_0() -> None:
    assert CharTokenizer("\tab").start_id == 0
    assert CharTokenizer("\t\nab").start_id == 1


def test_surrogates_are_unknown() -> None:
    with pytest.raises(UnknownPieces, match="udcff"):
        CharTokenizer("ab").encode("a\udcff")  # Python's form of an invalid byte in argv


def test_messages_shorten_a_large_vocabulary() -> None:
    tokenizer = CharTokenizer("".join(map(chr, range(0x4E00, 0x5E00))))
    with pytest.raises(UnknownPieces) as caught:
        tokenizer.encode("x")
    assert len(str(caught.value)) < 200


def test_unknown_characters_have_a_token_if_requested() -> None:
    tokenizer = CharTokenizer("ab", ["<PAD>", "<UNK>"])
    assert tokenizer.vocab_size == 4
    assert tokenizer.encode("abz").tolist() == [2, 3, 1]
    assert from_state(tokenizer.state()).encode("zb").tolist() == [1, 3]


def test_numbers_have_a_token_if_requested() -> None:
    options = TokenizerOptions(special_tokens=["<NUM>"])
    tokenizer = CharTokenizer.train("ab<NUM>", options)
    ids = tokenizer.encode("a<NUM><NUM>b")
    assert len(ids) == 4
    assert tokenizer.decode(ids) == "a<NUM><NUM>b"
