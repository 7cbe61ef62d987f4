"""Passes over a spooled text through all cores: in small tasks, in constant memory.

Documents are tokenized one by one. A long one is cut where no tokenizer joins what is on both
sides, so that its ids are those of the whole.
"""

import contextlib
import multiprocessing
import os
import re
import signal
import sys
import threading
import types
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol, TypeVar

import numpy as np

from gptlit.data.clean_text import CleanText
from gptlit.messages import progress
from gptlit.tokenizers.base import Tokenizer
from gptlit.tokenizers.words import WordTokenizer, count_words

TASK_BYTES = 1 << 18  # arrays of such a task stay in the processor's cache
COUNT_BYTES = 1 << 21  # each task's count of words has to be added to the others'
CHARACTER_BYTES = 4  # at most
LOOK_BACK_BYTES = (1 << 10, 1 << 16)  # how far to look for a place to cut; far only if need be
ALONE_BELOW_BYTES = 32 << 20  # what one process does while others would still be starting
# before the first character of a line, and before a single space between words. Published
# patterns and those of rustbpe all begin a piece there; so do words.
_CUTS = (re.compile(r"(?<=[^\s]\n)(?=[^\s/])"), re.compile(r"(?<=[^\s])(?= [^\s])"))

Result = TypeVar("Result", covariant=True)


class Stretch(NamedTuple):
    """Bytes of a spooled text that belong to one document."""

    first: int
    end: int
    goes_on: bool  # what comes before it is of the same document, and was cut from it
    ends_document: bool


@dataclass(frozen=True)
class Task:
    """Stretches that follow each other, as many as make a task or one; all of one `part`."""

    part: int
    path: Path
    stretches: list[Stretch]

    @property
    def n_bytes(self) -> int:
        return self.stretches[-1].end - self.stretches[0].first

    def texts(self) -> Iterator[tuple[str, Stretch]]:
        """The text of each stretch."""
        start = self.stretches[0].first
        with self.path.open("rb") as file:
            file.seek(start)
            raw = file.read(self.n_bytes)
        for stretch in self.stretches:
            yield raw[stretch.first - start : stretch.end - start].decode(), stretch


def stretches(spool: CleanText, first: int, end: int, at_most: int) -> Iterator[Stretch]:
    """The bytes from `first` to `end`, cut at the ends of documents and within long ones."""
    index = int(np.searchsorted(spool.ends[:, 1], first, "right"))
    with spool.path.open("rb") as file:
        while first < end:
            document_end = int(spool.ends[index, 1])
            stop, goes_on = min(document_end, end), False
            while stop - first > at_most:
                cut = _cut_between(file, first, first + at_most)
                yield Stretch(first, cut, goes_on, False)
                first, goes_on = cut, True
            yield Stretch(first, stop, goes_on, stop == document_end)
            first = stop
            index += stop == document_end


def _cut_between(file: IO[bytes], first: int, end: int) -> int:
    """The best place to cut, near `end`.

    That is the last beginning of a line; without one, the last space between words; without
    any white space at all, the beginning of the last character.
    """
    for kind in _CUTS:
        for n_bytes in LOOK_BACK_BYTES:
            file.seek(max(first, end - n_bytes))
            at = file.tell()
            if (place := last_cut(file.read(end - at), kind)) is not None:
                return at + place
    file.seek(end - CHARACTER_BYTES)
    last = file.read(CHARACTER_BYTES)
    return end - CHARACTER_BYTES + max(i for i, byte in enumerate(last) if _begins(byte))


def last_cut(raw: bytes, kind: re.Pattern[str]) -> int | None:
    """The last place of a kind in some bytes of UTF-8 text, which may cut off characters."""
    n_before = next((i for i, byte in enumerate(raw) if _begins(byte)), 0)
    text = raw[n_before:].decode(errors="ignore")
    places = [match.start() for match in kind.finditer(text)]
    return n_before + len(text[: places[-1]].encode()) if places else None


def _begins(byte: int) -> bool:
    """Whether a byte of UTF-8 is the first of a character."""
    return byte & 0xC0 != 0x80


def tasks(
    spool: CleanText, first: int, end: int, part: int = 0, at_most: int = TASK_BYTES
) -> Iterator[Task]:
    """The bytes from `first` to `end` in tasks of `at_most` bytes, all marked as of `part`."""
    gathered: list[Stretch] = []
    for stretch in stretches(spool, first, end, at_most):
        if gathered and stretch.end - gathered[0].first > at_most:
            yield Task(part, spool.path, gathered)
            gathered = []
        gathered.append(stretch)
    if gathered:
        yield Task(part, spool.path, gathered)


