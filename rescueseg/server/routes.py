"""The routes under /api/v1: annotators' work, review, and what happens in the queue."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Header, Path, Query, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, ConfigDict, Field

from rescueseg.annotation.client import DeskInfo, Filters, LabelWarning, PatchView
from rescueseg.annotation.packing import pack_labels, pack_view
from rescueseg.errors import LeaseExpiredError, TicketNotFoundError
from rescueseg.queue.records import AnnotationRecord, AuditEntry, Lease, TicketRecord
from rescueseg.records import Purpose
from rescueseg.server import access
from rescueseg.server.clients import (
    UPLOAD_BODY,
    Asking,
    At,
    AtDesk,
    LeasedLabels,
    OwnLease,
    Reviewed,
    ReviewedLabels,
    Reviewing,
    Service,
    TicketId,
)
from rescueseg.server.feed import follow
from rescueseg.server.replies import documented
from rescueseg.server.uploads import nifti_bytes

router = APIRouter(prefix="/api/v1", responses=documented())

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
    """Which ticket is wanted; any, when nothing is said."""

    volume_id: Text | None = None
    class_name: Text | None = None
    stratum: Text | None = None
    generation: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    purpose: Purpose | None = None
    ticket_id: Text | None = None
    """This one and no other; a skipped one is taken up again."""
    another: bool = False
    """One more, beside those that are held."""


class Beat(_Body):
    """A sign of life."""

    active_seconds: Seconds = 0.0
    """Of work since the last one."""


class Reason(_Body):
    """Why a patch cannot be annotated."""

    reason: Words


class Comment(_Body):
    """What the annotator should change."""

    comment: Words


class Choice(_Body):
    """Which version is accepted; the latest, when none is named."""

    version: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None


class GrantedLease(Lease):
    """A lease as the server grants it."""

    image_id: str
    """Address of its image for viewers without a token: /api/v1/images/{image_id}.nii.gz, while the lease runs."""


def granted(office: Service, lease: Lease) -> GrantedLease:
    """Return a lease with the address of its image."""
    return GrantedLease.model_construct(**dict(lease), image_id=access.image_id(office.key, lease.lease_id))


class _File(Response):
    """Bytes of a file, saved under a name where one is given."""

    media_type = None  # else OpenAPI would say that errors come as files too

    def __init__(self, content: bytes, name: str = "", status_code: int = 200) -> None:
        headers = {"Content-Disposition": f'attachment; filename="{name}"'} if name else None
        super().__init__(content, status_code, headers, "application/octet-stream")


def _file(description: str, *errors: int) -> dict[str, Any]:
    """Return the OpenAPI entries of a route that answers with a file."""
    schema = {"schema": {"type": "string", "format": "binary"}}
    found = {200: {"description": description, "content": {"application/octet-stream": schema}}}
    return {"response_class": _File, "responses": {**found, **documented(404, *errors)}}


@router.get("/health", summary="Tell that the server answers", tags=["campaign"], responses={})
def health(office: At) -> dict[str, str]:
    """Answer without a token."""
    return {"status": "ok", "campaign": office.campaign.config.name}


@router.get("/info", summary="What the campaign is, and who you are there", tags=["campaign"])
def info(desk: AtDesk) -> DeskInfo:
    """Classes, kind of labels, length of a lease, tickets by status."""
    return desk.info()


@router.post(
    "/tickets/next",
    summary="Go on with the patch you hold, else lease the next one",
    tags=["work"],
    response_model=GrantedLease,
    responses={204: {"description": "Nothing to annotate now"}, **documented(404, 409)},
)
def next_ticket(office: At, desk: AtDesk, wanted: NextRequest | None = None) -> Any:
    """Lease the most useful patch that fits; nobody else gets it while the lease runs."""
    plain = {} if wanted is None else wanted.model_dump(exclude_none=True)
    ticket_id = plain.pop("ticket_id", None)
    another = plain.pop("another", False)
    lease = desk.next(Filters(**plain) if plain else None, ticket_id, another=another)
    return Response(status_code=204) if lease is None else granted(office, lease)


@router.get("/leases", summary="Your running leases", tags=["work"])
def held(office: At, desk: AtDesk) -> list[GrantedLease]:
    """Oldest first."""
    return [granted(office, lease) for lease in desk.held()]


@router.post("/leases/{lease_id}/heartbeat", summary="Keep a lease", tags=["work"], responses=documented(404, 409, 410))
def heartbeat(office: At, desk: AtDesk, lease: OwnLease, beat: Beat | None = None) -> GrantedLease:
    """Move its expiry to its full length from now."""
    seconds = 0.0 if beat is None else beat.active_seconds
    return granted(office, desk.heartbeat(lease.lease_id, seconds))


@router.get(
    "/leases/{lease_id}/view.npz", summary="A leased patch, all in one file", tags=["work"], **_file("npz", 410)
)
def view(desk: AtDesk, lease: OwnLease) -> _File:
    """Image, mask to start from, prediction and uncertainty, as `RemoteDesk` reads them."""
    return _File(pack_view(desk.view(lease.lease_id)))


@router.get(
    "/leases/{lease_id}/{part}.nii.gz",
    summary="One part of a leased patch",
    tags=["work"],
    **_file("NIfTI, gzipped", 410),
)
def lease_part(office: At, desk: AtDesk, lease: OwnLease, part: PartName, area: Area = "context") -> _File:
    """Image, mask to start from, prediction or uncertainty, in their place in the volume (mm)."""
    return _part(office.view(desk, lease.lease_id), part, area)


@router.get(
    "/images/{image_id}.nii.gz",
    summary="A leased patch's image, without a token",
    tags=["work"],
    **_file("NIfTI, gzipped", 410),
)
def image(office: At, image_id: Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")], area: Area = "context") -> _File:
    """For viewers that cannot send one: the address is a secret of the lease's holder, and ends with the lease."""
    lease = office.store.lease(access.lease_of_image(office.key, image_id))
    if lease.ended is not None:
        raise LeaseExpiredError("the lease is over", where=lease.lease_id, todo="Take the patch again")
    return _part(office.view(office.desk(lease.annotator, "annotator"), lease.lease_id), "image", area)


