"""Whether a first mask is worth painting: by what the image alone says, and by the annotations that there are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rescueseg.geometry import Spacing
from rescueseg.labels import IGNORE
from rescueseg.weak_labels.base import Float32, Labels
from rescueseg.weak_labels.filters import finest, smooth

LEAST_ASYMMETRY = 1.6
"""Of an image whose structure can be told without a hint. On the development volumes: block-face and ion-beam EM 1.0 to 1.1,
stained membranes around cells 1.2, nuclei and vessels from 2.3 on (tests/benchmarks/first_masks.py)."""
ENDS = (1.0, 0.1)
"""Percentiles that are compared with their counterparts; the second is for sparse structure."""
LEAST_SPARED = 0.2
"""Share of the voxels to draw that a mask must spare on annotated patches, for others to be painted."""
LEAST_DICE = 0.6
"""Of the classifier on scribbles that it was not trained on."""
_MOST_VALUES = 300_000


def asymmetry(images: Sequence[Float32], spacing_um_zyx: Spacing) -> float:
    """Return how much farther the image reaches from its median to one side than to the other.

    Fluorescence has a ground, and structure that is brighter. Where bright and dark parts balance, as in electron
    microscopy, a threshold finds something, but nothing says that it is what is meant.

    Parameters
    ----------
    images : sequence of ndarray of float32, czyx
        Normalised; parts of one volume.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre; images are smoothed by one of the finest first.

    Returns
    -------
    float
        The largest of all channels, at two pairs of percentiles; 1 where both sides are alike, or nothing varies.

    Examples
    --------
    >>> ground = np.random.default_rng(0).normal(size=(1, 8, 32, 32)).astype(np.float32)
    >>> 1 <= asymmetry([ground], (1, 1, 1)) < 1.2
    True
    >>> ground[0, 2:6, 4:12, 4:12] += 5
    >>> asymmetry([ground], (1, 1, 1)) > 4, asymmetry([-ground], (1, 1, 1)) > 4
    (True, True)
    """
    unit, ratios = finest(spacing_um_zyx), [1.0]
    for channel in range(len(images[0])):
        values = np.concatenate([smooth(image[channel], unit, spacing_um_zyx).ravel() for image in images])
        values = values[:: 1 + len(values) // _MOST_VALUES]
        for end in ENDS:
            low, middle, high = (float(v) for v in np.percentile(values, (end, 50, 100 - end)))
            near, far = sorted((middle - low, high - middle))
            if far > 0:
                ratios.append(far / max(near, 1e-6 * far))
    return max(ratios)


def doubt_without_hint(images: Sequence[Float32], spacing_um_zyx: Spacing) -> str:
    """Say why no mask is painted as long as nothing is annotated; nothing where the structure can be told.

    Parameters are those of `asymmetry`.
    """
    if asymmetry(images, spacing_um_zyx) >= LEAST_ASYMMETRY:
        return ""
    return "bright and dark parts balance in it, so nothing in the image tells which structure is meant"


def doubt_by_annotations(share: float | None) -> str:
    """Say why no mask is painted, by what masks `spared` on annotated patches; nothing where they spare enough.

    Examples
    --------
    >>> doubt_by_annotations(-0.5)
    'on the accepted annotations its mask leaves 150 % of the voxels to correct that drawing from nothing takes'
    >>> doubt_by_annotations(0.7)
    ''
    """
    if share is None:
        return "the accepted annotations hold no structure yet that a mask could be compared with"
    if share >= LEAST_SPARED:
        return ""
    return (
        f"on the accepted annotations its mask leaves {round(100 * (1 - share))} % of the voxels to correct that drawing "
        "from nothing takes"
    )


def doubt_by_scribbles(dice: float | None) -> str:
    """Say why no mask is painted, by the Dice on scribbles that the classifier was not trained on; None could not be had."""
    if dice is None or dice >= LEAST_DICE:
        return ""
    return f"the classifier reaches a Dice of {dice:.2f} alone on scribbles that it was not trained on"


def spared(pairs: Sequence[tuple[Labels, Labels]]) -> float | None:
    """Return the share of the voxels to draw that masks spare; negative where correcting them is more work than drawing.

    Parameters
    ----------
    pairs : sequence of (ndarray of uint8, ndarray of uint8)
        Mask and annotation of the same patch, zyx; voxels annotated as 255 do not count.

    Returns
    -------
    float or None
        ``1 − wrong / drawn``, over all patches; None where no structure is annotated.

    Examples
    --------
    Of four voxels the mask holds three, and one that is background:

    >>> annotation = np.array([[[1, 1, 1, 1, 0, 0]]], np.uint8)
    >>> spared([(np.array([[[1, 1, 1, 0, 1, 0]]], np.uint8), annotation)])
    0.5
    >>> spared([(annotation, np.zeros_like(annotation))]) is None
    True
    """
    drawn = sum(int(((theirs > 0) & (theirs != IGNORE)).sum()) for _, theirs in pairs)
    wrong = sum(int(((mine != theirs) & (theirs != IGNORE)).sum()) for mine, theirs in pairs)
    return 1 - wrong / drawn if drawn else None


def invented(pairs: Sequence[tuple[Labels, Labels]]) -> float:
    """Return the share of the annotated background that masks paint.

    Examples
    --------
    >>> annotation = np.array([[[1, 0, 0, 0, 0, 255]]], np.uint8)
    >>> invented([(np.array([[[1, 1, 0, 0, 0, 1]]], np.uint8), annotation)])
    0.25
    """
    background = sum(int((theirs == 0).sum()) for _, theirs in pairs)
    painted = sum(int(((mine > 0) & (theirs == 0)).sum()) for mine, theirs in pairs)
    return painted / background if background else 0.0


def stands_out(mask: Labels, share: float) -> bool:
    """Tell whether a mask holds more than twice what a method invents: then more of it is right than wrong.

    Parameters
    ----------
    mask : ndarray of uint8, zyx
        First mask of a patch.
    share : float
        See `invented`.

    Examples
    --------
    >>> mask = np.array([[[1, 1, 0, 0, 0, 0, 0, 0, 0, 0]]], np.uint8)
    >>> stands_out(mask, 0.05), stands_out(mask, 0.15)
    (True, False)
    """
    return float((mask > 0).mean()) > 2 * share
