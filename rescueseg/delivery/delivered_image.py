"""The OME-Zarr of a delivery before anything is in it: the image beside the labels, and empty label images."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr

from rescueseg.delivery.block_pass import Arrays
from rescueseg.delivery.folder import MASK, OBJECTS, SourceVolume
from rescueseg.delivery.step import Step
from rescueseg.errors import storage_errors
from rescueseg.geometry import ZYX, Box, zyx
from rescueseg.image_files.zarr_url import zarr_store
from rescueseg.records import VolumeRecord
from rescueseg.storage import digest_json
from rescueseg.volumes.checked_array import open_attributes
from rescueseg.volumes.image_layout import CHUNK_ZYX, ImageLayout, choose_chunks
from rescueseg.volumes.ome_zarr import create_label_image, create_level
from rescueseg.volumes.opening import file_table, open_levels

_TYPES = {MASK: np.uint8, OBJECTS: np.uint32}
_STAMP = "rescueseg"


def chunks_in(block_zyx: ZYX) -> ZYX:
    """Return the chunks of an array whose shards are blocks: about 32×64×64 voxels, an integer number along each axis.

    Examples
    --------
    >>> chunks_in((64, 192, 200)), chunks_in((1, 61, 127))
    ((32, 64, 50), (1, 61, 127))
    """
    chunks = []
    for block, largest in zip(block_zyx, CHUNK_ZYX, strict=True):
        chunk = max(n for n in range(1, min(block, largest) + 1) if block % n == 0)
        chunks.append(chunk if 4 * chunk > largest else block)
    return zyx(chunks)


def create_delivered_image(
    url: str, source: SourceVolume, step: Step, labels: Sequence[str], block_zyx: ZYX, *, with_image: bool = True
) -> str:
    """Make the OME-Zarr of a delivered volume: empty label images, and a copy of the image with all its levels.

    What is there stays when it was made for the same and is not complete yet; else it is replaced.

    Parameters
    ----------
    url : str
        Where it goes.
    source : SourceVolume
        The volume.
    step : Step
        Of the copying.
    labels : sequence of str
        "mask" (uint8), "objects" (uint32); empty level 0 of each, its shards the blocks.
    block_zyx : tuple of int
        The blocks in which passes write labels.
    with_image : bool
        Whether the image is copied, with the names and windows of its channels. Without it there is a group ``labels``
        alone, whose label images are valid by themselves.

    Returns
    -------
    str
        Identity of these arrays: a new one whenever they were made anew and are empty. Passes that write into them depend
        on it.

    Raises
    ------
    StorageError
        If a file of the campaign's image is damaged, or the disk is full.
    """
    record = source.volumes.record(source.volume_id)
    made_for = digest_json([step.digest, record.digest, list(labels), list(block_zyx), with_image])
    identity = _identity(url, made_for)
    if identity is None:
        identity = _create(url, source, record, labels, block_zyx, with_image=with_image, made_for=made_for)
    if with_image:
        copying = Step(step.url, identity, step.client, step.progress)
        for number, level in enumerate(open_levels(source.volumes, record)):
            shape = zyx(level.shape[1:])
            copying.run(
                copying.block_pass(f"image_{number}", shape, choose_chunks(shape)[1]),
                _copy_block,
                _Copy(url, source, number),
            )
    return identity


def arrays_identity(url: str) -> str | None:
    """Return the identity of the arrays of a delivered image, see `create_delivered_image`; None where they are not complete."""
    identity = _stamp(url).get("identity")
    return None if identity is None else str(identity)


def _identity(url: str, made_for: str) -> str | None:
    """Return the identity of what is there if it was made for the same; None where it is to be made."""
    stamp = _stamp(url)
    return str(stamp["identity"]) if stamp.get("made_for") == made_for else None


def _stamp(url: str) -> dict[str, Any]:
    try:
        group = zarr.open_group(zarr_store(url), mode="r", zarr_format=3)
    except (FileNotFoundError, ValueError, KeyError):
        return {}
    stamp: Any = group.attrs.asdict().get(_STAMP, {})
    return dict(stamp)


def _create(
    url: str,
    source: SourceVolume,
    record: VolumeRecord,
    labels: Sequence[str],
    block_zyx: ZYX,
    *,
    with_image: bool,
    made_for: str,
) -> str:
    """Make all arrays, empty; what says that they are complete is written last."""
    attributes = {}
    if with_image:
        table = file_table(source.volumes, record)
        attributes = {"ome": open_attributes(source.volumes.image_url(record.volume_id), lambda _: table)["ome"]}
    with storage_errors(url):
        group = zarr.create_group(zarr_store(url), overwrite=True, zarr_format=3, attributes=attributes)
        if with_image:
            for number, level in enumerate(open_levels(source.volumes, record)):
                create_level(group, _path(attributes, number), level.shape, level.dtype)
        for name in labels:
            layout = ImageLayout(
                record.shape_zyx,
                _TYPES[name],
                record.spacing_um_zyx,
                chunks=chunks_in(block_zyx),
                shards=block_zyx,
                name=name,
            )
            create_label_image(url, layout)
        identity = uuid.uuid4().hex
        group = zarr.open_group(zarr_store(url), mode="r+", zarr_format=3)
        group.attrs[_STAMP] = {"made_for": made_for, "identity": identity}
    return identity


def _path(attributes: dict[str, Any], level: int) -> str:
    return str(attributes["ome"]["multiscales"][0]["datasets"][level]["path"])


@dataclass(frozen=True)
class _Copy:
    url: str
    source: SourceVolume
    level: int


def _copy_block(job: _Copy, box: Box) -> Arrays:
    volumes = job.source.volumes
    fine = open_levels(volumes, volumes.record(job.source.volume_id))[job.level]
    with storage_errors(job.url):
        group = zarr.open_group(zarr_store(job.url), mode="r+", zarr_format=3)
        target: Any = group[_path(group.attrs.asdict(), job.level)]
        for channel in range(fine.shape[0]):
            target[(channel, *box.slices)] = fine[(channel, *box.slices)]
    return {}