def _part(found: PatchView, part: str, area: str) -> _File:
    """Return a part of a view as NIfTI."""
    voxels = {
        "image": found.image,
        "start": found.start.classes if found.start.instances is None else found.start.instances,
        "prediction": found.prediction,
        "uncertainty": found.uncertainty,
    }[part]
    if voxels is None:
        raise TicketNotFoundError(
            f"there is no {part} for this patch", where=found.ticket.ticket_id, todo="Work without it"
        )
    box = found.context if area == "context" else found.ticket.box
    if part == "start" and area == "context":
        voxels = _in_context(found, voxels)
    elif part != "start" and area == "patch":
        voxels = voxels[(..., *found.inside.slices)]
    name = f"{found.ticket.ticket_id}_{part}.nii.gz"
    return _File(nifti_bytes(voxels, found.spacing_um_zyx, box.offset_zyx), name)


def _in_context(found: PatchView, mask: npt.NDArray[Any]) -> npt.NDArray[Any]:
    padded = np.zeros(found.context.shape_zyx, mask.dtype)
    padded[found.inside.slices] = mask
    return padded


@router.post(
    "/leases/{lease_id}/check",
    summary="What is odd about labels, without handing them in",
    tags=["work"],
    responses=documented(404, 408, 409, 410, 413),
    openapi_extra=UPLOAD_BODY,
)
def check(desk: AtDesk, lease: OwnLease, labels: LeasedLabels) -> list[LabelWarning]:
    """Warnings that can be overridden; labels that cannot be handed in at all are an error."""
    return desk.check(lease.lease_id, labels)


@router.post(
    "/leases/{lease_id}/submit",
    summary="Hand in labels",
    tags=["work"],
    responses=documented(404, 408, 409, 410, 413),
    openapi_extra=UPLOAD_BODY,
)
def submit(
    desk: AtDesk,
    lease: OwnLease,
    labels: LeasedLabels,
    tool: Tool,
    active_seconds: Annotated[
        Seconds, Query(description="Of work since the last heartbeat; the server reckons when 0.")
    ] = 0.0,
    override: Annotated[bool, Query(description="Hand in despite warnings.")] = False,
) -> AnnotationRecord:
    """Store a new version. The same again changes nothing and answers the same."""
    return desk.submit(lease.lease_id, labels, tool, active_seconds=active_seconds, override=override)


@router.post(
    "/leases/{lease_id}/skip",
    summary="Say that nobody can annotate the patch",
    tags=["work"],
    status_code=204,
    responses=documented(404, 409, 410),
)
def skip(desk: AtDesk, lease: OwnLease, why: Reason) -> None:
    """Take the ticket out of the queue; again is no error."""
    desk.skip(lease.lease_id, why.reason)


@router.post(
    "/leases/{lease_id}/release",
    summary="Give a patch back untouched",
    tags=["work"],
    status_code=204,
    responses=documented(404, 409, 410),
)
def release(desk: AtDesk, lease: OwnLease) -> None:
    """Put the ticket back into the queue; again is no error."""
    desk.release(lease.lease_id)


