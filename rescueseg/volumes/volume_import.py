"""Importing a volume into a campaign: streamed, checked, atomic, repeatable."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from rescueseg.campaign import Campaign, VolumeFolder
from rescueseg.campaign.layout import IMAGE, SHARDS, UNFINISHED_IMAGE, VOLUME
from rescueseg.errors import InvalidVolumeError, LabelError, VolumeError, storage_errors
from rescueseg.geometry import ZYX, Box, Spacing, partition, zyx
from rescueseg.image_files.hints import add_preprocessing
from rescueseg.image_files.source import Source
from rescueseg.labels import IGNORE, class_numbers, object_numbers
from rescueseg.progress import CountProgress
from rescueseg.records import LabelType, Normalisation, VolumeRecord
from rescueseg.storage import digest_array, digest_json
from rescueseg.volumes import ome_zarr
from rescueseg.volumes.comparison import compare_import, declare_distinct
from rescueseg.volumes.image_layout import ImageLayout, choose_chunks
from rescueseg.volumes.import_lock import one_at_a_time
from rescueseg.volumes.normalise import common_linear, measure
from rescueseg.volumes.opening import save_file_table
from rescueseg.volumes.shards import WrittenFiles, sync_files
from rescueseg.volumes.volume_files import VolumeImport

_SLAB_BYTES = 128 * 2**20
_LOST = 1e-3
"""Share of the range of values that rounding may cost."""
_STORED = {"bool": "uint8", "float16": "float32", "float64": "float32"}


def import_volume(campaign: Campaign, volume: VolumeImport, progress: CountProgress | None = None) -> VolumeRecord:
    """Copy an image, and its ground truth if there is any, into a campaign as OME-Zarr 0.5.

    The image is built beside its place and moved there when complete; the record, written last, makes it part of the
    campaign. A rerun of the same import changes nothing. At most about 128 MiB of voxels are held at a time where the
    source can be read in parts. Objects become class 1 in ``labels/truth`` (uint8), and their numbers stand in
    ``labels/truth_instances`` (uint32).

    Parameters
    ----------
    campaign : Campaign
        Where it goes.
    volume : VolumeImport
        Its files, and what a person says of them.
    progress : callable, optional
        Called with steps done and steps in all: slabs copied, pyramids built, the intensity scaling measured, the volume
        compared with the others.

    Returns
    -------
    VolumeRecord
        The record now in the campaign.

    Raises
    ------
    UnreadableVolumeError, InvalidVolumeError, MissingSpacingError
        If the image cannot be used.
    LabelError
        If the truth has another shape or values that are no class.
    VolumeError
        If the campaign has another volume of this name.
    CampaignError
        If the name is not valid.
    StorageError
        If the disk is full. In every case the campaign is as it was.
    """
    name = volume.name
    work = _Import(campaign, name, volume.open_image(), None, volume.truth_type, progress or _silent)
    try:
        size = volume.spacing_of(work.image)
        work.truth = volume.open_truth(work.image, campaign.config.classes)
        record = _new_record(volume, work, size)
        with one_at_a_time(campaign.storage):
            if campaign.storage.exists(VOLUME.path(volume=name)):
                record = _same_or_refuse(campaign.volumes, work, record, volume.domain)
            else:
                record = _build(campaign.volumes, work, record)
    finally:
        work.image.close()
        if work.truth is not None:
            work.truth.close()
    if volume.distinct or volume.distinct_from:
        declare_distinct(campaign.volumes, name, None if volume.distinct else volume.distinct_from)
    return record


def import_slabs(shape_zyx: ZYX, voxel_bytes: int) -> list[Box]:
    """Return the parts that a volume is imported by, and that its digest is made of: rows of shards within the memory bound."""
    shard = list(choose_chunks(shape_zyx)[1])
    slab = list(shard)
    for axis in (2, 1):
        for length in range(shape_zyx[axis] + shard[axis] - 1, shard[axis], -1):
            if length % shard[axis]:
                continue
            size = [*slab[:axis], length, *slab[axis + 1 :]]
            if np.prod(size) * voxel_bytes <= _SLAB_BYTES:
                slab = size
                break
    return partition(shape_zyx, zyx(slab))


def _new_record(volume: VolumeImport, work: _Import, spacing: Spacing) -> VolumeRecord:
    """Return what the campaign keeps of a volume, before its voxels are read."""
    image = work.image
    return VolumeRecord(
        volume_id=work.name,
        domain=volume.domain or default_domain(str(work.dtype), spacing),
        shape_zyx=image.shape_zyx,
        spacing_um_zyx=spacing,
        channels=image.channels,
        dtype=str(work.dtype),
        source=PurePosixPath(volume.origin).name,
        digest="",
        truth=None if work.truth is None else work.truth_type,
        normalisation=Normalisation(low=0, high=1, mean=0, std=1),
        hints=add_preprocessing(image.hints, volume.path),
        placement=image.placement.to_json() if image.placement else None,
    )


@dataclass
class _Import:
    """What is being imported, and its passes over the voxels."""

    campaign: Campaign
    name: str
    image: Source
    truth: Source | None
    truth_type: LabelType
    progress: CountProgress
    steps_done: int = 0

    @property
    def dtype(self) -> np.dtype[Any]:
        """Voxel type as stored."""
        return np.dtype(_STORED.get(str(self.image.dtype), self.image.dtype))

    def slabs(self) -> list[Box]:
        """Return the parts read at a time: whole rows of shards, within the memory bound."""
        return import_slabs(self.image.shape_zyx, self.dtype.itemsize * self.image.channels)

    def total(self) -> int:
        """Return the number of steps: slabs of all passes, pyramids, the intensity scaling, the comparison."""
        return (len(self.slabs()) + 1) * (1 if self.truth is None else 2) + 2

    def step(self) -> None:
        """Report one step."""
        self.steps_done += 1
        self.progress(self.steps_done, self.total())

    def copy_image(self, array: zarr.Array[Any] | None) -> str:
        """Write the image (unless `array` is None) and return the digest of its voxels."""
        digests, extremes, lost = [], list[float](), 0.0
        for slab in self.slabs():
            read = self.image.read(slab)
            with np.errstate(over="ignore"):  # what is too large for the stored type is refused below
                voxels = read.astype(self.dtype, copy=False)
            if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
                index = tuple(int(i) for i in np.argwhere(~np.isfinite(voxels))[0])
                at = tuple(o + i for o, i in zip(slab.offset_zyx, index[1:], strict=True))
                value = read[index]
                fault = f"{value:g}, too large for {self.dtype}" if np.isfinite(value) else "NaN or infinite"
                raise InvalidVolumeError(
                    f"voxel {at} (z y x, channel {index[0]}) is {fault}",
                    where=self.name,
                    todo="Replace such voxels, or crop them away, and import again",
                )
            extremes += [float(read.min()), float(read.max())]
            if read.dtype.itemsize > voxels.dtype.itemsize:
                lost = max(lost, float(np.abs(read - voxels).max()))
            digests.append(self._write(array, slab, voxels))
        if min(extremes) == max(extremes):
            raise InvalidVolumeError(
                f"every voxel is {extremes[0]:g}: there is nothing to see",
                where=self.name,
                todo="Check how the image was exported, and import it again",
            )
        if lost > _LOST * (max(extremes) - min(extremes)):
            raise InvalidVolumeError(
                f"its values, {min(extremes):.9g} to {max(extremes):.9g}, lie too close together for {self.dtype}",
                where=self.name,
                todo="Subtract an offset from the image, and import it again",
            )
        return slabs_digest(digests)

    def copy_truth(self, classes: zarr.Array[Any] | None, instances: zarr.Array[Any] | None) -> str:
        """Write the truth (unless the arrays are None) and return its digest."""
        assert self.truth is not None
        digests, ignored, labelled = [], False, False
        n_classes = self.campaign.config.n_classes
        for slab in self.slabs():
            numbers = self.truth.read(slab)[0]
            if self.truth_type == "instance":
                numbers = object_numbers(numbers, self.name)
                if classes is not None:
                    classes[slab.slices] = (numbers > 0).astype(np.uint8)
                digests.append(self._write(instances, slab, numbers))
                continue
            numbers = class_numbers(numbers, n_classes, self.name)
            ignored |= bool((numbers == IGNORE).any())
            labelled |= bool(((numbers > 0) & (numbers != IGNORE)).any())
            digests.append(self._write(classes, slab, numbers))
        if ignored and not labelled:
            raise LabelError(
                "the truth holds only 0 and 255, and 255 means 'not annotated'",
                where=self.name,
                todo="Write the class as 1, or import with truth type 'instance'",
            )
        return slabs_digest(digests)

    def _write(self, array: zarr.Array[Any] | None, slab: Box, voxels: npt.NDArray[Any]) -> str:
        if array is not None:
            array[(..., *slab.slices)] = voxels
        self.step()
        return digest_array(voxels)


def _build(volumes: VolumeFolder, work: _Import, record: VolumeRecord) -> VolumeRecord:
    """Write everything in a hidden folder, move it into place, then write the record."""
    storage, name = volumes.storage, work.name
    final = IMAGE.path(volume=name)
    part = UNFINISHED_IMAGE.path(volume=name) if storage.is_local else final
    url = storage.url_of(part)
    with storage_errors(url):
        storage.remove(part)
        try:
            image, truth, shape = "", "", record.shape_zyx
            layout = ImageLayout((record.channels, *shape), work.dtype, record.spacing_um_zyx, name=name)
            written = WrittenFiles(url)
            level = ome_zarr.create_image(url, layout, written)
            image = work.copy_image(level)
            ome_zarr.add_pyramid(url, written=written)
            work.step()
            if work.truth is not None:
                truth = _write_truth(work, record, written)
            linear = common_linear(v.normalisation for v in volumes.records(refused=True))
            normalisation = measure(level, choose_chunks(shape)[0], linear)
            work.step()
            parts = normalisation.per_channel or (normalisation,)
            names = [f"channel {i}" for i in range(len(parts))] if len(parts) > 1 else [name]
            ome_zarr.describe_channels(url, names, [(p.low, p.high) for p in parts])
            ome_zarr.validate(url)
            complete_record = record.model_copy(
                update={"digest": content_digest(record, image, truth), "normalisation": normalisation}
            )
            compare_import(volumes, complete_record, url)
            work.step()
            table = written.table(storage, part)
            sync_files(storage, part, table)
            if part != final:
                storage.remove(final)
                Path(storage.path(part)).rename(storage.path(final))
                url = storage.url_of(final)
                sync_files(storage, "volumes", ())
            files = save_file_table(volumes, name, table)
            complete_record = complete_record.model_copy(update={"files": files})
            volumes.save(complete_record)
        except BaseException:
            storage.remove(SHARDS.path(volume=name))
            shutil.rmtree(url, ignore_errors=True) if storage.is_local else storage.remove(part)
            raise
    return complete_record


def _write_truth(work: _Import, record: VolumeRecord, written: WrittenFiles) -> str:
    url, shape, spacing = written.url, record.shape_zyx, record.spacing_um_zyx
    classes = ome_zarr.create_labels(url, "truth", shape, np.uint8, spacing, written=written)
    instances = None
    if work.truth_type == "instance":
        instances = ome_zarr.create_labels(url, "truth_instances", shape, np.uint32, spacing, written=written)
    digest = work.copy_truth(classes, instances)
    for name in ["truth"] if instances is None else ["truth", "truth_instances"]:
        ome_zarr.add_pyramid(f"{url}/labels/{name}", labels=True, written=written)
    work.step()
    return digest


def _same_or_refuse(volumes: VolumeFolder, work: _Import, record: VolumeRecord, domain: str | None) -> VolumeRecord:
    """Return the stored record when it is of the same import; nothing is written."""
    existing = volumes.record(work.name)
    same = (existing.shape_zyx, existing.channels, existing.dtype) == (record.shape_zyx, record.channels, record.dtype)
    if same and (domain is None or existing.domain == domain):
        image = work.copy_image(None)
        truth = "" if work.truth is None else work.copy_truth(None, None)
        if existing.digest == content_digest(record, image, truth):
            return existing
    raise VolumeError(
        f"the campaign has another volume '{work.name}'",
        where=volumes.url,
        todo="Choose another volume id, or keep the one that is there",
    )


def slabs_digest(digests: Sequence[str]) -> str:
    """Return the digest of an image or a truth, from those of its slabs."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def content_digest(record: VolumeRecord, image: str, truth: str) -> str:
    """Return what `VolumeRecord.digest` is, from the digests of image and truth; the latter empty where there is none."""
    return digest_json(
        {"image": image, "truth": truth, "truth_type": record.truth, "spacing": list(record.spacing_um_zyx)}
    )


def default_domain(dtype: str, spacing: Spacing) -> str:
    """Return the domain of a volume that nobody named one for."""
    return f"{dtype}-" + "x".join(f"{s:.4g}" for s in spacing) + "um"


def is_default_domain(domain: str) -> bool:
    """Tell whether a domain's name is one of `default_domain` (perhaps with a number), not a person's."""
    return re.fullmatch(r"u?(int|float)\d+-[\d.e+-]+x[\d.e+-]+x[\d.e+-]+um(-\d+)?", domain) is not None


def _silent(_done: int, _total: int) -> None:
    """Report nothing."""
