"""Requests of other hosts and origins, and without the key."""

import asyncio
from typing import Any

import pytest
from starlette.responses import Response

from gptlit.serve.app import STATIC, TYPES
from gptlit.serve.guard import Access, Guard
from tests.serve.serving import Serving

HOST = "127.0.0.1:8000"


def ask(
    access: Access, path: str = "/v1/models", method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the reply to a request."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("the body is not read")

    headers = {"host": HOST} | {name.replace("_", "-"): each for name, each in headers.items()}
    scope = {"type": "http", "scheme": "http", "method": method, "path": path}
    scope |= {"headers": [(name.encode(), each.encode()) for name, each in headers.items()]}
    asyncio.run(Guard(Response("passed"), access)(scope, receive, send))
    start, body = sent
    found = {name.decode(): each.decode() for name, each in start["headers"]}
    return start["status"], found, body["body"]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("localhost:8000", 200),
        ("LOCALHOST", 200),
        ("[::1]:8000", 200),
        ("192.168.1.5:8000", 200),
        ("my.home:8000", 200),
        ("other.example:8000", 403),
        ("localhost.other.example", 403),
        ("127.0.0.1.other.example", 403),
        ("my.home.other.example", 403),
        ("[::1", 403),
        ("", 403),
    ],
)
def test_a_name_that_is_not_ours_is_refused(host: str, status: int) -> None:
    """A page under such a name would have its own origin as its server's (DNS rebinding)."""
    found, _, body = ask(Access(hosts=["My.Home"]), host=host, origin=f"http://{host}")
    assert found == status
    assert (b"host_not_allowed" in body) == (status == 403)


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (f"http://{HOST}", 200),
        (f"https://{HOST}", 403),
        ("http://127.0.0.1:8001", 403),
        ("http://localhost:3000", 200),
        ("http://localhost:3000.other.example", 403),
        ("http://other.example", 403),
        ("null", 403),
    ],
)
def test_other_origins_are_refused(origin: str, status: int) -> None:
    access = Access(origins=["http://localhost:3000"])
    found, headers, body = ask(access, method="POST", origin=origin)
    assert found == status
    assert (b"origin_not_allowed" in body) == (status == 403)
    allowed = {"http://localhost:3000": origin}.get(origin)
    assert headers.get("access-control-allow-origin") == allowed
    assert ("vary" in headers) == bool(allowed)


def test_a_browser_may_ask_first_for_origins_that_are_allowed() -> None:
    asked: dict[str, Any] = {"method": "OPTIONS", "origin": "http://localhost:3000"}
    status, headers, _ = ask(Access(origins=["*"], api_key="secret"), **asked)
    assert status == 204
    assert headers["access-control-allow-headers"] == "Authorization, Content-Type"
    assert ask(Access(), **asked)[0] == 403


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ("Bearer secret", 200),
        ("bearer secret", 200),
        ("Bearer secre", 401),
        ("Bearer secret2", 401),
        ("Basic secret", 401),
        ("secret", 401),
        ("", 401),
    ],
)
def test_the_key_is_needed_by_the_api_but_not_by_the_page(given: str, status: int) -> None:
    access = Access(api_key="secret")
    found, headers, body = ask(access, authorization=given)
    assert found == status
    assert (headers.get("www-authenticate") == "Bearer") == (status == 401)
    assert (b"invalid_api_key" in body) == (status == 401)
    assert ask(access, path="/", authorization=given)[0] == 200
    assert ask(access, path="/api/copied", authorization=given)[0] == status


def test_pages_may_load_nothing_from_elsewhere(served: Serving) -> None:
    for name in ("", *STATIC):
        kind = TYPES[f".{name.rpartition('.')[2] or 'html'}"]
        answer = served.ask(f"/{name}")
        assert answer.status == 200
        assert kind in answer.headers["content-type"]
        assert "://" not in answer.text.replace("http://www.w3.org/2000/svg", "")
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
    refused = served.ask("/v1/models", headers={"Host": "other.example"})
    assert refused.status == 403
