"""What every request passes first: Host, Origin and proxies on a server without tokens, and the size of bodies."""

from __future__ import annotations

from collections.abc import Callable, Collection
from urllib.parse import urlsplit

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rescueseg.annotation.replies import ErrorReply
from rescueseg.annotation.server.replies import reply, reply_to
from rescueseg.annotation.server.uploads import RefusedError, too_large

_LOOPBACK = {"127.0.0.1", "localhost", "::1"}
_PROXIED = ("forwarded", "x-forwarded-for", "x-forwarded-host")
_DRAINED_BYTES, _DRAIN_SECONDS = 2**28, 5.0
_SAFE = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}


class Guard:
    """ASGI middleware that refuses what must not reach a route.

    Parameters
    ----------
    app : ASGI application
        What it guards.
    is_open : bool
        Whether no token is needed. Then only programs and pages of this machine may ask: the Host must be a name of the
        loopback interface (a page elsewhere could make its own name point here), and no proxy may stand between.
    allowed_origins : collection of str
        Origins of web pages that may ask beside the server's own.
    limit : callable
        Returns the bytes that a body may take.
    """

    def __init__(
        self, app: ASGIApp, *, is_open: bool, allowed_origins: Collection[str], limit: Callable[[], int]
    ) -> None:
        self._app, self._is_open, self._origins, self._limit = app, is_open, set(allowed_origins), limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        why = self._refusal(headers)
        if why:
            body = ErrorReply(error="AccessError", what=why, todo="Ask this server by its own address")
            await reply(403, body)(scope, receive, send)
            return
        limit = self._limit()
        announced = headers.get("content-length", "0")
        if not announced.isdigit() or int(announced) > limit:
            if announced.isdigit() and int(announced) < _DRAINED_BYTES:
                await _drain(receive)
            refused = too_large(limit)
            await reply_to(refused.error, refused.status)(scope, receive, send)
            return
        total = 0

        async def counted() -> Message:
            nonlocal total
            message = await receive()
            total += len(message.get("body", b""))
            if total > limit:
                raise too_large(limit)
            return message

        async def safe(message: Message) -> None:
            if message["type"] == "http.response.start":
                written = MutableHeaders(scope=message)
                for name, value in _SAFE.items():
                    written.setdefault(name, value)
            await send(message)

        try:
            await self._app(scope, counted, safe)
        except RefusedError as refused:
            await reply_to(refused.error, refused.status)(scope, receive, send)

    def _refusal(self, headers: Headers) -> str:
        host = headers.get("host", "")
        if self._is_open:
            if _name(host) not in _LOOPBACK:
                return f"this server is not called '{host[:80]}'"
            if any(name in headers for name in _PROXIED):
                return "without tokens this server answers its own machine only, and no proxy (start it with --tokens)"
        origin = headers.get("origin")
        if origin is not None and origin not in self._origins and origin not in (f"http://{host}", f"https://{host}"):
            return f"pages of '{origin[:80]}' may not ask this server (server.allowed_origins)"
        return ""


async def _drain(receive: Receive) -> None:
    """Take in and drop a body, so that its sender comes to read the refusal."""
    with anyio.move_on_after(_DRAIN_SECONDS):
        while (await receive()).get("more_body", False):
            pass


def _name(host: str) -> str:
    """Return a Host header without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
