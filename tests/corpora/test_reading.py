import gzip
from pathlib import Path

import pytest
import zstandard

from gptlit.corpora import unpacking
from gptlit.corpora.reading import Documents, TextOptions, find_files
from gptlit.messages import UsageError


def documents(path: Path | str, field: str = "text") -> list[str]:
    files = find_files(str(path), "--data.path")
    return [
        "".join(blocks)
        for blocks in Documents(files, "--data.path", TextOptions(jsonl_field=field))
    ]


def test_a_folder_a_glob_and_packed_files(tmp_path: Path) -> None:
    (tmp_path / "b" / "deep").mkdir(parents=True)
    (tmp_path / "a.txt").write_text("one\n", encoding="utf-8")
    (tmp_path / "b" / "c.md.gz").write_bytes(gzip.compress(b"two\r\n"))
    packed = zstandard.ZstdCompressor().compress(b'{"text": "thr\\u00e9e"}\n\n{"text": "4"}\n')
    (tmp_path / "b" / "deep" / "d.JSONL.zst").write_bytes(packed)
    (tmp_path / "picture.png").write_bytes(b"\xff")
    for hidden in (".cache", "data"):
        (tmp_path / hidden).mkdir()
        (tmp_path / hidden / "x.txt").write_text("not a text of the user's", encoding="utf-8")
    assert "data" in str(find_files(str(tmp_path), "--data.path"))
    found = find_files(str(tmp_path), "--data.path", data_dir=tmp_path / "data")
    (tmp_path / "data" / "x.txt").unlink()
    assert found == find_files(str(tmp_path), "--data.path")
    assert documents(tmp_path) == ["one\n", "two\n", "thrée", "4"]
    assert documents(f"{tmp_path}/*/*.gz") == ["two\n"]
    assert documents(f"{tmp_path}/**/?.*") == documents(tmp_path)


def test_a_folder_or_glob_without_a_text(tmp_path: Path) -> None:
    for path, message in (
        (str(tmp_path), "a folder without"),
        (f"{tmp_path}/*.txt", "no file match"),
    ):
        with pytest.raises(UsageError, match=f"--data.path .*{message}"):
            find_files(path, "--data.path")


@pytest.mark.parametrize("block", [1, 2, 3, 1 << 20])
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_the_size_of_blocks_makes_no_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, suffix: str
) -> None:
    """Blocks cut through a mark, line breaks and characters."""
    raw = "\ufeffa\r\né€\r😀\r\n\nz".encode()
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[suffix]
    path = tmp_path / f"x.txt{suffix}"
    path.write_bytes(pack(raw))
    monkeypatch.setattr(unpacking, "BLOCK_BYTES", block)
    monkeypatch.setattr(unpacking, "ZSTD_BYTES", block)
    found = Documents([path], "--data.path", TextOptions())
    assert ["".join(blocks) for blocks in found] == ["a\né€\n😀\n\nz"]
    assert found.notes == [f"{path}: CRLF line breaks are read as LF"]


def test_several_frames_are_one_file(tmp_path: Path) -> None:
    (tmp_path / "x.txt.zst").write_bytes(zstandard.compress(b"one ") + zstandard.compress(b"two"))
    (tmp_path / "x.txt.gz").write_bytes(gzip.compress(b"one ") + gzip.compress(b"two"))
    assert documents(tmp_path) == ["one two", "one two"]


@pytest.mark.parametrize("block", [1, 4, 1 << 20])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("tail", [b"\xffc", b"\xe2\x82"])
def test_the_offset_of_invalid_utf8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, mark: bytes, tail: bytes
) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(mark + b"a\r\n\xc3\xa9b" + tail)
    monkeypatch.setattr(unpacking, "BLOCK_BYTES", block)
    wanted = (
        rf"--data.path .*x.txt: is UTF-8 except for byte 0x{tail[0]:02x} at offset {len(mark) + 6},"
    )
    with pytest.raises(UsageError, match=wanted):
        documents(path)


def test_the_field_of_jsonl_can_be_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"body": "b", "text": "t\u2028u"}', encoding="utf-8")
    assert documents(path) == ["t\u2028u"]
    assert documents(path, "body") == ["b"]


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("x.txt", b"a\0b", "a binary file"),
        ("x.gz", b"nothing packed", "x.gz: incomplete or corrupt .gz file"),
        ("x.gz", gzip.compress(b"a" * 1000, mtime=0)[:-9], "x.gz: incomplete or corrupt .gz file"),
        ("x.zst", b"nothing packed", "x.zst: incomplete or corrupt .zst file"),
        (
            "x.zst",
            zstandard.compress(b"a b c" * 999)[:-3],
            "x.zst: incomplete or corrupt .zst file",
        ),
        ("x.jsonl", b'{"text": "a"}\n{"body": "b"}', "line 2 .*'text'.*jsonl_field"),
        ("x.jsonl", b"[1]\n", "line 1 .*'text'"),
        ("x.jsonl", b'{"text": null}\n', "line 1 .*'text'"),
        ("x.jsonl", b"[" * 50_000, "line 1 .*'text'"),
        ("x.jsonl", b"{\n", "line 1 .*'text'"),
        ("x.jsonl", b'{"text": "a\\ud800"}', "line 1 .*lone surrogate"),
    ],
)
def test_corrupt_files(tmp_path: Path, name: str, raw: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(UsageError, match=message):
        documents(tmp_path / name)


def test_an_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--data.path .*nowhere.txt: No such file"):
        documents(tmp_path / "nowhere.txt")
