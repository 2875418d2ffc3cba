"""Label arrays on their way into the queue: checked, stored immutable and versioned, then handed in."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rescueseg.annotation.records import AnnotationRecord, LabelReference, Lease
from rescueseg.annotation.store import QueueStore
from rescueseg.campaign import Campaign
from rescueseg.errors import LabelError
from rescueseg.geometry import Box, Patch
from rescueseg.records import Purpose
from rescueseg.storage import digest_array, digest_json

IGNORE = 255
"""Label of voxels that were not annotated."""


def ticket_id(campaign_name: str, generation: int, patch: Patch, purpose: Purpose) -> str:
    """Return the id of a patch's ticket: the same in every run of a campaign.

    Parameters
    ----------
    campaign_name : str
        Name of the campaign.
    generation : int
        Generation whose snapshot the annotation is meant for.
    patch : Patch
        The patch.
    purpose : {"pool", "validation", "test"}
        What the labels are for.
    """
    content = [campaign_name, generation, patch.volume_id, patch.box.to_dict(), purpose]
    return f"{purpose}-{generation:04d}-{digest_json(content)[:16]}"


def check_labels(labels: npt.NDArray[Any], box: Box, n_classes: int, *, where: str = "labels") -> npt.NDArray[np.uint8]:
    """Return labels as uint8, checked.

    Parameters
    ----------
    labels : ndarray, zyx
        Any integer type, bool, or floats that hold whole numbers (as some tools save).
    box : Box
        The patch they belong to.
    n_classes : int
        Number of classes K.
    where : str
        File or ticket, for the error message.

    Returns
    -------
    ndarray of uint8, zyx
        0 background, 1..K classes, 255 ignore; C order.

    Raises
    ------
    LabelError
        If the shape is not that of the patch, a value is neither 0..K nor 255, or nothing is annotated.
    """
    array = np.asarray(labels)
    if array.shape != box.shape_zyx:
        raise LabelError(
            f"the mask has shape {array.shape}, its patch {box.shape_zyx} (z, y, x)",
            where=where,
            todo="Hand in the mask of this patch, unresampled and uncropped",
        )
    if array.dtype.kind not in "buif":
        raise LabelError(f"labels of type {array.dtype} are no numbers", where=where, todo="Save them as uint8")
    values = np.unique(array)
    wrong = [value for value in values.tolist() if value not in range(n_classes + 1) and value != IGNORE]
    if wrong:
        shown = ", ".join(f"{value:g}" for value in wrong[:5])
        raise LabelError(
            f"the mask holds {shown}{' …' if len(wrong) > 5 else ''}, which is no class",
            where=where,
            todo=f"Use 0 for background, 1 to {n_classes} for the classes and 255 for voxels not annotated",
        )
    if values.tolist() == [IGNORE]:
        raise LabelError(
            "nothing is annotated: every voxel is 255 (ignore)",
            where=where,
            todo="Annotate some voxels, or skip the ticket with a reason",
        )
    return np.ascontiguousarray(array, dtype=np.uint8)


def starting_labels(campaign: Campaign, lease: Lease) -> npt.NDArray[np.uint8]:
    """Return the mask the annotator starts from: rejected labels, else the prefill, else background.

    Raises
    ------
    LabelError
        If the stored mask does not fit the patch.
    StorageError
        If it is missing.
    """
    if lease.start is None:
        return np.zeros(lease.ticket.box.shape_zyx, np.uint8)
    stored = campaign.storage.read_array(lease.start)
    return check_labels(stored, lease.ticket.box, campaign.config.n_classes, where=lease.start)


def submit_labels(
    campaign: Campaign,
    store: QueueStore,
    lease: Lease,
    annotator: str,
    labels: npt.NDArray[Any],
    tool: str,
    seconds: float,
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
    labels : ndarray, zyx
        In the shape of the patch; see `check_labels`.
    tool : str
        What they were made with.
    seconds : float
        Time the annotator took.

    Raises
    ------
    LabelError
        If the labels do not fit the patch.
    LeaseExpiredError, NotYourLeaseError, QueueError
        As `QueueStore.submit`.
    StorageError
        If they cannot be stored. In every case nothing was handed in.
    """
    ticket = lease.ticket
    array = check_labels(labels, ticket.box, campaign.config.n_classes, where=f"ticket {ticket.ticket_id}")
    digest = digest_array(array)
    store.check_submit(lease.lease_id, annotator, digest)
    corrected = int(np.count_nonzero((array != starting_labels(campaign, lease)) & (array != IGNORE)))
    label = LabelReference(path=campaign.annotation_path(ticket.ticket_id, digest), digest=digest)
    if not campaign.storage.exists(label.path):
        campaign.storage.write_array(label.path, array)
    return store.submit(
        lease.lease_id,
        annotator,
        label,
        tool,
        seconds,
        corrected,
        accept=not campaign.config.annotation.review,
    )
