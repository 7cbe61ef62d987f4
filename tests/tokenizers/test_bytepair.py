import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptlit.messages import UsageError
from gptlit.tokenizers.base import (
    END_OF_TEXT,
    TokenizerOptions,
)
from gptlit.tokenizers.bytepair import BytePairTokenizer
from gptlit.tokenizers.state import from_state
from gptlit.tokenizers.words import WordTokenizer

CORPUS = "to be or not to be that is the question whether tis nobler in the mind\n" * 4


@pytest.fixture(scope="module")
def bpe() -> BytePairTokenizer:
    return BytePairTokenizer.train(
        CORPUS.splitlines(True), TokenizerOptions(kind="bpe", vocab_size=280)
    )


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_bpe_round_trip_on_any_unicode(bpe: BytePairTokenizer, text: str) -> None:
    ids = bpe.encode(text)
    assert bpe.decode(ids) == text
    again = from_state(bpe.state())
    assert again.encode(text).tolist() == ids.tolist()


def test_a_trained_bpe_merges_frequent_pairs(bpe: BytePairTokenizer) -> None:
    assert bpe.vocab_size == 280
    assert len(bpe.encode(CORPUS)) < 0.6 * len(CORPUS)
    assert bpe.special_tokens == {END_OF_TEXT: 279}
    assert bpe.encode(END_OF_TEXT).max() < 279  # in a text it is ordinary text
    assert bpe.decode([279]) == END_OF_TEXT


def test_decoding_never_returns_half_a_character(bpe: BytePairTokenizer) -> None:
    decode = bpe.incremental_decoder()
    pieces = [decode(int(id_)) for id_ in bpe.encode("é€😀")]
    assert "".join(pieces) == "é€😀"
    assert set(pieces) == {"", "é", "€", "😀"}


def test_a_copy_of_a_decoder_is_independent(bpe: BytePairTokenizer) -> None:
    """Copied in the middle of a character, and after a word."""
    words = WordTokenizer(["king", "the"])
    for tokenizer, start, ends in (
        (bpe, bpe.encode("é€")[:-1], (bpe.encode("€")[-1:], bpe.encode("ab"))),
        (words, words.encode("the"), (words.encode("king the"), words.encode("the"))),
    ):
        for end in ends:
            decode = tokenizer.incremental_decoder()
            begun = "".join(map(decode, start.tolist()))
            other = copy.copy(decode)
            "".join(map(decode, ends[0].tolist()))
            decoded = begun + "".join(map(other, end.tolist()))
            assert decoded == tokenizer.decode([*start, *end])


def test_impossible_vocabulary_sizes() -> None:
    for size, reason in (
        (256, "at least 257: 256 bytes and 1 special token$"),
        (4000, "gives only .* a longer text"),
    ):
        with pytest.raises(UsageError, match=f"^tokenizer bpe:{size}: .*{reason}"):
            BytePairTokenizer.train(
                CORPUS.splitlines(True), TokenizerOptions(kind="bpe", vocab_size=size)
            )


def test_a_published_encoding_may_have_unused_ranks() -> None:
    """In p50k_base the id of a special token is one of the ranks."""
    pieces = [bytes([n]) for n in range(256)]
    special = {END_OF_TEXT: 256}
    holed = BytePairTokenizer("tiktoken", "x", r"\w+|\W", [*pieces, None, b"ab", None], special)
    assert holed.encode("abc").tolist() == [257, ord("c")]
    again = from_state(holed.state())
    assert again.encode("abc").tolist() == [257, ord("c")]
    assert again.decode([257, 258, 256]) == "ab<|endoftext|>"


def test_numbers_have_a_token_if_requested() -> None:
    options = TokenizerOptions(kind="bpe", vocab_size=258, special_tokens=["<NUM>"])
    bpe = BytePairTokenizer.train(["ab"], options)
    assert bpe.encode("a<NUM>").tolist() == [ord("a"), bpe.special_tokens["<NUM>"]]
