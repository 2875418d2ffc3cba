"""How long people take to annotate boxes, and how large a box may be for that.

Nobody knows the time before anything is annotated, so it is assumed: a minute and a half to open a box and hand it in, and 40
seconds to draw a plane of 80×80 pixels, more or less by its area (20 to 60 seconds were seen in stacks of organelles), five
at least. As soon as a campaign has annotations, its own minutes scale that.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rescueseg.geometry import Box
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
LEAST_WIDTH = math.floor(math.sqrt(LEAST_PLANE_SECONDS / SECONDS_PER_PIXEL))
"""Pixels along a side of a plane, 28: a smaller plane takes as long. Where planes lie closer together than their pixels, a
patch gets so wide rather than isotropic."""
LEAST_MEASURED = 3
"""Annotations from which on a campaign's own minutes count."""
MOST_PACE = 5.0
"""Neither so many times slower nor faster than assumed: 8 to 200 seconds to draw a plane of 80×80, where 20 to 60 were seen.
Beyond that the time is not that of drawing: boxes left open, or masks accepted as they came."""


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


@dataclass(frozen=True)
class Pace:
    """How many times longer than assumed a campaign's people take.

    Parameters
    ----------
    patches, holdout : float
        For a patch, most of which begin from a first mask, and for a holdout box, which is drawn from nothing.
    is_measured : bool
        Whether by the campaign's own annotations.
    """

    patches: float = 1.0
    holdout: float = 1.0
    is_measured: bool = False


def pace(accepted: Iterable[AcceptedAnnotation]) -> Pace:
    """Return how many times longer than assumed a campaign's annotations took; as assumed while fewer than three have a time.

    The median of all, so that a single box left open says nothing, and within a factor of five. Where fewer than three
    holdout boxes have a time, patches tell how long those take at least: a first mask saves time, and costs none.

    Parameters
    ----------
    accepted : iterable of AcceptedAnnotation
        Those of the campaign; the ones without a time tell nothing.
    """
    ratios: dict[bool, list[float]] = {True: [], False: []}
    for annotation in accepted:
        if annotation.seconds > 0:
            ratios[annotation.purpose == "pool"].append(annotation.seconds / seconds(annotation.box.shape_zyx))
    patches, holdout = _typical(ratios[True]), _typical(ratios[False])
    if holdout is None:
        return Pace() if patches is None else Pace(patches, max(1.0, patches), is_measured=True)
    return Pace(holdout if patches is None else patches, holdout, is_measured=True)


def _typical(ratios: Sequence[float]) -> float | None:
    """Return the median within bounds, None of too few."""
    if len(ratios) < LEAST_MEASURED:
        return None
    return min(MOST_PACE, max(1 / MOST_PACE, statistics.median(ratios)))


def effort_of(boxes: Sequence[Box], pace: float = 1.0) -> Effort:
    """Return what annotating boxes asks of people.

    Parameters
    ----------
    boxes : sequence of Box
        The boxes; one that two people annotate stands there twice.
    pace : float
        How many times longer than assumed people take; see `Pace`.
    """
    hours = pace * sum(seconds(box.shape_zyx) for box in boxes) / 3600
    return Effort(len(boxes), sum(box.shape_zyx[0] for box in boxes), sum(box.size for box in boxes), hours)
