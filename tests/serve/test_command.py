"""`gptlit serve` on the command line: what it refuses, and how signals end it."""

import http.client
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gptlit.serve import command
from tests.conftest import Result, Run
from tests.serve.serving import JSON

Call = Callable[..., Result]


def serve(gptlit: Call, run: Run, *options: Any) -> Result:
    return gptlit("serve", run.folder / "checkpoints" / "last.ckpt", *options)


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("port", "70000", "must be from 0 to 65535"),
        ("max_tokens", "0", "must be 1 or more"),
        ("max_requests", "0", "must be 1 or more"),
        ("drain", "-1.0", "must be from 0 to 86400 seconds"),
        ("allow_origin", "localhost:3000", "must be an origin such as http://localhost:3000"),
        ("allow_origin", "http://a/b", "must be an origin such as http://localhost:3000"),
        ("host", "no.such.name.invalid", "no address of this machine"),
        ("host", "203.0.113.7", "Cannot assign requested address"),
    ],
)
def test_invalid_options(gptlit: Call, run: Run, option: str, value: str, reason: str) -> None:
    result = serve(gptlit, run, "--port=0", f"--{option}={value}")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"gptlit: error: --{option} {value}: {reason}")
    assert result.err.count("\n") == 1


def test_a_missing_checkpoint(gptlit: Call) -> None:
    result = gptlit("serve", "no.ckpt", "--port=0")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("gptlit: error: checkpoint no.ckpt: no such file")


def test_a_port_in_use_is_refused(gptlit: Call, run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = serve(gptlit, run, "--port", port)
    assert result.code == 2
    assert result.err == (
        f"gptlit: error: --port {port}: Address already in use at --host 127.0.0.1; name another, "
        "or 0 for a free one\n"
    )


def test_missing_packages_are_named(
    gptlit: Call, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "uvicorn" else found(name)
    )
    result = serve(gptlit, run)
    assert (result.code, result.out) == (2, "")
    assert result.err == (
        "gptlit: error: gptlit serve needs starlette and uvicorn; install them by "
        "pip install 'gptlit[serve]'\n"
    )


def test_ctrl_c_ends_the_server(gptlit: Call, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal comes once the server answers."""
    make = command.make
    answered = []

    def ask(port: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/health")
        answered.append(connection.getresponse().read())
        connection.close()
        os.kill(os.getpid(), signal.SIGINT)

    def made(options: Any) -> Any:
        threading.Thread(target=ask, args=[options.port]).start()
        return make(options)

    with socket.create_server(("127.0.0.1", 0)) as free:
        number = free.getsockname()[1]
    monkeypatch.setattr(command, "make", made)
    result = serve(gptlit, run, "--port", number)
    assert answered == [b'{"status":"ok","requests":0,"texts":0}']
    assert (result.code, result.out) == (130, f"http://127.0.0.1:{number}\n")
    assert result.err.endswith("Ctrl-C ends both\ngptlit: stopped\n")


class Process:
    """A server in a process of its own, with a stream that its client doesn't read yet."""

    def __init__(self, run: Run) -> None:
        words = ["serve", "last", "--port=0", "--drain=600"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gptlit", *words],
            cwd=run.cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.connections: list[http.client.HTTPConnection] = []

    def begin(self) -> None:
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline().rpartition(":")[2])
        # more than the buffers of both sides hold, so that it lasts until it is read
        body = {"prompt": "the", "max_tokens": 4096, "n": 2, "logprobs": 20, "stream": True}
        self.stream = self.ask("POST", "/v1/completions", body)
        assert self.stream.status == 200
        assert self.stream.readline().startswith(b"data: ")

    def ask(self, method: str, path: str, body: Any = None) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        self.connections.append(connection)
        connection.request(method, path, None if body is None else json.dumps(body), JSON)
        return connection.getresponse()

    def drain(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.stderr is not None
        lines = iter(self.process.stderr.readline, "")
        assert any("waits for 1 running request" in line for line in lines)


@pytest.fixture(scope="module")
def processes(run: Run) -> Iterator[list[Process]]:
    """Two servers, which start at the same time."""
    found = [Process(run), Process(run)]
    yield found
    for each in found:
        each.process.kill()
        each.process.communicate()
        for connection in each.connections:
            connection.close()


def test_sigterm_lets_running_requests_end(processes: list[Process]) -> None:
    server = processes[0]
    server.begin()
    server.drain()
    refused = server.ask("POST", "/v1/completions", {"prompt": "a"})
    with refused:
        content = json.loads(refused.read())
    assert (refused.status, refused.headers["Retry-After"]) == (503, "5")
    assert content["error"]["code"] == "shutting_down"
    health = server.ask("GET", "/health")
    with health:
        assert (health.status, json.loads(health.read())["status"]) == (503, "draining")
    with server.stream:
        text = server.stream.read().decode()
    assert text.endswith("data: [DONE]\n\n")
    assert len(re.findall('"finish_reason":"length"', text)) == 2
    _, err = server.process.communicate(timeout=30)
    assert server.process.returncode == 128 + signal.SIGTERM
    assert err == "gptlit: stopped by SIGTERM\n"


def test_a_second_signal_ends_at_once(processes: list[Process]) -> None:
    server = processes[1]
    server.begin()
    server.drain()
    server.process.send_signal(signal.SIGINT)
    _, err = server.process.communicate(timeout=30)
    assert server.process.returncode == 128 + signal.SIGINT
    assert err == "gptlit: stopped\n"
    with pytest.raises(http.client.IncompleteRead), server.stream:
        server.stream.read()
