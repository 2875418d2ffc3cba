"""Volumes on their way into a campaign, from the command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rescueseg.campaign import Campaign
from rescueseg.config import CampaignConfig
from rescueseg.errors import ConfigError
from rescueseg.geometry import Spacing
from rescueseg.records import LabelType, VolumeRecord
from rescueseg.volumes import import_volume, open_source

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

    Raises
    ------
    CampaignError
        If there is a campaign already.
    VolumeError, LabelError, StorageError
        If a volume cannot be imported.
    """
    _check(volumes, truths)
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
        )
    except BaseException:
        if not campaign.volumes():
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
) -> list[VolumeRecord]:
    """Import volumes into a campaign; those before a failing one stay. Parameters as `start_campaign`."""
    _check(volumes, truths)
    records = []
    for index, path in enumerate(volumes):
        record = import_volume(
            campaign,
            path,
            volume_id=names[index] if names else None,
            spacing=spacing,
            domain=domain,
            truth=truths[index] if truths else None,
            truth_type=truth_type,
        )
        say(f"{path} → volume '{record.volume_id}', {'×'.join(map(str, record.shape_zyx))} voxels (zyx)")
        records.append(record)
    return records


def _check(volumes: Sequence[str], truths: Sequence[str]) -> None:
    """Refuse early what would fail after a long import of the volumes before."""
    if truths and len(truths) != len(volumes):
        raise ConfigError(
            f"{len(truths)} truths for {len(volumes)} volumes",
            where="--truth",
            todo="Give one for each, in their order",
        )
    for path in [*volumes, *truths]:
        open_source(path).close()
