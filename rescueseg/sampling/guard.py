"""How wide the guard band around holdout boxes is: no object should lie in a box and in a patch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rescueseg.campaign import VolumeFolder
from rescueseg.config import HoldoutConfig
from rescueseg.geometry import ZYX, Box, isotropic_shape, zyx
from rescueseg.records import VolumeRecord
from rescueseg.volumes import open_truth

_COUNTED = 2**24
"""Voxels of truth in whose middle objects are counted."""
_SMALLEST = 27
"""Voxels below which an object is a speck."""
_SHARES = (1.0, 0.75, 0.5)
"""Of an object's diameter: guard bands tried before the plain ones."""


def plain_guard(volumes: Sequence[VolumeRecord], pixels: int) -> ZYX:
    """Return the widest guard over volumes, `pixels` of the finest in-plane spacing as a length."""
    widths = [[max(1, round(pixels * min(v.spacing_um_zyx[1:]) / s)) for s in v.spacing_um_zyx] for v in volumes]
    return zyx(max(axis) for axis in zip(*widths, strict=True))


def guard_of_length(volumes: Sequence[VolumeRecord], length_um: float) -> ZYX:
    """Return the guard that is at least a length in every volume.

    Parameters
    ----------
    volumes : sequence of VolumeRecord
        Their spacing counts.
    length_um : float
        In micrometre.
    """
    return zyx(max(math.ceil(length_um / v.spacing_um_zyx[axis] - 1e-6) for v in volumes) for axis in range(3))


def object_guards(
    config: HoldoutConfig, folder: VolumeFolder, volumes: Sequence[VolumeRecord], thickness_um: float | None
) -> list[ZYX]:
    """Return guards by the size of the objects, the widest first; none where it is not known or a person chose a guard.

    Parameters
    ----------
    config : HoldoutConfig
        A person's choice.
    folder : VolumeFolder
        Where instance truth lies, which tells the size.
    volumes : sequence of VolumeRecord
        Those that the holdout is drawn for.
    thickness_um : float, optional
        What the triage measured as the structure's thickness; the size where no truth numbers objects.
    """
    if config.guard_zyx is not None or config.guard_um is not None:
        return []
    diameter = object_diameter(folder, volumes, thickness_um)
    return [guard_of_length(volumes, share * diameter) for share in _SHARES] if diameter else []


def object_diameter(folder: VolumeFolder, volumes: Sequence[VolumeRecord], thickness_um: float | None) -> float | None:
    """Return the median object's diameter in micrometre, None where nothing is known of objects.

    From the middle of the volumes whose truth numbers objects: that of a ball of the object's volume, objects that the
    border cuts left out where there are others. Else what the triage measured as the structure's thickness.
    """
    known = [v for v in volumes if v.truth == "instance"]
    sizes = [size for v in known for size in _object_volumes(folder, v, _COUNTED // len(known))]
    if sizes:
        return float((6 * np.median(sizes) / math.pi) ** (1 / 3))
    return thickness_um if thickness_um and math.isfinite(thickness_um) else None


def _object_volumes(folder: VolumeFolder, volume: VolumeRecord, voxels: int) -> list[float]:
    """Return the volumes of the objects in the middle of a volume, in cubic micrometre."""
    shape = isotropic_shape(volume.spacing_um_zyx, min(voxels, math.prod(volume.shape_zyx)), volume.shape_zyx)
    middle = Box(zyx((n - s) // 2 for n, s in zip(volume.shape_zyx, shape, strict=True)), shape)
    numbers = np.asarray(open_truth(folder, volume.volume_id, instances=True)[middle.slices])
    objects, counts = np.unique(numbers, return_counts=True)
    cut = np.unique(np.concatenate([np.take(numbers, (0, -1), axis=axis).ravel() for axis in range(3)]))
    is_object = (objects > 0) & (counts >= _SMALLEST)
    whole = is_object & ~np.isin(objects, cut)
    size = math.prod(volume.spacing_um_zyx)
    return [float(n) * size for n in counts[whole if whole.any() else is_object]]
