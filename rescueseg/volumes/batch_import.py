"""Importing several volumes into a campaign, as the command line does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from math import log, prod
from typing import Any

import numpy as np

from rescueseg.campaign import Campaign, VolumeFolder
from rescueseg.config import CampaignConfig
from rescueseg.errors import ConfigError
from rescueseg.geometry import ZYX, Box, Spacing, zyx
from rescueseg.image_files.slices import shown
from rescueseg.progress import Progress
from rescueseg.records import VolumeRecord
from rescueseg.volumes.comparison import relation_lines
from rescueseg.volumes.middle_planes import MiddlePlanes, middle_planes
from rescueseg.volumes.volume_files import VolumeImport
from rescueseg.volumes.volume_import import import_volume

Say = Callable[[str], object]


def start_campaign(
    url: str,
    config: CampaignConfig,
    volumes: Sequence[VolumeImport],
    *,
    say: Say = print,
    progress: Progress | None = None,
) -> Campaign:
    """Make a campaign and import its volumes; when the first import fails, nothing is left.

    Parameters
    ----------
    url : str
        Where.
    config : CampaignConfig
        Its settings.
    volumes : sequence of VolumeImport
        Its volumes.
    say : callable
        Gets one line per volume, one per remark on its file, and one for each volume that shows the same.
    progress : callable, optional
        Called with a file, steps of its import done and steps in all.

    Raises
    ------
    CampaignError
        If there is a campaign already.
    VolumeError, LabelError, StorageError
        If a volume cannot be imported.
    """
    preview_volumes(volumes, config.classes)
    campaign = Campaign.create(url, config)
    try:
        add_volumes(campaign, volumes, say=say, progress=progress)
    except BaseException:
        if n_imported := len(campaign.volumes.records()):
            say(f"{n_imported} of {len(volumes)} volumes are in the campaign; 'rescueseg add' adds the others")
        else:
            campaign.discard()
        raise
    return campaign


def add_volumes(
    campaign: Campaign, volumes: Sequence[VolumeImport], *, say: Say = print, progress: Progress | None = None
) -> list[VolumeRecord]:
    """Import volumes into a campaign; those before a failing one stay. Parameters as `start_campaign`."""
    previews = preview_volumes(volumes, campaign.config.classes)
    known = {v.volume_id for v in campaign.volumes.records(refused=True)} | {p.volume_id for p in previews}
    if unknown := [name for volume in volumes for name in volume.distinct_from if name not in known]:
        raise ConfigError(
            f"there is no volume '{unknown[0]}'", where="--distinct-from", todo=f"Volumes: {', '.join(sorted(known))}"
        )
    records: list[VolumeRecord] = []
    for volume, preview in zip(volumes, previews, strict=True):
        label = shown(volume.path)
        if progress is not None:
            progress(label, 0, 1)
        record = import_volume(campaign, volume, partial(progress, label) if progress is not None else None)
        say(f"{label} → volume '{record.volume_id}', {'×'.join(map(str, record.shape_zyx))} voxels (zyx)")
        for remark in preview.remarks:
            say(f"  note: {remark}")
        for line in (
            *_still_one_specimen(campaign.volumes, volume),
            *relation_lines(campaign.volumes, record.volume_id),
        ):
            say(line)
        records.append(record)
    return records


def _still_one_specimen(volumes: VolumeFolder, volume: VolumeImport) -> list[str]:
    """Return a line for each volume that an imported one was declared distinct from, and still counts as one with."""
    if volume.distinct or not volume.distinct_from:
        return []
    alike = {*volume.distinct_from}.intersection(volumes.shared_places().related(volume.name)[1:])
    return [
        f"  '{name}' and '{volume.name}' still count as one specimen, by equal voxels or through a volume "
        "that both are like: see rescueseg check"
        for name in sorted(alike)
    ]


@dataclass(frozen=True)
class VolumePreview:
    """What the metadata of a file say of the volume that it would become.

    Parameters
    ----------
    path, volume_id : str
        The file, and its name in the campaign.
    shape_zyx : tuple of int
        In voxels.
    channels : int
        At least 1.
    dtype : numpy.dtype
        In the file.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.
    truth : bool
        Whether ground truth comes with it.
    remarks : tuple of str
        What was understood of the file that a person should look at.
    planes : MiddlePlanes, optional
        Voxels to show.
    """

    path: str
    volume_id: str
    shape_zyx: ZYX
    channels: int
    dtype: np.dtype[Any]
    spacing_um_zyx: Spacing
    truth: bool
    remarks: tuple[str, ...] = ()
    planes: MiddlePlanes | None = None

    @property
    def stored_bytes(self) -> float:
        """Bytes in the campaign before compression, coarser levels included."""
        voxel = self.channels * min(self.dtype.itemsize, 4) + self.truth
        return prod(self.shape_zyx) * voxel * 8 / 7

    def __str__(self) -> str:
        channels = f", {self.channels} channels" if self.channels > 1 else ""
        return (
            f"{shown(self.path)} → volume '{self.volume_id}', {'×'.join(map(str, self.shape_zyx))} voxels (zyx) of {self.dtype}"
            f"{channels}, {' × '.join(f'{s:g}' for s in self.spacing_um_zyx)} µm, "
            f"{'with' if self.truth else 'without'} ground truth, at most {_bytes(self.stored_bytes)} on disk"
        )


def preview_volumes(
    volumes: Sequence[VolumeImport], classes: Sequence[str], *, planes: int = 0, progress: Progress | None = None
) -> list[VolumePreview]:
    """Describe volumes from their metadata, and refuse at once what would fail after a long import.

    Nothing is written. Parameters as `start_campaign`; `classes` are the names of classes 1…K, and of the first
    `planes` volumes three planes are read for a picture. No other voxel is read, but for the faces of absent chunks.

    Raises
    ------
    VolumeError, LabelError
        If a file's format, dimensionality, spacing or its truth's shape would be refused.
    ConfigError
        If two volumes would have one name.
    """
    previews: list[VolumePreview] = []
    for index, volume in enumerate(volumes):
        name = volume.name
        if name in (preview.volume_id for preview in previews):
            raise ConfigError(
                f"two volumes would be called '{name}'", where=volume.path, todo="Name each of them with --id"
            )
        if progress is not None:
            progress(shown(volume.path), index, len(volumes))
        previews.append(_preview(volume, classes, with_planes=index < planes))
    return previews


def _preview(volume: VolumeImport, classes: Sequence[str], *, with_planes: bool) -> VolumePreview:
    with ExitStack() as stack:
        image = stack.enter_context(closing(volume.open_image()))
        size = volume.spacing_of(image)
        truth = volume.open_truth(image, classes)
        if truth is not None:
            stack.enter_context(closing(truth))
        for source in (s for s in (image, truth) if s is not None and s.chunked):
            source.read(Box(zyx(n - 1 for n in source.shape_zyx), (1, 1, 1)))  # a file cut short ends before it
        return VolumePreview(
            volume.path,
            volume.name,
            image.shape_zyx,
            image.channels,
            image.dtype,
            size,
            truth is not None,
            (*image.remarks, *(f"ground truth: {r}" for r in (truth.remarks if truth else ()))),
            middle_planes(image, truth) if with_planes else None,
        )


def _bytes(count: float) -> str:
    power = min(4, int(log(max(count, 1.0), 1024)))
    return f"{count / 1024**power:.3g} {('bytes', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
