"""A server in a thread of the tests, and a client that shows everything that comes back."""

import asyncio
import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gptlit.serve import command
from gptlit.serve.app import Server

JSON = {"Content-Type": "application/json"}


@dataclass
class Answer:
    """A reply, with its body as text."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def events(self) -> list[Any]:
        """The server-sent events; the last one, [DONE], as a string."""
        parts = self.text.split("\n\n")
        assert parts.pop() == ""
        data = [part.removeprefix("data: ") for part in parts]
        return [each if each == "[DONE]" else json.loads(each) for each in data]


@dataclass
class Serving:
    """A server that runs."""

    server: Server
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def ask(
        self, path: str, body: Any = None, method: str = "", headers: dict[str, str] | None = None
    ) -> Answer:
        """Send a request, of JSON unless the body is bytes."""
        with contextlib.closing(self.connect()) as connection:
            content = body if isinstance(body, bytes) or body is None else json.dumps(body)
            method = method or ("GET" if body is None else "POST")
            connection.request(method, path, content, JSON if headers is None else headers)
            reply = connection.getresponse()
            text = reply.read().decode()
            return Answer(reply.status, {k.lower(): v for k, v in reply.getheaders()}, text)

    def complete(self, **body: Any) -> Answer:
        return self.ask("/v1/completions", body)


@contextlib.contextmanager
def serving(words: Sequence[str]) -> Iterator[Serving]:
    """Serve with arguments of `gptlit serve`, until the block ends."""
    options = command.parser().parse_args([*words, "--port=0"])
    with command._listening("127.0.0.1", 0) as listener:
        server = command.make(options)
        web = command.uvicorn_server(server)
        thread = threading.Thread(target=lambda: asyncio.run(web.serve([listener])))
        thread.start()
        try:
            yield Serving(server, listener.getsockname()[1])
        finally:
            web.should_exit = True
            thread.join()
            assert isinstance(listener, socket.socket)
