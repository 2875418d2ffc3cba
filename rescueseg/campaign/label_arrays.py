"""Label arrays that people made, stored below the campaign: each is checked by its digest, whoever reads it."""

from __future__ import annotations

from typing import Any, Protocol

import numpy.typing as npt

from rescueseg.errors import StorageError, damaged
from rescueseg.records import LabelReference
from rescueseg.storage import Storage, digest_array


class Labelled(Protocol):
    """What names the labels of a patch: a version in the queue, an accepted one, an item of a snapshot."""

    @property
    def labels(self) -> str:
        """Path of the classes below the campaign."""

    @property
    def labels_digest(self) -> str:
        """Their sha256."""

    @property
    def instances(self) -> str | None:
        """Path of the objects, in campaigns that annotate instances."""

    @property
    def instances_digest(self) -> str | None:
        """Their sha256."""


def read_label_array(storage: Storage, reference: LabelReference) -> npt.NDArray[Any]:
    """Read a label array, and make sure that it is the one that was stored.

    Parameters
    ----------
    storage : Storage
        The campaign's root.
    reference : LabelReference
        Its path, and the sha256 of its dtype, shape and voxels.

    Returns
    -------
    ndarray, zyx
        In the dtype that it was stored in.

    Raises
    ------
    StorageError
        If it is missing, damaged, or another one than was stored.
    """
    array = storage.read_array(reference.path)
    if digest_array(array) != reference.digest:
        raise damaged(storage.path(reference.path), "it holds other labels than were stored")
    return array


def read_classes(storage: Storage, version: Labelled) -> npt.NDArray[Any]:
    """Return the classes of a version, zyx; raises as `read_label_array`."""
    return read_label_array(storage, LabelReference(path=version.labels, digest=version.labels_digest))


def read_objects(storage: Storage, version: Labelled) -> npt.NDArray[Any] | None:
    """Return the objects' numbers of a version, zyx, None where only classes were annotated; raises as `read_label_array`."""
    if version.instances is None:
        return None
    return read_label_array(storage, LabelReference(path=version.instances, digest=version.instances_digest or ""))


def write_label_array(storage: Storage, reference: LabelReference, array: npt.NDArray[Any]) -> None:
    """Store a label array; what is there already stays if it is the same, and is replaced if it was damaged.

    Parameters
    ----------
    storage : Storage
        The campaign's root.
    reference : LabelReference
        Its path and its digest, see `rescueseg.storage.digest_array`.
    array : ndarray, zyx
        The labels.

    Raises
    ------
    StorageError
        If they cannot be written.
    """
    if storage.exists(reference.path):
        try:
            read_label_array(storage, reference)
        except StorageError:  # damaged or out of reach: the right labels are at hand
            pass
        else:
            return
    storage.write_array(reference.path, array, read_only=True)
