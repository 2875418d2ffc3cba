"""Importing a volume into a campaign: streamed, checked, atomic, repeatable."""

from __future__ import annotations

import fcntl
import hashlib
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from rescueseg.campaign import Campaign, check_id
from rescueseg.errors import InvalidVolumeError, LabelError, MissingSpacingError, VolumeError, storage_errors
from rescueseg.geometry import Box, Spacing, partition, zyx
from rescueseg.labels import IGNORE
from rescueseg.progress import CountProgress
from rescueseg.records import LabelType, Normalisation, VolumeRecord
from rescueseg.storage import digest_array, digest_json
from rescueseg.volumes import ome_zarr
from rescueseg.volumes.hints import add_preprocessing
from rescueseg.volumes.importers import open_source
from rescueseg.volumes.normalise import measure
from rescueseg.volumes.source import Source

_SLAB_BYTES = 128 * 2**20
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
    progress : callable, optional
        Called with steps done and steps in all: slabs copied, pyramids built, the intensity scaling measured.

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
    work = _Import(campaign, name, open_source(path), None, truth_type or "semantic", progress or _silent)
    try:
        size = resolve_spacing(work.image, spacing, path)
        if truth is not None:
            work.truth = open_source(truth)
            check_truth_shape(work.image, work.truth, truth)
        record = VolumeRecord(
            volume_id=name,
            domain=domain or default_domain(str(work.dtype), size),
            shape_zyx=work.image.shape_zyx,
            spacing_um_zyx=size,
            channels=work.image.channels,
            dtype=str(work.dtype),
            source=PurePosixPath(path).name,
            digest="",
            truth=work.truth_type if truth is not None else None,
            normalisation=Normalisation(low=0, high=1, mean=0, std=1),
            hints=add_preprocessing(work.image.hints, path),
        )
        with _one_at_a_time(campaign):
            if campaign.storage.exists(f"volumes/{name}.json"):
                return _same_or_refuse(campaign, work, record, domain)
            return _build(campaign, work, record)
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
        """Return the number of steps: slabs of all passes, pyramids, the intensity scaling."""
        return (len(self.slabs()) + 1) * (1 if self.truth is None else 2) + 1

    def step(self) -> None:
        """Report one step."""
        self.steps_done += 1
        self.progress(self.steps_done, self.total())

    def copy_image(self, array: zarr.Array[Any] | None) -> str:
        """Write the image (unless `array` is None) and return the digest of its voxels."""
        digests = []
        for slab in self.slabs():
            voxels = self.image.read(slab).astype(self.dtype, copy=False)
            if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
                c, *at = (int(i) for i in np.argwhere(~np.isfinite(voxels))[0])
                at = [o + i for o, i in zip(slab.offset_zyx, at, strict=True)]
                raise InvalidVolumeError(
                    f"voxel {tuple(at)} (z y x, channel {c}) is NaN or infinite",
                    where=self.name,
                    todo="Replace such voxels, or crop them away, and import again",
                )
            digests.append(self._write(array, slab, voxels))
        return self._digest(digests)

    def copy_truth(self, classes: zarr.Array[Any] | None, instances: zarr.Array[Any] | None) -> str:
        """Write the truth (unless the arrays are None) and return its digest."""
        assert self.truth is not None
        digests, ignored, labelled = [], False, False
        n_classes = self.campaign.config.n_classes
        for slab in self.slabs():
            numbers = self.truth.read(slab)[0]
            if self.truth_type == "instance":
                numbers = _as_object_numbers(numbers, self.name)
                if classes is not None:
                    classes[slab.slices] = (numbers > 0).astype(np.uint8)
                digests.append(self._write(instances, slab, numbers))
                continue
            numbers = as_class_labels(numbers, n_classes, self.name)
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


def _build(campaign: Campaign, work: _Import, record: VolumeRecord) -> VolumeRecord:
    """Write everything in a hidden folder, move it into place, then write the record."""
    storage, name = campaign.storage, work.name
    final = f"volumes/{name}.ome.zarr"
    part = f"volumes/.{name}.part" if storage.is_local else final
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
            if part != final:
                storage.remove(final)
                Path(storage.path(part)).rename(storage.path(final))
        except BaseException:
            shutil.rmtree(url, ignore_errors=True) if storage.is_local else storage.remove(part)
            raise
        campaign.save_volume(complete_record)
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


