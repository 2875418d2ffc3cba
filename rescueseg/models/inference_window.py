"""The default inference window of a plan, for every family of networks that goes through volumes window by window."""

from __future__ import annotations

import math

from rescueseg.geometry import ZYX, axis_starts, isotropic_shape, round_up, stride_of
from rescueseg.models.survey import Survey


def plan_inference_window(survey: Survey, window_zyx: ZYX, multiple_zyx: ZYX, scale: float) -> ZYX:
    """Return the inference window: larger than the training window, within the smallest volume, with no overlap to spare.

    The last window along an axis ends with the volume, and so may overlap the one before it nearly whole. A window is therefore
    no longer along an axis than the same number of them needs to cover the smallest extent of the volumes: less is computed.
    Volumes that are much larger along it take a few percent more work.

    Parameters
    ----------
    survey : Survey
        Spacing and smallest extents of the volumes, and the overlap of the windows.
    window_zyx : tuple of int
        Of the training.
    multiple_zyx : tuple of int
        What the network's strides divide.
    scale : float
        About how many times as many voxels it may hold as the training window.

    Examples
    --------
    Two windows of 44 planes would overlap by 37 of the 51 planes there are, two of 32 cover them as well:

    >>> survey = Survey(1, spacing_um_zyx=(1.75, 0.8, 0.8), volume_zyx=(51, 480, 480), field_zyx=(25, 70, 70))
    >>> plan_inference_window(survey, (20, 48, 48), (4, 8, 8), 8.0)
    (32, 88, 88)
    """
    larger = isotropic_shape(survey.spacing_um_zyx, round(math.prod(window_zyx) * scale), survey.volume_zyx)
    most = round_up([max(a, b) for a, b in zip(larger, window_zyx, strict=True)], multiple_zyx)
    least = round_up(window_zyx, multiple_zyx)
    lengths = zip(survey.volume_zyx, least, most, multiple_zyx, strict=True)
    z, y, x = (_shortest(*axis, survey.overlap) for axis in lengths)
    if multiple_zyx[1] == multiple_zyx[2] and least[1] == least[2] and most[1] == most[2]:
        y = x = max(y, x)  # so that they can be exchanged, a test-time symmetry
    return z, y, x


def _shortest(length: int, least: int, most: int, multiple: int, overlap: float) -> int:
    """Return the shortest window of which no more are needed along an axis than of the longest one."""
    needed = [(len(axis_starts(length, w, stride_of(w, overlap))), w) for w in range(least, most + 1, multiple)]
    return min(window for count, window in needed if count <= needed[-1][0])
