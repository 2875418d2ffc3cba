"""How long people take to annotate boxes, and how large a box may be for that.

Nobody knows the time before anything is annotated, so it is assumed: a minute and a half to open a box and hand it in, and 40
seconds to draw a plane of 80×80 pixels, more or less by its area (20 to 60 seconds were seen in stacks of organelles), five
at least. As soon as a campaign has annotations, its own minutes scale that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rescueseg.geometry import ZYX, Box, Spacing, isotropic_shape, zyx
from rescueseg.records import AcceptedAnnotation

HANDLING_SECONDS = 90.0
"""To open a box and to hand it in."""
SECONDS_PER_PIXEL = 40.0 / 80**2
"""To draw a plane, for each of its pixels."""
LEAST_PLANE_SECONDS = 5.0
"""To look at a plane, however small."""
PATCH_MINUTES = 8.0
"""A patch takes at most so long where its shape is not chosen by a person; about 62,000 voxels."""
BOX_MINUTES = 5.0
"""The same of a holdout box, which is drawn without a first mask: about 33,000 voxels."""
LEAST_PLANES = 3
"""Planes of a patch, where the volume has them, however far apart they are."""
WIDTH = 2.5
"""A patch is at least so many times as wide as the structure is thick, as far as `MOST_MORE` lets it."""
MOST_MORE = 2.0
"""For that, a patch may take so many times as long."""
LEAST_MEASURED = 3
"""Annotations from which on a campaign's own minutes count."""


@dataclass(frozen=True)
class Effort:
    """What annotating some boxes asks of people.

    Parameters
    ----------
    boxes, planes, voxels : int
        Of them; planes lie along z.
    hours : float
        About how long that takes.
    """

    boxes: int
    planes: int
    voxels: int
    hours: float

    def sentence(self) -> str:
        """Say it for people.

        Examples
        --------
        >>> effort_of([Box((0, 0, 0), (8, 80, 80))] * 4).sentence()
        '4 boxes, 32 planes, 204,800 voxels, about 0.5 hours'
        """
        counted = f"{self.boxes} box{'' if self.boxes == 1 else 'es'}, {self.planes:,} planes, {self.voxels:,} voxels"
        return f"{counted}, about {self.hours:,.1f} hours" if self.boxes else "nothing"


def seconds(shape_zyx: Sequence[int]) -> float:
    """Return the assumed time to annotate a box.

    Parameters
    ----------
    shape_zyx : sequence of int
        In voxels; planes are drawn one by one along z.

    Examples
    --------
    >>> seconds((8, 80, 80)), seconds((1, 8, 8))
    (410.0, 95.0)
    """
    planes, area = shape_zyx[0], shape_zyx[1] * shape_zyx[2]
    return HANDLING_SECONDS + planes * max(LEAST_PLANE_SECONDS, SECONDS_PER_PIXEL * area)


def pace(accepted: Iterable[AcceptedAnnotation]) -> float:
    """Return how much longer than assumed a campaign's annotations took; 1 while fewer than three have a time.

    Parameters
    ----------
    accepted : iterable of AcceptedAnnotation
        Those of the campaign; the ones without a time tell nothing.
    """
    timed = [(a.seconds, seconds(a.box.shape_zyx)) for a in accepted if a.seconds > 0]
    if len(timed) < LEAST_MEASURED:
        return 1.0
    return sum(measured for measured, _ in timed) / sum(assumed for _, assumed in timed)


def effort_of(boxes: Sequence[Box], pace: float = 1.0) -> Effort:
    """Return what annotating boxes asks of people.

    Parameters
    ----------
    boxes : sequence of Box
        The boxes.
    pace : float
        As `pace` returns it.
    """
    hours = pace * sum(seconds(box.shape_zyx) for box in boxes) / 3600
    return Effort(len(boxes), sum(box.shape_zyx[0] for box in boxes), sum(box.size for box in boxes), hours)


def voxels_within(minutes: float, spacing_um_zyx: Spacing, limit_zyx: ZYX, thickness_um: float | None = None) -> int:
    """Return how many voxels a box may have that is isotropic in micrometre and takes at most so long.

    Parameters
    ----------
    minutes : float
        The time, as `seconds` assumes it.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.
    limit_zyx : tuple of int
        Shape of the volume.
    thickness_um : float, optional
        Of the structure; where the box is narrower than 2.5 times that, it gets up to twice the time.

    Examples
    --------
    >>> voxels_within(8, (1, 1, 1), (1000, 1000, 1000))
    62400
    >>> voxels_within(8, (1, 1, 1), (1000, 1000, 1000), thickness_um=20)
    125000
    """
    voxels = _largest(minutes, spacing_um_zyx, limit_zyx)
    if thickness_um is None or not math.isfinite(thickness_um) or thickness_um <= 0:
        return voxels
    wide = zyx(
        min(n, math.ceil(WIDTH * thickness_um / s - 1e-9)) for n, s in zip(limit_zyx, spacing_um_zyx, strict=True)
    )
    most = _largest(MOST_MORE * minutes, spacing_um_zyx, limit_zyx)
    return max(voxels, min(math.prod(wide), most))


def _largest(minutes: float, spacing_um_zyx: Spacing, limit_zyx: ZYX) -> int:
    """Return the most voxels whose isotropic box takes at most so long; nothing smaller than a voxel."""
    low, high = 1, max(2, math.ceil((60 * minutes - HANDLING_SECONDS) / SECONDS_PER_PIXEL) + 1)
    while high - low > 1:
        middle = (low + high) // 2
        fits = seconds(isotropic_shape(spacing_um_zyx, middle, limit_zyx)) <= 60 * minutes
        low, high = (middle, high) if fits else (low, middle)
    return low