@router.get("/review", summary="Tickets that wait for a reviewer", tags=["review"])
def to_review(desk: Reviewing) -> list[TicketRecord]:
    """Oldest first."""
    return desk.to_review()


@router.get("/tickets/{ticket_id}/view.npz", summary="A ticket's patch for a reviewer", tags=["review"], **_file("npz"))
def review_view(desk: Reviewing, ticket: Reviewed) -> _File:
    """As for an annotator; the mask is the latest version's."""
    return _File(pack_view(desk.review_view(ticket.ticket_id)))


@router.get(
    "/tickets/{ticket_id}/{part}.nii.gz",
    summary="One part of a ticket's patch for a reviewer",
    tags=["review"],
    **_file("NIfTI, gzipped"),
)
def review_part(desk: Reviewing, ticket: Reviewed, part: PartName, area: Area = "context") -> _File:
    """As for an annotator; the mask is the latest version's."""
    return _part(desk.review_view(ticket.ticket_id), part, area)


@router.get(
    "/tickets/{ticket_id}/versions",
    summary="Versions handed in for a ticket",
    tags=["review"],
    responses=documented(404),
)
def versions(desk: Reviewing, ticket: Reviewed) -> list[AnnotationRecord]:
    """Oldest first."""
    return desk.versions(ticket.ticket_id)


@router.get(
    "/tickets/{ticket_id}/versions/{version}.npz", summary="Labels of one version", tags=["review"], **_file("npz")
)
def version_npz(desk: Reviewing, ticket: Reviewed, version: Version) -> _File:
    """`classes`, and `instances` where objects are numbered."""
    return _File(pack_labels(desk.version_labels(ticket.ticket_id, version)))


@router.get(
    "/tickets/{ticket_id}/versions/{version}.nii.gz",
    summary="Labels of one version as NIfTI",
    tags=["review"],
    **_file("NIfTI, gzipped"),
)
def version_nifti(office: At, desk: Reviewing, ticket: Reviewed, version: Version) -> _File:
    """Classes, or object numbers, over the patch."""
    labels = desk.version_labels(ticket.ticket_id, version)
    spacing = office.campaign.volume(ticket.volume_id).spacing_um_zyx
    voxels = labels.classes if labels.instances is None else labels.instances
    return _File(nifti_bytes(voxels, spacing, ticket.box.offset_zyx), f"{ticket.ticket_id}_v{version}.nii.gz")


@router.post("/tickets/{ticket_id}/accept", summary="Accept a version", tags=["review"], responses=documented(404, 409))
def accept(desk: Reviewing, ticket_id: TicketId, choice: Choice | None = None) -> AnnotationRecord:
    """Of a submitted ticket; again is no error."""
    return desk.accept(ticket_id, None if choice is None else choice.version)


@router.post(
    "/tickets/{ticket_id}/reject",
    summary="Send a ticket back to its annotator",
    tags=["review"],
    status_code=204,
    responses=documented(404, 409),
)
def reject(desk: Reviewing, ticket_id: TicketId, why: Comment) -> None:
    """With a comment; again is no error."""
    desk.reject(ticket_id, why.comment)


@router.post(
    "/tickets/{ticket_id}/fix",
    summary="Hand in your own labels of a submitted ticket and accept them",
    tags=["review"],
    responses=documented(404, 408, 409, 413),
    openapi_extra=UPLOAD_BODY,
)
def fix(
    desk: Reviewing,
    ticket: Reviewed,
    labels: ReviewedLabels,
    tool: Tool,
    active_seconds: Annotated[Seconds, Query(description="Of work.")] = 0.0,
) -> AnnotationRecord:
    """Store a new version in the reviewer's name."""
    return desk.fix(ticket.ticket_id, labels, tool, active_seconds=active_seconds)


@router.get(
    "/tickets/{ticket_id}/history", summary="Every change of a ticket", tags=["review"], responses=documented(404)
)
def history(desk: Reviewing, ticket_id: TicketId) -> list[AuditEntry]:
    """Oldest first."""
    return desk.history(ticket_id)


@router.get(
    "/events",
    summary="Changes of the queue as they happen",
    tags=["campaign"],
    response_class=EventSourceResponse,
)
async def events(
    office: At,
    who: Asking,
    last_event_id: Annotated[int | None, Header(ge=0, le=2**31 - 1, description="Go on after this one.")] = None,
) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events named `queue`, numbered as the audit trail is. An event only wakes: ask for what is there."""
    async for event in follow(office, who, last_event_id):
        yield event
