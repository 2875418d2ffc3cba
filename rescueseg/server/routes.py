"""The routes under /api/v1: annotators' work, review, and what happens in the queue."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Header, Path, Query, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, ConfigDict, Field

from rescueseg.annotation.client import CampaignInfo, Filters, LabelWarning, PatchView
from rescueseg.annotation.packing import pack_labels, pack_view
from rescueseg.errors import LeaseExpiredError, TicketNotFoundError
from rescueseg.queue.records import AnnotationRecord, AuditEntry, Lease, TicketRecord
from rescueseg.records import Purpose
from rescueseg.server import access
from rescueseg.server.dependencies import (
    UPLOAD_BODY,
    AppService,
    CurrentClient,
    CurrentPerson,
    ImageId,
    LeasedLabels,
    OwnLease,
    ReviewedLabels,
    ReviewedTicket,
    ReviewerClient,
    Service,
    TicketId,
)
from rescueseg.server.feed import follow
from rescueseg.server.replies import error_docs
from rescueseg.server.uploads import nifti_bytes

router = APIRouter(prefix="/api/v1", responses=error_docs())

Text = Annotated[str, Field(max_length=2000, pattern=r"^[^\x00]*$")]
Words = Annotated[str, Field(min_length=1, max_length=2000, pattern=r"^[^\x00]*\S[^\x00]*$")]
Seconds = Annotated[float, Field(ge=0, le=7 * 86400, allow_inf_nan=False)]
Tool = Annotated[str, Query(min_length=1, max_length=128, pattern=r"^[^\x00]+$", description="What was worked with.")]
Version = Annotated[int, Path(ge=1, le=2**31 - 1)]
Area = Annotated[
    Literal["context", "patch"], Query(description="The patch alone, or with its margin; a mask is 0 in the margin.")
]
PartName = Annotated[Literal["image", "start", "prediction", "uncertainty"], Path(description="Which one.")]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NextRequest(_Body):
    """Which ticket to lease; without a field, any."""

    volume_id: Text | None = None
    class_name: Text | None = None
    stratum: Text | None = None
    generation: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    purpose: Purpose | None = None
    ticket_id: Text | None = None
    """This ticket and no other; a skipped one is taken up again."""
    another: bool = False
    """Lease one more, beside the running leases."""


class Beat(_Body):
    """A sign of life."""

    active_seconds: Seconds = 0.0
    """Of work since the last heartbeat."""


class Reason(_Body):
    """Why a patch cannot be annotated."""

    reason: Words


class Comment(_Body):
    """What the annotator should change."""

    comment: Words


class Choice(_Body):
    """Which version to accept; without a number, the latest."""

    version: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None


class GrantedLease(Lease):
    """A lease as the server grants it."""

    image_id: str
    """Address of its image for viewers without a token: /api/v1/images/{image_id}.nii.gz, while the lease runs."""


def with_image_id(service: Service, lease: Lease) -> GrantedLease:
    """Return a lease with the address of its image."""
    return GrantedLease.model_construct(**dict(lease), image_id=access.image_id(service.key, lease.lease_id))


class _File(Response):
    """Bytes of a file, saved under a name where one is given."""

    media_type = None  # else OpenAPI would say that errors are files too

    def __init__(self, content: bytes, name: str = "", status_code: int = 200) -> None:
        headers = {"Content-Disposition": f'attachment; filename="{name}"'} if name else None
        super().__init__(content, status_code, headers, "application/octet-stream")


def _file(description: str, *errors: int) -> dict[str, Any]:
    """Return the OpenAPI entries of a route that answers with a file."""
    schema = {"schema": {"type": "string", "format": "binary"}}
    success = {200: {"description": description, "content": {"application/octet-stream": schema}}}
    return {"response_class": _File, "responses": {**success, **error_docs(404, *errors)}}


@router.get("/health", summary="Tell that the server answers", tags=["campaign"], responses={})
def health(service: AppService) -> dict[str, str]:
    """Answer without a token."""
    return {"status": "ok", "campaign": service.campaign.config.name}


@router.get("/info", summary="What the campaign is, and who you are there", tags=["campaign"])
def info(client: CurrentClient) -> CampaignInfo:
    """Classes, kind of labels, length of a lease, tickets by status."""
    return client.info()


@router.post(
    "/tickets/next",
    summary="Go on with the patch you hold, else lease the next one",
    tags=["work"],
    response_model=GrantedLease,
    responses={204: {"description": "Nothing to annotate now"}, **error_docs(404, 409)},
)
def next_ticket(service: AppService, client: CurrentClient, request: NextRequest | None = None) -> Any:
    """Lease the most useful patch that fits; nobody else gets it while the lease runs."""
    fields = {} if request is None else request.model_dump(exclude_none=True)
    ticket_id = fields.pop("ticket_id", None)
    another = fields.pop("another", False)
    lease = client.next(Filters(**fields) if fields else None, ticket_id, another=another)
    return Response(status_code=204) if lease is None else with_image_id(service, lease)


@router.get("/leases", summary="Your running leases", tags=["work"])
def leases(service: AppService, client: CurrentClient) -> list[GrantedLease]:
    """Oldest first."""
    return [with_image_id(service, lease) for lease in client.leases()]


@router.post("/leases/{lease_id}/heartbeat", summary="Keep a lease", tags=["work"], responses=error_docs(404, 409, 410))
def heartbeat(service: AppService, client: CurrentClient, lease: OwnLease, beat: Beat | None = None) -> GrantedLease:
    """Move its expiry to its full length from now."""
    seconds = 0.0 if beat is None else beat.active_seconds
    return with_image_id(service, client.heartbeat(lease.lease_id, seconds))


@router.get(
    "/leases/{lease_id}/view.npz", summary="A leased patch, all in one file", tags=["work"], **_file("npz", 410)
)
def view(client: CurrentClient, lease: OwnLease) -> _File:
    """Image, mask to start from, prediction and uncertainty, as `RemoteClient` reads them."""
    return _File(pack_view(client.view(lease.lease_id)))


@router.get(
    "/leases/{lease_id}/{part}.nii.gz",
    summary="One part of a leased patch",
    tags=["work"],
    **_file("NIfTI, gzipped", 410),
)
def lease_part(
    service: AppService, client: CurrentClient, lease: OwnLease, part: PartName, area: Area = "context"
) -> _File:
    """Image, mask to start from, prediction or uncertainty, in their place in the volume (mm)."""
    return _part(service.view(client, lease.lease_id), part, area)


@router.get(
    "/images/{image_id}.nii.gz",
    summary="A leased patch's image, without a token",
    tags=["work"],
    **_file("NIfTI, gzipped", 410),
)
def image(service: AppService, image_id: ImageId, area: Area = "context") -> _File:
    """For viewers that cannot send one: only the lease's annotator knows the address, and it ends with the lease."""
    lease = service.store.views.lease(access.lease_of_image(service.key, image_id))
    if lease.ended is not None:
        raise LeaseExpiredError("the lease is over", where=lease.lease_id, todo="Take the patch again")
    return _part(service.view(service.client(lease.annotator, "annotator"), lease.lease_id), "image", area)


