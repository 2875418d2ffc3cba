"""Simple strata: what a patch stands for, told from intensity and edges alone, without any label.

============  ==========================================================================
stratum       boxes with
============  ==========================================================================
typical       anything: drawn at random, so that the holdout stays representative
dense         the strongest edges: many objects, touching objects
sparse        the weakest edges: empty space, where false positives show
bright, dim   the highest and lowest mean intensity
low_snr       the least structure against noise
volume_edge   the most faces in common with the volume
============  ==========================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from rescueseg.geometry import ZYX, Box

Floats = npt.NDArray[np.float64]
Reader = Callable[[Box], npt.NDArray[np.float32]]

HOLDOUT_STRATA = ("typical", "dense", "dim", "low_snr", "bright", "volume_edge", "sparse", "typical")
"""Order in which the boxes of each part of the holdout are drawn."""
STARTING_STRATA = ("dense", "bright", "dim", "typical", "low_snr", "dense", "sparse", "volume_edge")
"""Order in which the starting patches are drawn: those that promise objects first."""

_LONGEST = 128
"""Voxels along an axis that are looked at, in the middle of a longer box."""


@dataclass(frozen=True)
class Features:
    """What is known of each box: arrays of shape (n,).

    Parameters
    ----------
    mean : ndarray of float64
        Mean normalised intensity.
    edge : ndarray of float64
        Mean in-plane gradient magnitude after smoothing over 3×3 pixels, per pixel.
    snr : ndarray of float64
        Standard deviation of the smoothed image over that of what the smoothing removed.
    faces : ndarray of float64
        Faces shared with the volume, along the axes that the box does not fill.
    """

    mean: Floats
    edge: Floats
    snr: Floats
    faces: Floats

    def score(self, stratum: str) -> Floats:
        """Return how much each box belongs to a stratum; shape (n,), higher is more."""
        scores = {
            "typical": np.zeros_like(self.mean),
            "dense": self.edge,
            "sparse": -self.edge,
            "bright": self.mean,
            "dim": -self.mean,
            "low_snr": -self.snr,
            "volume_edge": self.faces,
        }
        return scores[stratum]


def measure(read: Reader, boxes: Sequence[Box], shape_zyx: ZYX) -> Features:
    """Look at boxes one by one; memory holds one of them at a time.

    Parameters
    ----------
    read : callable
        Returns the normalised image of a box: float32, czyx.
    boxes : sequence of Box
        At most the middle 128 voxels along each axis are read.
    shape_zyx : tuple of int
        Shape of the volume.
    """
    rows = [_describe(read(_middle(box))) for box in boxes]
    mean, edge, snr = np.array(rows, dtype=np.float64).reshape(-1, 3).T
    return Features(mean, edge, snr, np.array([_faces(box, shape_zyx) for box in boxes], dtype=np.float64))


def draw(score: Floats, free: npt.NDArray[np.bool_], rng: np.random.Generator, top: float = 0.15) -> int | None:
    """Draw one of the free boxes with the highest scores.

    Parameters
    ----------
    score : ndarray of float64, shape (n,)
        Ties are broken at random.
    free : ndarray of bool, shape (n,)
        Which may be drawn.
    rng : numpy.random.Generator
        Advanced by the same amount whatever is free.
    top : float
        Share of the free boxes to draw from: one of at least three, so that a single artefact does not stand
        for the stratum.

    Returns
    -------
    int or None
        Index into `score`; None when nothing is free.
    """
    order = np.lexsort((rng.random(len(score)), -score))
    chance = rng.random()
    order = order[free[order]]
    if not len(order):
        return None
    among = len(order) if np.ptp(score) == 0 else min(len(order), max(3, round(top * len(order))))
    return int(order[int(chance * among)])


def _describe(image: npt.NDArray[np.float32]) -> tuple[float, float, float]:
    plane: npt.NDArray[Any] = image.mean(axis=0, dtype=np.float32)
    smooth = ndimage.uniform_filter(plane, size=(1, 3, 3), mode="nearest")
    noise = float(np.std(plane - smooth, dtype=np.float64))
    steps = [np.gradient(smooth, axis=axis) for axis in (1, 2) if smooth.shape[axis] > 1]
    edge = float(np.sqrt(sum(step**2 for step in steps)).mean(dtype=np.float64)) if steps else 0.0
    return float(plane.mean(dtype=np.float64)), edge, float(np.std(smooth, dtype=np.float64)) / (noise + 1e-6)


def _middle(box: Box) -> Box:
    shape = [min(n, _LONGEST) for n in box.shape_zyx]
    start = [o + (n - m) // 2 for o, n, m in zip(box.offset_zyx, box.shape_zyx, shape, strict=True)]
    return Box.from_bounds(start, [a + m for a, m in zip(start, shape, strict=True)])


def _faces(box: Box, shape_zyx: ZYX) -> int:
    axes = [a for a in range(3) if box.shape_zyx[a] < shape_zyx[a]]
    return sum((box.offset_zyx[a] == 0) + (box.stop_zyx[a] == shape_zyx[a]) for a in axes)
