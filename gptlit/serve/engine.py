"""A thread that owns the models, each of which writes all of its texts in one running batch."""

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from gptlit.generation.generate import SAMPLES_AT_ONCE
from gptlit.generation.running_batch import Drawn, Row, RunningBatch
from gptlit.generation.text_stream import Draft
from gptlit.insight.passages import Scores, score
from gptlit.messages import is_out_of_memory, note
from gptlit.model.gpt import GPT

Finish = Literal["stop", "length"]
PAUSE_S = 0.04  # between two deliveries; each costs the interpreter's lock for every client


@dataclass(frozen=True)
class Event:
    """A step of a text.

    Args:
        text: Part of the text that can't belong to a stop string any more.
        drawn: The token that was drawn; None if there is none, as at an end of sequence.
        finish: Why the text ends, with its last event.
        prompt_scores: Scores of the prompt, with the first event, where they were asked for.
        error: Why the text can't be written; it has ended.
    """

    text: str = ""
    drawn: Drawn | None = None
    finish: Finish | None = None
    prompt_scores: Scores | None = None
    error: str = ""


@dataclass(eq=False)
class Job:
    """A text to write.

    Args:
        model: One of the engine's models, which writes it.
        row: Its prompt, settings and seed.
        draft: The text so far.
        receive: Called with each event, in their order.
        scores_prompt: Whether to score the prompt first.
    """

    model: GPT
    row: Row
    draft: Draft
    receive: Callable[[Event], None]
    scores_prompt: bool = False
    n_left: int = field(init=False)
    is_cancelled: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.n_left = self.row.settings.max_new_tokens or 0


Events = Sequence[tuple[Job, Event]]


def _received(events: Events) -> None:
    for job, event in events:
        job.receive(event)


class Engine:
    """Writes texts in a thread of its own; its functions can be called from any thread.

    Args:
        models: Models in eval mode, which no other thread uses. Each has a batch of its own.
        deliver: Called in the engine's thread with the events of one or more steps; by default it
            calls `receive` of their jobs there.
        most_rows: Texts that are written at once; others wait for their turn.
    """

    def __init__(
        self,
        models: Iterable[GPT],
        deliver: Callable[[Events], None] = _received,
        most_rows: int = SAMPLES_AT_ONCE,
    ) -> None:
        self._deliver = deliver
        self._most_rows = most_rows
        self._batches = {model: RunningBatch(model) for model in models}
        self._jobs: dict[Row, Job] = {}  # of the batches
        self._waiting: deque[Job] = deque()
        self._is_closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="gptlit engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread at the next token; the texts end without an event."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def submit(self, jobs: Iterable[Job]) -> None:
        """Write texts as soon as there is room for them, first come first served."""
        with self._changed:
            self._waiting.extend(jobs)
            self._changed.notify()

    def cancel(self, jobs: Collection[Job]) -> None:
        """End texts at the next token, without an event."""
        with self._changed:
            for job in jobs:
                job.is_cancelled = True
            self._changed.notify()

    @property
    def n_texts(self) -> int:
        """Number of texts that are written or wait."""
        with self._changed:
            return len(self._jobs) + len(self._waiting)

    def _run(self) -> None:
        held: list[tuple[Job, Event]] = []
        delivered = 0.0
        while True:
            leaving, joining = self._next_change()
            if self._is_closing:
                return
            try:
                events = self._step(leaving, joining)
            except Exception as error:
                events = self._failed(error)
            held += events
            is_due = time.monotonic() > delivered + PAUSE_S
            if held and (is_due or joining or any(_ends(event) for _, event in events)):
                self._deliver(held)
                held, delivered = [], time.monotonic()

    def _next_change(self) -> tuple[set[Row], list[Job]]:
        """Wait until there is work; return the rows that leave the batch and the jobs that join."""
        with self._changed:
            while True:
                ended = [job for job in self._jobs.values() if job.is_cancelled or is_over(job)]
                leaving = {job.row for job in ended}
                for row in leaving:
                    del self._jobs[row]
                self._waiting = deque(job for job in self._waiting if not job.is_cancelled)
                if self._is_closing or self._jobs or self._waiting:
                    break
                if leaving:
                    return leaving, []
                self._changed.wait()
            joining: list[Job] = []
            while self._waiting and len(self._jobs) < self._most_rows:
                job = self._waiting.popleft()
                joining.append(job)
                self._jobs[job.row] = job
            return leaving, joining

    @torch.inference_mode()
    def _step(self, leaving: set[Row], joining: Sequence[Job]) -> Events:
        events = [event for job in joining for event in _first_events(job)]
        for model, batch in self._batches.items():
            its_leaving = leaving.intersection(batch.rows)
            writing = [job.row for job in joining if job.model is model and not is_over(job)]
            if its_leaving or writing:
                batch.change(its_leaving, writing)
            if batch.rows:
                rows = list(batch.rows)
                for row, drawn in zip(rows, batch.step(), strict=True):
                    job = self._jobs[row]
                    events.append((job, _event(job, drawn)))
        return events

    def _failed(self, error: Exception) -> Events:
        """End all texts of the batches, which are made anew."""
        reason = "out of memory" if is_out_of_memory(error) else f"{type(error).__name__}: {error}"
        note(f"error: a step failed: {reason}")
        with self._changed:
            jobs = list(self._jobs.values())
            self._jobs.clear()
        self._batches = {model: RunningBatch(model) for model in self._batches}
        return [(job, Event(error=reason)) for job in jobs]


def _ends(event: Event) -> bool:
    return event.finish is not None or bool(event.error)


def is_over(job: Job) -> bool:
    """Whether a text has ended."""
    return job.draft.ended or job.n_left == 0


def _first_events(job: Job) -> Events:
    """Return the event of a prompt, if its scores or no tokens are asked for."""
    scores = None
    if job.scores_prompt:
        scores = score(job.model, job.row.prompt, job.row.n_best or 0)
    finish: Finish | None = "length" if is_over(job) else None
    if scores is None and finish is None:
        return []
    return [(job, Event(finish=finish, prompt_scores=scores))]


def _event(job: Job, drawn: Drawn) -> Event:
    """Add a token to a text, and return the event."""
    text = job.draft.add(drawn.id)
    job.n_left -= 1
    is_token = drawn.id != job.row.rules.get("eos_id")
    finish: Finish | None = None
    if job.draft.ended:
        finish = "stop"
    elif job.n_left == 0:
        finish = "length"
        text += job.draft.finish()
    return Event(text, drawn if is_token else None, finish)
