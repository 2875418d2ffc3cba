"""What a training set asks of a plan, whatever family is trained. Imports neither torch nor MONAI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rescueseg.campaign import Campaign
from rescueseg.errors import TrainingError
from rescueseg.geometry import ZYX, Spacing, resampled_shape, zyx
from rescueseg.records import Snapshot


@dataclass(frozen=True)
class Survey:
    """What a training set asks of a plan.

    Parameters
    ----------
    in_channels : int
        Image channels.
    spacing_um_zyx : tuple of float
        Working spacing.
    volume_zyx : tuple of int
        Smallest extent of the volumes along each axis, in voxels of the working spacing.
    field_zyx : tuple of int
        Largest extent of what training may read around a patch, likewise.
    """

    in_channels: int
    spacing_um_zyx: Spacing
    volume_zyx: ZYX
    field_zyx: ZYX


def survey(campaign: Campaign, snapshot: Snapshot) -> Survey:
    """Look at the volumes and boxes of a training set; no image is read.

    Raises
    ------
    TrainingError
        If the snapshot is empty, or its volumes differ in their number of channels.
    """
    if not snapshot.items:
        raise TrainingError(
            "the snapshot is empty", where=f"generation {snapshot.generation}", todo="Annotate at least one patch"
        )
    records = {item.volume_id: campaign.volume(item.volume_id) for item in snapshot.items}
    channels = {record.channels for record in records.values()}
    if len(channels) > 1:
        raise TrainingError(
            f"the volumes differ in their number of channels: {sorted(channels)}",
            where=", ".join(sorted(records)),
            todo="Use one campaign for each kind of image",
        )
    targets = {volume_id: campaign.working_spacing(record) for volume_id, record in records.items()}
    spacing = campaign.config.training.spacing_um_zyx or working_spacing(
        [(targets[i.volume_id], i.box.size) for i in snapshot.items]
    )
    fields = [
        resampled_shape(i.read_box.shape_zyx, records[i.volume_id].spacing_um_zyx, spacing) for i in snapshot.items
    ]
    extents = [resampled_shape(r.shape_zyx, r.spacing_um_zyx, spacing) for r in records.values()]
    return Survey(
        in_channels=channels.pop(),
        spacing_um_zyx=spacing,
        volume_zyx=zyx(min(e[a] for e in extents) for a in range(3)),
        field_zyx=zyx(max(f[a] for f in fields) for a in range(3)),
    )


def working_spacing(spacings: Sequence[tuple[Spacing, int]]) -> Spacing:
    """Return the median along each axis of the spacings of the domains, weighted by labelled voxels.

    Parameters
    ----------
    spacings : sequence of (spacing, weight)
        Micrometre, zyx; at least one.
    """

    def median(axis: int) -> float:
        ordered = sorted((s[axis], weight) for s, weight in spacings)
        half, seen = sum(weight for _, weight in ordered) / 2, 0
        for value, weight in ordered:
            seen += weight
            if seen >= half:
                return value
        return ordered[-1][0]

    return median(0), median(1), median(2)


def scratch_reason(pairs: Mapping[str, tuple[Any, Any]]) -> str:
    """Say why a training cannot start from a model of another plan; empty where it can.

    Parameters
    ----------
    pairs : mapping
        What the model has and what is wanted now, under a name for people.
    """
    differ = [name for name, (has, wanted) in pairs.items() if has != wanted]
    return f"trained from scratch: the model to start from has another {' and '.join(differ)}" if differ else ""
