"""Extracts the plain text of HTML pages and EPUB books, one page at a time."""

import io
import lzma
import posixpath
import re
import xml.etree.ElementTree as ET
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from gptlit.corpora.text_encodings import by_mark, declared
from gptlit.messages import UsageError

PAGE_BYTES = 16 << 20
BOOK_BYTES = 256 << 20  # unpacked, as a few kilobytes of zip can expand to terabytes

_XML_DECLARATION = re.compile(r"<\?xml [^>]*\?>")
_PAGES = ("application/xhtml+xml", "text/html")
_CONTAINER, _ENCRYPTED = "META-INF/container.xml", "META-INF/encryption.xml"


def page_text(blocks: Iterator[str]) -> str:
    """Return the text of an HTML page, with blank lines between paragraphs.

    Raises:
        UsageError: The page is too large or too deep, or the extra for HTML is not installed.
    """
    try:
        import lxml.html
        from inscriptis import Inscriptis
    except ImportError as error:
        raise UsageError(
            "HTML and EPUB need an extra; install it by: pip install 'gptlit[html]'"
        ) from error
    read = io.StringIO()
    for block in blocks:
        read.write(block)
        if read.tell() > PAGE_BYTES:
            raise UsageError(
                f"a page of more than {PAGE_BYTES >> 20} Mi characters, the largest size that is "
                "read; divide it, or save it as .txt"
            )
    page = _XML_DECLARATION.sub("", read.getvalue().strip(), count=1)
    parser = lxml.html.HTMLParser()
    try:
        tree = lxml.html.document_fromstring(page, parser=parser)
    except lxml.etree.ParserError:  # empty, or only comments
        return ""
    for entry in parser.error_log:
        if entry.type_name == "ERR_RESOURCE_LIMIT":  # the rest would be lost
            raise UsageError(
                f"a page that can't be read whole ({entry.message.partition(',')[0]}); tags that "
                "are never closed can be the reason; save it as .txt from a browser"
            )
    text = Inscriptis(tree).get_text().replace("\r", "\n").strip("\n")
    return f"{text}\n" if text else ""


def book_texts(path: Path) -> Iterator[str]:
    """Yield the texts of an EPUB's pages in reading order, without its table of contents.

    Raises:
        UsageError: The file is corrupt, encrypted, too large, or not an EPUB.
        OSError: It can't be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            between = ""
            for page in _Book(archive).pages():
                if text := page_text(iter([page])).removesuffix("\n"):
                    yield between + text
                    between = "\n\n"
            yield "\n"
    except UsageError:
        raise
    except (
        zipfile.BadZipFile,
        KeyError,
        ValueError,  # an invalid address
        ET.ParseError,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        NotImplementedError,  # zipfile, for an unknown compression
        RuntimeError,  # zipfile, for a file with a password
    ) as error:
        raise UsageError(
            f"incomplete or corrupt EPUB ({' '.join(str(error).split())}); look for a complete copy"
        ) from error


class _Book:
    """An open EPUB, of which a limited number of bytes is read."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._n_read = 0

    def pages(self) -> Iterator[str]:
        """Yield the pages in reading order, decoded."""
        container = ET.fromstring(self._read(_CONTAINER))
        root = next((e.get("full-path") for e in container.iterfind(".//{*}rootfile")), None)
        if root is None:
            raise UsageError("not an EPUB: its container names no package")
        package = ET.fromstring(self._read(root))
        items = {e.get("id"): e for e in package.iterfind(".//{*}manifest/{*}item")}
        encrypted = self._encrypted()
        for entry in package.iterfind(".//{*}spine/{*}itemref"):
            item = items.get(entry.get("idref"))
            if item is None or item.get("media-type") not in _PAGES:
                continue
            if "nav" in item.get("properties", "").split():
                continue
            href = unquote(urlsplit(item.get("href", "")).path)
            name = posixpath.normpath(posixpath.join(posixpath.dirname(root), href))
            if name in encrypted:
                raise UsageError("its pages are encrypted (DRM), and can't be read")
            yield self._decoded(name)

    def _encrypted(self) -> set[str]:
        if _ENCRYPTED not in self._archive.namelist():
            return set()
        listed = ET.fromstring(self._read(_ENCRYPTED)).iterfind(".//{*}CipherReference")
        return {unquote(each.get("URI", "")) for each in listed}

    def _read(self, name: str) -> bytes:
        with self._archive.open(name) as member:
            content = member.read(PAGE_BYTES + 1)
        self._n_read += len(content)
        if len(content) > PAGE_BYTES or self._n_read > BOOK_BYTES:
            raise UsageError(
                f"a book that unpacks to more than {BOOK_BYTES >> 20} MiB, or {PAGE_BYTES >> 20} "
                "MiB a page, the largest size that is read"
            )
        return content

    def _decoded(self, name: str) -> str:
        raw = self._read(name)
        encoding = by_mark(raw) or declared(raw[:1024]) or "utf-8"
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError as error:
            raise UsageError(f"its page {name} is not {encoding} text ({error.reason})") from error
