"""Label arrays of tickets: the mask to start from, and versions stored under their digests."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rescueseg.annotation.label_checks import check_labels, check_patch
from rescueseg.campaign.label_arrays import read_classes, read_label_array, read_objects, write_label_array
from rescueseg.campaign.layout import ANNOTATION
from rescueseg.config import CampaignConfig
from rescueseg.geometry import Patch
from rescueseg.labels import PatchLabels
from rescueseg.queue.records import AnnotationRecord, Lease
from rescueseg.queue.submission import StoredLabels
from rescueseg.records import AcceptedAnnotation, LabelReference, Purpose
from rescueseg.storage import Storage, digest_array, digest_json


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

    Examples
    --------
    >>> from rescueseg.geometry import Box
    >>> patch = Patch("liver-1", Box((0, 0, 0), (16, 32, 32)))
    >>> ticket_id("liver", 2, patch, "pool")
    'pool-0002-3a4a3f20d8f82c44'
    """
    content = [campaign_name, generation, patch.volume_id, patch.box.to_dict(), purpose]
    return f"{purpose}-{generation:04d}-{digest_json(content)[:16]}"


def starting_labels(storage: Storage, lease: Lease, n_classes: int) -> npt.NDArray[np.uint8]:
    """Return the mask the annotator starts from: rejected labels, else the prefill, else background.

    Raises
    ------
    LabelError
        If the stored mask does not fit the patch.
    StorageError
        If it is missing, damaged, or, of rejected labels, another one than was handed in.
    """
    if lease.start is None:
        return np.zeros(lease.ticket.box.shape_zyx, np.uint8)
    array = read_label_array(storage, lease.previous) if lease.previous else storage.read_array(lease.start)
    return check_labels(array, lease.ticket.box, n_classes, where=lease.start)


def starting_patch(storage: Storage, lease: Lease, config: CampaignConfig) -> PatchLabels:
    """Return what the annotator starts from, objects numbered where the campaign annotates instances.

    The objects of a first mask are its connected components, unless it holds numbers of objects (uint32), as those of a
    delivery do. Errors as in `starting_labels`.
    """
    if config.annotation.labels == "instance" and lease.start is not None and lease.previous is None:
        first = storage.read_array(lease.start)
        if first.dtype == np.uint32:
            return check_patch(PatchLabels.of_instances(first), lease.ticket.box, config, where=lease.start)
    classes = starting_labels(storage, lease, config.n_classes)
    if config.annotation.labels == "semantic":
        return PatchLabels(classes)
    if lease.previous_instances is None:
        return PatchLabels.of_components(classes)
    ids = read_label_array(storage, lease.previous_instances)
    return check_patch(PatchLabels(classes, ids), lease.ticket.box, config, where=lease.previous_instances.path)


def read_version(storage: Storage, record: AnnotationRecord | AcceptedAnnotation) -> PatchLabels:
    """Return the labels of a version.

    Raises
    ------
    StorageError
        If they are missing, damaged, or others than were handed in.
    """
    return PatchLabels(read_classes(storage, record), read_objects(storage, record))


def store_labels(storage: Storage, ticket_id: str, labels: PatchLabels, voxels_corrected: int) -> StoredLabels:
    """Store labels under their digests, classes and objects in files of their own; a damaged file of that name is mended.

    Parameters
    ----------
    storage : Storage
        The campaign's.
    ticket_id : str
        The ticket that they belong to.
    labels : PatchLabels
        The labels.
    voxels_corrected : int
        Voxels that differ from the mask they started from.
    """

    def store(array: npt.NDArray[Any]) -> LabelReference:
        digest = digest_array(array)
        reference = LabelReference(path=ANNOTATION.path(ticket=ticket_id, digest=digest), digest=digest)
        write_label_array(storage, reference, array)
        return reference

    instances = None if labels.instances is None else store(labels.instances)
    return StoredLabels(store(labels.classes), voxels_corrected, instances)
