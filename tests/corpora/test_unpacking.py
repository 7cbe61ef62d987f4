"""Reading takes the same memory whatever a text's size is, and however well it is packed."""

import gzip
import io
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from gptlit.corpora import catalog, markup, rows
from gptlit.corpora.unpacking import unpacked
from gptlit.data import clean_text
from gptlit.messages import UsageError
from tests.conftest import Result

MIB = 1 << 20


def packed(suffix: str, begin: bytes, fill: bytes, n_mib: int) -> bytes:
    """Write a beginning and many equal MiB, packed into a few kilobytes."""
    out, block = io.BytesIO(), fill * (MIB // len(fill))
    writer = (
        zstandard.ZstdCompressor().stream_writer(out, closefd=False)
        if suffix == ".zst"
        else gzip.GzipFile(fileobj=out, mode="wb", compresslevel=1)
    )
    with writer as file:
        file.write(begin)
        for _ in range(n_mib):
            file.write(block)
    return out.getvalue()


def test_a_block_of_zstd_is_small(tmp_path: Path) -> None:
    path = tmp_path / "x.txt.zst"
    path.write_bytes(packed(".zst", b"", b"a", 512))
    assert path.stat().st_size < 32_000
    sizes = [len(block) for block in unpacked(path)]
    assert sum(sizes) == 512 * MIB
    assert max(sizes) <= 8 * MIB


@pytest.mark.parametrize(
    ("name", "begin", "fill", "message"),
    [
        ("x.txt.zst", b"", b"the king ", None),
        ("x.txt.gz", b"", b"a", None),
        ("x.txt.gz", b"a", b"\n", None),
        ("x.jsonl.zst", b'{"text": "a"}\n{"text": "', b"a", "line 2 has more than 1,048,576"),
        ("x.json.gz", b'[{"text": "a"}, {"text": "', b"a", "record 2 has more than 1,048,576"),
        ("x.csv.zst", b"id,text\n1,", b"a", "line 2 has more than 1,048,576"),
        (
            "x.csv.gz",
            b'id,text\n1,"a\n',
            b"a,b," * 255 + b"a,b\n",
            "in a row of more than 1,048,576.*quotation",
        ),
        ("x.html.gz", b"<p>", b"a", "a page of more than"),
    ],
)
def test_memory_is_bounded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    begin: bytes,
    fill: bytes,
    message: str | None,
) -> None:
    monkeypatch.setattr(rows, "RECORD_CHARS", MIB)
    monkeypatch.setattr(markup, "PAGE_BYTES", MIB)
    path = tmp_path / "texts" / name
    path.parent.mkdir()
    path.write_bytes(packed(path.suffix, begin, fill, 64))
    beside = path.with_name("y.txt")
    beside.write_text("a text beside it", encoding="utf-8")
    text = catalog.load(catalog.TextOptions(path=f"{path.parent}/*"), tmp_path)
    tracemalloc.start()
    try:
        if message is None:
            written = clean_text.write(text, tmp_path / "clean", joined=True)
            assert written.n_chars > 60 * MIB or fill == b"\n"
        else:
            with pytest.raises(UsageError, match=f"^path {path}: .*{message}"):
                clean_text.write(text, tmp_path / "clean", joined=True)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 48 * MIB


def test_a_row_that_is_too_long_leaves_no_files(
    gptlit: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "RECORD_CHARS", 1000)
    (tmp_path / "x.jsonl").write_text('{"text": "' + "a" * 2000 + '"}')
    found = gptlit("data", "x.jsonl")
    assert found.code == 2
    assert "gptlit data x.jsonl: line 1 has more than 1,000 characters" in found.err
    assert [path.name for path in (tmp_path / "data" / "tokens").iterdir()] == [".lock"]
