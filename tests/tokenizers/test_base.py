import pytest

from gptlit.messages import UsageError
from gptlit.tokenizers.base import (
    TokenizerOptions,
    parse_options,
)


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
def test_invalid_short_forms(short: str) -> None:
    with pytest.raises(UsageError, match=f"^tokenizer {short}: .*bpe:SIZE"):
        parse_options(short)


def test_published_encodings_have_their_own_special_tokens() -> None:
    with pytest.raises(UsageError, match="special_tokens .*tiktoken's encodings have their own"):
        TokenizerOptions(kind="tiktoken", special_tokens=["<NUM>"])
