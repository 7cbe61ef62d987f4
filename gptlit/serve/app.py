"""The routes of the server: the page, the API, and what the page asks besides."""

import asyncio
import contextlib
import importlib.resources
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gptlit.data.novelty import TrainingText
from gptlit.messages import UsageError
from gptlit.model.gpt import GPT
from gptlit.serve import protocol
from gptlit.serve.engine import Engine, Event, Events, Job
from gptlit.serve.guard import Access, Guard, error_reply
from gptlit.serve.protocol import ApiError, Asked, Limits
from gptlit.serve.replies import Choice, Part, Reply, as_bytes, choices_of, sse, usage_of
from gptlit.tokenizers.base import Tokenizer

MOST_BYTES = 1 << 20  # of a body
LARGE_BODY = 1 << 15  # bytes from which another thread reads it, while other requests continue
BODY_SECONDS = 30  # in which a body must arrive
TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
STATIC = ("index.html", "style.css", "icon.svg", "page.js", "api.js", "sample.js", "panel.js",
          "history.js")  # fmt: skip


@dataclass(frozen=True)
class Served:
    """A model that is served.

    Args:
        id: Its name in the API.
        model: The model in eval mode, on its device.
        tokenizer: Its tokenizer.
        about: What the page shows about it, by name.
        training_text: Returns the index of its training text, or raises UsageError; slow.
        parent: Name of the model that it is with an adapter.
    """

    id: str
    model: GPT
    tokenizer: Tokenizer
    about: dict[str, Any]
    training_text: Callable[[], TrainingText]
    parent: str | None = None


