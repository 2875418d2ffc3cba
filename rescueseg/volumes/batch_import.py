"""Importing several volumes into a campaign, as the command line does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from math import log, prod
from typing import Any

import numpy as np

from rescueseg.campaign import Campaign, check_id
from rescueseg.config import CampaignConfig
from rescueseg.errors import ConfigError
from rescueseg.geometry import ZYX, Box, Spacing, zyx
from rescueseg.image_files.registry import open_source
from rescueseg.image_files.slices import is_planes, planes_name, shown
from rescueseg.image_files.source import Source, Statement
from rescueseg.progress import Progress
from rescueseg.records import LabelType, VolumeRecord
from rescueseg.volumes.comparison import declare_distinct, relation_lines
from rescueseg.volumes.middle_planes import MiddlePlanes, middle_planes
from rescueseg.volumes.volume_import import (
    default_id,
    import_volume,
    open_truth_file,
    resolve_spacing,
    shared_statement,
)

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
    said: Statement | None = None,
    distinct: bool = False,
    distinct_from: Sequence[str] = (),
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
    said : Statement, optional
        What a person says of the images that their files do not say.
    distinct : bool
        Whether they show other specimens than the volumes that they look like; see `rescueseg.volumes.comparison`.
    distinct_from : sequence of str
        Ids of the volumes of which this is so, where it is not of all.
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
    preview_volumes(
        volumes, classes=config.classes, spacing=spacing, truths=truths, truth_type=truth_type, names=names, said=said
    )
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
            said=said,
            distinct=distinct,
            distinct_from=distinct_from,
            say=say,
            progress=progress,
        )
    except BaseException:
        if n_imported := len(campaign.volumes.records()):
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
    said: Statement | None = None,
    distinct: bool = False,
    distinct_from: Sequence[str] = (),
    say: Say = print,
    progress: Progress | None = None,
) -> list[VolumeRecord]:
    """Import volumes into a campaign; those before a failing one stay. Parameters as `start_campaign`."""
    classes = campaign.config.classes
    previews = preview_volumes(
        volumes, classes=classes, spacing=spacing, truths=truths, truth_type=truth_type, names=names, said=said
    )
    known = {v.volume_id for v in campaign.volumes.records(refused=True)} | {p.volume_id for p in previews}
    if unknown := [name for name in distinct_from if name not in known]:
        raise ConfigError(
            f"there is no volume '{unknown[0]}'", where="--distinct-from", todo=f"Volumes: {', '.join(sorted(known))}"
        )
    records: list[VolumeRecord] = []
    for index, preview in enumerate(previews):
        path, label = preview.path, shown(preview.path)
        if progress is not None:
            progress(label, 0, 1)
        record = import_volume(
            campaign,
            path,
            volume_id=preview.volume_id,
            spacing=spacing,
            domain=domain,
            truth=truths[index] if truths else None,
            truth_type=truth_type,
            said=said,
            progress=partial(progress, label) if progress is not None else None,
        )
        say(f"{label} → volume '{record.volume_id}', {'×'.join(map(str, record.shape_zyx))} voxels (zyx)")
        for remark in preview.remarks:
            say(f"  note: {remark}")
        if distinct:
            declare_distinct(campaign.volumes, record.volume_id)
        elif distinct_from:
            declare_distinct(campaign.volumes, record.volume_id, distinct_from)
            for name in sorted(
                {*distinct_from}.intersection(campaign.volumes.shared_places().related(record.volume_id)[1:])
            ):
                say(
                    f"  '{name}' and '{record.volume_id}' still count as one specimen, by equal voxels or through a volume "
                    "that both are like: see rescueseg check"
                )
        for line in relation_lines(campaign.volumes, record.volume_id):
            say(line)
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
    volumes: Sequence[str],
    *,
    classes: Sequence[str],
    spacing: Spacing | None = None,
    truths: Sequence[str] = (),
    truth_type: LabelType = "semantic",
    names: Sequence[str] = (),
    said: Statement | None = None,
    planes: int = 0,
    progress: Progress | None = None,
) -> list[VolumePreview]:
    """Describe volumes from their metadata, and refuse at once what would fail after a long import.

    Nothing is written. Parameters as `start_campaign`; `classes` are the names of classes 1…K, and of the first
    `planes` volumes three planes are read for a picture. No other voxel is read, but for the faces of absent chunks.

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
        name = check_id(names[index] if names else _volume_name(path), "volume id")
        if name in (preview.volume_id for preview in previews):
            raise ConfigError(f"two volumes would be called '{name}'", where=path, todo="Name each of them with --id")
        with ExitStack() as stack:
            image = stack.enter_context(closing(open_source(path, said)))
            truth: Source | None = None
            size = resolve_spacing(image, spacing, path)
            if truths:
                truth = stack.enter_context(
                    closing(
                        open_truth_file(
                            truths[index], image, classes, truth_type, shared_statement(path, truths[index], said)
                        )
                    )
                )
            if progress is not None:
                progress(shown(path), index, len(volumes))
            for source in (s for s in (image, truth) if s is not None and s.chunked):
                source.read(Box(zyx(n - 1 for n in source.shape_zyx), (1, 1, 1)))  # a file cut short ends before it
            remarks = (*image.remarks, *(f"ground truth: {r}" for r in (truth.remarks if truth else ())))
            previews.append(
                VolumePreview(
                    path, name, image.shape_zyx, image.channels, image.dtype, size, bool(truths), remarks,
                    middle_planes(image, truth) if index < planes else None,
                )
            )  # fmt: skip
    return previews


def _volume_name(path: str) -> str:
    """Return the id of a volume that nobody named: the file's name, or what the planes of a stack share."""
    return default_id(planes_name(path) if is_planes(path) else path)


def _bytes(count: float) -> str:
    power = min(4, int(log(max(count, 1.0), 1024)))
    return f"{count / 1024**power:.3g} {('bytes', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
