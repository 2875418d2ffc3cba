"""What a plan depends on in a training set, for every family. Imports neither torch nor MONAI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rescueseg.campaign import VolumeFolder
from rescueseg.config import CampaignConfig, InferenceConfig
from rescueseg.errors import TrainingError
from rescueseg.geometry import ZYX, Spacing, resampled_shape, zyx
from rescueseg.records import Snapshot


@dataclass(frozen=True)
class Survey:
    """What a plan depends on in a training set.

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
    overlap : float
        Of the windows in which volumes are predicted, as a fraction of them.
    """

    in_channels: int
    spacing_um_zyx: Spacing
    volume_zyx: ZYX
    field_zyx: ZYX
    overlap: float = InferenceConfig().overlap


def survey_snapshot(config: CampaignConfig, volumes: VolumeFolder, snapshot: Snapshot) -> Survey:
    """Return the channels, spacing and extents of a training set; no image is read.

    Raises
    ------
    TrainingError
        If the snapshot is empty, or its volumes differ in their number of channels.
    """
    if not snapshot.items:
        raise TrainingError(
            "the snapshot is empty", where=f"generation {snapshot.generation}", todo="Annotate at least one patch"
        )
    records = {item.volume_id: volumes.record(item.volume_id) for item in snapshot.items}
    channels = {record.channels for record in records.values()}
    if len(channels) > 1:
        raise TrainingError(
            f"the volumes differ in their number of channels: {sorted(channels)}",
            where=", ".join(sorted(records)),
            todo="Use one campaign for each kind of image",
        )
    targets = {volume_id: volumes.working_spacing(record) for volume_id, record in records.items()}
    spacing = config.training.spacing_um_zyx or working_spacing(
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
        overlap=config.inference.overlap,
    )


def working_spacing(spacings: Sequence[tuple[Spacing, int]]) -> Spacing:
    """Return the median along each axis of the spacings of the domains, weighted by labelled voxels.

    Parameters
    ----------
    spacings : sequence of (spacing, weight)
        Micrometre, zyx; at least one.

    Examples
    --------
    The second domain has three quarters of the labelled voxels:

    >>> working_spacing([((0.1, 0.1, 0.1), 1000), ((0.4, 0.2, 0.2), 3000)])
    (0.4, 0.2, 0.2)
    """
    values, weights = [s for s, _ in spacings], [weight for _, weight in spacings]
    z, y, x = np.quantile(values, 0.5, axis=0, weights=weights, method="inverted_cdf").tolist()
    return z, y, x


def scratch_reason(pairs: Mapping[str, tuple[Any, Any]]) -> str:
    """Say why a training cannot start from a model of another plan; empty where it can.

    Parameters
    ----------
    pairs : mapping
        Values of the earlier model and of the planned one, under a name for people.

    Examples
    --------
    >>> scratch_reason({"number of classes": (1, 2), "training.unet.channels": ((16, 32), (16, 32))})
    'trained from scratch: the model to start from has another number of classes'
    >>> scratch_reason({"number of classes": (2, 2)})
    ''
    """
    differences = [name for name, (earlier, planned) in pairs.items() if earlier != planned]
    if not differences:
        return ""
    return f"trained from scratch: the model to start from has another {' and '.join(differences)}"
