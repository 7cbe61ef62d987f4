"""Recognises files that are not text, and advises how to convert them."""

import contextlib
import shlex
import zipfile
from pathlib import Path

_PANDOC = "convert it to text by: pandoc {path} -t plain -o {text}"
_SAVE = "open it in an office program and save it as plain text"
_BEGINNINGS = (
    (b"%PDF-", "a PDF", "convert it to text by: pdftotext {path} {text}"),
    (b"{\\rtf", "an RTF document", _PANDOC),
    (b"\xd0\xcf\x11\xe0", "an office document of before 2007", _SAVE),
    (b"\x1f\x8b", "packed by gzip", "let its name end in .gz"),
    (b"\x28\xb5\x2f\xfd", "packed by zstd", "let its name end in .zst"),
    (b"BZh", "packed by bzip2", "unpack it by: bzip2 -dk {path}"),
    (b"\xfd7zXZ", "packed by xz", "unpack it by: xz -dk {path}"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it and name the folder"),
    (b"\x89PNG", "a picture", "name a text"),
    (b"\xff\xd8\xff", "a picture", "name a text"),
    (b"GIF8", "a picture", "name a text"),
    (b"PAR1", "a Parquet table", "save its column of texts as .jsonl or .csv"),
    (b"\x7fELF", "a program", "name a text"),
    (b"SQLite ", "a database", "save its column of texts as .jsonl or .csv"),
)
_IN_ZIP = (  # by a file in the archive
    ("word/document.xml", "a Word document", _PANDOC),
    ("xl/workbook.xml", "a spreadsheet", "save it as .csv"),
    ("ppt/presentation.xml", "a presentation", _SAVE),
    ("META-INF/container.xml", "an EPUB", "let its name end in .epub"),
    ("content.xml", "an OpenDocument file", _PANDOC),
)


def advice(path: Path, head: bytes) -> str:
    """Return the kind of a file that is not text, with advice how to convert it; "" for a text.

    Args:
        path: Path of the file.
        head: Its first bytes, unpacked.
    """
    kinds = [(kind, instead) for sign, kind, instead in _BEGINNINGS if head.startswith(sign)]
    if head.startswith(b"PK\x03\x04"):
        names = set()
        with contextlib.suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
        kinds = [(kind, instead) for name, kind, instead in _IN_ZIP if name in names]
        kinds.append(("a zip archive", "unpack it by: unzip {path}"))
    if not kinds:
        return ""
    kind, instead = kinds[0]
    text = path.with_suffix(".txt").name
    if Path(text).exists():  # the command would overwrite it
        text = f"{path.stem}_text.txt"
    paths = {"path": shlex.quote(str(path)), "text": shlex.quote(text)}
    return f"is {kind}, which is not read; {instead.format(**paths)}"