class Server:
    """The state of a server: its models, its limits, and the requests that it answers.

    Args:
        models: The models; requests that name none get the first.
        limits: Largest requests.
        max_requests: Requests that are answered at once.
        access: Who may ask.
    """

    def __init__(
        self,
        models: Sequence[Served],
        limits: Limits,
        max_requests: int,
        access: Access | None = None,
    ) -> None:
        self.served, *self.others = models
        self.limits, self.max_requests = limits, max_requests
        self.engine = Engine([each.model for each in models], self._deliver)
        self.n_requests = 0
        self.is_draining = False
        self.is_idle = asyncio.Event()  # set once the server drains and answers no request
        self._loop: asyncio.AbstractEventLoop | None = None
        self._began = int(time.time())
        self._training_texts: dict[str, asyncio.Future[TrainingText]] = {}
        routes = [
            Route("/", self._static),
            *(Route(f"/{name}", self._static) for name in STATIC),
            Route("/health", self._health),
            Route("/v1/models", self._models),
            Route("/v1/models/{id:path}", self._model),
            Route("/v1/completions", self._completions, methods=["POST"]),
            Route("/api/about", self._about),
            Route("/api/copied", self._copied, methods=["POST"]),
        ]
        self.app = Starlette(
            routes=routes,
            middleware=[Middleware(Guard, access or Access())],
            exception_handlers={
                ApiError: _on_api_error,
                HTTPException: _on_http_error,
                ClientDisconnect: _on_disconnect,
                Exception: _on_bug,
            },
            lifespan=self._lifespan,
        )

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self._loop = asyncio.get_running_loop()
        self.engine.start()
        try:
            yield
        finally:
            self.engine.close()

    def drain(self) -> None:
        """Refuse new requests, and set `is_idle` when those that run are answered."""
        self.is_draining = True
        if self.n_requests == 0:
            self.is_idle.set()

    def _deliver(self, events: Events) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(_receive, events)

    @contextlib.contextmanager
    def _slot(self) -> Any:
        """Take the place of a request.

        Raises:
            ApiError: The server drains, or answers as many as it may.
        """
        if self.is_draining:
            reason = "the server is shutting down; ask again later"
            raise ApiError(503, reason, code="shutting_down", headers={"Retry-After": "5"})
        if self.n_requests >= self.max_requests:
            reason = f"the server answers {self.max_requests} requests already; ask again later"
            raise ApiError(429, reason, code="too_many_requests", headers={"Retry-After": "1"})
        self.n_requests += 1
        try:
            yield
        finally:
            self.n_requests -= 1
            if self.is_draining and self.n_requests == 0:
                self.is_idle.set()

    # ------------------------------------------------------------------ routes

    async def _static(self, request: Request) -> Response:
        name = request.url.path.removeprefix("/") or STATIC[0]
        file = importlib.resources.files("gptlit.serve") / "static" / name
        return Response(file.read_bytes(), media_type=TYPES[f".{name.rpartition('.')[2]}"])

    async def _health(self, request: Request) -> Response:
        status = "draining" if self.is_draining else "ok"
        content = {"status": status, "requests": self.n_requests, "texts": self.engine.n_texts}
        return _json(content, 503 if self.is_draining else 200)

    async def _models(self, request: Request) -> Response:
        described = [self._described(each) for each in (self.served, *self.others)]
        return _json({"object": "list", "data": described})

    async def _model(self, request: Request) -> Response:
        return _json(self._described(self._named(request.path_params["id"])))

    def _described(self, served: Served) -> dict[str, Any]:
        own = {"id": served.id, "object": "model", "created": self._began, "owned_by": "gptlit"}
        return own | ({"parent": served.parent} if served.parent else {})

    def _named(self, name: Any) -> Served:
        """Return a model by its name, or the first without one.

        Raises:
            ApiError: No model has the name.
        """
        models = (self.served, *self.others)
        found = [each for each in models if name in (None, each.id)]
        if not found:
            names = ", ".join(repr(each.id) for each in models)
            reason = f"the model {str(name)[:100]!r} does not exist; this server has {names}"
            raise ApiError(404, reason, "model", "model_not_found")
        return found[0]

    async def _about(self, request: Request) -> Response:
        served = self._named(request.query_params.get("model"))
        config, tokenizer = served.model.config, served.tokenizer
        own: dict[str, Any] = {
            "id": served.id,
            "models": [each.id for each in (self.served, *self.others)],
        }
        own["block_size"] = config.block_size
        own |= {"vocab_size": config.vocab_size, "tokenizer": tokenizer.kind}
        own |= {"max_tokens": self.limits.max_tokens, "max_prompt": self.limits.max_prompt}
        own |= {"most_likeliest": min(protocol.MOST_BEST, config.vocab_size)}
        return _json(own | {"lines": served.about})

    async def _copied(self, request: Request) -> Response:
        with self._slot():
            given = protocol.as_object(await _body(request))
            text, n_prompt = given.get("text"), given.get("n_prompt", 0)
            if not isinstance(text, str) or type(n_prompt) is not int or n_prompt < 0:
                raise ApiError(400, "text must be a string, and n_prompt a number of characters")
            served = self._named(given.get("model"))
            if served.id not in self._training_texts:
                made = asyncio.to_thread(served.training_text)
                self._training_texts[served.id] = asyncio.ensure_future(made)
            try:
                training_text = await asyncio.shield(self._training_texts[served.id])
            except (UsageError, OSError) as error:
                return _json({"available": False, "reason": str(error)})
            copied = await asyncio.to_thread(training_text.copied, text, n_prompt)
            return _json({"available": True, **copied.as_row()})

    async def _completions(self, request: Request) -> Response:
        slot = contextlib.ExitStack()
        slot.enter_context(self._slot())
        try:
            body = await _body(request)
            if len(body) < LARGE_BODY:
                served, asked, choices = self._read(body)
            else:
                served, asked, choices = await asyncio.to_thread(self._read, body)
            name = f"cmpl-{secrets.token_hex(12)}"
            reply = Reply(name, int(time.time()), served.id, asked.seed)
            parts = self._parts(choices)
            if asked.streams:
                return _Stream(_events(reply, asked, choices, parts), slot)
            with slot:
                return await _unless_disconnected(request, _whole(reply, asked, choices, parts))
        except BaseException:
            slot.close()
            raise

    def _read(self, body: bytes) -> tuple[Served, Asked, list[Choice]]:
        """Return the model that a request asks, the request and its choices.

        Raises:
            ApiError: The body is invalid.
        """
        given = protocol.parameters(body)
        served = self._named(given.get("model"))
        asked = protocol.parse(given, served.model, served.tokenizer, self.limits)
        return served, asked, choices_of(asked, served.model, served.tokenizer)

    async def _parts(self, choices: Sequence[Choice]) -> "Parts":
        """Yield the parts of the choices as they come; cancels the rest if it is left early."""
        queue: asyncio.Queue[tuple[Choice, Event]] = asyncio.Queue()

        def receive(choice: Choice, event: Event) -> None:
            queue.put_nowait((choice, event))

        jobs: list[Job] = [choice.job(receive) for choice in choices]
        n_left = len(jobs)
        try:
            self.engine.submit(jobs)
            yield [(choice, choice.begin()) for choice in choices]
            while n_left:
                events = [await queue.get()]
                while not queue.empty():
                    events.append(queue.get_nowait())
                parts = [(choice, choice.add(event)) for choice, event in events]
                n_left -= sum(part.finish is not None for _, part in parts)
                yield parts
        finally:
            self.engine.cancel(jobs)


