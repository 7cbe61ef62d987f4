"""Texts that are not UTF-8: what is recognised, what is assumed and said, and what is refused."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from gptlit.corpora import unpacking
from gptlit.corpora.reading import Documents, TextOptions, find_files
from gptlit.messages import UsageError, with_option_names
from tests.conftest import TINY, Result, made_up_text

Gptlit = Callable[..., Result]

FRENCH = (
    "Le chat s'est assis près de la fenêtre. Où êtes-vous allés cet été ? Ça va très bien, merci.\n"
    "« Noël » arrive bientôt à l'école.\n"
)
GERMAN = (
    "Die Größe der Tür hängt von den Wünschen der Käufer ab.\nSchöne Grüße aus München, über alle "
    "Straßen hinweg.\n"
)
RUSSIAN = (
    "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему.\n"
    "Все смешалось в доме Облонских. Жена узнала, что муж был в связи с бывшею в их доме\n"
    "француженкою-гувернанткой, и объявила мужу, что не может жить с ним в одном доме.\n"
)
POLISH = (
    "Litwo! Ojczyzno moja! ty jesteś jak zdrowie; Ile cię trzeba cenić, ten tylko się dowie,\n"
    "Kto cię stracił. Źdźbło żółte łąki.\n"
)


def read(path: Path, encoding: str = "auto") -> tuple[str, list[str]]:
    """Return a file's text and the notes on it."""
    found = Documents(
        find_files(str(path), "--data.path"), "--data.path", TextOptions(encoding=encoding)
    )
    return "".join("".join(blocks) for blocks in found), [
        with_option_names(note) for note in found.notes
    ]


@pytest.mark.parametrize("block", [1, 3, 1 << 20])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_byte_order_marks_are_recognised_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, block: int
) -> None:
    monkeypatch.setattr(unpacking, "BLOCK_BYTES", block)
    path = tmp_path / "x.txt"
    path.write_bytes(("\ufeff" + FRENCH.replace("\n", "\r\n") + "😀").encode(encoding))
    text, notes = read(path)
    assert text == FRENCH + "😀"
    name = encoding[:6].upper()
    assert notes == [
        f"{path}: read as {name}, by its byte order mark",
        f"{path}: CRLF line breaks are read as LF",
    ]


@pytest.mark.parametrize(
    ("text", "encoding", "assumed"),
    [
        (FRENCH, "cp1252", "cp1252 (cp1250"),
        (GERMAN, "latin-1", "cp1252"),
        (RUSSIAN, "cp1251", "cp1251;"),
        (RUSSIAN, "koi8-r", "koi8_r;"),
        (POLISH, "cp1250", "cp1250;"),
        (FRENCH.replace("« Noël »", "Noël"), "mac_roman", "mac_roman"),
    ],
)
@pytest.mark.parametrize("before", [b"", b"The king speaks.\n" * 100_000])
def test_assumptions_are_reported(
    tmp_path: Path, text: str, encoding: str, assumed: str, before: bytes
) -> None:
    """Also if the first megabytes are the same in all encodings."""
    path = tmp_path / "x.txt"
    raw = before + text.encode(encoding)
    path.write_bytes(raw)
    found, (note,) = read(path)
    assert found == before.decode() + text
    offset = next(index for index, byte in enumerate(raw) if byte > 127)
    assert note.startswith(f"{path}: not UTF-8 (byte 0x{raw[offset]:02x} at offset {offset}); ")
    assert f"assumed to be {assumed}" in note
    assert note.endswith("; encoding names another")


def test_nothing_is_assumed_of_utf8(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text(FRENCH + RUSSIAN, encoding="utf-8")
    assert read(path) == (FRENCH + RUSSIAN, [])
    assert read(path, "utf-8") == (FRENCH + RUSSIAN, [])
    assert read(path, "latin-1")[0].startswith("Le chat s'est assis prÃ¨s")


REFUSED = {
    "polish.txt": (POLISH.encode("iso8859-2"), "encoding is not certain: it can be iso8859_2, "),
    # few words, whose letters look a little better in an encoding of Lithuanian
    "french.txt": (
        "Déjà vu, l’été à Orléans où naît la forêt et ça brûle — même l'âme\n".encode("cp1252"),
        "it can be cp1252, ",
    ),
    "zeros.txt": (FRENCH.encode("utf-16-le"), "in UTF-16 without a byte order mark"),
    "ascii.txt": (b"hello world" * 200, None),
    "noise.txt": (bytes(range(1, 256)) * 50, "its encoding was not recognised"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_hints_can_be_typed_as_they_are(gptlit: Gptlit, tmp_path: Path, name: str) -> None:
    raw, message = REFUSED[name]
    if message is None:  # this hint does not apply
        (tmp_path / name).write_bytes(raw.decode().encode("utf-16"))
        found = gptlit("data", name, "--encoding=ascii")
    else:
        (tmp_path / name).write_bytes(raw)
        found = gptlit("data", name)
        assert message in found.err
    assert found.code == 2
    hint = re.search(r"--encoding (\w[\w-]*\w)", found.err)
    assert hint
    again = gptlit("data", name, *shlex.split(hint[0]))
    if name == "noise.txt":  # cp1252 leaves five bytes out; the next hint takes any
        assert again.code == 2
        assert "not cp1252 text (byte 0x81 at offset 128)" in again.err
        again = gptlit("data", name, "--encoding", "latin-1")
    assert again.code == 0, again.err


def test_an_encoding_is_an_option_of_fit_too(gptlit: Gptlit, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(made_up_text().encode("utf-16-le"))
    words = ("--data.path=x.txt", "--trainer.max_steps=1")
    with pytest.raises(UsageError, match="encoding utf-16-le reads it"):
        read(tmp_path / "x.txt")
    assert gptlit("fit", *TINY, *words, "--data.encoding", "utf-16-le").code == 0
    # the same reading is a checkpoint's own
    assert gptlit("fit", "--ckpt_path=last", "--trainer.max_steps=2").code == 0
    found = gptlit("fit", *TINY, *words, "--data.encoding=utf8-sigma")
    assert found.code == 2
    assert "--data.encoding utf8-sigma: unknown; give auto or a name such as utf-8" in found.err
    assert gptlit("fit", *TINY, *words, "--data.encoding=base64").code == 2


def test_damaged_utf8_is_not_taken_for_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(FRENCH.encode() + b"\xff" + FRENCH.encode())
    offset = len(FRENCH.encode())
    with pytest.raises(
        UsageError, match=f"UTF-8 except for byte 0xff at offset {offset}, .*iconv -c"
    ):
        read(path)


def test_a_text_that_ends_within_a_character(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(FRENCH.encode("utf-16")[:-1])
    message = "read as UTF-16, by its byte order mark; the file is corrupt; look for a complete"
    with pytest.raises(UsageError, match=f"not utf-16 text .*{message}"):
        read(path)
