"""The annotation client of a campaign that this machine can read; the annotation server uses it too."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from rescueseg import volumes
from rescueseg.annotation.client import CampaignInfo, Filters, LabelWarning, PatchView
from rescueseg.annotation.hand_in import submit_labels
from rescueseg.annotation.label_checks import check_patch
from rescueseg.annotation.label_files import read_version, starting_patch, store_labels
from rescueseg.annotation.label_warnings import label_warnings
from rescueseg.annotation.pairs import accept_consensus, resolve_pairs
from rescueseg.annotation.roles import Role, require_role
from rescueseg.campaign import Campaign
from rescueseg.errors import (
    AccessError,
    LabelWarningsError,
    LeaseExpiredError,
    NotYourLeaseError,
    QueueError,
    TicketNotFoundError,
)
from rescueseg.geometry import Box
from rescueseg.inference.maps import VolumeMaps
from rescueseg.labels import PatchLabels, corrected_voxels, most_likely
from rescueseg.queue.execute import labels_digest
from rescueseg.queue.records import AnnotationRecord, AuditEntry, Lease, TicketRecord
from rescueseg.queue.store import QueueStore
from rescueseg.queue.submission import Work
from rescueseg.services.prefect_api import wake


class LocalClient:
    """One person in a campaign; see `rescueseg.annotation.client.AnnotationClient`.

    Parameters
    ----------
    campaign : Campaign
        The campaign.
    store : QueueStore
        Its queue.
    annotator : str
        Name of the person.
    role : {"annotator", "reviewer", "admin"}
        What the person may do.
    """

    def __init__(self, campaign: Campaign, store: QueueStore, annotator: str, role: Role = "admin") -> None:
        self.campaign, self.store, self.annotator, self.role = campaign, store, annotator, role

    def _require_reviewer(self) -> None:
        require_role(self.annotator, self.role, "reviewer")

    def info(self) -> CampaignInfo:
        """Return what the campaign is, and this person's name and role."""
        return CampaignInfo(
            campaign=self.campaign.config.name,
            classes=self.campaign.config.classes,
            kind=self.campaign.config.annotation.labels,
            annotator=self.annotator,
            role=self.role,
            lease_seconds=self.campaign.config.annotation.lease_minutes * 60,
            counts=self.store.views.counts(),
        )

    def next(
        self, filters: Filters | None = None, ticket_id: str | None = None, *, another: bool = False
    ) -> Lease | None:
        """Return the running lease, else (or with `another`) lease the next patch."""
        config = self.campaign.config
        if filters and filters.class_name not in (None, *config.classes):
            raise QueueError(
                f"there is no class '{filters.class_name}'",
                where=config.name,
                todo=f"Classes: {', '.join(config.classes)}",
            )
        resolve_pairs(self.campaign, self.store)
        return self.store.leases.claim(
            self.annotator,
            config.annotation.lease_minutes * 60,
            filters=filters,
            ticket_id=ticket_id,
            resume=not another,
            idle_seconds=config.annotation.idle_minutes * 60,
        )

    def leases(self) -> list[Lease]:
        """Return this person's running leases, oldest first."""
        return self.store.views.leases(self.annotator)

    def heartbeat(self, lease_id: str, active_seconds: float = 0.0) -> Lease:
        """Extend a lease and add the seconds of work to it."""
        return self.store.leases.heartbeat(lease_id, self.annotator, active_seconds)

    def view(self, lease_id: str) -> PatchView:
        """Return the leased patch with what surrounds it; of a lease that was handed in, the labels handed in."""
        lease = self.store.views.lease(lease_id)
        if lease.annotator != self.annotator:
            raise NotYourLeaseError(
                f"the lease belongs to '{lease.annotator}', not to '{self.annotator}'",
                where=f"ticket {lease.ticket_id}",
                todo="Look at a patch of your own",
            )
        if lease.ended == "submitted":
            labels = read_version(self.campaign.storage, self.store.views.submission(lease_id))
            return self._view(lease.ticket, labels, with_model=False)
        if lease.ended is not None:
            raise LeaseExpiredError(
                f"the lease ended: {lease.ended}", where=f"ticket {lease.ticket_id}", todo="Claim the ticket again"
            )
        return self._view(lease.ticket, starting_patch(self.campaign.storage, lease, self.campaign.config))

    def context(self, ticket: TicketRecord) -> Box:
        """Return the part that is shown with a patch: it and its surroundings, within the volume."""
        share = self.campaign.config.annotation.context
        margin = [math.ceil(n * share) for n in ticket.box.shape_zyx]
        return ticket.box.expand(margin).clip(self.campaign.volumes.record(ticket.volume_id).shape_zyx)

    def _view(self, ticket: TicketRecord, start: PatchLabels, *, with_model: bool = True) -> PatchView:
        record, context = self.campaign.volumes.record(ticket.volume_id), self.context(ticket)
        image = volumes.open_image(self.campaign.volumes, ticket.volume_id)[(slice(None), *context.slices)]
        prediction, uncertainty = self._maps(ticket, context) if with_model else (None, None)
        return PatchView(ticket, context, record.spacing_um_zyx, np.asarray(image), start, prediction, uncertainty)

    def _maps(
        self, ticket: TicketRecord, context: Box
    ) -> tuple[npt.NDArray[np.uint8] | None, npt.NDArray[np.float32] | None]:
        """Return prediction and entropy of the latest finished maps: none for holdout tickets, which they would bias.

        Where the surroundings of a pool patch reach into holdout boxes, both are 0.
        """
        generations = [] if ticket.purpose != "pool" else self.campaign.generations()
        for generation in reversed(generations):
            maps = VolumeMaps(generation, ticket.volume_id)
            if maps.reference() is not None:
                z, y, x = context.slices
                probability = maps.open("probability")[:, z, y, x]
                entropy = maps.open("predictive_entropy")[z, y, x]
                prediction = most_likely(np.asarray(probability))
                uncertainty = np.array(entropy, np.float32)
                for box in self._holdout_in(ticket.volume_id, context):
                    prediction[box.slices] = 0
                    uncertainty[box.slices] = 0
                return prediction, uncertainty
        return None, None

    def _holdout_in(self, volume_id: str, context: Box) -> list[Box]:
        """Return the parts of the holdout in a box, in voxels of it."""
        holdout = self.campaign.holdout()
        boxes = holdout.of(volume_id, self.campaign.volumes.shared_places()) if holdout else []
        common = [box.intersection(context) for box in boxes]
        return [box.relative_to(context) for box in common if box is not None]

    def check(self, lease_id: str, labels: PatchLabels) -> list[LabelWarning]:
        """Return warnings about labels."""
        lease = self.store.views.lease(lease_id)
        return self._warnings(lease, self._checked_labels(lease.ticket, labels))

    def _checked_labels(self, ticket: TicketRecord, labels: PatchLabels) -> PatchLabels:
        return check_patch(labels, ticket.box, self.campaign.config, where=f"ticket {ticket.ticket_id}")

    def _warnings(self, lease: Lease, labels: PatchLabels) -> list[LabelWarning]:
        start, model = (
            starting_patch(self.campaign.storage, lease, self.campaign.config),
            self._maps(lease.ticket, lease.ticket.box),
        )
        return label_warnings(labels, start, *model, self.campaign.config.n_classes)

    def submit(
        self, lease_id: str, labels: PatchLabels, tool: str, *, active_seconds: float = 0.0, override: bool = False
    ) -> AnnotationRecord:
        """Hand in labels; warnings refuse them unless `override`."""
        lease = self.store.views.lease(lease_id)
        labels = self._checked_labels(lease.ticket, labels)  # first: the digest is that of the stored dtype
        self.store.leases.check_submit(lease_id, self.annotator, labels.digest)
        warnings = tuple(self._warnings(lease, labels))
        if warnings and not override and not self._is_replay(lease, labels):
            raise LabelWarningsError(
                "; ".join(warning.message for warning in warnings),
                where=f"ticket {lease.ticket_id}",
                todo="Correct the mask, or insist that it is right",
                warnings=warnings,
            )
        work = Work(tool, active_seconds=active_seconds, overridden=[warning.code for warning in warnings])
        annotation = submit_labels(self.campaign, self.store, lease, self.annotator, labels, work)
        self._wake()
        return annotation

    def _is_replay(self, lease: Lease, labels: PatchLabels) -> bool:
        """Tell whether the person has handed in these labels before; then warnings do not refuse them."""
        versions = [v for v in self.store.views.annotations(lease.ticket_id) if v.annotator == self.annotator]
        return any(labels_digest(v.labels_digest, v.instances_digest) == labels.digest for v in versions)

    def skip(self, lease_id: str, reason: str) -> None:
        """Say that nobody can annotate the patch."""
        self.store.leases.skip(lease_id, self.annotator, reason)
        self._wake()  # a generation may have waited for this patch alone

    def release(self, lease_id: str) -> None:
        """Give the patch back untouched."""
        self.store.leases.release(lease_id, self.annotator)

    def to_review(self) -> list[TicketRecord]:
        """Return the tickets that wait for a reviewer, oldest first."""
        self._require_reviewer()
        resolve_pairs(self.campaign, self.store)
        return sorted(self.store.views.tickets("submitted"), key=lambda t: (t.updated_at, t.ticket_id))

    def review_view(self, ticket_id: str) -> PatchView:
        """Return a ticket's patch for a reviewer; it starts from the latest version."""
        self._require_reviewer()
        return self._view(self.store.views.ticket(ticket_id), self.version_labels(ticket_id, self._latest(ticket_id)))

    def _latest(self, ticket_id: str) -> int:
        versions = self.versions(ticket_id)
        if not versions:
            raise TicketNotFoundError("nothing was handed in for the ticket", where=ticket_id, todo="Wait for it")
        return versions[-1].version

    def versions(self, ticket_id: str) -> list[AnnotationRecord]:
        """Return the versions that this person may see, oldest first: of an unfinished blind pair only their own."""
        versions = self.store.views.annotations(ticket_id)
        if self.role == "annotator" or self._is_blind(ticket_id):
            return [v for v in versions if v.annotator == self.annotator]
        return versions

    def _is_blind(self, ticket_id: str) -> bool:
        ticket = self.store.views.ticket(ticket_id)
        return ticket.annotators > 1 and ticket.status in ("queued", "leased")

    def version_labels(self, ticket_id: str, version: int) -> PatchLabels:
        """Return the labels of one version that this person may see."""
        for record in self.versions(ticket_id):
            if record.version == version:
                return read_version(self.campaign.storage, record)
        if version in [v.version for v in self.store.views.annotations(ticket_id)]:
            raise AccessError(
                f"version {version} is somebody else's", where=ticket_id, todo="Wait until the ticket is reviewed"
            )
        raise TicketNotFoundError(f"there is no version {version}", where=ticket_id, todo="See its history")

    def accept(self, ticket_id: str, version: int | None = None) -> AnnotationRecord:
        """Accept a version of a submitted ticket, the latest when None."""
        self._require_reviewer()
        annotation = self.store.reviews.accept(ticket_id, self.annotator, version)
        self._wake()
        return annotation

    def accept_consensus(self, ticket_id: str) -> AnnotationRecord:
        """Make the STAPLE consensus of the versions of a submitted ticket, and accept it."""
        self._require_reviewer()
        versions = [v for v in self.versions(ticket_id) if v.verdict == "submitted"]
        if len(versions) < 2:
            raise QueueError(
                "a consensus needs the labels of two people", where=ticket_id, todo="See 'rescueseg queue review'"
            )
        labels = [read_version(self.campaign.storage, v) for v in versions]
        ticket = self.store.views.ticket(ticket_id)
        annotation = accept_consensus(
            self.campaign.storage, self.campaign.config.n_classes, self.store, ticket, versions, labels, self.annotator
        )
        self._wake()
        return annotation

    def reject(self, ticket_id: str, comment: str) -> None:
        """Send a submitted ticket back to who annotated it."""
        self._require_reviewer()
        self.store.reviews.reject(
            ticket_id, self.annotator, comment, self.campaign.config.annotation.return_hours * 3600
        )

    def fix(self, ticket_id: str, labels: PatchLabels, tool: str, *, active_seconds: float = 0.0) -> AnnotationRecord:
        """Hand in a reviewer's own labels of a submitted ticket and accept them."""
        self._require_reviewer()
        ticket = self.store.views.ticket(ticket_id)
        labels = self._checked_labels(ticket, labels)
        n_corrected = corrected_voxels(labels, self.version_labels(ticket_id, self._latest(ticket_id)))
        stored = store_labels(self.campaign.storage, ticket_id, labels, n_corrected)
        annotation = self.store.reviews.fix(ticket_id, self.annotator, stored, Work(tool, active_seconds))
        self._wake()
        return annotation

    def history(self, ticket_id: str) -> list[AuditEntry]:
        """Return every change of a ticket, oldest first."""
        return self.store.views.history(ticket_id)

    def _wake(self) -> None:
        """Tell a served campaign that patches were accepted."""
        wake(self.campaign, self.store)
