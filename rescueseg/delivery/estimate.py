"""What a delivery would take, told before it is begun: voxels, disk, time."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path

from rescueseg.campaign import Campaign
from rescueseg.campaign.stage_results import INFERENCE
from rescueseg.delivery.export import bytes_of_delivery
from rescueseg.delivery.folder import DeliveryFolder
from rescueseg.delivery.new_volumes import expand, new_volume
from rescueseg.delivery.records import DELIVERY, DeliveredVolume
from rescueseg.delivery.request import DeliveryModel, Format, SegmentRequest, delivery_model
from rescueseg.delivery.rule import makes_what_is_asked
from rescueseg.errors import RescuesegError, StorageError
from rescueseg.geometry import ZYX, Spacing
from rescueseg.inference.engine import volume_digest
from rescueseg.inference.maps import UNCERTAINTIES
from rescueseg.storage import Storage
from rescueseg.volumes.batch_import import preview_volumes
from rescueseg.volumes.volume_files import VolumeImport

SCRATCH = sum(
    (
        1,  # the uncleaned mask
        4 + 1 + 1,  # bridges: numbers of pieces, what is marked, the mask
        4 + 1 + 1,  # spurs: the same
        1 + 1,  # small pieces, cavities: the mask; the last step writes into the delivery
        3,  # components at the faces of blocks, and their tables, of some ten passes
    )
)
"""Bytes per voxel of what passes hand on, before compression, when all is cleaned; kept until the mask is finished. Basins
of objects, 4 with 3 for their tables, come when that is removed."""


@dataclass(frozen=True)
class VolumeSize:
    """A volume that is to be delivered.

    Parameters
    ----------
    name : str
        Its id.
    shape_zyx : tuple of int
        In voxels.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.
    channels, itemsize : int
        Of the image; bytes of a voxel of one channel.
    new : bool
        Whether it is imported on the way.
    has_maps : bool
        Whether its maps are there already.
    again : bool
        Whether it was delivered, by another rule or with another image.
    formats : frozenset of str
        In which its labels are written beside the OME-Zarr.
    """

    name: str
    shape_zyx: ZYX
    spacing_um_zyx: Spacing
    channels: int
    itemsize: int
    new: bool
    has_maps: bool
    again: bool = False
    formats: frozenset[Format] = frozenset()

    @property
    def voxels(self) -> int:
        """How many."""
        return prod(self.shape_zyx)

    def __str__(self) -> str:
        how = ["delivered otherwise, to be made again"] if self.again else ["new"] if self.new else []
        how.append("maps are there" if self.has_maps else "to be predicted")
        shape, spacing = ("×".join(f"{n:g}" for n in values) for values in (self.shape_zyx, self.spacing_um_zyx))
        return f"{self.name}: {shape} voxels (zyx) of {spacing} µm, {', '.join(how)}"


@dataclass(frozen=True)
class Estimate:
    """What a delivery would take.

    Parameters
    ----------
    volumes : tuple of VolumeSize
        Those that are not done.
    done : int
        Volumes that are.
    bytes_by_part : dict of str to int
        At most, by what they are for.
    map_seconds : float or None
        Of the maps that are not there, by the speed of the generation's inference; None where that is not known.
    passed_over : tuple of str
        A line for each file that is no volume.
    impossible : tuple of str
        A line for each volume that cannot be delivered; the others are.
    """

    volumes: tuple[VolumeSize, ...]
    done: int
    bytes_by_part: dict[str, int]
    map_seconds: float | None
    passed_over: tuple[str, ...]
    impossible: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """At most, in all."""
        return sum(self.bytes_by_part.values())

    def lines(self, folder: DeliveryFolder) -> list[str]:
        """Say it for people."""
        lines = [f"Not a volume, passed over: {line}" for line in self.passed_over]
        lines += [f"Cannot be delivered: {line}" for line in self.impossible]
        lines += [str(volume) for volume in self.volumes]
        if self.done:
            were = "volume was" if self.done == 1 else "volumes were"
            lines.append(f"{self.done} {were} delivered already: only corrections and new formats are added")
        if self.bytes:
            voxels = f"{sum(v.voxels for v in self.volumes):,} voxels; " if self.volumes else ""
            parts = ", ".join(f"{part} {_size(count)}" for part, count in self.bytes_by_part.items() if count)
            free = _free(folder)
            disk = "" if free is None else f"; {_size(free)} are free"
            lines.append(f"{voxels}at most {_size(self.bytes)} of disk ({parts}){disk}")
        if all(volume.has_maps for volume in self.volumes):
            lines += ["Nothing to predict; masks, objects and tables take their time"] if self.volumes else []
        else:
            time = "not known before the first volume" if self.map_seconds is None else _time(self.map_seconds)
            lines.append(f"Time to predict: {time}; masks, objects and tables come on top")
        return lines


def estimate(campaign: Campaign, request: SegmentRequest) -> Estimate:
    """Return what a delivery would take; only metadata are read.

    A file that cannot be read is told of, and does not keep the others back.

    Raises
    ------
    RescuesegError
        If nothing can be delivered, or the model does not exist.
    """
    plan = _Plan(campaign, request, delivery_model(campaign, request), DeliveryFolder(request.out))
    imports, passed_over = expand(request.files, request.template)
    named = dict.fromkeys((*request.volumes, *(volume.name for volume in imports)))
    finished = [volume for volume in plan.delivered.values() if volume.volume_id not in plan.again]
    file_of = {volume.name: volume for volume in imports}
    sizes, errors = list[VolumeSize](), list[RescuesegError]()
    for name in dict.fromkeys((*named, *plan.again)):
        try:
            if name not in plan.delivered or name in plan.again:
                sizes.append(plan.size(name, file_of.get(name)))
        except RescuesegError as error:
            errors.append(error)
    done = [volume for volume in finished if volume.volume_id in named]
    if errors and not sizes and not done:
        raise errors[0]
    to_predict = sum(v.voxels for v in sizes if not v.has_maps)
    rate = _seconds_per_voxel(campaign, plan.chosen)
    return Estimate(
        volumes=tuple(sizes),
        done=len(done),
        bytes_by_part=_bytes(campaign, request, sizes, done),
        map_seconds=0.0 if not to_predict else None if rate is None else rate * to_predict,
        passed_over=tuple(passed_over),
        impossible=tuple(str(error) for error in errors),
    )


def require_room(folder: DeliveryFolder, needed: Estimate) -> None:
    """Make sure that the disk has room for a delivery.

    Raises
    ------
    StorageError
        If it has not.
    """
    free = _free(folder)
    if free is not None and free < needed.bytes:
        raise StorageError(
            f"the delivery takes up to {_size(needed.bytes)}, and {_size(free)} are free",
            where=folder.storage.url,
            todo="Make room, deliver fewer volumes at a time, or leave the images out with --without-image",
        )


@dataclass(frozen=True)
class _Plan:
    """What is there, and what is asked for."""

    campaign: Campaign
    request: SegmentRequest
    chosen: DeliveryModel
    folder: DeliveryFolder

    @cached_property
    def delivered(self) -> dict[str, DeliveredVolume]:
        """What was delivered, by volume id."""
        return {volume.volume_id: volume for volume in self.folder.delivered()}

    @cached_property
    def again(self) -> frozenset[str]:
        """Volumes that are delivered anew, since all of a delivery are made alike."""
        earlier = self.folder.records.read(DELIVERY)
        if earlier is None or (
            makes_what_is_asked(earlier.rule, self.campaign, self.request)
            and earlier.with_image == (self.request.with_image is not False)
        ):
            return frozenset()
        files = {v.name for v in expand(self.request.files, self.request.template)[0]}
        return frozenset(
            name
            for name, volume in self.delivered.items()
            if volume.in_campaign or name in files or new_volume(self.folder, name)
        )

    def size(self, name: str, file: VolumeImport | None) -> VolumeSize:
        """Return the size of a volume that is to be delivered; of a file, what its metadata say of it."""
        known, again = self.delivered.get(name), name in self.again
        formats = frozenset((*self.request.formats, *(f.format for f in (known.files if known else ()))))
        new = new_volume(self.folder, name)
        if new is None and file is not None:
            [preview] = preview_volumes([file], self.campaign.config.classes)
            itemsize = min(preview.dtype.itemsize, 4)
            return VolumeSize(
                name, preview.shape_zyx, preview.spacing_um_zyx, preview.channels, itemsize, True, False, again, formats
            )
        record = self.campaign.volumes.record(name) if new is None else new.record
        places = [Storage(self.folder.work_url())]
        if new is None and not self.chosen.training:
            places.append(self.campaign.storage)
        maps = [self.chosen.maps_of(storage, name) for storage in places]
        has_maps = any(m.reference() and (p := m.plan()) and p.volume_digest == volume_digest(record) for m in maps)
        itemsize = int(record.dtype[-2:].lstrip("t")) // 8
        return VolumeSize(
            name, record.shape_zyx, record.spacing_um_zyx, record.channels, itemsize, False, has_maps, again, formats
        )


def _bytes(
    campaign: Campaign, request: SegmentRequest, sizes: Sequence[VolumeSize], done: Sequence[DeliveredVolume]
) -> dict[str, int]:
    parts: Counter[str] = Counter()
    with_objects = request.makes_objects(campaign)
    voxel_of_maps = (campaign.config.n_classes + 1 + len(UNCERTAINTIES)) * (
        2 if campaign.config.inference.map_dtype == "float16" else 4
    )
    for volume in sizes:
        channels = 0 if request.with_image is False else volume.channels
        formats = sorted(volume.formats)
        parts.update(
            bytes_of_delivery(volume.shape_zyx, channels, volume.itemsize, with_objects=with_objects, formats=formats)
        )
        if not volume.has_maps:
            parts["maps"] += volume.voxels * voxel_of_maps
        if volume.new:
            parts["imported files"] += volume.voxels * volume.channels * volume.itemsize * 8 // 7
    for known in done:
        added = sorted(set(request.formats) - {file.format for file in known.files})
        files = bytes_of_delivery(known.shape_zyx, 0, 1, with_objects=with_objects, formats=added)["files"]
        parts["files"] += files
    largest = max((volume.voxels for volume in sizes), default=0)
    return {**parts, "scratch": largest * SCRATCH}


def _seconds_per_voxel(campaign: Campaign, chosen: DeliveryModel) -> float | None:
    """Return how fast the generation's inference was."""
    seconds = chosen.folder.read(INFERENCE.seconds)
    maps = chosen.folder.read(INFERENCE) if seconds else None
    if not maps or not seconds:
        return None
    return seconds / sum(prod(campaign.volumes.record(m.volume_id).shape_zyx) for m in maps)


def _free(folder: DeliveryFolder) -> int | None:
    """Return the free bytes of a local disk."""
    if not folder.storage.is_local:
        return None
    place = Path(folder.storage.root)
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"


def _time(seconds: float) -> str:
    return f"about {seconds / 3600:.1f} h" if seconds > 5400 else f"about {max(1.0, seconds / 60):.0f} min"
