"""Written tokenizers, run by the tokenizers package: the ids and texts of ours for any string."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import rustbpe
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gptlit.checkpoints.tokenizer_files import (
    GPT2_PATTERN,
    TIKTOKEN_GPT2_PATTERN,
    for_oniguruma,
    write,
)
from gptlit.tokenizers.base import Tokenizer, TokenizerOptions, UnknownPieces
from gptlit.tokenizers.bytepair import BytePairTokenizer
from gptlit.tokenizers.characters import CharTokenizer
from gptlit.tokenizers.words import WordTokenizer, count_words

TEXT = (
    "ROMEO: But, soft! what light through yonder window breaks?\n"
    "It is the east, and Juliet is the sun.  Don't they'll WE'LL 1595 12345?\n\n"
    "\tLa gloria di colui che tutto move, così è più — caffè\r\n naïve 日本 🙂 \u00a0 \u2003end \n"
)
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|"
    r"\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_ENDS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+{_ENDS}|"
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*{_ENDS}|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def trained(pattern: str | None = None, special: tuple[str, ...] = ()) -> BytePairTokenizer:
    if pattern is None:
        options = TokenizerOptions("bpe", vocab_size=320, special_tokens=list(special))
        return BytePairTokenizer.train([TEXT * 3], options)
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(iter([TEXT * 3]), 310, pattern=pattern)
    ranks = sorted(trainer.get_mergeable_ranks(), key=lambda pair: pair[1])
    pieces = [bytes(piece) for piece, _ in ranks]
    return BytePairTokenizer("tiktoken", "x", pattern, pieces, {"<|endoftext|>": len(pieces)})


def words(**options: Any) -> WordTokenizer:
    counts = count_words(TEXT, options.get("reversible", False))
    return WordTokenizer.train(counts, TokenizerOptions("word", **options))


CHARACTERS = "".join(sorted(set(TEXT)))
KINDS: dict[str, Callable[[], Tokenizer]] = {
    "char": lambda: CharTokenizer(CHARACTERS),
    "char <UNK>": lambda: CharTokenizer(CHARACTERS, ["<PAD>", "<UNK>", "<EOS>"], True),
    "char <NUM>": lambda: CharTokenizer(CHARACTERS, ["<NUM>", "<UNK>"]),
    "word": words,
    "word <UNK>": lambda: words(min_frequency=2, special_tokens=["<PAD>"], eos=True),
    "word:reversible": lambda: words(reversible=True, special_tokens=["<UNK>"]),
    "bpe": trained,
    "bpe, special": lambda: trained(special=("<PAD>", "<NUM>")),
    "gpt2": lambda: trained(GPT2_PATTERN),
    "tiktoken's gpt2": lambda: trained(TIKTOKEN_GPT2_PATTERN),
    "cl100k_base": lambda: trained(CL100K),
    "o200k_base": lambda: trained(O200K),
    "words only": lambda: trained(r"\w+"),
}
# parts that patterns and vocabularies treat apart, and any characters
PARTS = [" ", "  ", "\n", "\r\n", "\t", "'s", "'LL", "'ſ", "\x85", "\u2028", "\u200b", "e\u0301",
         "1", "123456", "½", "٣", "Juliet", "sun", "the", "<PAD>", "<UNK>", "<NUM>", "<EOS>",
         "<|endoftext|>", "◇", "...", "日本", "🙂", "👩‍👩‍👧", "ß", "K", "İ"]  # fmt: skip
TEXTS = st.lists(st.sampled_from(PARTS) | st.text(max_size=4), max_size=12).map("".join)


@cache
def both(kind: str, folder: Path) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    ours = KINDS[kind]()
    write(ours, folder, 8)
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    theirs.encode_special_tokens = True  # as split_special_tokens of transformers
    return ours, theirs


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_texts_are_ours(kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    ours, theirs = both(kind, tmp_path_factory.mktemp("tokenizer"))
    assert theirs.get_vocab_size() == ours.vocab_size

    @settings(max_examples=120)
    @example(TEXT)
    @example("")
    @given(TEXTS)
    def check(text: str) -> None:
        try:
            ids = ours.encode(text).tolist()
        except UnknownPieces:
            with pytest.raises(Exception, match="UNK"):
                theirs.encode(text, add_special_tokens=False)
            return
        assert theirs.encode(text, add_special_tokens=False).ids == ids
        assert theirs.decode(ids, skip_special_tokens=False) == ours.decode(ids)

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_any_ids_decode_as_ours(kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    ours, theirs = both(kind, tmp_path_factory.mktemp("tokenizer"))
    # a special token that the vocabulary can spell has another name there
    plain = sorted({*range(ours.vocab_size)} - {*ours.special_ids.values()})

    @settings(max_examples=60)
    @given(st.lists(st.sampled_from(plain), max_size=30))
    def check(ids: list[int]) -> None:
        text, decoded = ours.decode(ids), theirs.decode(ids, skip_special_tokens=False)
        if isinstance(ours, BytePairTokenizer):
            # ours waits for the rest of a character that the last ids begin
            whole = b"".join(map(ours.piece, ids)).decode(errors="replace")
            assert decoded == whole
            assert whole in (text, f"{text}\ufffd")
        else:
            assert decoded == text

    check()


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (O200K, O200K),
        (CL100K, CL100K.replace("{1,3}+", "{1,3}")),
        (r"\w+", r"(?:\w+)|[\s\S]"),
        (r"(?:\d{2,}+)|x", r"(?:(?:\d{2,})|x)|[\s\S]"),
    ],
)
def test_patterns_as_oniguruma_reads_them(pattern: str, expected: str) -> None:
    assert for_oniguruma(pattern) == expected
