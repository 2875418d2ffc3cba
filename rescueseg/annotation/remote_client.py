"""The annotation client of a campaign behind an annotation server: the same patches, the same errors, over HTTP."""

from __future__ import annotations

import io
from typing import Any
from urllib.parse import quote

import httpx
from pydantic import TypeAdapter, ValidationError

from rescueseg.annotation.client import CampaignInfo, Filters, LabelWarning, PatchView
from rescueseg.annotation.packing import pack_labels, unpack_labels, unpack_view
from rescueseg.annotation.replies import ErrorReply, error_from
from rescueseg.errors import ConfigError, ServiceError
from rescueseg.labels import PatchLabels
from rescueseg.queue.records import AnnotationRecord, AuditEntry, Lease, TicketRecord

ANNOTATOR_HEADER = "X-Rescueseg-Annotator"
"""Header with the person's name, percent-encoded, for a server that asks for no token."""

_VIEW_BYTES = 2**34
_VERSIONS, _WARNINGS = TypeAdapter(list[AnnotationRecord]), TypeAdapter(list[LabelWarning])
_TICKETS, _CHANGES = TypeAdapter(list[TicketRecord]), TypeAdapter(list[AuditEntry])


class RemoteClient:
    """One person at a server; see `rescueseg.annotation.client.AnnotationClient`.

    Parameters
    ----------
    url : str
        Of the server, such as http://127.0.0.1:8642.
    token : str
        As `rescueseg token add` printed it; none is needed on the loopback interface.
    annotator : str
        Name of the person, for a server that asks for no token; the server's login name when empty.
    timeout : float
        Seconds to wait for an answer.

    Raises
    ------
    ConfigError
        If `url` is no address of a server. Every call raises `ServiceError` if the server does not answer, and else the
        errors of `LocalClient`.
    """

    def __init__(self, url: str, token: str = "", *, annotator: str = "", timeout: float = 120.0) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        if annotator:
            headers[ANNOTATOR_HEADER] = quote(annotator)
        self.url = url.rstrip("/")
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"'{url}' is no address of a server", todo="Such as http://127.0.0.1:8642")
        try:
            self._http = httpx.Client(
                base_url=f"{self.url}/api/v1",
                headers=headers,
                timeout=httpx.Timeout(timeout, connect=10.0),
                transport=httpx.HTTPTransport(retries=3),
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise ConfigError(f"the server's address or token cannot be used: {error}", where=self.url) from error

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise ServiceError(
                f"the annotation server does not answer: {error or type(error).__name__}",
                where=self.url,
                todo="Try again; what was sent twice counts once",
            ) from error
        if response.is_success:
            return response
        try:
            raise error_from(ErrorReply.model_validate_json(response.content))
        except ValidationError as error:
            raise ServiceError(
                f"the server answered {response.status_code}", where=self.url, todo="Is it an annotation server?"
            ) from error

    def info(self) -> CampaignInfo:
        """Return what the campaign is, and this person's name and role."""
        return CampaignInfo.model_validate_json(self._request("GET", "/info").content)

    def next(
        self, filters: Filters | None = None, ticket_id: str | None = None, *, another: bool = False
    ) -> Lease | None:
        """Return the running lease, else (or with `another`) lease the next patch."""
        fields = {} if filters is None else filters.model_dump(mode="json", exclude_none=True)
        body = fields | {"another": another} | ({} if ticket_id is None else {"ticket_id": ticket_id})
        response = self._request("POST", "/tickets/next", json=body)
        return None if response.status_code == 204 else _lease(response.json())

    def leases(self) -> list[Lease]:
        """Return this person's running leases, oldest first."""
        return [_lease(data) for data in self._request("GET", "/leases").json()]

    def heartbeat(self, lease_id: str, active_seconds: float = 0.0) -> Lease:
        """Extend a lease; `active_seconds` of work are added to it."""
        body = {"active_seconds": active_seconds}
        return _lease(self._request("POST", f"/leases/{_quoted(lease_id)}/heartbeat", json=body).json())

    def view(self, lease_id: str) -> PatchView:
        """Return the leased patch with what surrounds it."""
        return self._view(f"/leases/{_quoted(lease_id)}/view.npz")

    def _view(self, path: str) -> PatchView:
        return unpack_view(io.BytesIO(self._request("GET", path).content), _VIEW_BYTES)

    def _upload(self, path: str, labels: PatchLabels, **options: str | float | bool) -> httpx.Response:
        headers = {"Content-Type": "application/octet-stream"}
        return self._request("POST", path, content=pack_labels(labels), params=options, headers=headers)

    def check(self, lease_id: str, labels: PatchLabels) -> list[LabelWarning]:
        """Return warnings about labels."""
        return _WARNINGS.validate_json(self._upload(f"/leases/{_quoted(lease_id)}/check", labels).content)

    def submit(
        self, lease_id: str, labels: PatchLabels, tool: str, *, active_seconds: float = 0.0, override: bool = False
    ) -> AnnotationRecord:
        """Hand in labels; warnings refuse them unless `override`."""
        path = f"/leases/{_quoted(lease_id)}/submit"
        response = self._upload(path, labels, tool=tool, active_seconds=active_seconds, override=override)
        return AnnotationRecord.model_validate_json(response.content)

    def skip(self, lease_id: str, reason: str) -> None:
        """Say that nobody can annotate the patch."""
        self._request("POST", f"/leases/{_quoted(lease_id)}/skip", json={"reason": reason})

    def release(self, lease_id: str) -> None:
        """Give the patch back untouched."""
        self._request("POST", f"/leases/{_quoted(lease_id)}/release")

    def to_review(self) -> list[TicketRecord]:
        """Return the tickets that wait for a reviewer, oldest first."""
        return _TICKETS.validate_json(self._request("GET", "/review").content)

    def review_view(self, ticket_id: str) -> PatchView:
        """Return a ticket's patch for a reviewer; it starts from the latest version."""
        return self._view(f"/tickets/{_quoted(ticket_id)}/view.npz")

    def versions(self, ticket_id: str) -> list[AnnotationRecord]:
        """Return the versions that this person may see, oldest first."""
        return _VERSIONS.validate_json(self._request("GET", f"/tickets/{_quoted(ticket_id)}/versions").content)

    def version_labels(self, ticket_id: str, version: int) -> PatchLabels:
        """Return the labels of one version."""
        response = self._request("GET", f"/tickets/{_quoted(ticket_id)}/versions/{version}.npz")
        return unpack_labels(io.BytesIO(response.content), _VIEW_BYTES)

    def accept(self, ticket_id: str, version: int | None = None) -> AnnotationRecord:
        """Accept a version of a submitted ticket, the latest when None."""
        response = self._request("POST", f"/tickets/{_quoted(ticket_id)}/accept", json={"version": version})
        return AnnotationRecord.model_validate_json(response.content)

    def reject(self, ticket_id: str, comment: str) -> None:
        """Send a submitted ticket back to its annotator."""
        self._request("POST", f"/tickets/{_quoted(ticket_id)}/reject", json={"comment": comment})

    def fix(self, ticket_id: str, labels: PatchLabels, tool: str, *, active_seconds: float = 0.0) -> AnnotationRecord:
        """Hand in a reviewer's own labels of a submitted ticket and accept them."""
        path = f"/tickets/{_quoted(ticket_id)}/fix"
        response = self._upload(path, labels, tool=tool, active_seconds=active_seconds)
        return AnnotationRecord.model_validate_json(response.content)

    def history(self, ticket_id: str) -> list[AuditEntry]:
        """Return every change of a ticket, oldest first."""
        return _CHANGES.validate_json(self._request("GET", f"/tickets/{_quoted(ticket_id)}/history").content)


def _quoted(name: str) -> str:
    """Return a name as one part of a URL's path."""
    return quote(name, safe="")


def _lease(data: dict[str, Any]) -> Lease:
    return Lease.model_validate({name: value for name, value in data.items() if name in Lease.model_fields})
