"""Encoding and counting of tasks on all cores, in order and in constant memory."""

import contextlib
import multiprocessing
import os
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
from typing import Any

import numpy as np

from gptlit.data.tasks import TASK_BYTES, Task
from gptlit.devices import cpus
from gptlit.messages import progress
from gptlit.tokenizers.base import Tokenizer
from gptlit.tokenizers.words import WordTokenizer, count_words

COUNT_BYTES = 1 << 21  # larger, as the counts of each task have to be added up
ONE_WORKER_BELOW_BYTES = 32 << 20  # less is done before other processes have started


@dataclass(frozen=True)
class Encoded:
    """The ids of a task.

    Args:
        span: Index of the task's span.
        n_bytes: Bytes of the task.
        ids: Token ids of all its stretches.
        ends: Number of ids up to the end of each document that ends in the task.
        n_unknown: Number of ids that stand for unknown pieces.
        crc: CRC-32 of the ids.
    """

    span: int
    n_bytes: int
    ids: np.ndarray
    ends: list[int]
    n_unknown: int
    crc: int


@dataclass(frozen=True)
class Encoder:
    """Encodes tasks into ids, with the tokenizer's end of sequence, if any, after documents.

    Args:
        tokenizer: Tokenizer to encode with.
        dtype: Data type of the ids.
        with_ends: Whether documents end with the tokenizer's end of sequence, if it has one.
        task_bytes: Suitable size of a task.
    """

    tokenizer: Tokenizer
    dtype: np.dtype
    with_ends: bool = True
    task_bytes: int = TASK_BYTES

    @property
    def in_python(self) -> bool:
        """Whether the work holds the interpreter's lock, so that only processes can share it."""
        return isinstance(self.tokenizer, WordTokenizer)

    def __call__(self, task: Task) -> Encoded:
        tokenizer = self.tokenizer
        eos_id = tokenizer.eos_id if self.with_ends else None
        parts, ends, n = [], [], 0
        for text, stretch in task.texts():
            encode = tokenizer.encode_continuation if stretch.is_continuation else tokenizer.encode
            ids = encode(text).astype(self.dtype)
            if stretch.ends_document and eos_id is not None:
                ids = np.append(ids, np.array(eos_id, dtype=self.dtype))
            parts.append(ids)
            n += len(ids)
            if stretch.ends_document:
                ends.append(n)
        ids = np.concatenate(parts)
        unknown_id = -1 if tokenizer.unknown_id is None else tokenizer.unknown_id
        n_unknown = int((ids == unknown_id).sum())
        return Encoded(task.span, task.n_bytes, ids, ends, n_unknown, zlib.crc32(ids.data))


@dataclass(frozen=True)
class WordCounter:
    """Counts the words of tasks, as a word tokenizer splits them."""

    reversible: bool
    task_bytes: int = COUNT_BYTES
    in_python: bool = True

    def __call__(self, task: Task) -> Counter[str]:
        counts: Counter[str] = Counter()
        for text, stretch in task.texts():
            counts.update(count_words(text, self.reversible, stretch.is_continuation))
        return counts


Work = Encoder | WordCounter


def in_order(work: Work, tasks: Iterable[Task], n_bytes: int, label: str) -> Iterator[Any]:
    """Yield the result of each task, in the order of the tasks, with a progress bar.

    Args:
        work: Function of a task; threads or processes share it if there are enough bytes.
        tasks: Tasks, of which only a few are read ahead.
        n_bytes: Bytes of all tasks together.
        label: Label of the bar, which a terminal shows after a second.
    """
    n_workers = cpus.usable() if n_bytes >= ONE_WORKER_BELOW_BYTES else 1
    in_processes = work.in_python and n_workers > 1
    pool: Executor
    if in_processes:
        # spawned: a process with threads, such as torch's, can't be forked safely
        spawn = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(n_workers, spawn, initializer=_start_worker, initargs=(work,))
        function: Callable[[Task], Any] = _do_work
    else:
        pool, function = ThreadPoolExecutor(n_workers), work

    def submit(task: Task) -> Future[Any]:
        # the pool may start a process
        with _spawning_safely() if in_processes else contextlib.nullcontext():
            return pool.submit(function, task)

    with progress(n_bytes, label) as bar:
        try:
            for task, result in _results(submit, tasks, 2 * n_workers):
                bar.update(task.n_bytes)
                yield result
        finally:
            pool.shutdown(cancel_futures=True)


def _results(
    submit: Callable[[Task], Future[Any]], tasks: Iterable[Task], n_ahead: int
) -> Iterator[tuple[Task, Any]]:
    submitted: deque[tuple[Task, Future[Any]]] = deque()
    for task in tasks:
        submitted.append((task, submit(task)))
        if len(submitted) > n_ahead:
            first, future = submitted.popleft()
            yield first, future.result()
    for first, future in submitted:
        yield first, future.result()


@contextlib.contextmanager
def _spawning_safely() -> Iterator[None]:
    """Keep a spawned process from running the user's script again, and from being interrupted
    while it starts."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    # the process inherits the block; here a Ctrl-C is delivered afterwards
    can_block = hasattr(signal, "pthread_sigmask")
    if can_block:
        resource_tracker.ensure_running()  # its start would unblock the signal
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        if can_block:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


_work: Callable[[Task], Any]


def _start_worker(work: Callable[[Task], Any]) -> None:
    global _work
    _work = work
    # Ctrl-C reaches all processes of a terminal; the parent shuts the workers down
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _do_work(task: Task) -> Any:
    return _work(task)
