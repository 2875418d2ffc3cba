"""Opening the volumes of a campaign, image and ground truth, so that what is read is what was stored."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from rescueseg.campaign import VolumeFolder
from rescueseg.campaign.layout import SHARDS
from rescueseg.campaign.record_file import RecordFile
from rescueseg.errors import VolumeError, damaged
from rescueseg.records import VolumeRecord
from rescueseg.storage import Storage, digest_json
from rescueseg.volumes.checked_array import CheckedArray, open_attributes, open_checked
from rescueseg.volumes.ome_zarr import level_paths
from rescueseg.volumes.shards import FileSum, FileTable

_TABLE = RecordFile("shards", dict[str, FileSum])


def open_image(volumes: VolumeFolder, volume_id: str) -> CheckedArray:
    """Open a volume at full resolution, read-only.

    Parameters
    ----------
    volumes : VolumeFolder
        The campaign's volumes.
    volume_id : str
        A volume of it.

    Returns
    -------
    CheckedArray
        Always ``czyx``.

    Raises
    ------
    CampaignError
        If the campaign has no such volume.
    StorageError
        If a file is missing or damaged, here or when voxels are read.
    """
    record = volumes.record(volume_id)
    return _open(volumes, record, "0").require((record.channels, *record.shape_zyx), record.dtype)


def open_levels(volumes: VolumeFolder, record: VolumeRecord) -> tuple[CheckedArray, ...]:
    """Open all resolution levels of a volume, ``czyx``, finest first; raises as `open_image`."""
    table = file_table(volumes, record)
    paths = level_paths(open_attributes(volumes.image_url(record.volume_id), lambda _: table))
    return tuple(_open(volumes, record, path) for path in paths)


def open_truth(volumes: VolumeFolder, volume_id: str, instances: bool = False) -> CheckedArray:
    """Open a volume's ground truth at full resolution, read-only.

    Parameters
    ----------
    volumes : VolumeFolder
        The campaign's volumes.
    volume_id : str
        A volume of it.
    instances : bool
        The numbered objects (uint32) instead of the classes (uint8).

    Returns
    -------
    CheckedArray
        ``zyx``.

    Raises
    ------
    VolumeError
        If there is no such truth.
    StorageError
        If a file is missing or damaged, here or when voxels are read.
    """
    return open_truth_of(volumes, volumes.record(volume_id), instances)


def open_truth_of(volumes: VolumeFolder, record: VolumeRecord, instances: bool = False) -> CheckedArray:
    """Open the ground truth of a volume whose record was read; see `open_truth`."""
    if record.truth is None or (instances and record.truth != "instance"):
        raise VolumeError(
            f"the volume has no {'instance ' if instances else ''}ground truth",
            where=record.volume_id,
            todo="Import it with --truth",
        )
    name, dtype = ("truth_instances", np.uint32) if instances else ("truth", np.uint8)
    return _open(volumes, record, f"labels/{name}/0").require(record.shape_zyx, dtype)


def _open(volumes: VolumeFolder, record: VolumeRecord, path: str) -> CheckedArray:
    table = file_table(volumes, record)
    return open_checked(volumes.image_url(record.volume_id), path, lambda _: table)


# which files an image has ---------------------------------------------------------------------------------------------


def file_table(volumes: VolumeFolder, record: VolumeRecord, *, anew: bool = False) -> FileTable | None:
    """Return the files of a volume's image; None where an earlier version imported it and nobody made the list since.

    With `anew` the list is read, even where this process knows it already.

    Raises
    ------
    StorageError
        If the list is missing, or not the one that the volume's record names.
    """
    if anew:
        _file_table.cache_clear()
    return _file_table(volumes.url, record.volume_id, record.files) if record.files else None


@lru_cache(maxsize=16)
def _file_table(url: str, volume_id: str, digest: str) -> FileTable:
    """Read a list once per process: its digest says what stands in it."""
    storage, path = Storage(url), SHARDS.path(volume=volume_id)
    data = storage.read_json(path)
    if digest_json(data) != digest:
        raise damaged(storage.path(path), "it is not the list of files that the volume's record names")
    return _TABLE.parse(data, storage.path(path))


def save_file_table(volumes: VolumeFolder, volume_id: str, table: FileTable) -> str:
    """Write the list of an image's files, and return the digest by which the volume's record is to name it."""
    data = _TABLE.to_json(dict(table))
    volumes.storage.write_json(SHARDS.path(volume=volume_id), data)
    return digest_json(data)
