"""Refuses requests before they are read: of other hosts and origins, and without the key."""

import hmac
import ipaddress
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gptlit.serve.protocol import ApiError
from gptlit.serve.replies import as_bytes

WITH_KEY = ("/v1/", "/api/")  # beginnings of the paths that need the key
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Access:
    """Who may ask.

    Args:
        hosts: Names of this server besides IP addresses and localhost.
        origins: Origins of other pages that may ask, or "*" for all.
        api_key: Key that requests to the API must have; empty for none.
    """

    hosts: Collection[str] = ()
    origins: Collection[str] = ()
    api_key: str = ""


class Guard:
    """Passes on what `Access` allows, and adds headers to all replies.

    Otherwise another page in the user's browser could use the server: directly, or by a name of its
    own that it has made point to this machine (DNS rebinding). So a host must be an IP address,
    localhost, or a name that is allowed.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin", "")
        added = dict(HEADERS)
        if origin and self._is_allowed(origin):
            added |= {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}
        else:
            added["Cross-Origin-Resource-Policy"] = "same-origin"

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(added)
            await send(message)

        try:
            self._check(scope, headers, origin)
        except ApiError as error:
            await error_reply(error)(scope, receive, send_with_headers)
            return
        if origin and scope["method"] == "OPTIONS":
            added |= {
                "Access-Control-Allow-Methods": "GET, POST",
                "Access-Control-Allow-Headers": "Authorization, Content-Type",
                "Access-Control-Max-Age": "600",
            }
            await Response(status_code=204)(scope, receive, send_with_headers)
            return
        await self._app(scope, receive, send_with_headers)

    def _check(self, scope: Scope, headers: Headers, origin: str) -> None:
        host = headers.get("host", "")
        if not self._is_ours(host):
            reason = (
                f"the host {host[:100]!r} is not one of this server; start it with --allow_host"
            )
            raise ApiError(403, reason, code="host_not_allowed")
        is_same = origin == f"{scope['scheme']}://{host}"
        if origin and not is_same and not self._is_allowed(origin):
            reason = f"pages of {origin[:100]!r} may not ask; start it with --allow_origin"
            raise ApiError(403, reason, code="origin_not_allowed")
        key = self._access.api_key
        if not key or not scope["path"].startswith(WITH_KEY) or scope["method"] == "OPTIONS":
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(given.encode(), key.encode()):
            reason = "this server needs its key, as the header Authorization: Bearer KEY"
            raise ApiError(
                401, reason, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"}
            )

    def _is_allowed(self, origin: str) -> bool:
        return origin in self._access.origins or "*" in self._access.origins

    def _is_ours(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        if name == "localhost" or name in {each.lower() for each in self._access.hosts}:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def error_reply(error: ApiError) -> Response:
    """Return the reply to a request that can't be answered."""
    body = as_bytes(error.as_json())
    return Response(body, error.status, error.headers, "application/json")
