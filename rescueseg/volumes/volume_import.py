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

from rescueseg.campaign import Campaign, VolumeFolder, check_id
from rescueseg.campaign.layout import IMAGE, UNFINISHED_IMAGE, VOLUME
from rescueseg.errors import InvalidVolumeError, LabelError, MissingSpacingError, VolumeError, storage_errors
from rescueseg.geometry import Box, Spacing, partition, zyx
from rescueseg.image_files.hints import add_preprocessing
from rescueseg.image_files.label_files import Grid, open_labels
from rescueseg.image_files.registry import open_source
from rescueseg.image_files.slices import is_planes, planes_name
from rescueseg.image_files.source import Source, Statement
from rescueseg.labels import IGNORE, class_numbers, object_numbers
from rescueseg.progress import CountProgress
from rescueseg.records import LabelType, Normalisation, VolumeRecord
from rescueseg.storage import digest_array, digest_json
from rescueseg.volumes import ome_zarr
from rescueseg.volumes.comparison import compare_import
from rescueseg.volumes.import_lock import one_at_a_time
from rescueseg.volumes.normalise import measure

_SLAB_BYTES = 128 * 2**20
_EXTENSION = re.compile(
    r"(\.ome)?\.(tiff?|btf|tf[28]|lsm|stk|nii|nii\.(gz|bz2)|hdr|img|img\.gz|nrrd|nhdr|zarr|h5|hdf5|hdf|ims|czi|nd2|lif|mrc|mrcs|rec|map|st|ali|nc)(?=$|[:/])",
    re.IGNORECASE,
)
_LOST = 1e-3
"""Share of the range of values that rounding may cost."""
_STORED = {"bool": "uint8", "float16": "float32", "float64": "float32"}


