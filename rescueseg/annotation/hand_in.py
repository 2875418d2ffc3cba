"""Labels handed in: checked, stored, submitted, and accepted where no review is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from rescueseg.annotation.label_files import starting_patch, store_labels
from rescueseg.annotation.pairs import try_to_settle
from rescueseg.campaign import Campaign
from rescueseg.labels import PatchLabels, check_patch, corrected_voxels
from rescueseg.queue.records import AnnotationRecord, Lease
from rescueseg.queue.store import QueueStore


def submit_labels(
    campaign: Campaign,
    store: QueueStore,
    lease: Lease,
    annotator: str,
    labels: PatchLabels | npt.NDArray[Any],
    tool: str,
    seconds: float | None,
    *,
    active_seconds: float = 0.0,
    overridden: Sequence[str] = (),
) -> AnnotationRecord:
    """Check labels, store them, hand them in, and accept them when the campaign wants no review.

    The array is stored under its digest before the queue's row is written: killed in between, the same call
    finishes the work, and killed after, it changes nothing.

    Parameters
    ----------
    campaign : Campaign
        Where the labels are stored.
    store : QueueStore
        Its queue.
    lease : Lease
        The lease they were made under.
    annotator : str
        Who made them.
    labels : PatchLabels, or ndarray of classes, zyx
        In the shape of the patch; see `check_patch`.
    tool : str
        What they were made with.
    seconds : float or None
        Time the annotator took, where a person told it; else the lease's account says it.
    active_seconds, overridden
        As in `QueueStore.submit`.

    Raises
    ------
    LabelError
        If the labels do not fit the patch.
    LeaseExpiredError, NotYourLeaseError, QueueError
        As `QueueStore.submit`.
    StorageError
        If they cannot be stored. In every case nothing was handed in.
    """
    ticket, config = lease.ticket, campaign.config
    given = labels if isinstance(labels, PatchLabels) else PatchLabels(labels)
    checked = check_patch(given, ticket.box, config, where=f"ticket {ticket.ticket_id}")
    store.check_submit(lease.lease_id, annotator, checked.digest)
    corrected = corrected_voxels(checked, starting_patch(campaign, lease))
    label, instances = store_labels(campaign, ticket.ticket_id, checked)
    done = store.submit(
        lease.lease_id,
        annotator,
        label,
        tool,
        seconds,
        corrected,
        accept=not config.annotation.review,
        active_seconds=active_seconds,
        instances=instances,
        overridden=overridden,
    )
    if ticket.annotators > 1:
        try_to_settle(campaign, store, ticket.ticket_id)
        return next(v for v in store.annotations(ticket.ticket_id) if v.annotation_id == done.annotation_id)
    return done
