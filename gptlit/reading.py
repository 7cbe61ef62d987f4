"""Files as documents of text: found, unpacked, decoded and with LF line ends, block by block.

However large a file is, no more than a block of it is held in memory at a time, except for a
line of .jsonl, which is a document.
"""

import codecs
import glob
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gptlit.messages import UsageError

BLOCK_BYTES = 1 << 20
PACKED_BYTES = 1 << 14  # of a packed file at a time: each may unpack to a thousand times as many
TEXTS = (".txt", ".md", ".jsonl")


def find_files(path: str, option: str, data_dir: Path | None = None) -> list[Path]:
    """The text files that a path means: itself, all in a folder and below, or a glob's.

    What runs have written (lightning_logs), what was fetched (`data_dir`) and what is hidden
    below a folder is no text.

    Raises:
        UsageError: there is none.
    """
    given = Path(path).expanduser()
    if given.is_dir():
        kinds = tuple(kind + packed for kind in TEXTS for packed in ("", *_UNPACK))
        own = [Path("lightning_logs").resolve(), *([data_dir.resolve()] if data_dir else [])]
        own = [folder for folder in own if given.resolve() in folder.parents]
        found = [
            file
            for file in given.rglob("*")
            if file.name.lower().endswith(kinds)
            and not any(part.startswith(".") for part in file.relative_to(given).parts)
            and not any(file.resolve().is_relative_to(each) for each in own)
        ]
        wanted = f"a folder without {', '.join(TEXTS)} files (or these as .gz or .zst)"
    elif not given.exists() and any(sign in path for sign in "*?["):
        found = [Path(name) for name in glob.glob(str(given), recursive=True)]
        wanted = "no file matches"
    else:
        return [given]
    if files := sorted(file for file in found if file.is_file()):
        return files
    raise UsageError(f"{option} {path}: {wanted}; name a UTF-8 text file, a folder or a glob")


@dataclass
class Documents:
    """The documents of some files, in order; each is an iterator of its blocks of text.

    A document must be read to its end before the next one is asked for. A file is a document,
    or, where it is .jsonl, each of its rows.

    Args:
        files: Which.
        option: What to call them in messages.
        jsonl_field: The field of .jsonl that holds a document's text.
    """

    files: Sequence[Path]
    option: str
    jsonl_field: str = "text"
    _with_cr: list[Path] = field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        """What was normalised, once all is read."""
        if not self._with_cr:
            return []
        others = f" and {len(self._with_cr) - 1} files more" if len(self._with_cr) > 1 else ""
        return [f"{self._with_cr[0]}{others}: CRLF line ends are read as LF"]

    @property
    def are_many(self) -> bool:
        """Whether these files can hold more than one document."""
        return len(self.files) > 1 or any(map(_is_jsonl, self.files))

    def __iter__(self) -> Iterator[Iterator[str]]:
        """Raises UsageError: unreadable, torn, not UTF-8, or .jsonl without the field."""
        for path in self.files:
            blocks = self._decoded(path)
            if _is_jsonl(path):
                for document in self._rows(path, blocks):
                    yield iter([document])
            else:
                yield blocks

    def _decoded(self, path: Path) -> Iterator[str]:
        utf8 = codecs.getincrementaldecoder("utf-8")()
        line_ends = io.IncrementalNewlineDecoder(None, translate=True)
        at, first = 0, True
        for block in self._unpacked(path):
            pending = len(utf8.getstate()[0])
            try:
                # an empty block is the file's end
                text = utf8.decode(block, final=not block)
            except UnicodeDecodeError as error:
                offset = at - pending + error.start
                raise UsageError(
                    f"{self.option} {path}: not UTF-8 text (byte 0x{error.object[error.start]:02x} "
                    f"at offset {offset}); convert it, for example with iconv -t UTF-8"
                ) from error
            if "\0" in text:
                raise UsageError(
                    f"{self.option} {path}: a binary file (it has a zero byte); name a UTF-8 text"
                )
            at += len(block)
            if first and text:
                text, first = text.removeprefix("\ufeff"), False
            if text := line_ends.decode(text, final=not block):
                yield text
        if any("\r" in end for end in line_ends.newlines or ()):
            self._with_cr.append(path)

    def _unpacked(self, path: Path) -> Iterator[bytes]:
        """The file's blocks, and an empty one at the end."""
        packed = path.suffix.lower()
        try:
            yield from _UNPACK.get(packed, _plain)(path)
            yield b""
        except (EOFError, zlib.error, gzip.BadGzipFile, _TornError) as error:
            raise UsageError(
                f"{self.option} {path}: not a whole {packed} file ({error})"
            ) from error
        except OSError as error:
            raise unreadable(self.option, path, error) from error

    def _rows(self, path: Path, blocks: Iterator[str]) -> Iterator[str]:
        for number, line in enumerate(_lines(blocks), start=1):
            if not line.strip():
                continue
            try:
                document = json.loads(line)[self.jsonl_field]
                if not isinstance(document, str):
                    raise TypeError
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise UsageError(
                    f"{self.option} {path}: line {number} is no JSON object with a text as its "
                    f"{self.jsonl_field!r}; --data.jsonl_field names another field"
                ) from error
            try:
                document.encode()
            except UnicodeEncodeError as error:
                raise UsageError(
                    f"{self.option} {path}: line {number} escapes half a character "
                    f"({error.object[error.start]!r}), which is no text"
                ) from error
            yield document.replace("\0", "").replace("\r\n", "\n").replace("\r", "\n")


def unreadable(option: str, path: Path, error: OSError) -> UsageError:
    """The error to raise for a file that can't be read."""
    return UsageError(f"{option} {path}: {error.strerror or error}; give a UTF-8 text file")


def reading_of(path: Path) -> str:
    """How a file is read: the ends of its name that matter, such as .jsonl.gz."""
    name = path.name.lower()
    packed = next((end for end in _UNPACK if name.endswith(end)), "")
    return (".jsonl" if name.removesuffix(packed).endswith(".jsonl") else "") + packed


def _is_jsonl(path: Path) -> bool:
    return reading_of(path).startswith(".jsonl")


def _lines(blocks: Iterator[str]) -> Iterator[str]:
    # str.splitlines also splits where JSON's strings may go on, at U+2028 for one
    begun: list[str] = []
    for block in blocks:
        first, *rest = block.split("\n")
        begun.append(first)
        for line in rest:
            yield "".join(begun)
            begun = [line]
    yield "".join(begun)


class _TornError(Exception):
    """A packed file that isn't whole."""


def _plain(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            yield block


def _gunzipped(path: Path) -> Iterator[bytes]:
    with gzip.open(path) as file:
        while block := file.read(BLOCK_BYTES):
            yield block


def _unzstd(path: Path) -> Iterator[bytes]:
    import zstandard

    frame = None
    with path.open("rb") as file:
        while packed := file.read(PACKED_BYTES):
            while packed:
                if frame is None or frame.eof:
                    frame = zstandard.ZstdDecompressor().decompressobj()
                try:
                    if block := frame.decompress(packed):
                        yield block
                except zstandard.ZstdError as error:
                    raise _TornError(error) from error
                packed = frame.unused_data
    if frame is not None and not frame.eof:
        raise _TornError("it ends too early")


_UNPACK: dict[str, Callable[[Path], Iterator[bytes]]] = {".gz": _gunzipped, ".zst": _unzstd}