def import_volume(
    campaign: Campaign,
    path: str,
    *,
    volume_id: str | None = None,
    domain: str | None = None,
    spacing: Sequence[float] | None = None,
    truth: str | None = None,
    truth_type: LabelType | None = "semantic",
    said: Statement | None = None,
    progress: CountProgress | None = None,
) -> VolumeRecord:
    """Copy an image, and its ground truth if there is any, into a campaign as OME-Zarr 0.5.

    The image is built beside its place and moved there when complete; the record, written last, makes it part of the
    campaign. A rerun of the same import changes nothing. At most about 128 MiB of voxels are held at a time where the
    source can be read in parts.

    Parameters
    ----------
    campaign : Campaign
        Where it goes.
    path : str
        Any format of `open_source`.
    volume_id : str, optional
        Its name in the campaign; made from the file name when omitted.
    domain : str, optional
        Acquisition group; volumes of one dtype and spacing share one when omitted.
    spacing : sequence of float, optional
        Voxel size z, y, x in micrometre; wins over the metadata.
    truth : str, optional
        Ground truth of the same shape, any format.
    truth_type : {"semantic", "instance"}
        Semantic: 0 background, 1…K classes, 255 ignore. Instance: every object its own number; stored as class 1 in
        ``labels/truth`` (uint8) and as numbers in ``labels/truth_instances`` (uint32).
    said : Statement, optional
        What a person says of the image that its file does not say.
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
    name = check_id(volume_id if volume_id is not None else default_id(path), "volume id")
    work = _Import(campaign, name, open_source(path, said), None, truth_type or "semantic", progress or _silent)
    try:
        size = resolve_spacing(work.image, spacing, path)
        if truth is not None:
            work.truth = open_truth_file(
                truth, work.image, campaign.config.classes, work.truth_type, shared_statement(path, truth, said)
            )
        record = VolumeRecord(
            volume_id=name,
            domain=domain or default_domain(str(work.dtype), size),
            shape_zyx=work.image.shape_zyx,
            spacing_um_zyx=size,
            channels=work.image.channels,
            dtype=str(work.dtype),
            source=PurePosixPath(planes_name(path) if is_planes(path) else path).name,
            digest="",
            truth=work.truth_type if truth is not None else None,
            normalisation=Normalisation(low=0, high=1, mean=0, std=1),
            hints=add_preprocessing(work.image.hints, path),
            placement=work.image.placement.to_json() if work.image.placement else None,
        )
        with one_at_a_time(campaign.storage):
            if campaign.storage.exists(VOLUME.path(volume=name)):
                return _same_or_refuse(campaign.volumes, work, record, domain)
            return _build(campaign.volumes, work, record)
    finally:
        work.image.close()
        if work.truth is not None:
            work.truth.close()


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
        shape = self.image.shape_zyx
        voxel_bytes = self.dtype.itemsize * self.image.channels
        shard = list(ome_zarr.choose_chunks(shape)[1])
        slab = list(shard)
        for axis in (2, 1):
            for length in range(shape[axis] + shard[axis] - 1, shard[axis], -1):
                if length % shard[axis]:
                    continue
                size = [*slab[:axis], length, *slab[axis + 1 :]]
                if np.prod(size) * voxel_bytes <= _SLAB_BYTES:
                    slab = size
                    break
        return partition(shape, zyx(slab))

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
        return self._digest(digests)

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
        return self._digest(digests)

    def _write(self, array: zarr.Array[Any] | None, slab: Box, voxels: npt.NDArray[Any]) -> str:
        if array is not None:
            array[(..., *slab.slices)] = voxels
        self.step()
        return digest_array(voxels)

    def _digest(self, parts: list[str]) -> str:
        return hashlib.sha256("".join(parts).encode()).hexdigest()


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
            level = ome_zarr.create_image(
                url, (record.channels, *shape), work.dtype, record.spacing_um_zyx, name=name
            )  # fmt: skip
            image = work.copy_image(level)
            ome_zarr.add_pyramid(url)
            work.step()
            if work.truth is not None:
                truth = _write_truth(url, work, record)
            normalisation = measure(level, ome_zarr.choose_chunks(shape)[0])
            work.step()
            parts = normalisation.per_channel or (normalisation,)
            names = [f"channel {i}" for i in range(len(parts))] if len(parts) > 1 else [name]
            ome_zarr.describe_channels(url, names, [(p.low, p.high) for p in parts])
            ome_zarr.validate(url)
            complete_record = record.model_copy(
                update={"digest": _content_digest(record, image, truth), "normalisation": normalisation}
            )
            compare_import(volumes, complete_record, url)
            work.step()
            if part != final:
                storage.remove(final)
                Path(storage.path(part)).rename(storage.path(final))
                url = storage.url_of(final)
            volumes.save(complete_record)
        except BaseException:
            shutil.rmtree(url, ignore_errors=True) if storage.is_local else storage.remove(part)
            raise
    return complete_record


def _write_truth(url: str, work: _Import, record: VolumeRecord) -> str:
    shape, spacing = record.shape_zyx, record.spacing_um_zyx
    classes = ome_zarr.create_labels(url, "truth", shape, np.uint8, spacing)
    instances = None
    if work.truth_type == "instance":
        instances = ome_zarr.create_labels(url, "truth_instances", shape, np.uint32, spacing)
    digest = work.copy_truth(classes, instances)
    for name in ["truth"] if instances is None else ["truth", "truth_instances"]:
        ome_zarr.add_pyramid(f"{url}/labels/{name}", labels=True)
    work.step()
    return digest


def _same_or_refuse(volumes: VolumeFolder, work: _Import, record: VolumeRecord, domain: str | None) -> VolumeRecord:
    """Return the stored record when it is of the same import; nothing is written."""
    existing = volumes.record(work.name)
    same = (existing.shape_zyx, existing.channels, existing.dtype) == (record.shape_zyx, record.channels, record.dtype)
    if same and (domain is None or existing.domain == domain):
        image = work.copy_image(None)
        truth = "" if work.truth is None else work.copy_truth(None, None)
        if existing.digest == _content_digest(record, image, truth):
            return existing
    raise VolumeError(
        f"the campaign has another volume '{work.name}'",
        where=volumes.url,
        todo="Choose another volume id, or keep the one that is there",
    )


def _content_digest(record: VolumeRecord, image: str, truth: str) -> str:
    return digest_json(
        {"image": image, "truth": truth, "truth_type": record.truth, "spacing": list(record.spacing_um_zyx)}
    )


def open_truth_file(
    path: str, image: Source, classes: Sequence[str], truth_type: LabelType, said: Statement | None = None
) -> Source:
    """Open the ground truth of an image, laid on its voxels.

    Parameters
    ----------
    path : str
        Any format; a segmentation of 3D Slicer names its classes.
    image : Source
        The image.
    classes : sequence of str
        Names of classes 1…K.
    truth_type : {"semantic", "instance"}
        What its numbers mean.
    said : Statement, optional
        What a person says of image and truth, where both are of one format.

    Raises
    ------
    UnreadableVolumeError, LabelError
        If it cannot be read, or does not lie on the image.
    """
    names = {name: number for number, name in enumerate(classes, start=1)} if truth_type == "semantic" else {}
    return open_labels(path, Grid.of(image), names, said)


def shared_statement(path: str, truth: str, said: Statement | None) -> Statement | None:
    """Return what is said of an image where it holds for its truth too: where both are of one format."""
    ends = [(_EXTENSION.search(p) or [""])[0].lower() for p in (path, truth)]
    return said if ends[0] == ends[1] else None


def resolve_spacing(image: Source, override: Sequence[float] | None, where: str) -> Spacing:
    """Return the voxel size in micrometre, z y x: `override` where it is given, else that of the metadata.

    Raises
    ------
    MissingSpacingError
        If there is none, or `override` is no voxel size.
    """
    if override is not None:
        values = [float(v) for v in override]
        if len(values) != 3 or not all(np.isfinite(v) and v > 0 for v in values):
            raise MissingSpacingError(
                f"the spacing {values} is no voxel size", where=where, todo="Give three lengths in micrometre: z y x"
            )
        return values[0], values[1], values[2]
    if image.spacing_um_zyx is None:
        note = f" ({image.spacing_note})" if image.spacing_note else ""
        raise MissingSpacingError(
            f"the voxel size is not known{note}", where=where, todo="Give it in micrometre: --spacing Z,Y,X"
        )
    return image.spacing_um_zyx


def default_id(path: str) -> str:
    """Return a volume id made from a file name, safe whatever the name is."""
    stem = _EXTENSION.sub("", path.rstrip("/"))
    last = re.split(r"[/\\]", stem.split(":")[0] if "://" not in stem else stem)[-1]
    clean = re.sub(r"[^A-Za-z0-9._-]+|\.\.+", "-", last).strip("-._")
    return clean[:64] or "volume"


def default_domain(dtype: str, spacing: Spacing) -> str:
    """Return the domain of a volume that nobody named one for."""
    return f"{dtype}-" + "x".join(f"{s:.4g}" for s in spacing) + "um"


def is_default_domain(domain: str) -> bool:
    """Tell whether a domain's name is one of `default_domain` (perhaps with a number), not a person's."""
    return re.fullmatch(r"u?(int|float)\d+-[\d.e+-]+x[\d.e+-]+x[\d.e+-]+um(-\d+)?", domain) is not None


def _silent(_done: int, _total: int) -> None:
    """Report nothing."""
