from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptlit.corpora import catalog
from gptlit.messages import UsageError
from gptlit.tokenizers.base import (
    TokenizerOptions,
    UnknownPieces,
)
from gptlit.tokenizers.state import from_state
from gptlit.tokenizers.words import WordTokenizer, count_words

POEM = "Nel mezzo  del cammin\n\n  di nostra vita\tmi ritrovai \n"


def words_of(text: str, options: TokenizerOptions) -> WordTokenizer:
    return WordTokenizer.train(count_words(text, options.reversible), options)


def test_words_are_those_of_session4() -> None:
    tokenizer = words_of(POEM, TokenizerOptions(kind="word"))
    assert tokenizer.words == sorted(POEM.split())
    assert tokenizer.decode(tokenizer.encode(POEM)) == " ".join(POEM.split())
    with pytest.raises(UnknownPieces, match="'selva' not in the vocabulary of 9 words"):
        tokenizer.encode("selva del cammin")
    assert tokenizer.decode(tokenizer.encode("mezzo selva vita", "skip")) == "mezzo vita"


@given(st.text(st.sampled_from("ab \n\t\u00a0"), min_size=1))
def test_round_trip_of_reversible_words(text: str) -> None:
    tokenizer = words_of(text, TokenizerOptions(kind="word", reversible=True))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert from_state(tokenizer.state()).decode(tokenizer.encode(text)) == text


def test_a_single_space_between_words_needs_no_token() -> None:
    tokenizer = words_of(POEM, TokenizerOptions(kind="word", reversible=True))
    assert len(tokenizer.encode("Nel mezzo")) == 2
    assert tokenizer.start_id == tokenizer.encode("\n")[0]


def test_rare_words_become_unknown() -> None:
    options = TokenizerOptions(kind="word", min_frequency=2, special_tokens=["<PAD>"])
    tokenizer = words_of("a b a c", options)
    assert tokenizer.decode(range(tokenizer.vocab_size)) == "<PAD> <UNK> a"
    assert tokenizer.decode(tokenizer.encode("a b a c d")) == "a <UNK> a <UNK> <UNK>"
    assert from_state(tokenizer.state()).unknown_id == tokenizer.unknown_id == 1


def test_the_ids_of_session4s_dante(tmp_path: Path) -> None:
    """The first ids that session4 publishes, of the whole Commedia."""
    try:
        commedia = "".join(*catalog.load(catalog.TextOptions("dante"), tmp_path).documents())
    except UsageError as error:
        pytest.skip(f"the Commedia can't be fetched here: {error}")
    tokenizer = words_of(commedia, TokenizerOptions(kind="word"))
    assert tokenizer.vocab_size == 20_979
    ids = tokenizer.encode(commedia)
    assert len(ids) == 96_769
    assert ids[:10].tolist() == [1643, 1143, 927, 6677, 1154, 720, 1534, 1574, 961, 1530]
    first_line = tokenizer.encode("Nel mezzo del cammin di nostra vita")
    assert first_line.tolist() == [1892, 11867, 6587, 4374, 6677, 12655, 20664]
