"""What a delivery would take, told before it is begun: voxels, disk, time."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from rescueseg.campaign import Campaign
from rescueseg.campaign.stage_results import INFERENCE
from rescueseg.delivery.export import bytes_of_delivery
from rescueseg.delivery.folder import DeliveryFolder
from rescueseg.delivery.new_volumes import expand
from rescueseg.delivery.request import DeliveryModel, SegmentRequest, delivery_model
from rescueseg.errors import StorageError
from rescueseg.geometry import ZYX
from rescueseg.inference.maps import UNCERTAINTIES
from rescueseg.volumes.batch_import import VolumePreview, preview_volumes

_SCRATCH = 9
"""Bytes per voxel that passes hand on, before compression: masks, and the basins of objects."""


@dataclass(frozen=True)
class VolumeSize:
    """A volume that is to be delivered.

    Parameters
    ----------
    name : str
        Its id.
    shape_zyx : tuple of int
        In voxels.
    channels, itemsize : int
        Of the image; bytes of a voxel of one channel.
    new : bool
        Whether it is imported on the way.
    has_maps : bool
        Whether its maps are there already.
    """

    name: str
    shape_zyx: ZYX
    channels: int
    itemsize: int
    new: bool
    has_maps: bool

    @property
    def voxels(self) -> int:
        """How many."""
        return prod(self.shape_zyx)


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
    """

    volumes: tuple[VolumeSize, ...]
    done: int
    bytes_by_part: dict[str, int]
    map_seconds: float | None
    passed_over: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """At most, in all."""
        return sum(self.bytes_by_part.values())

    def lines(self, folder: DeliveryFolder) -> list[str]:
        """Say it for people."""
        lines = [f"Not a volume, passed over: {line}" for line in self.passed_over]
        for volume in self.volumes:
            shape = "×".join(map(str, volume.shape_zyx))
            how = "maps are there" if volume.has_maps else "new" if volume.new else "to be predicted"
            lines.append(f"{volume.name}: {shape} voxels (zyx), {how}")
        if self.done:
            lines.append(f"{self.done} volumes were delivered already: only corrections and new formats are added")
        voxels = sum(volume.voxels for volume in self.volumes)
        if self.volumes:
            parts = ", ".join(f"{part} {_size(count)}" for part, count in self.bytes_by_part.items() if count)
            free = _free(folder)
            disk = "" if free is None else f"; {_size(free)} are free"
            lines.append(f"{voxels:,} voxels; at most {_size(self.bytes)} of disk ({parts}){disk}")
            time = "not known before the first volume" if self.map_seconds is None else _time(self.map_seconds)
            lines.append(f"Time to predict: {time}; masks, objects and tables come on top")
        return lines


def estimate(campaign: Campaign, request: SegmentRequest) -> Estimate:
    """Return what a delivery would take; only metadata are read.

    Raises
    ------
    RescuesegError
        If a file cannot be read, or the model does not exist.
    """
    folder, chosen = DeliveryFolder(request.out), delivery_model(campaign, request)
    delivered = {volume.volume_id for volume in folder.delivered()}
    imports, passed_over = expand(request.files, request.template)
    previews = preview_volumes([v for v in imports if v.name not in delivered], campaign.config.classes)
    sizes = [_campaign_volume(campaign, chosen, v) for v in request.volumes if v not in delivered]
    sizes += [_new_volume(preview) for preview in previews]
    done = len(delivered.intersection((*request.volumes, *(v.name for v in imports))))
    to_predict = sum(v.voxels for v in sizes if not v.has_maps)
    rate = _seconds_per_voxel(campaign, chosen)
    return Estimate(
        volumes=tuple(sizes),
        done=done,
        bytes_by_part=_bytes(campaign, request, sizes),
        map_seconds=0.0 if not to_predict else None if rate is None else rate * to_predict,
        passed_over=tuple(passed_over),
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


def _campaign_volume(campaign: Campaign, chosen: DeliveryModel, volume_id: str) -> VolumeSize:
    record = campaign.volumes.record(volume_id)
    has_maps = not chosen.training and chosen.maps_of(campaign.storage, volume_id).reference() is not None
    itemsize = int(record.dtype[-2:].lstrip("t")) // 8
    return VolumeSize(volume_id, record.shape_zyx, record.channels, itemsize, new=False, has_maps=has_maps)


def _new_volume(preview: VolumePreview) -> VolumeSize:
    itemsize = min(preview.dtype.itemsize, 4)
    return VolumeSize(preview.volume_id, preview.shape_zyx, preview.channels, itemsize, new=True, has_maps=False)


def _bytes(campaign: Campaign, request: SegmentRequest, sizes: Sequence[VolumeSize]) -> dict[str, int]:
    parts: dict[str, int] = {}
    voxel_of_maps = (campaign.config.n_classes + 1 + len(UNCERTAINTIES)) * (
        2 if campaign.config.inference.map_dtype == "float16" else 4
    )
    largest = max((volume.voxels for volume in sizes), default=0)
    for volume in sizes:
        delivered = bytes_of_delivery(
            volume.shape_zyx,
            0 if request.with_image is False else volume.channels,
            volume.itemsize,
            with_objects=request.makes_objects(campaign),
            formats=request.formats,
        )
        for part, count in delivered.items():
            parts[part] = parts.get(part, 0) + count
        if not volume.has_maps:
            parts["maps"] = parts.get("maps", 0) + volume.voxels * voxel_of_maps
        if volume.new:
            copy = volume.voxels * volume.channels * volume.itemsize * 8 // 7
            parts["imported files"] = parts.get("imported files", 0) + copy
    return parts | {"scratch": largest * _SCRATCH}


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
