"""What one annotator can do in a campaign: take a patch, look at it, hand it in. Every annotation tool works through it.

`rescueseg.annotation.local_client` works on a campaign that this machine can read, `rescueseg.annotation.remote_client`
through an annotation server.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from rescueseg.annotation.roles import Role
from rescueseg.geometry import Box, Spacing
from rescueseg.labels import PatchLabels
from rescueseg.queue.records import AnnotationRecord, AuditEntry, Filters, Lease, TicketRecord
from rescueseg.records import Record

__all__ = ["AnnotationClient", "CampaignInfo", "Filters", "LabelWarning", "PatchView"]


class LabelWarning(Record):
    """Something odd about labels that a person can override."""

    code: str
    """Such as "empty", "unchanged", "two_values", "specks", "z_gap", "holes", "cut_at_border", "ignore_holes"."""
    message: str
    voxels: int = 0
    at_zyx: tuple[int, int, int] | None = None
    """An example, in voxels of the patch."""


class CampaignInfo(Record):
    """What a client needs to know of the campaign."""

    campaign: str
    classes: tuple[str, ...]
    """Names of classes 1…K."""
    kind: Literal["semantic", "instance"]
    annotator: str
    role: Role
    lease_seconds: float
    counts: dict[str, int]
    """Tickets by status."""


@dataclass(frozen=True, eq=False)
class PatchView:
    """A patch with what surrounds it.

    Parameters
    ----------
    ticket : TicketRecord
        The ticket; `ticket.box` is the part that is annotated.
    context : Box
        The part that is shown: the patch with a margin, clipped to the volume.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.
    image : ndarray, czyx
        In the volume's dtype, over `context`.
    start : PatchLabels
        The mask to correct, over `ticket.box`.
    prediction : ndarray of uint8, zyx, or None
        The latest model's classes over `context`; None without a model, and always for holdout tickets.
    uncertainty : ndarray of float32, zyx, or None
        Predictive entropy in nats over `context`; None as above.
    """

    ticket: TicketRecord
    context: Box
    spacing_um_zyx: Spacing
    image: npt.NDArray[np.generic]
    start: PatchLabels
    prediction: npt.NDArray[np.uint8] | None = None
    uncertainty: npt.NDArray[np.float32] | None = None

    @property
    def inside(self) -> Box:
        """The patch in voxels of `context`."""
        return self.ticket.box.relative_to(self.context)


class AnnotationClient(Protocol):
    """One person in one campaign. Errors are those of the queue and of the labels, wherever the campaign lies."""

    def info(self) -> CampaignInfo:
        """Return what the campaign is, and this person's name and role."""

    def next(
        self, filters: Filters | None = None, ticket_id: str | None = None, *, another: bool = False
    ) -> Lease | None:
        """Return the running lease, else (or with `another`) lease the next patch; None when there is none."""

    def leases(self) -> list[Lease]:
        """Return this person's running leases, oldest first."""

    def heartbeat(self, lease_id: str, active_seconds: float = 0.0) -> Lease:
        """Extend a lease and add the seconds of work since the last heartbeat to it, 0 when the tool does not know."""

    def view(self, lease_id: str) -> PatchView:
        """Return the leased patch with what surrounds it; raise `LeaseExpiredError` where the lease does not run.

        A lease that was handed in shows what was handed in, without the model's maps.
        """

    def check(self, lease_id: str, labels: PatchLabels) -> list[LabelWarning]:
        """Return warnings about labels; raise `LabelError` where they cannot be handed in at all."""

    def submit(
        self, lease_id: str, labels: PatchLabels, tool: str, *, active_seconds: float = 0.0, override: bool = False
    ) -> AnnotationRecord:
        """Hand in labels; warnings refuse them (`LabelWarningsError`) unless `override`. The same again changes nothing.

        `active_seconds` is the work since the last heartbeat, or since the lease began.
        """

    def skip(self, lease_id: str, reason: str) -> None:
        """Say that nobody can annotate the patch."""

    def release(self, lease_id: str) -> None:
        """Give the patch back untouched."""

    def to_review(self) -> list[TicketRecord]:
        """Return the tickets that wait for a reviewer, oldest first."""

    def review_view(self, ticket_id: str) -> PatchView:
        """Return a ticket's patch for a reviewer."""

    def versions(self, ticket_id: str) -> list[AnnotationRecord]:
        """Return the versions that this person may see, oldest first: of an unfinished blind pair only their own."""

    def version_labels(self, ticket_id: str, version: int) -> PatchLabels:
        """Return the labels of one version."""

    def accept(self, ticket_id: str, version: int | None = None) -> AnnotationRecord:
        """Accept a version of a submitted ticket, the latest when None."""

    def reject(self, ticket_id: str, comment: str) -> None:
        """Send a submitted ticket back to its annotator."""

    def fix(self, ticket_id: str, labels: PatchLabels, tool: str, *, active_seconds: float = 0.0) -> AnnotationRecord:
        """Hand in a reviewer's own labels of a submitted ticket and accept them."""

    def history(self, ticket_id: str) -> list[AuditEntry]:
        """Return every change of a ticket, oldest first."""