def _same_or_refuse(campaign: Campaign, work: _Import, record: VolumeRecord, domain: str | None) -> VolumeRecord:
    """Return the stored record when it is of the same import; nothing is written."""
    existing = campaign.volume(work.name)
    same = (existing.shape_zyx, existing.channels, existing.dtype) == (record.shape_zyx, record.channels, record.dtype)
    if same and (domain is None or existing.domain == domain):
        image = work.copy_image(None)
        truth = "" if work.truth is None else work.copy_truth(None, None)
        if existing.digest == _content_digest(record, image, truth):
            return existing
    raise VolumeError(
        f"the campaign has another volume '{work.name}'",
        where=campaign.url,
        todo="Choose another volume id, or keep the one that is there",
    )


def _content_digest(record: VolumeRecord, image: str, truth: str) -> str:
    return digest_json(
        {"image": image, "truth": truth, "truth_type": record.truth, "spacing": list(record.spacing_um_zyx)}
    )


def as_class_labels(numbers: npt.NDArray[Any], n_classes: int, where: str) -> npt.NDArray[np.uint8]:
    """Return semantic labels as uint8.

    Parameters
    ----------
    numbers : ndarray
        Any shape and real dtype.
    n_classes : int
        K.
    where : str
        For the message.

    Raises
    ------
    LabelError
        If a value is neither 0…K nor 255.
    """
    wrong = ~np.isin(numbers, [*range(n_classes + 1), IGNORE])
    if wrong.any():
        values = np.unique(numbers[wrong])
        shown = ", ".join(f"{v:g}" for v in values[:5].tolist()) + (", …" if len(values) > 5 else "")
        raise LabelError(
            f"the truth holds values that are no class: {shown}",
            where=where,
            todo=f"Use 0 for background, {'1' if n_classes == 1 else f'1…{n_classes}'} for the classes and 255 for 'not annotated'; "
            "objects with numbers of their own are of type 'instance'",
        )
    return numbers.astype(np.uint8)


def _as_object_numbers(numbers: npt.NDArray[Any], where: str) -> npt.NDArray[np.uint32]:
    possible = bool(((numbers >= 0) & (numbers < 2**32)).all())
    whole = numbers.astype(np.uint32) if possible else np.zeros(0, np.uint32)
    if not np.array_equal(whole, numbers):
        raise LabelError(
            "the truth holds values that are no object number (negative, broken or above 2^32)",
            where=where,
            todo="Number the objects 1, 2, 3, … and the background 0",
        )
    return whole


def check_truth_shape(image: Source, truth: Source, where: str) -> None:
    """Refuse a truth that is not on the image's voxel grid.

    Raises
    ------
    LabelError
        If its shape differs, or it has several channels.
    """
    if truth.channels != 1 or truth.shape_zyx != image.shape_zyx:
        raise LabelError(
            f"the truth has shape {truth.shape}, the image {image.shape_zyx} (z y x)",
            where=where,
            todo="Export the truth on the image's own voxel grid",
        )


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
    stem = re.sub(r"(\.ome)?\.(tiff?|lsm|nii|nii\.gz|nrrd|nhdr|zarr|h5|hdf5|hdf)(?=$|[:/])", "", path.rstrip("/"))
    last = re.split(r"[/\\]", stem.split(":")[0] if "://" not in stem else stem)[-1]
    clean = re.sub(r"[^A-Za-z0-9._-]+|\.\.+", "-", last).strip("-._")
    return clean[:64] or "volume"


def default_domain(dtype: str, spacing: Spacing) -> str:
    """Return the domain of a volume that nobody named one for."""
    return f"{dtype}-" + "x".join(f"{s:.4g}" for s in spacing) + "um"


def is_default_domain(domain: str) -> bool:
    """Tell whether a domain's name is one of `default_domain` (perhaps with a number), not a person's."""
    return re.fullmatch(r"u?(int|float)\d+-[\d.e+-]+x[\d.e+-]+x[\d.e+-]+um(-\d+)?", domain) is not None


@contextmanager
def _one_at_a_time(campaign: Campaign) -> Iterator[None]:
    """Keep two imports into a campaign apart; the system lifts the lock when the process dies."""
    if not campaign.storage.is_local:
        yield
        return
    with Path(campaign.storage.path("campaign.toml")).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _silent(_done: int, _total: int) -> None:
    """Report nothing."""
