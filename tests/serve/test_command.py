"""`gptlit serve` on the command line: what it refuses, and how signals end it."""

import http.client
import importlib.util
import os
import signal
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gptlit.serve import command
from gptlit.serve.engine import Job
from tests.conftest import Result, Run
from tests.serve.serving import Answer, Serving
from tests.serve.test_api import wait_for

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


@dataclass
class Driver:
    """Drives `gptlit serve` from another thread while it runs in the main one.

    Its texts wait until they are released, so that requests last as long as a test needs.
    """

    gptlit: Call
    ckpt: Path
    monkeypatch: pytest.MonkeyPatch
    server: Any = None
    jobs: list[Job] = field(default_factory=list)

    def run(self, drive: Callable[[Serving], None]) -> Result:
        """Serve, and call a function once the server answers."""
        make = command.make
        failures: list[BaseException] = []

        def thread(serving: Serving) -> None:
            try:
                assert serving.ask("/health").json["status"] == "ok"
                drive(serving)
            except BaseException as error:
                failures.append(error)
                os.kill(os.getpid(), signal.SIGINT)

        def made(options: Any) -> Any:
            self.server = make(options)
            self.submit = self.server.engine.submit
            self.monkeypatch.setattr(self.server.engine, "submit", self.jobs.extend)
            serving = Serving(self.server, options.port)
            self.threads = [threading.Thread(target=thread, args=[serving])]
            self.threads[0].start()
            return self.server

        with socket.create_server(("127.0.0.1", 0)) as free:
            number = free.getsockname()[1]
        self.monkeypatch.setattr(command, "make", made)
        result = self.gptlit("serve", self.ckpt, "--port", number, "--drain=600")
        for each in self.threads:
            each.join()
        assert failures == []
        assert result.out == f"http://127.0.0.1:{number}\n"
        return result

    def begin(self, serving: Serving, **body: Any) -> Future[Answer]:
        """Send a request, and wait until its text waits for the engine."""
        answer: Future[Answer] = Future()

        def ask() -> None:
            try:
                answer.set_result(serving.complete(**body))
            except Exception as error:
                answer.set_exception(error)

        self.threads.append(threading.Thread(target=ask))
        self.threads[-1].start()
        wait_for(lambda: self.jobs)
        return answer

    def send_sigterm(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(lambda: self.server.is_draining)


@pytest.fixture
def driver(gptlit: Call, ckpt: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    return Driver(gptlit, ckpt, monkeypatch)


def test_ctrl_c_ends_the_server(driver: Driver) -> None:
    result = driver.run(lambda serving: os.kill(os.getpid(), signal.SIGINT))
    assert result.code == 130
    assert result.err.endswith("Ctrl-C ends both\ngptlit: stopped\n")


def test_ctrl_c_cuts_requests_off(driver: Driver) -> None:
    cut_off: list[Future[Answer]] = []

    def drive(serving: Serving) -> None:
        cut_off.append(driver.begin(serving, prompt="the"))
        os.kill(os.getpid(), signal.SIGINT)

    result = driver.run(drive)
    assert result.code == 130
    assert result.err.endswith("Ctrl-C ends both\ngptlit: stopped\n")
    error = cut_off[0].exception()
    assert (
        isinstance(error, http.client.HTTPException | OSError) or cut_off[0].result().status == 500
    )


@pytest.mark.parametrize("streams", [False, True])
def test_sigterm_lets_running_requests_end(driver: Driver, streams: bool) -> None:
    found: list[Answer] = []

    def drive(serving: Serving) -> None:
        body = {"prompt": "the", "max_tokens": 50, "n": 2, "stream": streams}
        running = driver.begin(serving, **body)
        driver.send_sigterm()
        found.extend([serving.complete(prompt="a"), serving.ask("/health")])
        driver.submit(driver.jobs)
        found.append(running.result(30))

    result = driver.run(drive)
    refused, health, answer = found
    assert (refused.status, refused.headers["retry-after"]) == (503, "5")
    assert refused.json["error"]["code"] == "shutting_down"
    assert (health.status, health.json["status"]) == (503, "draining")
    assert answer.status == 200
    if streams:
        assert answer.events[-1] == "[DONE]"
    else:
        assert [choice["finish_reason"] for choice in answer.json["choices"]] == ["length"] * 2
    assert result.code == 128 + signal.SIGTERM
    assert result.err.endswith(
        "SIGTERM: refuses new requests, waits for 1 running request\ngptlit: stopped by SIGTERM\n"
    )


@pytest.mark.parametrize(("second", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_ends_at_once(driver: Driver, second: signal.Signals, code: int) -> None:
    def drive(serving: Serving) -> None:
        driver.begin(serving, prompt="the")
        driver.send_sigterm()
        os.kill(os.getpid(), second)

    result = driver.run(drive)
    assert result.code == code
    assert "waits for 1 running request\ngptlit: stopped" in result.err


def test_requests_that_outlast_the_limit_are_cut_off(driver: Driver) -> None:
    def drive(serving: Serving) -> None:
        driver.begin(serving, prompt="the")
        os.kill(os.getpid(), signal.SIGTERM)

    process = command._Process.__init__
    with driver.monkeypatch.context() as patch:
        patch.setattr(
            command._Process,
            "__init__",
            lambda self, server, listener, drain_s: process(self, server, listener, 0.0),
        )
        assert driver.run(drive).code == 143
