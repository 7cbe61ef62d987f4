"""From a text to its token file: cleaned, split, tokenized and put in its place, restartably.

The work is done in a folder `<name>-<key>.part`, which an interrupted preparation leaves behind
and the next one goes on with. The token file takes its place whole, at the end.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from gptlit.corpora.catalog import Text
from gptlit.data import clean_text, parallel, token_file
from gptlit.data.clean_text import CleanText
from gptlit.data.encode_log import Done, Journal
from gptlit.data.parallel import Encoder, Task, WordCounter
from gptlit.data.splits import SPLITS, Splitting
from gptlit.data.token_file import TokenFile
from gptlit.files import locked, sha256_of
from gptlit.messages import UsageError, note, progress
from gptlit.tokenizers.base import LARGEST_VOCABULARY, Tokenizer, TokenizerOptions, UnknownPieces
from gptlit.tokenizers.bytepair import BytePairTokenizer
from gptlit.tokenizers.characters import CharTokenizer
from gptlit.tokenizers.state import from_state
from gptlit.tokenizers.words import WordTokenizer

FORMAT = 5
NAME_CHARS = 40  # of a text's name in a token file's, which has at most 255 bytes
FULL = (errno.ENOSPC, errno.EDQUOT)
CLOSED = (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST)


def prepare(
    text: Text,
    folder: Path,
    *,
    tokenizer: TokenizerOptions | Tokenizer,
    splitting: Splitting,
    own_texts: dict[str, Text],
) -> TokenFile:
    """The token file of a text, made under `folder` unless it is there already, and whole.

    Args:
        text: What is trained on, and split.
        folder: Where token files are kept.
        tokenizer: Options to make one by, or a finished tokenizer.
        splitting: How to split it.
        own_texts: Texts of their own for "val" or "test".

    Raises:
        UsageError: what is read is no text, a split that can't be, characters that a finished
            tokenizer doesn't know, or a full disk.
    """
    stem = f"{Path(text.name).stem[:NAME_CHARS]}-{_key(text, tokenizer, splitting, own_texts)}"
    data_path, facts_path = folder / f"{stem}.bin", folder / f"{stem}.json"
    part = folder / f"{stem}.part"
    with _in_one_line(folder.parent, text.name):
        if found := token_file.read(data_path, facts_path):
            return found
        folder.mkdir(parents=True, exist_ok=True)
        # one lock for all texts of a folder, since a preparation uses all cores
        with locked(folder / ".lock", lambda: _report_waiting(folder)):
            # the process that held the lock may have prepared this text
            if not (found := token_file.read(data_path, facts_path)):
                with _working_in(part):
                    texts = {"": text, **own_texts}
                    preparation = _Preparation(texts, tokenizer, splitting, part, folder.parent)
                    facts = preparation.run()
                    token_file.write(facts, part / "facts")
                    # the facts come last: where they are, the ids are whole
                    os.replace(part / "ids", data_path)
                    os.replace(part / "facts", facts_path)
                shutil.rmtree(part)
                found = token_file.read(data_path, facts_path, check=False)
    if not found:
        raise OSError(f"{data_path} could not be read back")
    return found


@contextlib.contextmanager
def _working_in(part: Path) -> Iterator[None]:
    """A folder that stays when the work is interrupted, and goes when it fails."""
    part.mkdir(exist_ok=True)
    try:
        yield
    except Exception:  # Ctrl-C and an exit are none
        shutil.rmtree(part, ignore_errors=True)
        raise


@contextlib.contextmanager
def _in_one_line(data_dir: Path, name: str) -> Iterator[None]:
    """Errors of a disk that is full or closed, as the user is told of them."""
    try:
        yield
    except OSError as error:
        if error.errno in CLOSED:
            raise UsageError(
                f"token files can't be kept there ({error.strerror}); name a folder of yours",
                "data.data_dir",
                data_dir,
            ) from error
        if error.errno in FULL:
            raise UsageError(
                f"{error.strerror} while preparing {name}, which takes about three times its size; "
                "free some, or name a folder elsewhere",
                "data.data_dir",
                data_dir,
            ) from error
        raise


def _key(
    text: Text,
    tokenizer: TokenizerOptions | Tokenizer,
    splitting: Splitting,
    own_texts: dict[str, Text],
) -> str:
    """All that the token file depends on, hashed."""
    state: Any = tokenizer.state() if isinstance(tokenizer, Tokenizer) else asdict(tokenizer)
    reading = [
        [
            name,
            text.sha256,
            text.kinds,
            *(text.options.jsonl_field, text.options.column, text.options.encoding),
            asdict(text.options.cleaning),
        ]
        for name, text in {"": text, **own_texts}.items()
    ]
    # the size of tasks: a preparation goes on only with those that it began with
    wanted = [FORMAT, parallel.TASK_BYTES, reading, state, asdict(splitting)]
    return hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:16]


def _report_waiting(folder: Path) -> None:
    note(f"waiting for another process, which prepares a text in {folder}")


@dataclass(frozen=True)
class _Part:
    """A span of a text that is tokenized on its own."""

    index: int
    spool: CleanText
    split: str
    n_chars: int
    first: int  # byte
    end: int

    @property
    def n_bytes(self) -> int:
        return self.end - self.first

    def tasks(self, at_most: int = parallel.TASK_BYTES) -> Iterator[Task]:
        return parallel.tasks(self.spool, self.first, self.end, self.index, at_most)


def _told(parts: list[_Part]) -> Iterator[Task]:
    """The tasks of some parts, with a progress bar."""
    n_bytes = sum(part.n_bytes for part in parts)
    with progress(n_bytes, "learning pieces") as bar:
        for part in parts:
            for task in part.tasks():
                yield task
                bar.update(task.n_bytes)


class _Preparation:
    """One preparation of a token file, in a folder of its own.

    Args:
        texts: The text to split, as "", and those that are a split of their own, by its name.
        given: A finished tokenizer, or how to make one.
        splitting: How to split the text.
        folder: Of this preparation.
        downloads: Where a published tokenizer's files are kept.
    """

    def __init__(
        self,
        texts: dict[str, Text],
        given: TokenizerOptions | Tokenizer,
        splitting: Splitting,
        folder: Path,
        downloads: Path,
    ) -> None:
        self._texts = texts
        self._given = given
        self._folder = folder
        self._downloads = downloads
        eos = given.eos_id is not None if isinstance(given, Tokenizer) else given.eos
        self._spools = {
            name: clean_text.write(text, folder / f"text{name}", joined=not eos)
            for name, text in texts.items()
        }
        main = self._spools[""]
        spans = [
            (main, name, end - first, main.byte_at(first), main.byte_at(end))
            for name, first, end in splitting.spans(main.n_chars, main.ends[:, 0])
        ]
        spans += [
            (own, name, own.n_chars, 0, own.n_bytes) for name, own in self._spools.items() if name
        ]
        self._parts = [_Part(index, *span) for index, span in enumerate(spans)]
        self._characters = "".join(
            sorted(set().union(*(s.characters for s in self._spools.values())))
        )

    def run(self) -> dict[str, Any]:
        """Write the ids and the documents' ends; returns the facts to be kept with them."""
        tokenizer = self._tokenizer()
        dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
        done = self._encode(Encoder(tokenizer, dtype))
        sizes = [0] * len(self._parts)
        for task in done:
            sizes[task.part] += task.n_tokens
        ends = np.cumsum(sizes).tolist()
        if not ends[-1]:
            raise UsageError(f"{self._texts[''].name}: nothing in it makes a token")
        spans: dict[str, list[list[int]]] = {name: [] for name in SPLITS}
        starts: dict[Path, int] = {}
        for part, size, end in zip(self._parts, sizes, ends, strict=True):
            spans[part.split].append([end - size, end])
            starts.setdefault(part.spool.path, end - size)
        return {
            "dtype": dtype.name,
            "n_tokens": ends[-1],
            "sha256": sha256_of(self._folder / "ids"),
            "spans": spans,
            "text_starts": list(starts.values()),
            "tokenizer": tokenizer.state(),
            "provenance": self._provenance(done),
        }

    def _provenance(self, done: list[Done]) -> dict[str, Any]:
        spools = self._spools.values()
        unknown = Counter[str]()
        for task in done:
            unknown[self._parts[task.part].split] += task.n_unknown
        return {
            # a path would depend on the folder that a run is resumed in
            "name": Path(self._texts[""].name).name,
            "sha256": self._texts[""].sha256,
            "own_texts": {
                name: [Path(own.name).name, own.sha256] for name, own in self._texts.items() if name
            },
            "distinct": len(self._characters),
            "sizes": {
                name: {
                    "characters": sum(p.n_chars for p in self._parts if p.split == name),
                    "bytes": sum(p.n_bytes for p in self._parts if p.split == name),
                    "unknown": unknown[name],
                }
                for name in SPLITS
            },
            "report": [line for each in spools for line in each.report],
        }

    def _tokenizer(self) -> Tokenizer:
        """The tokenizer given, or one made for the text, which is kept for a restart."""
        if isinstance(self._given, Tokenizer):
            return self._given
        kept = self._folder / "tokenizer"
        with contextlib.suppress(FileNotFoundError, ValueError):
            return from_state(json.loads(kept.read_text(encoding="utf-8")))
        made = self._made(self._given)
        if made.vocab_size > LARGEST_VOCABULARY:
            raise UsageError(
                f"its vocabulary of {made.vocab_size:,} is more than ids of 32 bits can tell "
                "apart; a BPE takes any text",
                "data.tokenizer",
                self._given.kind,
            )
        kept.write_text(json.dumps(made.state()), encoding="utf-8")
        return made

    def _made(self, options: TokenizerOptions) -> Tokenizer:
        # characters and words come from all splits, so that the two halves of a word that a
        # split cuts are words too; a BPE learns from the training split
        if options.kind == "char":
            return CharTokenizer.train(self._characters, options)
        if options.kind == "word":
            counts: Counter[str] = Counter()
            for more in self._pass(WordCounter(options.reversible), "counting words"):
                counts.update(more)
            return WordTokenizer.train(counts, options)
        if options.kind == "bpe":
            training = [part for part in self._parts if part.split == "train"]
            texts = (text for task in _told(training) for text, _ in task.texts())
            return BytePairTokenizer.train(texts, options)
        return BytePairTokenizer.published(options.encoding, self._downloads, options.eos)

    def _encode(self, encoder: Encoder) -> list[Done]:
        """Tokenize all parts into the file of ids, from where an interrupted run stopped."""
        name = self._texts[""].name
        with Journal(self._folder, encoder.dtype) as journal:
            if journal.done:
                note(f"going on with the preparation of {name} that was interrupted")
            behind = sum(done.n_bytes for done in journal.done)
            try:
                results = self._pass(encoder, f"tokenizing {name}", len(journal.done), behind)
                for encoded in results:
                    journal.add(encoded)
            except UnknownPieces as error:
                raise UsageError(f"{name}: {error}; this model can't read that text") from error
            journal.finish()
            return journal.done

    def _pass(
        self, work: parallel.Work[Any], label: str, n_done: int = 0, behind: int = 0
    ) -> Iterator[Any]:
        tasks = (task for part in self._parts for task in part.tasks(work.task_bytes))
        n_bytes = sum(part.n_bytes for part in self._parts)
        return parallel.in_order(work, islice(tasks, n_done, None), n_bytes - behind, label)
