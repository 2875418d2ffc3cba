"""Labels handed in: checked, stored, submitted, and accepted where the campaign asks for no review."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from rescueseg.annotation.label_checks import check_patch
from rescueseg.annotation.label_files import starting_patch, store_labels
from rescueseg.annotation.pairs import try_to_resolve
from rescueseg.campaign import Campaign
from rescueseg.labels import PatchLabels, corrected_voxels
from rescueseg.queue.records import AnnotationRecord, Lease
from rescueseg.queue.store import QueueStore
from rescueseg.queue.submission import Work


def submit_labels(
    campaign: Campaign,
    store: QueueStore,
    lease: Lease,
    annotator: str,
    labels: PatchLabels | npt.NDArray[Any],
    work: Work,
) -> AnnotationRecord:
    """Check labels, store them, hand them in, and accept them when the campaign asks for no review.

    The array is stored under its digest before the queue's row is written. After a crash in between, the same call
    finishes the work; once it is finished, the same call changes nothing.

    Parameters
    ----------
    campaign : Campaign
        Where the labels are stored.
    store : QueueStore
        Its queue.
    lease : Lease
        The lease under which the patch was annotated.
    annotator : str
        Name of the annotator.
    labels : PatchLabels, or ndarray of classes, zyx
        In the shape of the patch; see `check_patch`.
    work : Work
        How they were made.

    Raises
    ------
    LabelError
        If the labels do not fit the patch.
    LeaseExpiredError, NotYourLeaseError, QueueError
        As `rescueseg.queue.leases.Leases.submit`.
    StorageError
        If they cannot be stored. In every case nothing was handed in.
    """
    ticket, config = lease.ticket, campaign.config
    patch_labels = labels if isinstance(labels, PatchLabels) else PatchLabels(labels)
    patch_labels = check_patch(patch_labels, ticket.box, config, where=f"ticket {ticket.ticket_id}")
    store.leases.check_submit(lease.lease_id, annotator, patch_labels.digest)
    n_corrected = corrected_voxels(patch_labels, starting_patch(campaign.storage, lease, config))
    stored = store_labels(campaign.storage, ticket.ticket_id, patch_labels, n_corrected)
    accept = not config.annotation.review
    annotation = store.leases.submit(lease.lease_id, annotator, stored, work, accept=accept)
    if ticket.annotators > 1:
        try_to_resolve(campaign, store, ticket.ticket_id)
        versions = store.views.annotations(ticket.ticket_id)
        return next(v for v in versions if v.annotation_id == annotation.annotation_id)
    return annotation
