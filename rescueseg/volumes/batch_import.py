"""Importing several volumes into a campaign, as the command line does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from math import log, prod
from typing import Any

import numpy as np

from rescueseg.campaign import Campaign, check_id
from rescueseg.config import CampaignConfig
from rescueseg.errors import ConfigError
from rescueseg.geometry import ZYX, Spacing
from rescueseg.progress import Progress
from rescueseg.records import LabelType, VolumeRecord
from rescueseg.volumes.importers import open_source
from rescueseg.volumes.volume_import import check_truth_shape, default_id, import_volume, resolve_spacing

Say = Callable[[str], object]


def start_campaign(
    url: str,
    config: CampaignConfig,
    volumes: Sequence[str],
    *,
    spacing: Spacing | None = None,
    truths: Sequence[str] = (),
    truth_type: LabelType = "semantic",
    domain: str | None = None,
    names: Sequence[str] = (),
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
    volumes : sequence of str
        Image files.
    spacing : tuple of float, optional
        Voxel size z, y, x in micrometre, for all of them.
    truths : sequence of str
        Ground truth of each, or none at all.
    truth_type : {"semantic", "instance"}
        Its kind.
    domain : str, optional
        Acquisition group.
    names : sequence of str
        Ids of the volumes; made from the file names when empty.
    say : callable
        Gets one line per volume.
    progress : callable, optional
        Called with a file, steps of its import done and steps in all.

    Raises
    ------
    CampaignError
        If there is a campaign already.
    VolumeError, LabelError, StorageError
        If a volume cannot be imported.
    """
    preview_volumes(volumes, spacing=spacing, truths=truths, names=names)
    campaign = Campaign.create(url, config)
    try:
        add_volumes(
            campaign,
            volumes,
            spacing=spacing,
            truths=truths,
            truth_type=truth_type,
            domain=domain,
            names=names,
            say=say,
            progress=progress,
        )
    except BaseException:
        if n_imported := len(campaign.volumes()):
            say(f"{n_imported} of {len(volumes)} volumes are in the campaign; 'rescueseg add' adds the others")
        else:
            campaign.discard()
        raise
    return campaign


def add_volumes(
    campaign: Campaign,
    volumes: Sequence[str],
    *,
    spacing: Spacing | None = None,
    truths: Sequence[str] = (),
    truth_type: LabelType = "semantic",
    domain: str | None = None,
    names: Sequence[str] = (),
    say: Say = print,
    progress: Progress | None = None,
) -> list[VolumeRecord]:
    """Import volumes into a campaign; those before a failing one stay. Parameters as `start_campaign`."""
    previews = preview_volumes(volumes, spacing=spacing, truths=truths, names=names)
    records = []
    for index, (path, name) in enumerate(zip(volumes, (preview.volume_id for preview in previews), strict=True)):
        if progress is not None:
            progress(path, 0, 1)
        record = import_volume(
            campaign,
            path,
            volume_id=name,
            spacing=spacing,
            domain=domain,
            truth=truths[index] if truths else None,
            truth_type=truth_type,
            progress=partial(progress, path) if progress is not None else None,
        )
        say(f"{path} → volume '{record.volume_id}', {'×'.join(map(str, record.shape_zyx))} voxels (zyx)")
        records.append(record)
    return records


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
    """

    path: str
    volume_id: str
    shape_zyx: ZYX
    channels: int
    dtype: np.dtype[Any]
    spacing_um_zyx: Spacing
    truth: bool

    @property
    def stored_bytes(self) -> float:
        """Bytes in the campaign before compression, coarser levels included."""
        voxel = self.channels * min(self.dtype.itemsize, 4) + self.truth
        return prod(self.shape_zyx) * voxel * 8 / 7

    def __str__(self) -> str:
        channels = f", {self.channels} channels" if self.channels > 1 else ""
        return (
            f"{self.path} → volume '{self.volume_id}', {'×'.join(map(str, self.shape_zyx))} voxels (zyx) of {self.dtype}"
            f"{channels}, {' × '.join(f'{s:g}' for s in self.spacing_um_zyx)} µm, "
            f"{'with' if self.truth else 'without'} ground truth, at most {_bytes(self.stored_bytes)} on disk"
        )


def preview_volumes(
    volumes: Sequence[str], *, spacing: Spacing | None = None, truths: Sequence[str] = (), names: Sequence[str] = ()
) -> list[VolumePreview]:
    """Describe volumes from their metadata, and refuse at once what would fail after a long import.

    Nothing is written and no voxel is read. Parameters as `start_campaign`.

    Raises
    ------
    VolumeError, LabelError
        If a file's format, dimensionality, spacing or its truth's shape would be refused.
    ConfigError
        If there is not one truth or name for each volume, or two would have one name.
    """
    for option, values in (("--truth", truths), ("--id", names)):
        if values and len(values) != len(volumes):
            raise ConfigError(
                f"{len(values)} given for {len(volumes)} volumes",
                where=option,
                todo="Give one for each, in their order",
            )
    previews: list[VolumePreview] = []
    for index, path in enumerate(volumes):
        name = check_id(names[index] if names else default_id(path), "volume id")
        if name in (preview.volume_id for preview in previews):
            raise ConfigError(f"two volumes would be called '{name}'", where=path, todo="Name each of them with --id")
        with closing(open_source(path)) as image:
            size = resolve_spacing(image, spacing, path)
            if truths:
                with closing(open_source(truths[index])) as truth:
                    check_truth_shape(image, truth, truths[index])
            previews.append(VolumePreview(path, name, image.shape_zyx, image.channels, image.dtype, size, bool(truths)))
    return previews


def _bytes(count: float) -> str:
    power = min(4, int(log(max(count, 1.0), 1024)))
    return f"{count / 1024**power:.3g} {('bytes', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
