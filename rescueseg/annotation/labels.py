"""Label arrays on their way into the queue: checked, stored immutable and versioned, then handed in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rescueseg.annotation.patch_labels import IGNORE, PatchLabels, corrected_voxels
from rescueseg.annotation.records import AcceptedAnnotation, AnnotationRecord, LabelReference, Lease
from rescueseg.annotation.store import QueueStore
from rescueseg.campaign import Campaign
from rescueseg.config import CampaignConfig
from rescueseg.errors import LabelError
from rescueseg.geometry import Box, Patch
from rescueseg.records import Purpose
from rescueseg.storage import digest_array, digest_json

__all__ = [
    "IGNORE",
    "check_labels",
    "check_patch",
    "class_names",
    "read_version",
    "starting_labels",
    "starting_patch",
    "store_labels",
    "submit_labels",
    "ticket_id",
]


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
            todo=f"Use 0 for background, {'1 for the class' if n_classes == 1 else f'1 to {n_classes} for the classes'} and 255 for voxels not annotated",
        )
    if values.tolist() == [IGNORE]:
        raise LabelError(
            "nothing is annotated: every voxel is 255 (ignore)",
            where=where,
            todo="Annotate some voxels, or skip the ticket with a reason",
        )
    return np.ascontiguousarray(array, dtype=np.uint8)


def check_patch(labels: PatchLabels, box: Box, config: CampaignConfig, *, where: str = "labels") -> PatchLabels:
    """Return the labels of a patch, checked against what the campaign annotates.

    Raises
    ------
    LabelError
        As `check_labels`; also if objects are numbered in a campaign of classes, are missing in one of instances, or
        lie elsewhere than their class.
    """
    classes = check_labels(labels.classes, box, config.n_classes, where=where)
    wanted = config.annotation.labels == "instance"
    if wanted != (labels.instances is not None):
        raise LabelError(
            "the objects are not numbered" if wanted else "the mask numbers objects; this campaign annotates classes",
            where=where,
            todo=f"Hand in {config.annotation.labels} labels",
        )
    if labels.instances is None:
        return PatchLabels(classes)
    ids = np.asarray(labels.instances)
    if ids.shape != box.shape_zyx or ids.dtype.kind not in "ui" or int(ids.min()) < 0 or int(ids.max()) >= 2**32:
        raise LabelError(
            f"the objects are {ids.dtype} of shape {ids.shape}, not whole numbers of shape {box.shape_zyx} (z, y, x)",
            where=where,
            todo="Number the objects of this patch from 1 on",
        )
    if not np.array_equal(ids > 0, (classes != 0) & (classes != IGNORE)):
        raise LabelError(
            "objects and their class do not cover the same voxels",
            where=where,
            todo="Number every voxel of the class, and no other",
        )
    return PatchLabels(classes, np.ascontiguousarray(ids, dtype=np.uint32))


def class_names(campaign: Campaign, labels: npt.NDArray[np.uint8]) -> tuple[str, ...]:
    """Return the names of the classes that a mask holds."""
    values = np.unique(labels).tolist()
    return tuple(name for value, name in enumerate(campaign.config.classes, start=1) if value in values)


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


def starting_patch(campaign: Campaign, lease: Lease) -> PatchLabels:
    """Return what the annotator starts from, objects numbered where the campaign annotates instances.

    The objects of a first mask are its connected components. Errors as in `starting_labels`.
    """
    classes = starting_labels(campaign, lease)
    if campaign.config.annotation.labels == "semantic":
        return PatchLabels(classes)
    if lease.previous_instances is None:
        return PatchLabels.of_components(classes)
    ids = campaign.storage.read_array(lease.previous_instances.path)
    return check_patch(
        PatchLabels(classes, ids), lease.ticket.box, campaign.config, where=lease.previous_instances.path
    )


def read_version(campaign: Campaign, record: AnnotationRecord | AcceptedAnnotation) -> PatchLabels:
    """Return the labels of a version.

    Raises
    ------
    StorageError
        If they are missing.
    """
    classes = campaign.storage.read_array(record.labels)
    return PatchLabels(classes, campaign.storage.read_array(record.instances) if record.instances else None)


def store_labels(
    campaign: Campaign, ticket_id: str, labels: PatchLabels
) -> tuple[LabelReference, LabelReference | None]:
    """Store labels under their digests, classes and objects apart; what is there already stays."""

    def kept(array: npt.NDArray[Any]) -> LabelReference:
        digest = digest_array(array)
        reference = LabelReference(path=campaign.annotation_path(ticket_id, digest), digest=digest)
        if not campaign.storage.exists(reference.path):
            campaign.storage.write_array(reference.path, array)
        return reference

    return kept(labels.classes), None if labels.instances is None else kept(labels.instances)


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
        from rescueseg.annotation.pairs import try_to_settle

        try_to_settle(campaign, store, ticket.ticket_id)
        return next(v for v in store.annotations(ticket.ticket_id) if v.annotation_id == done.annotation_id)
    return done
