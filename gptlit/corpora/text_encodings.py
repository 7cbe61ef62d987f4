"""Finds the encoding of a text: by its byte order mark, as UTF-8, as declared, or by detection.

Any encoding but UTF-8 is reported as an assumption. A text is refused if several are likely.
"""

import codecs
import encodings.aliases
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gptlit.messages import UsageError, did_you_mean, opt

if TYPE_CHECKING:
    from charset_normalizer import CharsetMatch

AUTO = "auto"
SAMPLE_BYTES = 1 << 16
_UTF8_MARKED = "utf-8-sig"
MARKS = (  # UTF-32's little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF8, _UTF8_MARKED),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# ISO encodings that browsers read as their Windows supersets
_SUPERSETS = {"iso8859-1": "cp1252", "ascii": "cp1252", "iso8859-9": "cp1254"}
# how much worse than the best candidate another likely one may be
_NEAR_CHAOS, _NEAR_COHERENCE, _NEAREST_COHERENCE = 0.02, 0.1, 0.04
# preferred names of encodings with equal results; the first is assumed if it is about as good as
# the best
_COMMON = (
    *("cp1252", "cp1251", "cp1250", "iso8859_2", "koi8_r", "cp866", "mac_roman"),
    *("shift_jis", "euc_jp", "gb18030", "big5", "euc_kr"),
)
_ZEROS_OF_UTF_16 = 0.2  # least share of zero bytes in a text of letters
# encodings of host names and literals, and one that refuses everything
_NOT_OF_FILES = {"idna", "punycode", "undefined", "unicode-escape", "raw-unicode-escape"}
_DECLARED = re.compile(rb"""(?:charset|encoding)\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)


@dataclass(frozen=True)
class Encoding:
    """The encoding of a text.

    Args:
        name: Name of the encoding.
        assumed: Line on what was assumed; "" if nothing was.
        advice: Advice for the case that the text can't be decoded.
    """

    name: str
    assumed: str = ""
    advice: str = f"{opt('data.encoding')} latin-1 takes any bytes"


def check_encoding(name: str) -> None:
    """Raise UsageError if this is not "auto" or a name of a text encoding in Python."""
    if name != AUTO and not _text_encoding(name):
        names = "utf-8, utf-16, cp1252, latin-1, cp1251 or shift_jis"
        hint = did_you_mean(name, encodings.aliases.aliases)
        reason = f"unknown; give auto or a name such as {names}.{hint}"
        raise UsageError(reason, "data.encoding", name)


def _text_encoding(name: str) -> str | None:
    """Return Python's name of a text encoding; None if it has none."""
    try:
        codec = codecs.lookup(name)
    except (LookupError, ValueError):
        return None
    is_of_files = codec._is_text_encoding and codec.name.replace("_", "-") not in _NOT_OF_FILES
    return codec.name if is_of_files else None


def by_mark(head: bytes) -> str | None:
    """Return the encoding of a text's byte order mark, if it begins with one."""
    return next((name for mark, name in MARKS if head.startswith(mark)), None)


def not_utf8(error: UnicodeDecodeError) -> str:
    """Return a message for a small text that should be UTF-8 and is not."""
    if marked := by_mark(error.object):
        return f"{marked.upper()} text, by its byte order mark; save it as UTF-8"
    return "not UTF-8 text"


def declared(head: bytes) -> str | None:
    """Return the encoding that a page of HTML declares at its beginning, if it is known."""
    if not (match := _DECLARED.search(head)):
        return None
    name = _text_encoding(match[1].decode("ascii", "replace"))
    return name and _SUPERSETS.get(name, name)


def find_encoding(head: bytes, blocks: Iterable[bytes], is_page: bool = False) -> Encoding:
    """Find the encoding of a text; reads no more of its blocks than needed.

    Args:
        head: Beginning of the text.
        blocks: All blocks of the text.
        is_page: Whether it is HTML, which may declare its encoding.

    Raises:
        UsageError: The text is not UTF-8, and no other encoding is likely, or several are.
    """
    marked = by_mark(head)
    if marked and marked != _UTF8_MARKED:
        assumed = f"read as {marked.upper()}, by its byte order mark"
        return Encoding(marked, assumed, "the file is corrupt; look for a complete copy")
    scan = _Scan()
    for block in blocks:
        scan.add(block)
        if scan.is_done:
            break
    scan.add(b"", final=True)
    if not scan.error:
        return Encoding("utf-8")
    if is_page and (name := declared(head)):
        return Encoding(name, f"read as {name}, which the page declares")
    return _detected(scan, head, surely_utf8=bool(marked))


class _Scan:
    """Checks whether a text is UTF-8, and samples the lines that are not ASCII after an error."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._n_read = 0
        self._rest = b""  # incomplete last line of the sample
        self.error = ""
        self.n_continuing = 0  # bytes that continue a character, up to the error
        self.sample = bytearray()

    @property
    def is_done(self) -> bool:
        """Whether the rest of the text can't change the result."""
        return len(self.sample) >= SAMPLE_BYTES

    def add(self, block: bytes, final: bool = False) -> None:
        """Read the next block; the last one is final."""
        pending = self._utf8.getstate()[0]
        if not self.error and (pending or not block.isascii()):
            try:
                text = self._utf8.decode(block, final=final)
                self.n_continuing += len(pending) + len(block) - len(text)
            except UnicodeDecodeError as error:
                offset = self._n_read - len(pending) + error.start
                self.error = f"byte 0x{error.object[error.start]:02x} at offset {offset}"
                block = pending + block
        self._n_read += len(block)
        if self.error:
            # complete lines, so that no character is cut
            *lines, rest = (self._rest + block).split(b"\n")
            self._rest = b"" if final else rest[:SAMPLE_BYTES]
            for line in [*lines, rest] if final else lines:
                if not line.isascii() and not self.is_done:
                    self.sample += line[:SAMPLE_BYTES] + b"\n"


def _detected(scan: _Scan, head: bytes, surely_utf8: bool) -> Encoding:
    """Return the likely encoding of a text that is not UTF-8; refuse a damaged UTF-8 text."""
    import charset_normalizer

    sample = bytes(scan.sample)
    n_invalid = sample.decode("utf-8", "replace").count("\ufffd")
    n_valid = sum(ord(char) > 127 for char in sample.decode("utf-8", "ignore"))
    if surely_utf8 or scan.n_continuing + n_valid >= n_invalid:
        raise UsageError(
            f"is UTF-8 except for {scan.error}, so the text is damaged; look for a complete copy, "
            "or drop the damaged parts: iconv -c -f UTF-8 -t UTF-8 FILE > NEW"
        )
    for raw in (head, sample):  # the sample may begin within a character of two bytes
        if 0 in raw:
            raise UsageError(about_zeros(raw))
    # encodings of two and four bytes would have zeros
    wide = ("utf_16", "utf_32")
    found = charset_normalizer.from_bytes(sample)
    matches = [match for match in found if not match.encoding.startswith(wide)]
    if not matches:
        raise UsageError(
            f"not UTF-8 text ({scan.error}), and its encoding was not recognised; if it is "
            f"a text, name its encoding, for example {opt('data.encoding')} cp1252"
        )
    near = {
        _common_name(match): match.coherence
        for match in matches
        if match.chaos <= matches[0].chaos + _NEAR_CHAOS
        and match.coherence >= matches[0].coherence - _NEAR_COHERENCE
    }
    of_commonest = [m.coherence for m in matches if _common_name(m) == _COMMON[0]]
    # a rare encoding is not assumed if the commonest is possible
    has_rival = bool(of_commonest) and not near.keys() & set(_COMMON)
    if has_rival:
        near[_COMMON[0]] = of_commonest[0]
    names = sorted(near, key=lambda name: (name not in _COMMON, name != _COMMON[0], name))
    is_likely = not has_rival and near[names[0]] >= max(near.values()) - _NEAREST_COHERENCE
    if len(names) > 1 and not (names[0] == _COMMON[0] and is_likely):
        raise UsageError(
            f"not UTF-8 text ({scan.error}), and its encoding is not certain: it can be "
            f"{', '.join(names[:4])}; name it, for example {opt('data.encoding')} {names[0]}"
        )
    others = f" ({', '.join(names[1:4])} would be possible as well)" if len(names) > 1 else ""
    assumed = f"not UTF-8 ({scan.error}); assumed to be {names[0]}{others}"
    return Encoding(names[0], f"{assumed}; {opt('data.encoding')} names another")


def _common_name(match: "CharsetMatch") -> str:
    return next((each for each in _COMMON if each in match.could_be_from_charset), match.encoding)


def about_zeros(raw: bytes) -> str:
    """Return a message for bytes with zeros, which a UTF-8 text does not have."""
    if raw.count(0) < _ZEROS_OF_UTF_16 * len(raw):
        return "a binary file (it has a zero byte); name a text"
    order = "le" if raw[1::2].count(0) > raw[::2].count(0) else "be"
    return (
        "a binary file (it has zero bytes); if it is a text in UTF-16 without a byte order mark, "
        f"{opt('data.encoding')} utf-16-{order} reads it"
    )
