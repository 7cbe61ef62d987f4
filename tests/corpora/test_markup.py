"""Pages and books as text, and files that are refused by what they begin with."""

import gzip
import io
import re
import shlex
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from gptlit.corpora import markup, text_encodings
from gptlit.corpora.reading import Documents, TextOptions, find_files
from gptlit.messages import UsageError
from tests.conftest import Result

Gptlit = Callable[..., Result]

PAGE = """<?xml version="1.0" encoding="{encoding}"?>
<!DOCTYPE html><html><head><title>Not the text</title><style>p {{}}</style>
<meta http-equiv="Content-Type" content="text/html; charset={encoding}"/></head><body>
<h1>Chapter   {n}</h1><script>alert("no")</script>
<p>It was a <em>dark</em> and
stormy night &amp; caf&eacute; — Noël.</p><p>Second<br/>line &#13;&#10;</p></body></html>"""
TEXT = "Chapter {n}\n\nIt was a dark and stormy night & café — Noël.\n\nSecond\nline"
CONTAINER = (
    '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
    '<rootfile full-path="OEBPS/book.opf"/></rootfiles></container>'
)
XHTML = 'media-type="application/xhtml+xml"'
PACKAGE = f"""<?xml version="1.0"?><package xmlns="http://www.idpf.org/2007/opf"><manifest>
<item id="b" href="text/second%20one.xhtml#top" {XHTML}/>
<item id="a" href="text/one.xhtml" {XHTML}/>
<item id="n" href="nav.xhtml" properties="nav" {XHTML}/>
<item id="c" href="c.jpg" media-type="image/jpeg"/></manifest><spine><itemref idref="n"/>
<itemref idref="a"/><itemref idref="c"/><itemref idref="b"/><itemref idref="none"/>
</spine></package>"""


def read(path: Path) -> tuple[list[str], list[str]]:
    found = Documents(find_files(str(path), "--data.path"), "--data.path", TextOptions())
    return ["".join(blocks) for blocks in found], found.notes


def book(path: Path, **changes: str | bytes | None) -> Path:
    """Write an EPUB with changed members, by their names."""
    members: dict[str, str | bytes | None] = {
        "META-INF/container.xml": CONTAINER,
        "OEBPS/book.opf": PACKAGE,
        "OEBPS/nav.xhtml": "<html><body>contents</body></html>",
        "OEBPS/c.jpg": b"\xff\xd8\xff",
        "OEBPS/text/one.xhtml": PAGE.format(n=1, encoding="utf-8"),
        "OEBPS/text/second one.xhtml": PAGE.format(n=2, encoding="utf-16").encode("utf-16"),
        **changes,
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            if content is not None:
                archive.writestr(name, content)
    return path


@pytest.mark.parametrize("name", ["x.html", "x.HTM", "x.xhtml.gz", "x.html.zst"])
@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "utf-16"])
def test_a_page_becomes_its_text(tmp_path: Path, name: str, encoding: str) -> None:
    raw = PAGE.format(n=1, encoding=encoding).encode(encoding)
    pack = {".gz": gzip.compress, ".zst": zstandard.compress}.get(Path(name).suffix, bytes)
    (tmp_path / name).write_bytes(pack(raw))
    texts, notes = read(tmp_path / name)
    assert texts == [TEXT.format(n=1) + "\n"]
    assumed = {
        "utf-8": [],
        "cp1252": [f"{tmp_path / name}: read as cp1252, which the page declares"],
        "utf-16": [f"{tmp_path / name}: read as UTF-16, by its byte order mark"],
    }
    assert notes == assumed[encoding]


def test_a_book_is_its_pages_in_the_order_of_reading(tmp_path: Path) -> None:
    texts, _ = read(book(tmp_path / "x.epub"))
    assert texts == [TEXT.format(n=1) + "\n\n" + TEXT.format(n=2) + "\n"]


BOMB = b"<p>" + b"a" * (markup.PAGE_BYTES + 9)
ENTITIES = (
    '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">'
    + "".join(
        f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    + "]><package>&i;</package>"
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"META-INF/container.xml": None}, "incomplete or corrupt EPUB .*container.xml"),
        ({"META-INF/container.xml": "<a>"}, "incomplete or corrupt EPUB"),
        ({"META-INF/container.xml": "<a/>"}, "not an EPUB: its container names no package"),
        ({"OEBPS/book.opf": None}, "incomplete or corrupt EPUB .*book.opf"),
        ({"OEBPS/book.opf": ENTITIES}, "incomplete or corrupt EPUB .*amplification"),
        ({"OEBPS/text/one.xhtml": None}, "incomplete or corrupt EPUB .*one.xhtml"),
        ({"OEBPS/text/one.xhtml": BOMB}, "unpacks to more than 256 MiB, or 16 MiB a page"),
        ({"OEBPS/text/one.xhtml": b"<p>caf\xe9"}, "its page OEBPS/text/one.xhtml is not utf-8"),
        (
            {"OEBPS/book.opf": PACKAGE.replace("text/one", "http://[")},
            "incomplete or corrupt EPUB .*URL",
        ),
        (
            {"META-INF/encryption.xml": '<e><CipherReference URI="OEBPS/text/one.xhtml"/></e>'},
            "its pages are encrypted",
        ),
    ],
)
def test_invalid_books(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=f"--data.path .*x.epub: .*{message}"):
        read(book(tmp_path / "x.epub", **changes))


