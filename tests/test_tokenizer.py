import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptlit.messages import UsageError
from gptlit.tokenizer import CharTokenizer, UnknownCharacters, from_state

# Tiny Shakespeare's first 50 characters, its 65 distinct ones, and its first ids (S1)
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
    assert ids.dtype == np.uint32
    assert set(ids.tolist()) == set(range(tokenizer.vocab_size))
    assert from_state(tokenizer.state()).encode(text).tolist() == ids.tolist()


@given(st.text(max_size=30), st.text(min_size=1, max_size=30))
def test_unknown_characters_are_told_or_dropped(text: str, vocabulary: str) -> None:
    tokenizer = CharTokenizer("".join(sorted(set(vocabulary))))
    kept = "".join(character for character in text if character in vocabulary)
    assert tokenizer.decode(tokenizer.encode(text, "skip")) == kept
    strangers = "".join(sorted(set(text) - set(vocabulary)))
    if strangers:
        with pytest.raises(UnknownCharacters) as caught:
            tokenizer.encode(text)
        assert caught.value.characters == strangers
        assert repr(strangers[0]) in str(caught.value)


def test_an_empty_prompt_starts_from_a_newline_or_token_0() -> None:
    assert CharTokenizer("\tab").start_id == 0
    assert CharTokenizer("\t\nab").start_id == 1


def test_a_prompt_can_hold_what_no_text_does() -> None:
    with pytest.raises(UnknownCharacters, match="udcff"):
        CharTokenizer("ab").encode("a\udcff")  # what Python makes of a stray byte in argv


def test_a_large_vocabulary_is_not_told_whole() -> None:
    tokenizer = CharTokenizer("".join(map(chr, range(0x4E00, 0x5E00))))
    with pytest.raises(UnknownCharacters) as caught:
        tokenizer.encode("x")
    assert len(str(caught.value)) < 200


def test_states() -> None:
    assert CharTokenizer("ab").state() == {"kind": "char", "characters": "ab"}
    with pytest.raises(UsageError, match="'words'"):
        from_state({"kind": "words"})
    with pytest.raises(ValueError, match="sorted"):
        CharTokenizer("ba")