@dataclass(frozen=True)
class Encoded:
    """What became of a task.

    Args:
        part: The task's.
        n_bytes: The task's.
        ids: Token ids, one behind the other.
        ends: How many of them come up to the end of each document that ends here.
        n_unknown: How many of them stand for unknown pieces.
        crc: CRC-32 of the ids.
    """

    part: int
    n_bytes: int
    ids: np.ndarray
    ends: list[int]
    n_unknown: int
    crc: int


class Work(Protocol[Result]):
    """What is done with each task."""

    @property
    def task_bytes(self) -> int:
        """How large tasks suit it."""

    @property
    def in_python(self) -> bool:
        """Whether only processes can share it, since threads would wait for each other."""

    def __call__(self, task: Task) -> Result: ...


@dataclass(frozen=True)
class Encoder:
    """Encodes tasks into ids of a type; where the tokenizer has an end of sequence, it closes
    each document."""

    tokenizer: Tokenizer
    dtype: np.dtype
    task_bytes: int = TASK_BYTES

    @property
    def in_python(self) -> bool:
        return isinstance(self.tokenizer, WordTokenizer)

    def __call__(self, task: Task) -> Encoded:
        tokenizer = self.tokenizer
        eos_id, parts, ends, n = tokenizer.eos_id, [], [], 0
        for text, stretch in task.texts():
            encode = tokenizer.encode_continuation if stretch.goes_on else tokenizer.encode
            ids = encode(text).astype(self.dtype)
            if stretch.ends_document and eos_id is not None:
                ids = np.append(ids, np.array(eos_id, dtype=self.dtype))
            parts.append(ids)
            n += len(ids)
            if stretch.ends_document:
                ends.append(n)
        whole = np.concatenate(parts)
        strange = -1 if tokenizer.unknown_id is None else tokenizer.unknown_id
        n_unknown = int((whole == strange).sum())
        return Encoded(task.part, task.n_bytes, whole, ends, n_unknown, zlib.crc32(whole.data))


@dataclass(frozen=True)
class WordCounter:
    """Counts the words of tasks, as a word tokenizer cuts them."""

    reversible: bool
    task_bytes: int = COUNT_BYTES
    in_python: bool = True

    def __call__(self, task: Task) -> Counter[str]:
        counts: Counter[str] = Counter()
        for text, stretch in task.texts():
            counts.update(count_words(text, self.reversible, stretch.goes_on))
        return counts


def n_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_order(
    work: Work[Result], given: Iterable[Task], n_bytes: int, label: str
) -> Iterator[Result]:
    """What `work` makes of each task, in the order of the tasks, with a progress bar.

    Args:
        work: What to do; threads or processes share it, if there is enough for them.
        given: The tasks; few of them are drawn ahead.
        n_bytes: Of all tasks together.
        label: Of the bar, which appears on a terminal after a second.
    """
    n_workers = n_cores() if n_bytes >= ALONE_BELOW_BYTES else 1
    pool: Executor
    if work.in_python and n_workers > 1:
        # spawned, since a process with threads, as torch starts them, can't be forked safely
        spawn = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(n_workers, spawn, initializer=_begin, initargs=(work,))
        do: Callable[[Task], Any] = _go_on
    else:
        pool, do = ThreadPoolExecutor(n_workers), work

    def submit(task: Task) -> Future[Result]:
        # a process may be started for it; a thread needs no such care
        with _no_main() if work.in_python and n_workers > 1 else contextlib.nullcontext():
            return pool.submit(do, task)

    with progress(n_bytes, label) as bar:
        try:
            for task, result in _some_ahead(submit, given, 2 * n_workers):
                bar.update(task.n_bytes)
                yield result
        finally:
            pool.shutdown(cancel_futures=True)


def _some_ahead(
    submit: Callable[[Task], Future[Result]], given: Iterable[Task], n_ahead: int
) -> Iterator[tuple[Task, Result]]:
    waiting: deque[tuple[Task, Future[Result]]] = deque()
    for task in given:
        waiting.append((task, submit(task)))
        if len(waiting) > n_ahead:
            first, future = waiting.popleft()
            yield first, future.result()
    for first, future in waiting:
        yield first, future.result()


@contextlib.contextmanager
def _no_main() -> Iterator[None]:
    """Keep a process that is spawned from running the user's own script once more, and from
    being interrupted while it starts."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    # it inherits what is blocked; here a Ctrl-C that comes meanwhile is late, and not lost
    can_block = hasattr(signal, "pthread_sigmask")
    if can_block:
        resource_tracker.ensure_running()  # which unblocks it again when it starts
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        if can_block:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


_work: Callable[[Task], Any]


def _begin(work: Callable[[Task], Any]) -> None:
    global _work
    _work = work
    # Ctrl-C reaches all processes of a terminal; the one that gave the work ends it, and where
    # that one is killed nobody waits for what is done here
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _go_on(task: Task) -> Any:
    return _work(task)
