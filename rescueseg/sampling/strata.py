"""Strata: what a patch stands for, measured on intensity, edges, noise and imaging artefacts, without any label.

============  =================================================================================================
stratum       boxes with
============  =================================================================================================
best_case     high contrast, high SNR and strong edges at once
worst_case    much structure in little contrast and little SNR at once; not the sparsest third
low_snr       the least contrast against the noise; not the sparsest third
dense         the strongest edges: many objects, touching objects
sparse        the weakest edges: empty space, where false positives show
volume_edge   the most faces in common with the volume
artifact      an imaging artefact: saturation, stripes, drift steps, blank or repeated planes, seams
typical       anything: drawn at random, so that the holdout stays representative
structure     probably some, by a hint (`rescueseg.stages.hints`); drawn at random, for what a quick classifier finds most of
              is often something else
elsewhere     probably none, by a hint, so that false positives are seen; drawn at random
============  =================================================================================================

Where there is a hint, all but `elsewhere` are drawn where it says that structure is.
Campaigns frozen earlier also have `bright` and `dim`. `rough_mask` marks patches that the triage read the labels of.
The noise in `low_snr`, `best_case` and `worst_case` is `residual_noise`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage, stats

from rescueseg.geometry import ZYX, Box
from rescueseg.progress import Progress
from rescueseg.records import VolumeRecord
from rescueseg.sampling import imaging_artefacts
from rescueseg.volumes.normalise import normalise

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Reader = Callable[[Box], npt.NDArray[Any]]
"""Returns a box as acquired, czyx."""

ARTEFACT = "artifact"
"""Stratum of boxes with an imaging artefact; holdouts and tickets store this spelling, so it stays."""

HOLDOUT_STRATA = (
    *("dense", "worst_case", "typical", "low_snr", "best_case"),
    *(ARTEFACT, "volume_edge", "sparse", "typical"),
)
"""Order in which the boxes of each part of the holdout are drawn. Boxes that promise objects are among them: where all are
empty, nothing is judged but false finds."""
STARTING_STRATA = ("dense", "best_case", "worst_case", "low_snr", "sparse", ARTEFACT, "volume_edge")
"""Order in which the starting patches are drawn: those that promise objects first."""
LIKELY, ELSEWHERE = "structure", "elsewhere"
HINTED_HOLDOUT_STRATA = (
    *(LIKELY, LIKELY, LIKELY, ELSEWHERE),
    *("low_snr", LIKELY, "worst_case", ELSEWHERE),
)
"""The same where there is a hint: three quarters of the boxes lie where it says that structure is."""
HINTED_STARTING_STRATA = (LIKELY, LIKELY, ELSEWHERE, "low_snr", LIKELY, "worst_case", "best_case", ELSEWHERE, ARTEFACT)
"""The same of the starting patches; the example is the first of them."""
TOP = 0.15
"""Share of the boxes with the highest scores that stand for a stratum."""

_LONGEST = 96
"""Voxels along an axis that are measured, in the middle of a longer box."""
_LEAST_SHARE, _OF_FULLEST = 0.02, 1 / 3
"""Share of structure that makes a box likely: at least the one, and this part of the share that a tenth of the boxes exceed."""
_SPARSEST = 1 / 3
"""Share of the boxes that hold too little to be difficult."""


@dataclass(frozen=True)
class Features:
    """Measurements of each box of one volume: arrays of shape (n,).

    Parameters
    ----------
    edge : ndarray of float64
        Mean in-plane gradient magnitude of the normalised image after smoothing over 3×3 pixels, per pixel.
    contrast : ndarray of float64
        Distance of the 5th and 95th percentile of the smoothed image, in normalised units.
    residual_snr : ndarray of float64
        Contrast over `residual_noise`, or over the noise of the quantisation where that is more.
    faces : ndarray of float64
        Faces shared with the volume, along the axes that the box does not fill.
    artefact_strength : ndarray of float64
        Of the strongest imaging artefact; present from 1 on.
    artefact_kind : tuple of str
        Which one that is, of `imaging_artefacts.KINDS`.
    structure : ndarray of float64, optional
        Share that is structure by a hint.
    """

    edge: Floats
    contrast: Floats
    residual_snr: Floats
    faces: Floats
    artefact_strength: Floats
    artefact_kind: tuple[str, ...]
    structure: Floats | None = None

    def __len__(self) -> int:
        return len(self.edge)

    def take(self, index: npt.NDArray[np.int64]) -> Features:
        """Return the features of some of the boxes."""
        return Features(
            self.edge[index],
            self.contrast[index],
            self.residual_snr[index],
            self.faces[index],
            self.artefact_strength[index],
            tuple(self.artefact_kind[i] for i in index),
            None if self.structure is None else self.structure[index],
        )

    def score(self, stratum: str) -> Floats:
        """Return how much each box belongs to a stratum; shape (n,), higher is more."""
        clutter = self.edge / (self.contrast + 1e-6)
        zero = np.zeros_like(self.edge)
        best, worst = (self.contrast, self.residual_snr, self.edge), (clutter, -self.contrast, -self.residual_snr)
        parts: dict[str, tuple[Floats, ...]] = {"best_case": best, "worst_case": worst}
        if stratum in parts:
            return sum((_ranks(values) for values in parts[stratum]), zero)
        scores = {
            "low_snr": -self.residual_snr,
            "dense": self.edge,
            "sparse": -self.edge,
            "volume_edge": self.faces,
            ARTEFACT: self.artefact_strength,
            "typical": zero,
            LIKELY: zero,
            ELSEWHERE: zero,
        }
        return scores[stratum]

    def eligible(self, stratum: str) -> Flags:
        """Tell which boxes may stand for a stratum at all; shape (n,)."""
        if self.structure is None or not len(self):
            return np.zeros(len(self), np.bool_) if stratum in (LIKELY, ELSEWHERE) else self._measured(stratum)
        likely = is_likely(self.structure)
        if stratum in (ARTEFACT, "volume_edge"):
            return likely & self._measured(stratum)
        return ~likely if stratum == ELSEWHERE else likely

    def _measured(self, stratum: str) -> Flags:
        """Tell which boxes may stand for a stratum by their measurements alone."""
        if stratum == ARTEFACT:
            return self.artefact_strength >= 1
        if stratum == "volume_edge":
            return self.faces > 0
        if stratum in ("worst_case", "low_snr") and len(self):
            return np.asarray(self.edge >= np.quantile(self.edge, _SPARSEST))
        return np.ones(len(self), dtype=bool)

    def reason(self, stratum: str, index: int) -> str:
        """Return the measurements behind a box in words, against the median of the volume.

        Holdouts store and digest these words, so they stay as they are; "SNR" is `residual_snr`.
        """

        def against(name: str, values: Floats) -> str:
            return f"{name} {values[index]:.2g} (median {np.median(values):.2g})"

        if stratum == ARTEFACT:
            return f"{self.artefact_kind[index]}, {self.artefact_strength[index]:.1f} times its threshold"
        if stratum == "volume_edge":
            return f"{self.faces[index]:.0f} of the volume's faces"
        if stratum in ("dense", "sparse"):
            return against("edges", self.edge)
        if stratum == "low_snr":
            return against("SNR", self.residual_snr)
        if stratum == "typical":
            return "drawn at random"
        if stratum in (LIKELY, ELSEWHERE) and self.structure is not None:
            return (
                f"about {self.structure[index]:.0%} structure by the example (median {np.median(self.structure):.0%})"
            )
        return ", ".join(
            (against("contrast", self.contrast), against("SNR", self.residual_snr), against("edges", self.edge))
        )


def is_likely(shares: Floats) -> Flags:
    """Tell which boxes probably hold structure: a share of at least a third of what the fullest tenth holds, and 2 %.

    A classifier that learned from one patch finds some structure everywhere; what is common to all boxes tells nothing.

    Parameters
    ----------
    shares : ndarray of float64, shape (n,)
        Of each box, by a hint.

    Examples
    --------
    >>> is_likely(np.array([0.0, 0.03, 0.05, 0.3, 0.35])).tolist()
    [False, False, False, True, True]
    """
    return np.asarray(shares >= max(_LEAST_SHARE, _OF_FULLEST * float(np.quantile(shares, 0.9))))


def measure(read: Reader, boxes: Sequence[Box], volume: VolumeRecord, progress: Progress | None = None) -> Features:
    """Measure boxes of a volume one by one; memory holds one of them at a time.

    Parameters
    ----------
    read : callable
        Returns the image of a box as acquired, czyx.
    boxes : sequence of Box
        At most the middle 96 voxels along each axis are read.
    volume : VolumeRecord
        Shape, type and normalisation count.
    progress : callable, optional
        Called after each box.
    """
    rows = []
    for count, box in enumerate(boxes, 1):
        rows.append(_measure_box(read(_central_part(box)), volume))
        if progress is not None:
            progress(f"{volume.volume_id}: boxes looked at", count, len(boxes))
    if not rows:
        none = np.zeros(0)
        return Features(none, none, none, none, none, ())
    edge, contrast, snr = np.array([row.numbers for row in rows]).T
    strength = np.array([row.structural_strengths for row in rows])
    starts = [_central_part(box).offset_zyx[0] for box in boxes]
    face = np.median([math.prod(_central_part(box).shape_zyx[1:]) for box in boxes])
    steps = imaging_artefacts.gain_steps(
        starts, [row.levels for row in rows], volume.shape_zyx[0], math.prod(volume.shape_zyx[1:]) / face
    )
    drift = imaging_artefacts.KINDS.index("drift_step") - 1
    inside = [steps[z : z + row.levels.shape[1] - 1] for z, row in zip(starts, rows, strict=True)]
    strength[:, drift] = np.maximum(strength[:, drift], [float(s.max()) if len(s) else 0.0 for s in inside])
    channels = zip(*(row.tops for row in rows), strict=True)
    share = np.max([imaging_artefacts.saturated_shares(tops) for tops in channels], axis=0)
    strength = np.column_stack([imaging_artefacts.saturation_strength(share), strength])
    faces = np.array([_faces(box, volume.shape_zyx) for box in boxes], dtype=np.float64)
    kind = tuple(imaging_artefacts.KINDS[i] for i in strength.argmax(axis=1))
    return Features(edge, contrast, snr, faces, strength.max(axis=1), kind)


def draw(score: Floats, free: npt.NDArray[np.bool_], rng: np.random.Generator, top: float = TOP) -> int | None:
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
        Share of the free boxes to draw from: one of at least three, so that a single imaging artefact does
        not stand for the stratum.

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


@dataclass(frozen=True)
class _BoxMeasurement:
    """Measurements of one box."""

    numbers: tuple[float, float, float]
    structural_strengths: Floats
    levels: Floats
    tops: tuple[imaging_artefacts.TopValues, ...]


def _measure_box(voxels: npt.NDArray[Any], volume: VolumeRecord) -> _BoxMeasurement:
    image: npt.NDArray[np.float32] = normalise(voxels, volume.normalisation).mean(axis=0, dtype=np.float32)
    smooth = ndimage.uniform_filter(image, size=(1, 3, 3), mode="nearest")
    noise = max(residual_noise(image, smooth), _quantisation(volume))
    steps = [np.gradient(smooth, axis=axis) for axis in (1, 2) if smooth.shape[axis] > 1]
    edge = float(np.sqrt(sum(step**2 for step in steps)).mean(dtype=np.float64)) if steps else 0.0
    low, high = np.percentile(smooth, (5, 95))
    contrast = float(high - low)
    return _BoxMeasurement(
        (edge, contrast, contrast / noise),
        imaging_artefacts.structural_strengths(image, smooth, noise),
        imaging_artefacts.plane_levels(image, smooth),
        tuple(imaging_artefacts.top_values(channel) for channel in voxels),
    )


def residual_noise(image: npt.NDArray[np.float32], smooth: npt.NDArray[np.float32]) -> float:
    """Return the standard deviation of the noise by what smoothing over 3×3 pixels removed.

    1.4826 times the median absolute value of that residual, scaled to white noise. Fine structure counts as noise. It
    is one of three estimates: the triage measures `haar_noise` plane by plane, the consistency check `variogram_noise`.

    Parameters
    ----------
    image, smooth : ndarray of float32, zyx
        A box and the same smoothed in plane.

    Returns
    -------
    float
        In the units of `image`.

    Examples
    --------
    >>> image = np.float32([[[1, -1, 1, -1]]])
    >>> round(residual_noise(image, np.zeros_like(image)), 3)
    1.573
    """
    return float(1.4826 * np.median(np.abs(image - smooth)) * math.sqrt(9 / 8))


def _quantisation(volume: VolumeRecord) -> float:
    """Return the standard deviation of rounding to whole numbers in normalised units; tiny for floats."""
    return 1 / (math.sqrt(12) * volume.normalisation.std) if np.dtype(volume.dtype).kind in "iu" else 1e-6


def _ranks(values: Floats) -> Floats:
    return np.asarray(stats.rankdata(values), dtype=np.float64) / max(1, len(values))


def _central_part(box: Box) -> Box:
    shape = [min(n, _LONGEST) for n in box.shape_zyx]
    start = [o + (n - m) // 2 for o, n, m in zip(box.offset_zyx, box.shape_zyx, shape, strict=True)]
    return Box.from_bounds(start, [a + m for a, m in zip(start, shape, strict=True)])


def _faces(box: Box, shape_zyx: ZYX) -> int:
    axes = [a for a in range(3) if box.shape_zyx[a] < shape_zyx[a]]
    return sum((box.offset_zyx[a] == 0) + (box.stop_zyx[a] == shape_zyx[a]) for a in axes)