def _receive(events: Events) -> None:
    for job, event in events:
        job.receive(event)


Parts = AsyncGenerator[list[tuple[Choice, Part]]]


async def _whole(reply: Reply, asked: Asked, choices: Sequence[Choice], parts: Parts) -> Response:
    whole = {choice: Part() for choice in choices}
    async with contextlib.aclosing(parts) as several:
        async for some in several:
            for choice, part in some:
                whole[choice] += part
    body = reply.body([choice.as_json(part) for choice, part in whole.items()])
    return _json(body | {"usage": usage_of(asked, choices)})


class _Stream(StreamingResponse):
    """Server-sent events; a slot is free when they end, or when the client leaves."""

    def __init__(self, events: AsyncGenerator[bytes], slot: contextlib.ExitStack) -> None:
        super().__init__(events, media_type="text/event-stream")
        self._events, self._slot = events, slot

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._slot:
            # not left to the garbage collector, where sending was cancelled
            async with contextlib.aclosing(self._events):
                await super().__call__(scope, receive, send)


async def _events(
    reply: Reply, asked: Asked, choices: Sequence[Choice], parts: Parts
) -> AsyncGenerator[bytes]:
    """Yield the reply as server-sent events."""
    null = {"usage": None} if asked.includes_usage else {}
    async with contextlib.aclosing(parts) as several:
        try:
            async for some in several:
                shown = [
                    sse(reply.body([choice.as_json(part)], **null))
                    for choice, part in some
                    if part.text or part.tokens or part.finish
                ]
                if shown:
                    yield b"".join(shown)
        except ApiError as error:  # too late for another status
            yield sse(error.as_json())
            return
    if asked.includes_usage:
        yield sse(reply.body([], usage_of(asked, choices)))
    yield b"data: [DONE]\n\n"


async def _unless_disconnected(request: Request, reply: Any) -> Response:
    """Return a reply, whose making is cancelled if the client leaves."""
    making = asyncio.ensure_future(reply)
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({making, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not making.done():
            raise ClientDisconnect
        return making.result()
    finally:
        for task in (making, leaving):
            task.cancel()
        await asyncio.gather(making, leaving, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request) -> bytes:
    """Return the body of a request.

    Raises:
        ApiError: It is not JSON by its type, is too large, or doesn't arrive.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # other pages can send other types without a question
        raise ApiError(415, "the body must be JSON, with the header Content-Type: application/json")
    parts, n_bytes = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                parts.append(part)
                n_bytes += len(part)
                if n_bytes > MOST_BYTES:
                    raise ApiError(413, f"the body is larger than {MOST_BYTES} bytes")
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive within {BODY_SECONDS} s") from None
    return b"".join(parts)


def _json(content: Any, status: int = 200) -> Response:
    return Response(as_bytes(content), status, media_type="application/json")


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_reply(error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path[:100]
    reason = {404: f"{path}: no such path", 405: f"{path}: not by {request.method}"}
    message = reason.get(error.status_code, error.detail)
    return error_reply(ApiError(error.status_code, message, headers=error.headers))


async def _on_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # is not sent


async def _on_bug(request: Request, error: Exception) -> Response:
    return error_reply(ApiError(500, f"{type(error).__name__}; the server's log has more"))
