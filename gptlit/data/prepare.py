"""Makes the token file of a text: cleaned, split, tokenized and moved into place, resumably.

The work is done in a folder `<name>-<key>.part`, from which the next preparation resumes an
interrupted one. The token file is moved into place when it is complete.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from gptlit.corpora import examples
from gptlit.corpora.catalog import Text
from gptlit.data import clean_text, parallel, token_file
from gptlit.data.clean_text import CleanText
from gptlit.data.encode_log import EncodeLog, LoggedTask
from gptlit.data.parallel import Encoder, WordCounter
from gptlit.data.splits import SPLITS, Splitting
from gptlit.data.tasks import TASK_BYTES, Task, cut_into_tasks
from gptlit.data.token_file import TokenFile
from gptlit.files import locked, sha256_of
from gptlit.messages import UsageError, note, progress
from gptlit.tokenizers.base import LARGEST_VOCABULARY, Tokenizer, TokenizerOptions, UnknownPieces
from gptlit.tokenizers.bytepair import BytePairTokenizer
from gptlit.tokenizers.characters import CharTokenizer
from gptlit.tokenizers.state import from_state
from gptlit.tokenizers.words import WordTokenizer

FORMAT = 5
NAME_CHARS = 40  # of the text's name in that of its token file, which has at most 255 bytes
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
NOT_WRITABLE = (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST)


def prepare(
    text: Text,
    folder: Path,
    *,
    tokenizer: TokenizerOptions | Tokenizer,
    splitting: Splitting,
    own_texts: dict[str, Text],
) -> TokenFile:
    """Return the token file of a text; make it under `folder` unless a valid one is there.

    Args:
        text: Text that is trained on and split.
        folder: Folder of the token files.
        tokenizer: Options of the tokenizer to make, or a finished tokenizer.
        splitting: How to split the text.
        own_texts: Separate texts for "val" or "test".

    Raises:
        UsageError: The files are not text, the text can't be split so, a finished tokenizer lacks
            some of its characters, or the disk is full.
    """
    tokens = _prepare({"": text, **own_texts}, folder, tokenizer, splitting)
    return tokens if text.options.format == "text" else tokens.of_examples()


def _prepare(
    texts: dict[str, Text],
    folder: Path,
    tokenizer: TokenizerOptions | Tokenizer,
    splitting: Splitting,
) -> TokenFile:
    text = texts[""]
    stem = f"{Path(text.name).stem[:NAME_CHARS]}-{_key(texts, tokenizer, splitting)}"
    data_path, facts_path = folder / f"{stem}.bin", folder / f"{stem}.json"
    part = folder / f"{stem}.part"
    with _disk_errors(folder.parent, text.name):
        if tokens := token_file.read(data_path, facts_path):
            return tokens
        folder.mkdir(parents=True, exist_ok=True)
        # one lock for all texts of a folder, since a preparation uses all cores
        waiting = f"waiting for another process, which prepares a text in {folder}"
        with locked(folder / ".lock", lambda: note(waiting)):
            # the process that held the lock may have prepared this text
            if tokens := token_file.read(data_path, facts_path):
                return tokens
            part.mkdir(exist_ok=True)
            try:
                preparation = _Preparation(texts, tokenizer, splitting, part, folder.parent)
                token_file.write(preparation.run(), part / "facts")
                # the facts last: if they are there, the ids are complete
                os.replace(part / "ids", data_path)
                os.replace(part / "facts", facts_path)
            except Exception:  # not after an interruption, which the next preparation resumes
                shutil.rmtree(part, ignore_errors=True)
                raise
            shutil.rmtree(part)
            if tokens := token_file.read(data_path, facts_path, check=False):
                return tokens
            raise OSError(f"{data_path} could not be read back")


@contextlib.contextmanager
def _disk_errors(data_dir: Path, name: str) -> Iterator[None]:
    """Turn errors of a full or read-only disk into a UsageError."""
    try:
        yield
    except OSError as error:
        if error.errno in NOT_WRITABLE:
            reason = f"token files can't be kept there ({error.strerror}); name a folder of yours"
        elif error.errno in DISK_FULL:
            reason = (
                f"{error.strerror} while preparing {name}, which takes about three times its size; "
                "free some, or name a folder elsewhere"
            )
        else:
            raise
        raise UsageError(reason, "data.data_dir", data_dir) from error


def _key(
    texts: dict[str, Text], tokenizer: TokenizerOptions | Tokenizer, splitting: Splitting
) -> str:
    """Hash everything that the token file depends on."""
    state: Any = tokenizer.state() if isinstance(tokenizer, Tokenizer) else asdict(tokenizer)
    reading = []
    for name, text in texts.items():
        options = text.options
        fields = [options.jsonl_field, options.column, options.encoding]
        fields += [options.format] if options.format != "text" else []
        reading.append([name, text.sha256, text.kinds, *fields, asdict(options.cleaning)])
    # with the size of tasks: a preparation is resumed only with the tasks that it began with
    facts = [FORMAT, TASK_BYTES, reading, state, asdict(splitting)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _SplitSpan:
    """A span of a text, tokenized by itself; `first` and `end` are bytes."""

    index: int
    text: CleanText
    split: str
    n_chars: int
    first: int
    end: int

    @property
    def n_bytes(self) -> int:
        return self.end - self.first

    def tasks(self, max_bytes: int = TASK_BYTES) -> Iterator[Task]:
        return cut_into_tasks(self.text, self.first, self.end, self.index, max_bytes)


@dataclass
class _Preparation:
    """The preparation of one token file.

    Args:
        texts: The text to split, as "", and separate texts by the names of their splits.
        tokenizer_or_options: A finished tokenizer, or the options of one.
        splitting: How to split the text.
        folder: Work folder of this preparation.
        downloads: Folder for the files of published tokenizers.
    """

    texts: dict[str, Text]
    tokenizer_or_options: TokenizerOptions | Tokenizer
    splitting: Splitting
    folder: Path
    downloads: Path

    def run(self) -> dict[str, Any]:
        """Write the ids and document ends; return the facts for `token_file.write`."""
        self._clean_and_split()
        tokenizer = self._tokenizer()
        dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
        has_examples = self.texts[""].options.format != "text"
        tasks = self._encode(Encoder(tokenizer, dtype, with_ends=not has_examples))
        sizes = [0] * len(self._spans)
        for task in tasks:
            sizes[task.span] += task.n_tokens
        ends = np.cumsum(sizes).tolist()
        if not ends[-1]:
            raise UsageError(f"{self.texts[''].name}: has no tokens; name a longer text")
        spans: dict[str, list[list[int]]] = {name: [] for name in SPLITS}
        starts: dict[Path, int] = {}
        for span, size, end in zip(self._spans, sizes, ends, strict=True):
            spans[span.split].append([end - size, end])
            starts.setdefault(span.text.path, end - size)
        return {
            "dtype": dtype.name,
            "n_tokens": ends[-1],
            "sha256": sha256_of(self.folder / "ids"),
            "spans": spans,
            "text_starts": list(starts.values()),
            "tokenizer": tokenizer.state(),
            "provenance": self._provenance(tasks),
        }

    def _clean_and_split(self) -> None:
        given = self.tokenizer_or_options
        has_eos = given.eos_id is not None if isinstance(given, Tokenizer) else given.eos
        self._clean_texts = {
            name: clean_text.write(text, self.folder / f"text{name}", joined=not has_eos)
            for name, text in self.texts.items()
        }
        main = self._clean_texts[""]
        n_texts = examples.TEXTS_OF[self.texts[""].options.format]
        ends = main.ends[n_texts - 1 :: n_texts, 0]  # of whole examples
        spans = [
            (main, split, end - first, main.byte_at(first), main.byte_at(end))
            for split, first, end in self.splitting.spans(main.n_chars, ends)
        ]
        spans += [
            (text, split, text.n_chars, 0, text.n_bytes)
            for split, text in self._clean_texts.items()
            if split
        ]
        self._spans = [_SplitSpan(index, *span) for index, span in enumerate(spans)]
        characters = (text.characters for text in self._clean_texts.values())
        self._characters = "".join(sorted(set().union(*characters)))

    def _provenance(self, tasks: list[LoggedTask]) -> dict[str, Any]:
        sizes = {name: {"characters": 0, "bytes": 0, "unknown": 0} for name in SPLITS}
        for span in self._spans:
            sizes[span.split]["characters"] += span.n_chars
            sizes[span.split]["bytes"] += span.n_bytes
        for task in tasks:
            sizes[self._spans[task.span].split]["unknown"] += task.n_unknown
        # names without folders, as a run can be resumed elsewhere
        named = {name: [Path(text.name).name, text.sha256] for name, text in self.texts.items()}
        name, sha256 = named.pop("")
        return {
            "name": name,
            "sha256": sha256,
            "own_texts": named,
            "distinct": len(self._characters),
            "sizes": sizes,
            "report": [line for text in self._clean_texts.values() for line in text.report],
        }

    def _tokenizer(self) -> Tokenizer:
        """Return the finished tokenizer, or make one and save it for a resumed preparation."""
        options = self.tokenizer_or_options
        if isinstance(options, Tokenizer):
            return options
        saved = self.folder / "tokenizer"
        with contextlib.suppress(FileNotFoundError, ValueError):
            return from_state(json.loads(saved.read_text(encoding="utf-8")))
        tokenizer = self._make_tokenizer(options)
        if tokenizer.vocab_size > LARGEST_VOCABULARY:
            raise UsageError(
                f"its vocabulary of {tokenizer.vocab_size:,} is too large for ids of 32 bits; a "
                "BPE takes any text",
                "data.tokenizer",
                options.kind,
            )
        saved.write_text(json.dumps(tokenizer.state()), encoding="utf-8")
        return tokenizer

    def _make_tokenizer(self, options: TokenizerOptions) -> Tokenizer:
        # characters and words are those of all splits: where a split cuts a word, both halves
        # are words; a BPE is trained on the training split
        if options.kind == "char":
            return CharTokenizer.train(self._characters, options)
        if options.kind == "word":
            counts: Counter[str] = Counter()
            for task_counts in self._results(WordCounter(options.reversible), "counting words"):
                counts.update(task_counts)
            return WordTokenizer.train(counts, options)
        if options.kind == "bpe":
            return BytePairTokenizer.train(self._training_texts(), options)
        return BytePairTokenizer.published(options.encoding, self.downloads, options.eos)

    def _training_texts(self) -> Iterator[str]:
        spans = [span for span in self._spans if span.split == "train"]
        with progress(sum(span.n_bytes for span in spans), "training the tokenizer") as bar:
            for span in spans:
                for task in span.tasks():
                    yield from (text for text, _ in task.texts())
                    bar.update(task.n_bytes)

    def _encode(self, encoder: Encoder) -> list[LoggedTask]:
        """Tokenize all spans into the file of ids, from the task where a run was interrupted."""
        name = self.texts[""].name
        with EncodeLog(self.folder, encoder.dtype) as log:
            if log.tasks:
                note(f"resuming the interrupted preparation of {name}")
            try:
                for encoded in self._results(encoder, f"tokenizing {name}", log.tasks):
                    log.add(encoded)
            except UnknownPieces as error:
                raise UsageError(f"{name}: {error}; this model can't read that text") from error
            log.finish()
            return log.tasks

    def _results(
        self, work: parallel.Work, label: str, done: Sequence[LoggedTask] = ()
    ) -> Iterator[Any]:
        tasks = (task for span in self._spans for task in span.tasks(work.task_bytes))
        n_bytes = sum(s.n_bytes for s in self._spans) - sum(task.n_bytes for task in done)
        return parallel.in_order(work, islice(tasks, len(done), None), n_bytes, label)