@pytest.mark.parametrize("name", ["base64", "undefined", "idna", "nothing"])
def test_encodings_that_are_not_for_pages(tmp_path: Path, name: str) -> None:
    page = PAGE.format(n=1, encoding=name)
    assert read(book(tmp_path / "x.epub", **{"OEBPS/text/one.xhtml": page}))[0][0].startswith(
        TEXT.format(n=1)
    )
    assert text_encodings.declared(page.encode()) is None


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("<p>once" + "<font>more " * 400, "Excessive depth in document: 256"),
        (f"<p>{'x' * 10_000_001}</p>", "can't be read whole"),
    ],
)
def test_no_part_of_a_page_is_lost_silently(tmp_path: Path, page: str, message: str) -> None:
    (tmp_path / "x.html").write_text(page)
    with pytest.raises(UsageError, match=f"--data.path .*x.html: a page .*{message}"):
        read(tmp_path / "x.html")
    (tmp_path / "x.html").write_text("<p>once" + "<font>more " * 200)
    assert read(tmp_path / "x.html")[0][0].count("more") == 200


def test_an_advised_command_replaces_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("play.txt").write_bytes(b"%PDF-1.7\n")
    with pytest.raises(UsageError, match="pdftotext play.txt play_text.txt$"):
        read(Path("play.txt"))


def test_a_book_of_many_large_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(markup, "BOOK_BYTES", 1500)
    with pytest.raises(UsageError, match="a book that unpacks to more than"):
        read(book(tmp_path / "x.epub"))


def test_a_missing_extra_is_named(
    gptlit: Gptlit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "inscriptis", None)
    book(tmp_path / "x.epub")
    (tmp_path / "x.html").write_text("<p>a")
    for name in ("x.epub", "x.html"):
        found = gptlit("data", name)
        assert found.code == 2
        assert f"gptlit data {name}: HTML and EPUB need an extra; install it by: pip" in found.err
        assert found.err.count("\n") == 1


def zipped(*names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("my play.pdf", b"%PDF-1.7\n%\xe2", "a PDF, .* pdftotext 'my play.pdf' 'my play.txt'"),
        ("x.rtf", b"{\\rtf1 the king}", "an RTF document, .*: pandoc x.rtf -t plain -o x.txt"),
        ("x.docx", zipped("word/document.xml"), "Word document.*pandoc x.docx -t plain -o x.txt"),
        ("x.odt", zipped("mimetype", "content.xml"), "OpenDocument.*pandoc x.odt -t plain"),
        ("x.xlsx", zipped("xl/workbook.xml"), "a spreadsheet, .*; save it as .csv"),
        ("x.doc", b"\xd0\xcf\x11\xe0\xa1\xb1", "an office document of before 2007"),
        ("x.zip", zipped("a.txt"), "a zip archive, .*: unzip x.zip"),
        ("x.zip", zipped("META-INF/container.xml"), "an EPUB, .*let its name end in .epub"),
        ("x.txt", gzip.compress(b"the king", mtime=0), "packed by gzip, .*let its name end in .gz"),
        ("x.txt", zstandard.compress(b"the king"), "packed by zstd, .*let its name end in .zst"),
        ("x.bz2", b"BZh91AY&SY", "packed by bzip2, .*bzip2 -dk x.bz2"),
        ("x.json", b"\x89PNG\r\n\x1a\n", "a picture"),
        ("x.parquet", b"PAR1\x15", "a Parquet table"),
    ],
)
def test_files_that_are_not_text_are_refused_with_advice(
    gptlit: Gptlit, tmp_path: Path, name: str, raw: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(raw)
    found = gptlit("data", name)
    assert found.code == 2
    assert re.search(f"^gptlit: error: gptlit data {name}: is .*{message}", found.err)


def test_files_that_a_folder_leaves_out_are_reported(gptlit: Gptlit, tmp_path: Path) -> None:
    folder = tmp_path / "my texts"
    folder.mkdir()
    for name in ("a.json", "b.json", "c.csv.gz", "d.png"):
        (folder / name).write_bytes(b"no text")
    message = re.escape("but with 1 .csv.gz, 2 .json, which a glob reads: 'my texts/**/*.csv.gz'")
    with pytest.raises(UsageError, match=message):
        find_files("my texts", "--data.path")
    (folder / "a.txt").write_text("the king", encoding="utf-8")
    found = gptlit("data", "my texts")
    assert found.code == 0
    assert re.search(r"characters +8\n", found.out)
    assert "my texts: leaves out 1 .csv.gz, 2 .json; a glob, " in found.err
    (folder / "c.csv.gz").write_bytes(gzip.compress(b"text\nthe queen\n"))
    hint = re.search(r"a glob, ('[^']*')", found.err)
    assert hint
    (glob,) = shlex.split(hint[1])
    assert re.search(r"characters +10\n", gptlit("data", glob).out)
