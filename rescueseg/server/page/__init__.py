"""The browser page of the annotation server: NiiVue and plain modules, served by the server itself, nothing fetched.

`static/` holds the page; `static/vendor/` NiiVue 0.69.0 as published (`dist/niivue.umd.js`, BSD-2-Clause).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import FileResponse
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

STATIC = Path(__file__).parent / "static"
_POLICY = {
    "default-src": "'self'",
    "img-src": "'self' data:",  # NiiVue's font
    "connect-src": "'self'",
    "object-src": "'none'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
_HEADERS = {
    "Content-Security-Policy": "; ".join(f"{name} {sources}" for name, sources in _POLICY.items()),
    "Cache-Control": "no-cache",
}


class _Files(StaticFiles):
    """Files that a browser asks for again each time and, unchanged, does not load again."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """Return a file."""
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


def mount_page(app: FastAPI) -> None:
    """Serve the page at `/` and its files under `/page`.

    Parameters
    ----------
    app : FastAPI
        The annotation server; the page talks to its `/api/v1` alone.
    """

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(STATIC / "index.html", headers=_HEADERS)

    app.mount("/page", _Files(directory=STATIC), name="page")
