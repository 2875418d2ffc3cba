"""Who asks, and the desk that they work at: what the routes depend on."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import IO, Annotated, cast
from urllib.parse import unquote

from fastapi import Depends, Header, Path, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from rescueseg.annotation.client import Desk, PatchView, Role
from rescueseg.annotation.local_client import LocalDesk
from rescueseg.annotation.remote_client import ANNOTATOR_HEADER
from rescueseg.campaign import Campaign
from rescueseg.errors import NotYourLeaseError
from rescueseg.labels import PatchLabels
from rescueseg.queue.records import Lease, TicketRecord
from rescueseg.queue.store import QueueStore
from rescueseg.server import access
from rescueseg.server.uploads import AT_ONCE, read_upload, receive, upload_limit

_KEPT_VIEWS = 4
_KEPT_SECONDS = 60.0


@dataclass
class Service:
    """What the server works on.

    Parameters
    ----------
    campaign : Campaign
        The campaign.
    store : QueueStore
        Its queue.
    is_open : bool
        Whether people say who they are instead of showing a token.
    login : str
        Who somebody is who says nothing.
    """

    campaign: Campaign
    store: QueueStore
    is_open: bool
    login: str
    key: bytes
    _limit: tuple[float, int] = (0.0, 0)
    _views: dict[str, tuple[float, PatchView]] = field(default_factory=dict)

    def desk(self, name: str, role: Role) -> Desk:
        """Return somebody's desk."""
        return cast(Desk, LocalDesk(self.campaign, self.store, name, role))

    def upload_limit(self) -> int:
        """Return how many bytes the body of a request may take: what the largest patch does, unless configured."""
        chosen = self.campaign.config.server.upload_mib
        if chosen is not None:
            return chosen * 2**20
        when, limit = self._limit
        if time.monotonic() - when > _KEPT_SECONDS or not limit:
            limit = upload_limit(self.store.largest_patch())
            self._limit = (time.monotonic(), limit)
        return limit

    def view(self, desk: Desk, lease_id: str) -> PatchView:
        """Return a leased patch; the parts of one are asked for one after the other, so the latest few are kept."""
        if self.store.lease(lease_id).ended is not None:
            return desk.view(lease_id)
        now = time.monotonic()
        for key in [key for key, (when, _) in list(self._views.items()) if now - when > _KEPT_SECONDS]:
            self._views.pop(key, None)
        if lease_id not in self._views:
            while len(self._views) >= _KEPT_VIEWS:
                self._views.pop(next(iter(self._views), ""), None)
            self._views[lease_id] = (now, desk.view(lease_id))
        found = self._views.get(lease_id)
        return found[1] if found else desk.view(lease_id)


def service(request: Request) -> Service:
    """Return what the server works on."""
    found: Service = request.app.state.service
    return found


_bearer = HTTPBearer(auto_error=False, description="Token of 'rescueseg token add'; none is needed on the loopback.")


def person(
    office: Annotated[Service, Depends(service)],
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    said: Annotated[
        str | None, Header(alias=ANNOTATOR_HEADER, max_length=1024, description="Who you are, percent-encoded.")
    ] = None,
    annotator: Annotated[
        str | None, Query(max_length=1024, description="Who you are, on a server without tokens.")
    ] = None,
) -> access.Person:
    """Return who asks.

    Raises
    ------
    UnknownTokenError
        If the server needs a token and there is none, or nobody has this one.
    AccessError
        If the name cannot be one.
    """
    if credentials is not None:
        return access.holder(office.campaign, credentials.credentials)
    if not office.is_open:
        raise access.token_needed()
    name = unquote(said) if said is not None else annotator
    return access.Person(access.checked_name(office.login if name is None else name), "admin")


Asking = Annotated[access.Person, Depends(person)]
At = Annotated[Service, Depends(service)]


def desk(office: At, who: Asking) -> Desk:
    """Return the desk of who asks."""
    return office.desk(who.name, who.role)


def reviewer(office: At, who: Asking) -> Desk:
    """Return the desk of a reviewer.

    Raises
    ------
    AccessError
        If the role does not cover that.
    """
    who.require("reviewer")
    return office.desk(who.name, who.role)


AtDesk = Annotated[Desk, Depends(desk)]
Reviewing = Annotated[Desk, Depends(reviewer)]

LeaseId = Annotated[str, Path(pattern=r"^[0-9a-f]{32}$", description="As the lease says.")]
TicketId = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$", description="As the ticket says.")]


def own_lease(office: At, who: Asking, lease_id: LeaseId) -> Lease:
    """Return a lease of who asks, running or over.

    Raises
    ------
    NotYourLeaseError
        If it is somebody else's.
    TicketNotFoundError
        If there is none of that id.
    """
    lease = office.store.lease(lease_id)
    if lease.annotator != who.name:
        raise NotYourLeaseError("the lease belongs to somebody else", where=lease_id, todo="Take a patch of your own")
    return lease


OwnLease = Annotated[Lease, Depends(own_lease)]


def reviewed_ticket(office: At, who: Asking, ticket_id: TicketId) -> TicketRecord:
    """Return a ticket, to a reviewer."""
    who.require("reviewer")
    return office.store.ticket(ticket_id)


Reviewed = Annotated[TicketRecord, Depends(reviewed_ticket)]


async def leased_labels(request: Request, office: At, lease: OwnLease) -> AsyncIterator[PatchLabels]:
    """Yield uploaded labels of a leased patch."""
    async for labels in _labels(request, office, lease.ticket):
        yield labels


async def reviewed_labels(request: Request, office: At, ticket: Reviewed) -> AsyncIterator[PatchLabels]:
    """Yield uploaded labels of a ticket under review."""
    async for labels in _labels(request, office, ticket):
        yield labels


async def _labels(request: Request, office: Service, ticket: TicketRecord) -> AsyncIterator[PatchLabels]:
    async for files in receive(request, upload_limit(ticket.box.size)):
        yield await run_in_threadpool(_read, office, ticket, files)


def _read(office: Service, ticket: TicketRecord, files: dict[str, IO[bytes]]) -> PatchLabels:
    with AT_ONCE:
        spacing = office.campaign.volume(ticket.volume_id).spacing_um_zyx
        return read_upload(files, ticket, spacing, office.desk("", "annotator").info().kind)


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