def _part(patch: PatchView, part: str, area: str) -> _File:
    """Return a part of a patch as NIfTI."""
    voxels = {
        "image": patch.image,
        "start": patch.start.classes if patch.start.instances is None else patch.start.instances,
        "prediction": patch.prediction,
        "uncertainty": patch.uncertainty,
    }[part]
    if voxels is None:
        raise TicketNotFoundError(
            f"there is no {part} for this patch", where=patch.ticket.ticket_id, todo="Work without it"
        )
    box = patch.context if area == "context" else patch.ticket.box
    if part == "start" and area == "context":
        voxels = _in_context(patch, voxels)
    elif part != "start" and area == "patch":
        voxels = voxels[(..., *patch.inside.slices)]
    name = f"{patch.ticket.ticket_id}_{part}.nii.gz"
    return _File(nifti_bytes(voxels, patch.spacing_um_zyx, box.offset_zyx), name)


def _in_context(patch: PatchView, mask: npt.NDArray[Any]) -> npt.NDArray[Any]:
    padded = np.zeros(patch.context.shape_zyx, mask.dtype)
    padded[patch.inside.slices] = mask
    return padded


@router.post(
    "/leases/{lease_id}/check",
    summary="What is odd about labels, without handing them in",
    tags=["work"],
    responses=error_docs(404, 408, 409, 410, 413),
    openapi_extra=UPLOAD_BODY,
)
def check(client: CurrentClient, lease: OwnLease, labels: LeasedLabels) -> list[LabelWarning]:
    """Warnings that can be overridden; labels that cannot be handed in at all are an error."""
    return client.check(lease.lease_id, labels)


@router.post(
    "/leases/{lease_id}/submit",
    summary="Hand in labels",
    tags=["work"],
    responses=error_docs(404, 408, 409, 410, 413),
    openapi_extra=UPLOAD_BODY,
)
def submit(
    client: CurrentClient,
    lease: OwnLease,
    labels: LeasedLabels,
    tool: Tool,
    active_seconds: Annotated[
        Seconds, Query(description="Of work since the last heartbeat; the server reckons when 0.")
    ] = 0.0,
    override: Annotated[bool, Query(description="Hand in despite warnings.")] = False,
) -> AnnotationRecord:
    """Store a new version. The same again changes nothing and answers the same."""
    return client.submit(lease.lease_id, labels, tool, active_seconds=active_seconds, override=override)


@router.post(
    "/leases/{lease_id}/skip",
    summary="Say that nobody can annotate the patch",
    tags=["work"],
    status_code=204,
    responses=error_docs(404, 409, 410),
)
def skip(client: CurrentClient, lease: OwnLease, why: Reason) -> None:
    """Take the ticket out of the queue; again is no error."""
    client.skip(lease.lease_id, why.reason)


