"""Checking the whole image of a volume, and listing the files of one that an earlier version imported."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from rescueseg.campaign import VolumeFolder
from rescueseg.campaign.layout import IMAGE
from rescueseg.errors import StorageError, damaged
from rescueseg.geometry import Box, partition, zyx
from rescueseg.progress import CountProgress
from rescueseg.records import VolumeRecord
from rescueseg.storage import digest_array
from rescueseg.volumes.checked_array import CheckedArray, open_attributes, open_checked
from rescueseg.volumes.import_lock import one_at_a_time
from rescueseg.volumes.ome_zarr import downsample, level_paths
from rescueseg.volumes.opening import file_table, open_image, open_truth, save_file_table
from rescueseg.volumes.shards import FileTable, check_file, sum_of_file, zarr_files
from rescueseg.volumes.volume_import import content_digest, import_slabs, slabs_digest

Step = Callable[[], None]
"""A piece of a check; raises `StorageError` where something is damaged."""


def check_image(volumes: VolumeFolder, volume_id: str, progress: CountProgress | None = None) -> list[StorageError]:
    """Read every file of a volume's image and hold it against what was stored.

    Where an earlier version imported the volume, there is no list of its files: its voxels are held against the digest of
    the import, and the coarser levels against the finer ones.

    Parameters
    ----------
    volumes : VolumeFolder
        The campaign's volumes.
    volume_id : str
        A volume of it.
    progress : callable, optional
        Called with files (or parts of the volume) read, and how many there are.

    Returns
    -------
    list of StorageError
        One for each file that is missing, damaged, or none of the image's.

    Raises
    ------
    CampaignError
        If the campaign has no such volume.
    StorageError
        If its record is damaged.
    """
    record = volumes.record(volume_id)
    try:
        table = file_table(volumes, record, anew=True)
        steps = _voxel_steps(volumes, record) if table is None else _file_steps(volumes, volume_id, table)
    except StorageError as error:
        return [error]
    errors: list[StorageError] = []
    for done, step in enumerate(steps, start=1):
        try:
            step()
        except StorageError as error:
            errors.append(error)
        if progress is not None:
            progress(done, len(steps))
    return list({str(error): error for error in errors}.values())


def seal_image(volumes: VolumeFolder, volume_id: str, progress: CountProgress | None = None) -> bool:
    """List the files of an image that an earlier version imported, so that damage is found from then on.

    Parameters
    ----------
    volumes : VolumeFolder
        The campaign's volumes.
    volume_id : str
        A volume of it.
    progress : callable, optional
        As of `check_image`.

    Returns
    -------
    bool
        False if there is a list already; nothing is checked then.

    Raises
    ------
    StorageError
        If its voxels are not those that were imported; nothing is written.
    """
    storage = volumes.storage
    with one_at_a_time(storage):
        record = volumes.record(volume_id)
        if record.files:
            return False
        if errors := check_image(volumes, volume_id, progress):
            raise errors[0]
        folder = IMAGE.path(volume=volume_id)
        table = {name: sum_of_file(storage, f"{folder}/{name}") for name in zarr_files(storage, folder)}
        volumes.save(record.model_copy(update={"files": save_file_table(volumes, volume_id, table)}))
    return True


# with a list of files -------------------------------------------------------------------------------------------------


def _file_steps(volumes: VolumeFolder, volume_id: str, table: FileTable) -> list[Step]:
    storage, folder = volumes.storage, IMAGE.path(volume=volume_id)

    def check(name: str) -> None:
        check_file(storage, f"{folder}/{name}", table[name])

    def refuse(name: str) -> None:
        raise damaged(storage.path(f"{folder}/{name}"), "it is no file of this image")

    foreign = [name for name in zarr_files(storage, folder) if name not in table]
    return [*(partial(check, name) for name in table), *(partial(refuse, name) for name in foreign)]


# without one ----------------------------------------------------------------------------------------------------------


def _voxel_steps(volumes: VolumeFolder, record: VolumeRecord) -> list[Step]:
    """Return the steps of a check by voxels: the slabs that the digest is made of, then the coarser levels."""
    name, url = record.volume_id, volumes.image_url(record.volume_id)
    parts = {"image": open_image(volumes, name)}
    if record.truth is not None:
        parts["truth"] = open_truth(volumes, name, instances=record.truth == "instance")
    slabs = import_slabs(record.shape_zyx, parts["image"].dtype.itemsize * record.channels)
    digests: dict[str, list[str]] = {part: [] for part in parts}

    def read(part: str, slab: Box) -> None:
        digests[part].append(digest_array(np.asarray(parts[part][(..., *slab.slices)])))

    def compare() -> None:
        image, truth = (slabs_digest(digests[p]) if p in parts else "" for p in ("image", "truth"))
        unread = any(len(d) < len(slabs) for d in digests.values())
        if not unread and content_digest(record, image, truth) != record.digest:
            raise damaged(url, "its voxels are not those that were imported")

    steps: list[Step] = [partial(read, part, slab) for part in parts for slab in slabs]
    steps.append(compare)
    if record.truth == "instance":
        classes, numbers = open_truth(volumes, name), parts["truth"]
        steps += [partial(_same_classes, classes, numbers, slab) for slab in slabs]
    truths = {"semantic": ["labels/truth"], "instance": ["labels/truth", "labels/truth_instances"]}
    for folder in ["", *truths.get(record.truth or "", [])]:
        steps += _level_steps(url, folder)
    return steps


def _same_classes(classes: CheckedArray, numbers: CheckedArray, slab: Box) -> None:
    if not np.array_equal(np.asarray(classes[slab.slices]), np.asarray(numbers[slab.slices]) > 0):
        raise damaged(classes.url, f"its classes are not those of the numbered objects at {slab}")


def _level_steps(url: str, folder: str) -> Iterator[Step]:
    """Yield the checks of the coarser levels of an image or a truth, shard by shard."""
    where = f"{url}/{folder}" if folder else url
    levels = [open_checked(where, path, lambda _: None) for path in level_paths(open_attributes(where, lambda _: None))]
    for fine, coarse in itertools.pairwise(levels):
        for box in partition(coarse.shape[-3:], zyx((coarse.shards or coarse.chunks)[-3:])):
            yield partial(_same_level, fine, coarse, box, labels=bool(folder))


def _same_level(fine: CheckedArray, coarse: CheckedArray, box: Box, *, labels: bool) -> None:
    """Hold a part of a coarser level against the finer one; floats may differ by their last bit."""
    factors = zyx(round(f / c) for f, c in zip(fine.shape[-3:], coarse.shape[-3:], strict=True))
    start, stop = ([n * f for n, f in zip(ends, factors, strict=True)] for ends in (box.offset_zyx, box.stop_zyx))
    source = Box.from_bounds(start, stop).clip(fine.shape[-3:])
    for channel in np.ndindex(*fine.shape[:-3]):
        voxels = downsample(np.asarray(fine[(*channel, *source.slices)]), factors, labels=labels)
        stored = np.asarray(coarse[(*channel, *box.slices)])
        if not (np.allclose(voxels, stored, rtol=1e-6) if stored.dtype.kind == "f" else np.array_equal(voxels, stored)):
            raise damaged(coarse.url, f"it is not the coarser image of the level before it at {box}")
