"""Files as documents of text: found, unpacked, decoded and with LF line ends, block by block.

However large a file is, no more than a block of it is held in memory at a time, except for a
record of .jsonl, .json, .csv or .tsv and a page of HTML, which have a largest size.
"""

import codecs
import glob
import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gptlit.corpora import file_types, markup, rows, text_encodings
from gptlit.corpora.inputs import PIPES_FOLDER
from gptlit.corpora.unpacking import PACKINGS, head, packing_of, unpacked
from gptlit.messages import UsageError, is_first_process, note, opt

TEXTS = (".txt", ".md", ".jsonl")  # what is looked for in a folder
RECORDS = (".jsonl", ".json", ".csv", ".tsv")
PAGES = (".html", ".htm", ".xhtml")
BOOK = ".epub"
SEPARATORS = {".csv": ",;\t|", ".tsv": "\t"}


def find_files(path: str, option: str, data_dir: Path | None = None) -> list[Path]:
    """The text files that a path means: itself, all in a folder and below, or a glob's.

    What runs have written (lightning_logs), what was fetched (`data_dir`) and what is hidden
    below a folder is no text. Files of other kinds that can be read stay out of a folder's
    text, since they often lie beside one to describe it; a glob names them.

    Raises:
        UsageError: there is none.
    """
    given = Path(path).expanduser()
    if given.is_dir():
        own = [Path("lightning_logs").resolve(), *([data_dir.resolve()] if data_dir else [])]
        own = [folder for folder in own if given.resolve() in folder.parents]
        readable = [
            file
            for file in given.rglob("*")
            if reading_of(file) not in ("", *PACKINGS)
            and not any(part.startswith(".") for part in file.relative_to(given).parts)
            and not any(file.resolve().is_relative_to(each) for each in own)
        ]
        found = [file for file in readable if _kind(file) in TEXTS]
        others = Counter(reading_of(file) for file in readable if _kind(file) not in TEXTS)
        left_out = ", ".join(f"{n} {kind}" for kind, n in sorted(others.items()))
        globbed = f"'{given}/**/*{next(iter(sorted(others)), '')}'"
        if found and others and is_first_process():
            note(f"{option} {path}: leaves out {left_out}; a glob, {globbed}, reads such files")
        wanted = f"a folder without {', '.join(TEXTS)} files (or these as .gz or .zst)"
        if others:
            wanted += f", but with {left_out}, which a glob reads: {globbed}"
    elif not given.exists() and any(sign in path for sign in "*?["):
        found = [Path(name) for name in glob.glob(str(given), recursive=True)]
        wanted = "no file matches"
    else:
        return [given]
    if files := sorted(file for file in found if file.is_file()):
        return files
    raise UsageError(f"{option} {path}: {wanted}; name a text file, a folder or a glob")


