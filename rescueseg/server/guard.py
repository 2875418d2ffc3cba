"""Checks of every request before its body is parsed: Origin, token, size; without tokens also Host and proxies."""

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
from rescueseg.server.access import bearer, missing_token
from rescueseg.server.replies import reply_to
from rescueseg.server.uploads import RefusedError, too_large

_LOOPBACK = {"127.0.0.1", "localhost", "::1"}
_PROXY_HEADERS = ("forwarded", "x-forwarded-for", "x-forwarded-host")
_DRAIN_BYTES, _DRAIN_SECONDS = 2**28, 5.0
_PLAIN_BYTES = 2**16
"""Largest body of a request that is no upload."""
_UPLOADS = re.compile(
    r"/api/v1/leases/[^/]+/(check|submit)|/api/v1/tickets/[^/]+/fix"
    r"|/monai/(datastore/(image|label)?|session/|infer/[^/]+)"
)
_BODILESS = ("GET", "HEAD")
"""Clients of MONAI Label send these with the Content-Length of the request before."""
_PUBLIC = re.compile(r"/|/page(/.*)?|/api/v1/(health|openapi\.json|images/[^/]+)|/monai/auth/?|/monai/auth/token")
_SIGNED = re.compile(r"/monai/datastore/(image|label)(/info)?")
"""For whoever knows the secret id in the query."""
_SECURITY_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}


class Guard:
    """ASGI middleware that refuses requests which must not reach a route.

    Parameters
    ----------
    app : ASGI application
        The application behind it.
    holder : callable or None
        Returns the person of a token, or raises `UnknownTokenError`. None where no token is needed: then only programs
        and pages of this machine may send requests. The Host must be a name of the loopback interface (a foreign page
        could make its own name point here), and no proxy may forward the request.
    allowed_origins : collection of str
        Origins of web pages that may send requests, beside the server's own.
    limit : callable
        Returns the largest upload in bytes; it may query the database.
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
            limit = await self._body_limit(scope)
        except (RescuesegError, RefusedError) as refusal:
            await _drain(scope, receive)
            await _reply(refusal)(scope, receive, send)
            return
        total = 0

        async def limited_receive() -> Message:
            nonlocal total
            message = await receive()
            total += len(message.get("body", b""))
            if total > limit:
                raise _too_large(limit)
            return message

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._app(scope, limited_receive, send_with_headers)
        except RefusedError as refusal:
            await _reply(refusal)(scope, receive, send)

    def _check_origin(self, headers: Headers) -> None:
        host = headers.get("host", "")
        if self._holder is None:
            if _name(host) not in _LOOPBACK:
                raise _wrong_origin(f"this server is not called '{host[:80]}'")
            if any(name in headers for name in _PROXY_HEADERS):
                raise _wrong_origin(
                    "without tokens this server answers its own machine only, and no proxy (start it with --tokens)"
                )
        origin = headers.get("origin")
        if origin is not None and origin not in self._origins and origin not in (f"http://{host}", f"https://{host}"):
            raise _wrong_origin(f"pages of '{origin[:80]}' may not ask this server (server.allowed_origins)")

    async def _check_token(self, scope: Scope) -> None:
        """Refuse a request that needs a token and has none, or an unknown one."""
        path = scope["path"]
        is_signed = scope["method"] in _BODILESS and _SIGNED.fullmatch(path)
        if self._holder is None or is_signed or _PUBLIC.fullmatch(path):
            return
        token = bearer(Headers(scope=scope).get("authorization", ""))
        if token is None:
            raise missing_token()
        await run_in_threadpool(self._holder, token)

    async def _body_limit(self, scope: Scope) -> int:
        """Return the largest body in bytes; refuse a request whose Content-Length is larger."""
        if scope["method"] in _BODILESS:
            return _PLAIN_BYTES
        is_upload = _UPLOADS.fullmatch(scope["path"])
        limit = await run_in_threadpool(self._limit) if is_upload else _PLAIN_BYTES
        length = _content_length(scope)
        if length is None or length > limit:
            raise _too_large(limit)
        return limit


def _wrong_origin(why: str) -> AccessError:
    return AccessError(why, todo="Ask this server by its own address")


def _too_large(limit: int) -> RefusedError:
    return too_large(limit, "Send what the route takes") if limit == _PLAIN_BYTES else too_large(limit)


def _reply(refusal: RescuesegError | RefusedError) -> JSONResponse:
    return reply_to(refusal.error, refusal.status) if isinstance(refusal, RefusedError) else reply_to(refusal)


def _content_length(scope: Scope) -> int | None:
    """Return the Content-Length of a request, 0 where it has none; None if it is no number."""
    text = Headers(scope=scope).get("content-length", "0")
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else None


async def _drain(scope: Scope, receive: Receive) -> None:
    """Receive and drop a body, so that its sender gets to read the error."""
    length = _content_length(scope)
    if scope["method"] in _BODILESS or length is None or length >= _DRAIN_BYTES:
        return
    with anyio.move_on_after(_DRAIN_SECONDS):
        while (await receive()).get("more_body", False):
            pass


def _name(host: str) -> str:
    """Return a Host header without its port.

    Examples
    --------
    >>> _name("localhost:8642"), _name("[::1]:8642")
    ('localhost', '::1')
    """
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
