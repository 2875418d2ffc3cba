"""Checking all maps of a volume."""

from __future__ import annotations

import hashlib

import numpy as np

from rescueseg.campaign.layout import MAPS, MAPS_BLOCKS, MAPS_PLAN, MAPS_RECORD
from rescueseg.errors import StorageError, damaged
from rescueseg.inference.maps import InferencePlan, VolumeMaps
from rescueseg.progress import CountProgress
from rescueseg.storage import digest_json
from rescueseg.volumes.shards import check_file


def check_maps(maps: VolumeMaps, progress: CountProgress | None = None) -> list[StorageError]:
    """Read the maps of a volume, block by block, and hold them against what was stored.

    Blocks that an earlier version computed have no list of files: their voxels are held against the block's digest.

    Parameters
    ----------
    maps : VolumeMaps
        Finished or not; of unfinished ones, the blocks that are done.
    progress : callable, optional
        Called with blocks read, and how many there are.

    Returns
    -------
    list of StorageError
        One for each file that is missing or damaged.
    """
    storage = maps.generation.storage
    try:
        plan, reference = maps.plan(), maps.reference()
    except StorageError as error:
        return [error]
    if plan is None:
        path = maps.path(MAPS_PLAN)
        what = "it does not say what the maps were made with" if storage.exists(path) else "it is missing"
        return [damaged(storage.path(path), what)] if reference else []
    total, errors, digests = len(plan.blocks), list[StorageError](), list[str]()
    for index in range(total):
        if reference is not None or storage.exists(maps.path(MAPS_BLOCKS, f"{index:06d}.json")):
            digest, found = _check_block(maps, plan, index)
            digests.append(digest)
            errors += found
        if progress is not None:
            progress(index + 1, total)
    if reference is not None and not errors and reference.digest != digest_json([plan.digest, digests]):
        errors.append(damaged(storage.path(maps.path(MAPS_RECORD)), "its digest is not that of the blocks"))
    return errors


def _check_block(maps: VolumeMaps, plan: InferencePlan, index: int) -> tuple[str, list[StorageError]]:
    """Return the recorded digest of a block, and what is wrong with its files."""
    storage, errors = maps.generation.storage, list[StorageError]()
    try:
        marker = maps.marker(plan, index)
    except StorageError as error:
        return "", [error]
    for name, expected in (marker.files or {}).items():
        try:
            check_file(storage, f"{maps.path(MAPS)}/{name}", expected)
        except StorageError as error:
            errors.append(error)
    if marker.files is None:
        errors += _check_voxels(maps, plan, index, marker.digest)
    return marker.digest, errors


def _check_voxels(maps: VolumeMaps, plan: InferencePlan, index: int, expected: str) -> list[StorageError]:
    digest, box = hashlib.sha256(), plan.blocks[index]
    try:
        for quantity in plan.quantities:
            voxels = np.ascontiguousarray(maps.open_planned(plan, quantity)[(..., *box.slices)])
            digest.update(voxels.data)
    except StorageError as error:
        return [error]
    if digest.hexdigest() == expected:
        return []
    return [damaged(maps.url, f"the voxels of block {index} at {box} are not those that were computed")]