@dataclass
class Documents:
    """The documents of some files, in order; each is an iterator of its blocks of text.

    A document must be read to its end before the next one is asked for. A file is a document,
    or each record of .jsonl, .json, .csv and .tsv.

    Args:
        files: Which.
        option: What to call them in messages.
        jsonl_field: The field of .jsonl and .json that holds a document's text.
        column: The same of .csv and .tsv; None is text, or the only one.
        encoding: Of the files; "auto" finds that of each.
    """

    files: Sequence[Path]
    option: str
    jsonl_field: str = "text"
    column: str | None = None
    encoding: str = text_encodings.AUTO
    _with_cr: list[Path] = field(default_factory=list)
    _assumed: list[str] = field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        """What was assumed and normalised, once all is read."""
        if not self._with_cr:
            return self._assumed
        others = f" and {len(self._with_cr) - 1} files more" if len(self._with_cr) > 1 else ""
        return [*self._assumed, f"{self._with_cr[0]}{others}: CRLF line ends are read as LF"]

    @property
    def are_many(self) -> bool:
        """Whether these files can hold more than one document."""
        return len(self.files) > 1 or any(_kind(path) in RECORDS for path in self.files)

    def __iter__(self) -> Iterator[Iterator[str]]:
        """Raises UsageError: unreadable, torn, not text, or without the field or column."""
        for path in self.files:
            if _kind(path) in RECORDS:
                for document in self._told(path, self._records(path)):
                    yield iter([document])
            else:
                yield self._told(path, self._blocks(path))

    def _told(self, path: Path, texts: Iterator[str]) -> Iterator[str]:
        """The texts of a file, whose name what is wrong with them is told with."""
        try:
            yield from texts
        except UsageError as error:
            raise UsageError(f"{self.option} {path}: {error}") from error
        except OSError as error:
            raise unreadable(self.option, path, error) from error

    def _records(self, path: Path) -> Iterator[str]:
        blocks, kind = self._decoded(path), _kind(path)
        if kind == ".jsonl":
            return rows.json_lines(blocks, self.jsonl_field)
        if kind == ".json":
            return rows.json_records(blocks, self.jsonl_field)
        return rows.table_rows(blocks, self.column, SEPARATORS[kind], self._say(path))

    def _blocks(self, path: Path) -> Iterator[str]:
        if _kind(path) == BOOK:
            yield from markup.book_texts(path)
        elif _kind(path) in PAGES:
            yield markup.page_text(self._decoded(path))
        else:
            yield from self._decoded(path)

    def _say(self, path: Path) -> Callable[[str], None]:
        return lambda line: self._assumed.append(f"{path}: {line}")

    def _decoded(self, path: Path) -> Iterator[str]:
        encoding, advice = self._encoding_of(path)
        decoder = codecs.getincrementaldecoder(encoding)()
        line_ends = io.IncrementalNewlineDecoder(None, translate=True)
        at, first = 0, True
        for block in _with_end(unpacked(path)):
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise UsageError(
                    f"not {encoding} text (byte 0x{error.object[error.start]:02x} at offset "
                    f"{at - pending + error.start}); {advice}"
                ) from error
            if "\0" in text:
                raise UsageError(text_encodings.about_zeros(block))
            at += len(block)
            if first and text:
                text, first = text.removeprefix("\ufeff"), False
            if text := line_ends.decode(text, final=not block):
                yield text
        if any("\r" in end for end in line_ends.newlines or ()):
            self._with_cr.append(path)

    def _encoding_of(self, path: Path) -> tuple[str, str]:
        """The encoding to read a file in, and what to do where it is not in that."""
        begun = head(path)
        if reason := file_types.advice(path, begun):
            raise UsageError(reason)
        if self.encoding != text_encodings.AUTO:
            return self.encoding, f"{opt('data.encoding')} auto looks for its encoding"
        found = text_encodings.find_encoding(begun, unpacked(path), _kind(path) in PAGES)
        if found.assumed:
            self._say(path)(found.assumed)
        return found.encoding, f"{found.assumed}; {found.advice}"


def _with_end(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The blocks, and an empty one at the end."""
    yield from blocks
    yield b""


def unreadable(option: str, path: Path, error: OSError) -> UsageError:
    """The error to raise for a file that can't be read."""
    advice = "give a text file, a folder or a glob"
    if path.parent.name == PIPES_FOLDER:
        advice = f"it was the copy of a pipe; give {option} with the same text once more"
    return UsageError(f"{option} {path}: {error.strerror or error}; {advice}")


def reading_of(path: Path) -> str:
    """How a file is read: the ends of its name that matter, such as .jsonl.gz."""
    packed = packing_of(path.name)
    return _kind(path) + packed


def _kind(path: Path) -> str:
    """The end of a file's name that says what it holds, packed or not; "" of any other text."""
    end = Path(path.name.lower().removesuffix(packing_of(path.name))).suffix
    return end if end in (*TEXTS, *RECORDS, *PAGES, BOOK) else ""