@router.post(
    "/leases/{lease_id}/release",
    summary="Give a patch back untouched",
    tags=["work"],
    status_code=204,
    responses=error_docs(404, 409, 410),
)
def release(client: CurrentClient, lease: OwnLease) -> None:
    """Put the ticket back into the queue; again is no error."""
    client.release(lease.lease_id)


@router.get("/review", summary="Tickets that wait for a reviewer", tags=["review"])
def to_review(client: ReviewerClient) -> list[TicketRecord]:
    """Oldest first."""
    return client.to_review()


@router.get("/tickets/{ticket_id}/view.npz", summary="A ticket's patch for a reviewer", tags=["review"], **_file("npz"))
def review_view(client: ReviewerClient, ticket: ReviewedTicket) -> _File:
    """As for an annotator; the mask is the latest version's."""
    return _File(pack_view(client.review_view(ticket.ticket_id)))


@router.get(
    "/tickets/{ticket_id}/{part}.nii.gz",
    summary="One part of a ticket's patch for a reviewer",
    tags=["review"],
    **_file("NIfTI, gzipped"),
)
def review_part(client: ReviewerClient, ticket: ReviewedTicket, part: PartName, area: Area = "context") -> _File:
    """As for an annotator; the mask is the latest version's."""
    return _part(client.review_view(ticket.ticket_id), part, area)


@router.get(
    "/tickets/{ticket_id}/versions",
    summary="Versions handed in for a ticket",
    tags=["review"],
    responses=error_docs(404),
)
def versions(client: ReviewerClient, ticket: ReviewedTicket) -> list[AnnotationRecord]:
    """Oldest first."""
    return client.versions(ticket.ticket_id)


@router.get(
    "/tickets/{ticket_id}/versions/{version}.npz", summary="Labels of one version", tags=["review"], **_file("npz")
)
def version_npz(client: ReviewerClient, ticket: ReviewedTicket, version: Version) -> _File:
    """`classes`, and `instances` where objects are numbered."""
    return _File(pack_labels(client.version_labels(ticket.ticket_id, version)))


@router.get(
    "/tickets/{ticket_id}/versions/{version}.nii.gz",
    summary="Labels of one version as NIfTI",
    tags=["review"],
    **_file("NIfTI, gzipped"),
)
def version_nifti(service: AppService, client: ReviewerClient, ticket: ReviewedTicket, version: Version) -> _File:
    """Classes, or object numbers, over the patch."""
    labels = client.version_labels(ticket.ticket_id, version)
    spacing = service.campaign.volumes.record(ticket.volume_id).spacing_um_zyx
    voxels = labels.classes if labels.instances is None else labels.instances
    return _File(nifti_bytes(voxels, spacing, ticket.box.offset_zyx), f"{ticket.ticket_id}_v{version}.nii.gz")


@router.post("/tickets/{ticket_id}/accept", summary="Accept a version", tags=["review"], responses=error_docs(404, 409))
def accept(client: ReviewerClient, ticket_id: TicketId, choice: Choice | None = None) -> AnnotationRecord:
    """Of a submitted ticket; again is no error."""
    return client.accept(ticket_id, None if choice is None else choice.version)


@router.post(
    "/tickets/{ticket_id}/reject",
    summary="Send a ticket back to its annotator",
    tags=["review"],
    status_code=204,
    responses=error_docs(404, 409),
)
def reject(client: ReviewerClient, ticket_id: TicketId, why: Comment) -> None:
    """With a comment; again is no error."""
    client.reject(ticket_id, why.comment)


@router.post(
    "/tickets/{ticket_id}/fix",
    summary="Hand in your own labels of a submitted ticket and accept them",
    tags=["review"],
    responses=error_docs(404, 408, 409, 413),
    openapi_extra=UPLOAD_BODY,
)
def fix(
    client: ReviewerClient,
    ticket: ReviewedTicket,
    labels: ReviewedLabels,
    tool: Tool,
    active_seconds: Annotated[Seconds, Query(description="Of work.")] = 0.0,
) -> AnnotationRecord:
    """Store a new version in the reviewer's name."""
    return client.fix(ticket.ticket_id, labels, tool, active_seconds=active_seconds)


@router.get(
    "/tickets/{ticket_id}/history", summary="Every change of a ticket", tags=["review"], responses=error_docs(404)
)
def history(client: ReviewerClient, ticket_id: TicketId) -> list[AuditEntry]:
    """Oldest first."""
    return client.history(ticket_id)


@router.get(
    "/events",
    summary="Changes of the queue as they happen",
    tags=["campaign"],
    response_class=EventSourceResponse,
)
async def events(
    service: AppService,
    person: CurrentPerson,
    last_event_id: Annotated[int | None, Header(ge=0, le=2**31 - 1, description="Go on after this one.")] = None,
) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events named `queue`, numbered as the audit trail is. An event says that something changed: ask for the state."""
    async for event in follow(service, person, last_event_id):
        yield event
