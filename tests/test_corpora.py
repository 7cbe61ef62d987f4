import gzip
import hashlib
import zipfile
from pathlib import Path

import pytest
import zstandard

from gptlit import corpora
from gptlit.corpora import CORPORA, decode, play_to_speeches, plays_to_text
from gptlit.messages import UsageError

PLAY = """# A Play

## ACT I

### SCENE I. A street.

_Enter ROMEO and
others, running_

**ROMEO**\x20\x20
__\\[Aside]_\x20\x20
But soft! what light
through yonder _\\[points]_ window & c.

_Exit_

It is the east.

A PLAY

**First Citizen:**\x20\x20
Speak, speak.

**FOOL & & C**\x20\x20
'Ladies,'\\--or so—ha!

**SILENT**\x20\x20
_Dies_
"""


def test_a_play_becomes_speeches() -> None:
    assert play_to_speeches(PLAY) == [
        "ROMEO:\nBut soft! what light\nthrough yonder window &c.\nIt is the east.",
        "First Citizen:\nSpeak, speak.",
        "FOOL:\n'Ladies,'--or so--ha!",
    ]


def test_plays_of_a_wheel_in_order_of_their_paths(tmp_path: Path) -> None:
    wheel = tmp_path / "plays.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("x/plays/tragedies/b.md", "**B**\nlater")
        archive.writestr("x/plays/comedies/a.md", "**A**\r\nsooner")
        archive.writestr("x/other.md", "**C**\nnever")
    assert plays_to_text(wheel) == b"A:\nsooner\n\nB:\nlater\n"


def test_decode_drops_the_mark_and_carriage_returns() -> None:
    assert decode(b"\xef\xbb\xbfa\r\nb\rc\n", "--data.path", "x") == "a\nb\nc\n"


@pytest.mark.parametrize(
    ("raw", "told"),
    [(b"", "--data.path x: the file is empty"), (b"ab\xffc", "not UTF-8.*0xff at offset 2.*iconv")],
)
def test_what_is_no_text_is_told(raw: bytes, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        decode(raw, "--data.path", "x")


def test_the_known_corpora() -> None:
    assert set(CORPORA) == {"shakespeare", "tinyshakespeare", "dante"}
    for corpus in CORPORA.values():
        assert len(bytes.fromhex(corpus.sha256)) == 32
        assert corpus.sources


def test_path_wins_over_corpus(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("hello", encoding="utf-8")
    text = corpora.load("tinyshakespeare", str(file), tmp_path / "data")
    assert text.text == "hello"
    assert text.sha256 == hashlib.sha256(b"hello").hexdigest()
    assert not (tmp_path / "data").exists()


def test_unknown_names_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--data.corpus shakespear:.*Did you mean shakespeare\?"):
        corpora.load("shakespear", None, tmp_path)
    with pytest.raises(UsageError, match="--data.path /no/such.txt: No such file"):
        corpora.load("shakespeare", "/no/such.txt", tmp_path)
    with pytest.raises(UsageError, match="--data.val_path.*a folder without .txt"):
        corpora.load("", str(tmp_path), tmp_path, path_option="--data.val_path")


@pytest.mark.parametrize("name", list(CORPORA))
def test_who_can_not_reach_an_address_hears_of_the_plays(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GPTLIT_DATA_DIR", raising=False)
    hints = []

    def fetched(filename: str, sha256: str, sources: object, folder: Path, hint: str) -> Path:
        hints.append(hint)
        (tmp_path / filename).write_text("text", encoding="utf-8")
        return tmp_path / filename

    corpora.load(name, None, tmp_path, fetched=fetched)
    wanted = "" if name == "shakespeare" else "no network but the package index"
    assert wanted in hints[0]
    assert bool(hints[0]) == bool(wanted)


def test_a_folder_a_glob_and_packed_files_are_one_text(tmp_path: Path) -> None:
    (tmp_path / "b" / "deep").mkdir(parents=True)
    (tmp_path / "a.txt").write_text("one\n", encoding="utf-8")
    (tmp_path / "b" / "c.md.gz").write_bytes(gzip.compress(b"two\r\n"))
    packed = zstandard.ZstdCompressor().compress(b'{"text": "thr\\u00e9e"}\n\n{"text": 4}\n')
    (tmp_path / "b" / "deep" / "d.JSONL.zst").write_bytes(packed)
    (tmp_path / "picture.png").write_bytes(b"\xff")
    text = corpora.load("", str(tmp_path), tmp_path / "data")
    assert text.text == "one\n\ntwo\n\nthrée\n\n4\n"
    assert corpora.load("", f"{tmp_path}/*/*.gz", tmp_path).text == "two\n"
    assert corpora.load("", f"{tmp_path}/**/?.*", tmp_path).text == text.text


def test_the_field_of_jsonl_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"body": "b", "text": "t"}', encoding="utf-8")
    path = str(tmp_path / "x.jsonl")
    assert corpora.load("", path, tmp_path).text == "t"
    assert corpora.load("", path, tmp_path, jsonl_field="body").text == "b"


@pytest.mark.parametrize(
    ("name", "raw", "told"),
    [
        ("x.gz", b"nothing packed", "x.gz: not a whole .gz file"),
        ("x.gz", gzip.compress(b"a" * 1000)[:-9], "x.gz: not a whole .gz file"),
        ("x.zst", b"nothing packed", "x.zst: not a whole .zst file"),
        ("x.zst", zstandard.compress(b"a b c" * 999)[:-3], "x.zst: not a whole .zst file"),
        ("x.jsonl", b'{"text": "a"}\n{"body": "b"}', "line 2 .*'text'.*--data.jsonl_field"),
        ("x.jsonl", b"[1]\n", "line 1 .*'text'"),
        ("x.jsonl", b"{\n", "line 1 .*'text'"),
    ],
)
def test_files_that_are_not_whole(tmp_path: Path, name: str, raw: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(UsageError, match=told):
        corpora.load("", str(tmp_path / name), tmp_path)


def test_a_folder_or_glob_without_a_text(tmp_path: Path) -> None:
    for path, told in ((str(tmp_path), "a folder without"), (f"{tmp_path}/*.txt", "no file match")):
        with pytest.raises(UsageError, match=f"--data.path .*{told}"):
            corpora.load("", path, tmp_path)
