"""What the routes depend on: the person of a request, their client, lease and ticket, and uploaded labels."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import IO, Annotated
from urllib.parse import unquote

from fastapi import Depends, Header, Path, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from rescueseg.annotation.client import AnnotationClient, PatchView
from rescueseg.annotation.local_client import LocalClient
from rescueseg.annotation.remote_client import ANNOTATOR_HEADER
from rescueseg.annotation.roles import Role
from rescueseg.campaign import Campaign
from rescueseg.errors import NotYourLeaseError
from rescueseg.labels import PatchLabels
from rescueseg.queue.records import Lease, TicketRecord
from rescueseg.queue.store import QueueStore
from rescueseg.server import access
from rescueseg.server.uploads import AT_ONCE, read_upload, receive, upload_limit

_CACHED_VIEWS = 4
_CACHE_SECONDS = 60.0


@dataclass
class Service:
    """The campaign that a server serves.

    Parameters
    ----------
    campaign : Campaign
        The campaign.
    store : QueueStore
        Its queue.
    is_open : bool
        Whether people give a name instead of a token.
    login : str
        Name of a person who gives none, on an open server.
    key : bytes
        The campaign's key for image ids.
    """

    campaign: Campaign
    store: QueueStore
    is_open: bool
    login: str
    key: bytes
    _limit: tuple[float, int] = (0.0, 0)
    _views: dict[str, tuple[float, PatchView]] = field(default_factory=dict)

    def client(self, name: str, role: Role) -> AnnotationClient:
        """Return the annotation client of a person."""
        return LocalClient(self.campaign, self.store, name, role)

    def upload_limit(self) -> int:
        """Return the largest body of a request in bytes: as configured, else what labels of the largest patch take."""
        upload_mib = self.campaign.config.server.upload_mib
        if upload_mib is not None:
            return upload_mib * 2**20
        when, limit = self._limit
        if time.monotonic() - when > _CACHE_SECONDS or not limit:
            limit = upload_limit(self.store.views.largest_patch())
            self._limit = (time.monotonic(), limit)
        return limit

    def view(self, client: AnnotationClient, lease_id: str) -> PatchView:
        """Return a leased patch. Clients request its parts one after the other, so that the latest views are cached."""
        if self.store.views.lease(lease_id).ended is not None:
            return client.view(lease_id)
        now = time.monotonic()
        for key in [key for key, (when, _) in list(self._views.items()) if now - when > _CACHE_SECONDS]:
            self._views.pop(key, None)
        if lease_id not in self._views:
            while len(self._views) >= _CACHED_VIEWS:
                self._views.pop(next(iter(self._views), ""), None)
            self._views[lease_id] = (now, client.view(lease_id))
        entry = self._views.get(lease_id)
        return entry[1] if entry else client.view(lease_id)


def current_service(request: Request) -> Service:
    """Return the service that answers a request."""
    service: Service = request.app.state.service
    return service


AppService = Annotated[Service, Depends(current_service)]


_bearer = HTTPBearer(auto_error=False, description="Token of 'rescueseg token add'; none is needed on the loopback.")


def current_person(
    service: AppService,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    name_header: Annotated[
        str | None, Header(alias=ANNOTATOR_HEADER, max_length=1024, description="Who you are, percent-encoded.")
    ] = None,
    annotator: Annotated[
        str | None, Query(max_length=1024, description="Who you are, on a server without tokens.")
    ] = None,
) -> access.Person:
    """Return the person who sends a request.

    Raises
    ------
    UnknownTokenError
        If the server needs a token and the request has none, or an unknown one.
    AccessError
        If the name cannot be used.
    """
    if credentials is not None:
        return access.holder(service.campaign.storage, credentials.credentials)
    if not service.is_open:
        raise access.missing_token()
    name = unquote(name_header) if name_header is not None else annotator
    return access.Person(access.check_name(service.login if name is None else name), "admin")


CurrentPerson = Annotated[access.Person, Depends(current_person)]


def current_client(service: AppService, person: CurrentPerson) -> AnnotationClient:
    """Return the annotation client of the person who sends a request."""
    return service.client(person.name, person.role)


def reviewer_client(service: AppService, person: CurrentPerson) -> AnnotationClient:
    """Return the annotation client of the person who sends a request, who must be a reviewer.

    Raises
    ------
    AccessError
        If the person is no reviewer.
    """
    person.require("reviewer")
    return service.client(person.name, person.role)


CurrentClient = Annotated[AnnotationClient, Depends(current_client)]
ReviewerClient = Annotated[AnnotationClient, Depends(reviewer_client)]

LeaseId = Annotated[str, Path(pattern=r"^[0-9a-f]{32}$", description="As the lease says.")]
TicketId = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$", description="As the ticket says.")]
ImageId = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]


def own_lease(service: AppService, person: CurrentPerson, lease_id: LeaseId) -> Lease:
    """Return a lease of the person who sends the request, running or over.

    Raises
    ------
    NotYourLeaseError
        If it belongs to somebody else.
    TicketNotFoundError
        If there is none of that id.
    """
    lease = service.store.views.lease(lease_id)
    if lease.annotator != person.name:
        raise NotYourLeaseError("the lease belongs to somebody else", where=lease_id, todo="Take a patch of your own")
    return lease


OwnLease = Annotated[Lease, Depends(own_lease)]


def reviewed_ticket(service: AppService, person: CurrentPerson, ticket_id: TicketId) -> TicketRecord:
    """Return the ticket in a request's path, to a reviewer."""
    person.require("reviewer")
    return service.store.views.ticket(ticket_id)


ReviewedTicket = Annotated[TicketRecord, Depends(reviewed_ticket)]


async def leased_labels(request: Request, service: AppService, lease: OwnLease) -> AsyncIterator[PatchLabels]:
    """Yield uploaded labels of a leased patch."""
    async for labels in _labels(request, service, lease.ticket):
        yield labels


async def reviewed_labels(request: Request, service: AppService, ticket: ReviewedTicket) -> AsyncIterator[PatchLabels]:
    """Yield uploaded labels of a ticket under review."""
    async for labels in _labels(request, service, ticket):
        yield labels


async def _labels(request: Request, service: Service, ticket: TicketRecord) -> AsyncIterator[PatchLabels]:
    async for files in receive(request, upload_limit(ticket.box.size)):
        yield await run_in_threadpool(_read, service, ticket, files)


def _read(service: Service, ticket: TicketRecord, files: dict[str, IO[bytes]]) -> PatchLabels:
    with AT_ONCE:
        spacing = service.campaign.volumes.record(ticket.volume_id).spacing_um_zyx
        return read_upload(files, ticket, spacing, service.client("", "annotator").info().kind)


LeasedLabels = Annotated[PatchLabels, Depends(leased_labels)]
ReviewedLabels = Annotated[PatchLabels, Depends(reviewed_labels)]

UPLOAD_BODY = {
    "requestBody": {
        "required": True,
        "description": "Labels of the patch: NIfTI (.nii, .nii.gz) in its place, or npz with 'classes' (and 'instances').",
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["labels"],
                    "properties": {
                        "labels": {"type": "string", "format": "binary"},
                        "ignore": {"type": "string", "format": "binary", "description": "Mask beside object numbers."},
                    },
                }
            },
        },
    }
}
"""OpenAPI of a request that carries labels."""
