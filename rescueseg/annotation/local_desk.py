"""The desk on a campaign that this machine can read; the annotation server stands on it too."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt

from rescueseg import volumes
from rescueseg.annotation.desk import DeskInfo, Filters, LabelWarning, PatchView, Role
from rescueseg.annotation.labels import check_labels, starting_labels, submit_labels
from rescueseg.annotation.patch_labels import PatchLabels
from rescueseg.annotation.records import AnnotationRecord, AuditEntry, Lease, TicketRecord
from rescueseg.annotation.store import QueueStore
from rescueseg.campaign import Campaign
from rescueseg.errors import TicketNotFoundError
from rescueseg.geometry import Box


class LocalDesk:
    """One person's desk; see `rescueseg.annotation.desk.Desk`.

    Parameters
    ----------
    campaign : Campaign
        The campaign.
    store : QueueStore
        Its queue.
    annotator : str
        Who sits here.
    role : {"annotator", "reviewer", "admin"}
        What they may do.
    """

    def __init__(self, campaign: Campaign, store: QueueStore, annotator: str, role: Role = "admin") -> None:
        self.campaign, self.store, self.annotator, self.role = campaign, store, annotator, role

    def info(self) -> DeskInfo:
        """Return what the campaign is and who one is there."""
        return DeskInfo(
            campaign=self.campaign.config.name,
            classes=self.campaign.config.classes,
            kind="semantic",
            annotator=self.annotator,
            role=self.role,
            lease_seconds=self.campaign.config.annotation.lease_minutes * 60,
            counts=self.store.counts(),
        )

    def next(self, filters: Filters | None = None, ticket_id: str | None = None) -> Lease | None:
        """Go on with the patch one holds, else lease the next one."""
        seconds = self.campaign.config.annotation.lease_minutes * 60
        purpose = filters.purpose if filters else None
        return self.store.claim(self.annotator, seconds, purpose=purpose, ticket_id=ticket_id, resume=True)

    def held(self) -> list[Lease]:
        """Return one's running leases, oldest first."""
        return self.store.leases(self.annotator)

    def heartbeat(self, lease_id: str, active_seconds: float = 0.0) -> Lease:  # noqa: ARG002
        """Keep a lease."""
        return self.store.heartbeat(lease_id, self.annotator)

    def view(self, lease_id: str) -> PatchView:
        """Return the leased patch with what surrounds it."""
        lease = self.store.lease(lease_id)
        return self._view(lease.ticket, PatchLabels(starting_labels(self.campaign, lease)))

    def _view(self, ticket: TicketRecord, start: PatchLabels) -> PatchView:
        record = self.campaign.volume(ticket.volume_id)
        share = self.campaign.config.annotation.context
        context = ticket.box.expand([math.ceil(n * share) for n in ticket.box.shape_zyx]).clip(record.shape_zyx)
        image = volumes.open_image(self.campaign, ticket.volume_id)[(slice(None), *context.slices)]
        prediction, uncertainty = self._maps(ticket, context)
        return PatchView(ticket, context, record.spacing_um_zyx, np.asarray(image), start, prediction, uncertainty)

    def _maps(
        self, ticket: TicketRecord, context: Box
    ) -> tuple[npt.NDArray[np.uint8] | None, npt.NDArray[np.float32] | None]:
        """Return prediction and entropy of the latest finished maps; none for the holdout, which they would bias."""
        from rescueseg.inference.maps import map_reference, open_map

        generations = [] if ticket.purpose != "pool" else self.campaign.generations()
        for generation in reversed(generations):
            if map_reference(self.campaign, generation, ticket.volume_id) is not None:
                z, y, x = context.slices
                probability = open_map(self.campaign, generation, ticket.volume_id, "probability")[:, z, y, x]
                entropy = open_map(self.campaign, generation, ticket.volume_id, "predictive_entropy")[z, y, x]
                return np.asarray(probability).argmax(axis=0).astype(np.uint8), np.asarray(entropy, np.float32)
        return None, None

    def check(self, lease_id: str, labels: PatchLabels) -> list[LabelWarning]:
        """Return what is odd about labels."""
        ticket = self.store.lease(lease_id).ticket
        check_labels(labels.classes, ticket.box, self.campaign.config.n_classes, where=f"ticket {ticket.ticket_id}")
        return []

    def submit(
        self,
        lease_id: str,
        labels: PatchLabels,
        tool: str,
        *,
        active_seconds: float = 0.0,
        override: bool = False,  # noqa: ARG002
    ) -> AnnotationRecord:
        """Hand in labels; warnings refuse them unless `override`."""
        lease = self.store.lease(lease_id)
        seconds = active_seconds or (datetime.now(UTC) - lease.granted_at).total_seconds()
        done = submit_labels(self.campaign, self.store, lease, self.annotator, labels.classes, tool, seconds)
        self._wake()
        return done

    def skip(self, lease_id: str, reason: str) -> None:
        """Say that nobody can annotate the patch."""
        self.store.skip(lease_id, self.annotator, reason)
        self._wake()  # the last patch that was waited for may be this one

    def release(self, lease_id: str) -> None:
        """Give the patch back untouched."""
        self.store.release(lease_id, self.annotator)

    def to_review(self) -> list[TicketRecord]:
        """Return the tickets that wait for a reviewer, oldest first."""
        return sorted(self.store.tickets("submitted"), key=lambda t: (t.updated_at, t.ticket_id))

    def review_view(self, ticket_id: str) -> PatchView:
        """Return a ticket's patch for a reviewer; it starts from the latest version."""
        found = self.versions(ticket_id)
        if not found:
            raise TicketNotFoundError("nothing was handed in for the ticket", where=ticket_id, todo="Wait for it")
        return self._view(self._ticket(ticket_id), self.version_labels(ticket_id, found[-1].version))

    def _ticket(self, ticket_id: str) -> TicketRecord:
        for ticket in self.store.tickets():
            if ticket.ticket_id == ticket_id:
                return ticket
        raise TicketNotFoundError("there is no such ticket", where=ticket_id, todo="See 'rescueseg queue status'")

    def versions(self, ticket_id: str) -> list[AnnotationRecord]:
        """Return every version handed in, oldest first."""
        return self.store.annotations(ticket_id)

    def version_labels(self, ticket_id: str, version: int) -> PatchLabels:
        """Return the labels of one version."""
        for record in self.versions(ticket_id):
            if record.version == version:
                return PatchLabels(self.campaign.storage.read_array(record.labels))
        raise TicketNotFoundError(f"there is no version {version}", where=ticket_id, todo="See its history")

    def accept(self, ticket_id: str, version: int | None = None) -> AnnotationRecord:  # noqa: ARG002
        """Accept a submitted ticket."""
        done = self.store.accept(ticket_id, self.annotator)
        self._wake()
        return done

    def reject(self, ticket_id: str, comment: str) -> None:
        """Send a submitted ticket back."""
        self.store.reject(ticket_id, self.annotator, comment)

    def history(self, ticket_id: str) -> list[AuditEntry]:
        """Return every change of a ticket, oldest first."""
        return self.store.history(ticket_id)

    def _wake(self) -> None:
        """Tell a served campaign that patches were accepted."""
        from rescueseg.orchestration import wake

        wake(self.campaign, self.store)
