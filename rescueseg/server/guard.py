"""What every request passes first: Host, Origin and proxies on a server without tokens, else the token; and its size.

No body is parsed before that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

import anyio
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rescueseg.errors import AccessError, RescuesegError
from rescueseg.server.access import bearer, token_needed
from rescueseg.server.replies import reply_to
from rescueseg.server.uploads import RefusedError, too_large

_LOOPBACK = {"127.0.0.1", "localhost", "::1"}
_PROXIED = ("forwarded", "x-forwarded-for", "x-forwarded-host")
_DRAINED_BYTES, _DRAIN_SECONDS = 2**28, 5.0
_PLAIN_BYTES = 2**16
"""The most that a body may take that is no upload."""
_UPLOADS = re.compile(
    r"/api/v1/leases/[^/]+/(check|submit)|/api/v1/tickets/[^/]+/fix"
    r"|/monai/(datastore/(image|label)?|session/|infer/[^/]+)"
)
_BODILESS = ("GET", "HEAD")
"""Clients of MONAI Label send these with the length of the body before."""
_ANYBODY = re.compile(r"/|/page(/.*)?|/api/v1/(health|openapi\.json|images/[^/]+)|/monai/auth/?|/monai/auth/token")
_SIGNED = re.compile(r"/monai/datastore/(image|label)(/info)?")
"""Read by whoever knows the id in the query."""
_SAFE = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}


class Guard:
    """ASGI middleware that refuses what must not reach a route.

    Parameters
    ----------
    app : ASGI application
        What it guards.
    holder : callable or None
        Returns who holds a token, or raises `UnknownTokenError`. None where no token is needed: then only programs and
        pages of this machine may ask. The Host must be a name of the loopback interface (a page elsewhere could make
        its own name point here), and no proxy may stand between.
    allowed_origins : collection of str
        Origins of web pages that may ask beside the server's own.
    limit : callable
        Returns the bytes that an upload may take; it may ask the database.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        holder: Callable[[str], object] | None,
        allowed_origins: Collection[str],
        limit: Callable[[], int],
    ) -> None:
        self._app, self._holder, self._origins, self._limit = app, holder, set(allowed_origins), limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check_origin(Headers(scope=scope))
            await self._check_token(scope)
            limit = await self._allowed(scope)
        except (RescuesegError, RefusedError) as refusal:
            await _drain(scope, receive)
            await _answer(refusal)(scope, receive, send)
            return
        total = 0

        async def counted() -> Message:
            nonlocal total
            message = await receive()
            total += len(message.get("body", b""))
            if total > limit:
                raise _too_large(limit)
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
            await _answer(refused)(scope, receive, send)

    def _check_origin(self, headers: Headers) -> None:
        host = headers.get("host", "")
        if self._holder is None:
            if _name(host) not in _LOOPBACK:
                raise _elsewhere(f"this server is not called '{host[:80]}'")
            if any(name in headers for name in _PROXIED):
                raise _elsewhere(
                    "without tokens this server answers its own machine only, and no proxy (start it with --tokens)"
                )
        origin = headers.get("origin")
        if origin is not None and origin not in self._origins and origin not in (f"http://{host}", f"https://{host}"):
            raise _elsewhere(f"pages of '{origin[:80]}' may not ask this server (server.allowed_origins)")

    async def _check_token(self, scope: Scope) -> None:
        """Refuse who needs a token and shows none that is known."""
        path = scope["path"]
        signed = scope["method"] in _BODILESS and _SIGNED.fullmatch(path)
        if self._holder is None or signed or _ANYBODY.fullmatch(path):
            return
        token = bearer(Headers(scope=scope).get("authorization", ""))
        if token is None:
            raise token_needed()
        await run_in_threadpool(self._holder, token)

    async def _allowed(self, scope: Scope) -> int:
        """Return how many bytes the body may take; refuse one that announces more."""
        if scope["method"] in _BODILESS:
            return _PLAIN_BYTES
        upload = _UPLOADS.fullmatch(scope["path"])
        limit = await run_in_threadpool(self._limit) if upload else _PLAIN_BYTES
        announced = _announced(scope)
        if announced is None or announced > limit:
            raise _too_large(limit)
        return limit


def _elsewhere(why: str) -> AccessError:
    return AccessError(why, todo="Ask this server by its own address")


def _too_large(limit: int) -> RefusedError:
    return too_large(limit, "Send what the route takes") if limit == _PLAIN_BYTES else too_large(limit)


def _answer(refusal: RescuesegError | RefusedError) -> JSONResponse:
    return reply_to(refusal.error, refusal.status) if isinstance(refusal, RefusedError) else reply_to(refusal)


def _announced(scope: Scope) -> int | None:
    """Return the length that a request gives for its body, 0 where it gives none; None if it is no number."""
    said = Headers(scope=scope).get("content-length", "0")
    return int(said) if re.fullmatch("[0-9]{1,18}", said) else None


async def _drain(scope: Scope, receive: Receive) -> None:
    """Take in and drop a body, so that its sender comes to read the refusal."""
    length = _announced(scope)
    if scope["method"] in _BODILESS or length is None or length >= _DRAINED_BYTES:
        return
    with anyio.move_on_after(_DRAIN_SECONDS):
        while (await receive()).get("more_body", False):
            pass


def _name(host: str) -> str:
    """Return a Host header without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
