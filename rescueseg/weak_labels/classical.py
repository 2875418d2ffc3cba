"""Classical pipelines, one per kind of structure: blobs, tubes, membranes.

Each is fitted to a volume through its most stable threshold: that says the channel, the polarity and the size of the
objects. How strong a filter's response must be follows from its distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.filters import threshold_otsu
from skimage.segmentation import find_boundaries, watershed

from rescueseg.geometry import ZYX, Spacing, zyx
from rescueseg.voxels.components import label_components
from rescueseg.weak_labels.base import Float32, WeakLabel, empty_label, from_decision
from rescueseg.weak_labels.filters import filter_reach, finest, hessian_eigenvalues, laplacian, smooth
from rescueseg.weak_labels.threshold import ThresholdLabeller, fit_threshold

LARGEST = 10.0
"""Largest radius of an object, in multiples of the finest voxel size; what is larger is found by its border anyway."""
MEMBRANE_SCALES = (1.0, 1.5)
"""Scales of membranes, in the same unit: they are as thin as the voxels resolve."""
GROWTH = 8
"""Steps that hysteresis grows from a strong response, in voxels: it may not depend on what lies far away."""
LOW = 0.5
"""The weak threshold of a response as a share of the strong one."""

HALF = 0.5
"""A blob is cut at this share of its height over the ground: where a blurred edge is."""
CUT_WIDTH = 0.1
"""Over how much of the height the confidence grows."""
CORE = 2.0
"""Least distance of a cell's core to its membrane, in multiples of the finest voxel size."""
LOOSER = 2.0
"""On a ridge the threshold is lowered by this many of the steps that tested its stability."""
TOUCHING = (0.35, 0.5, 0.7, 1.0)
"""Radii of single blobs tried, as shares of the radius of what the rough mask holds in one piece."""
BALL_SIGMA = 3.0**0.5
"""Radius of a ball over the scale at which its Laplacian of Gaussian is strongest."""
TUBE_SIGMA = 2.0**0.5
"""Radius of a cylinder over the scale at which a ridge filter is strongest."""
BALL, TUBE = 4.0, 3.0
"""Radius over the mean distance of its voxels to the surface: of a ball, of a cylinder."""
LEAST_RESPONSE = 1e-5
"""Responses below this are rounding, with intensities of standard deviation 1."""


@dataclass(frozen=True)
class BlobLabeller:
    """Blobs: maxima of the Laplacian of Gaussian, flooded, each cut at half its own height.

    Parameters
    ----------
    channel : int
        Image channel.
    bright : bool
        Whether blobs are brighter than their surroundings.
    sigma_um : float
        Smoothing before the cut.
    ground : float
        Median of the smoothed channel (negated when dark).
    radius_um : float
        Typical radius of a blob.
    strong : float
        Least response of a blob; infinite where there is none.
    """

    channel: int
    bright: bool
    sigma_um: float
    ground: float
    radius_um: float
    strong: float

    name = "blobs"
    n_classes = 1

    def margin_zyx(self, spacing_um_zyx: Spacing) -> ZYX:
        """Return the reach of the filter and two radii, so that blobs at the border are whole."""
        filtered = filter_reach(self.radius_um / BALL_SIGMA, spacing_um_zyx)
        return zyx(f + round(2 * self.radius_um / s) for f, s in zip(filtered, spacing_um_zyx, strict=True))

    def label(self, image: Float32, spacing_um_zyx: Spacing) -> WeakLabel:
        """Label an image (float32 czyx); see `WeakLabeller`."""
        bright = _signed(image, self.channel, self.bright)
        response = -laplacian(bright, self.radius_um / BALL_SIGMA, spacing_um_zyx)
        apart = max(1, round(0.5 * self.radius_um / finest(spacing_um_zyx)))
        peaks = peak_local_max(response, min_distance=apart, threshold_abs=self.strong, exclude_border=False)
        if not len(peaks):
            return empty_label(bright.shape)
        numbers = np.arange(1, len(peaks) + 1)
        seeds = np.zeros(bright.shape, np.int32)
        seeds[tuple(peaks.T)] = numbers
        basins = watershed(-response, seeds)
        fine = smooth(bright, self.sigma_um, spacing_um_zyx)
        core = np.where(response > HALF * response[tuple(peaks.T)][basins - 1], basins, 0)
        height = ndimage.mean(fine, core, numbers) - self.ground
        share = (fine - self.ground) / np.maximum(height, 1e-6)[basins - 1] - HALF
        return from_decision(share, CUT_WIDTH)


@dataclass(frozen=True)
class TubeLabeller:
    """Tubes: a ridge filter finds them, and hysteresis grows them into what the threshold calls foreground.

    Parameters
    ----------
    rough : ThresholdLabeller
        The volume's most stable threshold.
    scales_um : tuple of float
        Standard deviations of the filter.
    strong : float
        Least response of a tube; infinite where there is none. Half of it is enough beside one.
    """

    rough: ThresholdLabeller
    scales_um: tuple[float, ...]
    strong: float

    name = "tubes"
    n_classes = 1

    def margin_zyx(self, spacing_um_zyx: Spacing) -> ZYX:
        """Return the reach of filter and threshold, and of the growth."""
        parts = (filter_reach(max(self.scales_um), spacing_um_zyx), self.rough.margin_zyx(spacing_um_zyx))
        return zyx(max(both) + GROWTH for both in zip(*parts, strict=True))

    def label(self, image: Float32, spacing_um_zyx: Spacing) -> WeakLabel:
        """Label an image (float32 czyx); see `WeakLabeller`."""
        bright = _signed(image, self.rough.channel, self.rough.bright)
        response = ridges(bright, self.scales_um, spacing_um_zyx, self.name)
        strong = response > self.strong
        if not strong.any():
            return empty_label(response.shape)
        decision = self.rough.decision(image, spacing_um_zyx)
        body, ridge = decision > 0, response > LOW * self.strong
        faint = ridge & (decision > -LOOSER * self.rough.width)
        votes = (decision / self.rough.width, response / np.float32(LOW * self.strong * 2 * CUT_WIDTH) - 5)
        return _with_confidence(
            hysteresis(strong & (body | faint), body | faint), [from_decision(vote, 1.0) for vote in votes]
        )


@dataclass(frozen=True)
class MembraneLabeller:
    """Membranes: a ridge filter, hysteresis, and the watershed that closes their gaps.

    Parameters
    ----------
    channel : int
        Image channel.
    bright : bool
        Whether membranes are brighter than what they enclose.
    scales_um : tuple of float
        Standard deviations of the filter.
    strong : float
        Least response of a membrane; infinite where there is none. Half of it is enough where it closes a gap.
    """

    channel: int
    bright: bool
    scales_um: tuple[float, ...]
    strong: float

    name = "membranes"
    n_classes = 1

    def margin_zyx(self, spacing_um_zyx: Spacing) -> ZYX:
        """Return the reach of the filter, and of the growth."""
        return zyx(f + GROWTH for f in filter_reach(max(self.scales_um), spacing_um_zyx))

    def label(self, image: Float32, spacing_um_zyx: Spacing) -> WeakLabel:
        """Label an image (float32 czyx); see `WeakLabeller`."""
        response = ridges(_signed(image, self.channel, self.bright), self.scales_um, spacing_um_zyx, self.name)
        membranes = response > self.strong
        if not membranes.any():
            return empty_label(response.shape)
        walls = closing_walls(response, membranes, spacing_um_zyx)
        ridge = from_decision(response / np.float32(self.strong) - 1, 2 * CUT_WIDTH)
        return _with_confidence(membranes | (walls & (response > LOW * self.strong)), [ridge])


def _with_confidence(mask: npt.NDArray[np.bool_], votes: Sequence[WeakLabel]) -> WeakLabel:
    """Return a mask with the confidence of the votes that agree with it, 0 where none does."""
    agreeing = [np.where((vote.labels > 0) == mask, vote.confidence, 0) for vote in votes]
    return WeakLabel(mask.astype(np.uint8), np.mean(agreeing, axis=0, dtype=np.float32))


def ridges(bright: Float32, scales_um: Sequence[float], spacing_um_zyx: Spacing, kind: str) -> Float32:
    """Return the strongest ridge response over scales (float32 zyx), 0 where there is none.

    With the eigenvalues of the scale-normalised Hessian l1 ≥ l2 ≥ l3, a bright tube has two that are strongly
    negative: −l2, as in Sato's filter [1]_; a bright membrane has one, and the others near zero: l2 − l3.

    Parameters
    ----------
    bright : ndarray of float32, zyx
        Structure bright.
    scales_um : sequence of float
        Standard deviations in micrometre.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.
    kind : {"tubes", "membranes"}
        What to look for.

    References
    ----------
    .. [1] Sato et al., doi:10.1016/S1361-8415(98)80009-1.
    """
    best = np.zeros(bright.shape, np.float32)
    for scale in scales_um:
        _, second, third = hessian_eigenvalues(bright, scale, spacing_um_zyx)
        np.maximum(best, -second if kind == "tubes" else np.minimum(second, 0) - third, out=best)
    return best


def hysteresis(strong: npt.NDArray[np.bool_], weak: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return hysteresis (Canny, doi:10.1109/TPAMI.1986.4767851) of limited growth: weak voxels within `GROWTH` steps.

    Examples
    --------
    A strong voxel at the start of a line of 12 weak ones:

    >>> weak = np.ones((1, 1, 12), bool)
    >>> int(hysteresis(np.arange(12).reshape(weak.shape) == 0, weak).sum())
    9
    """
    return np.asarray(ndimage.binary_dilation(strong, mask=weak | strong, iterations=GROWTH))


def closing_walls(
    response: Float32, membranes: npt.NDArray[np.bool_], spacing_um_zyx: Spacing
) -> npt.NDArray[np.bool_]:
    """Return the borders between cells: the watershed of the response from the middle of every cell.

    Parameters
    ----------
    response : ndarray of float32, zyx
        High on membranes.
    membranes : ndarray of bool, zyx
        Where the response is strong.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.
    """
    far = ndimage.distance_transform_edt(~membranes, sampling=spacing_um_zyx)
    cores, count = label_components(far > CORE * finest(spacing_um_zyx), 6)
    if count < 2:
        return np.zeros(membranes.shape, np.bool_)
    return np.asarray(find_boundaries(watershed(response, cores), mode="thick"), np.bool_)


# fitting --------------------------------------------------------------------------------------------------------------


def fit_blobs(images: Sequence[Float32], spacing_um_zyx: Spacing, bright: bool | None = None) -> BlobLabeller:
    """Fit the blob pipeline to parts of a volume (float32 czyx); `bright` is the polarity, where it is known.

    The radius is the one, up to that of the rough mask's objects (touching ones make them look larger), whose Laplacian of
    Gaussian is strongest inside the rough mask; half the median response of its maxima there makes a blob.

    References
    ----------
    Lindeberg, doi:10.1023/A:1008045108935, for the scale of a blob.
    """
    rough, unit = fit_threshold(images, spacing_um_zyx, bright), finest(spacing_um_zyx)
    largest = object_radius(rough, images, spacing_um_zyx, BALL, LARGEST)
    signed = [_signed(image, rough.channel, rough.bright) for image in images]
    masks = [rough.label(image, spacing_um_zyx).labels > 0 for image in images]
    fine = [smooth(one, rough.sigma_um, spacing_um_zyx).ravel() for one in signed]
    ground = float(np.median(np.concatenate(fine)))
    best, most = BlobLabeller(rough.channel, rough.bright, rough.sigma_um, ground, largest, float("inf")), 0.0
    for radius in sorted({max(unit, largest * share) for share in TOUCHING}) if rough.rule != "none" else ():
        responses = [-laplacian(one, radius / BALL_SIGMA, spacing_um_zyx) for one in signed]
        inside = np.concatenate([r[mask] for r, mask in zip(responses, masks, strict=True)])
        heights = [
            r[tuple(peak_local_max(np.where(mask, r, 0), threshold_abs=0.0, exclude_border=False).T)]
            for r, mask in zip(responses, masks, strict=True)
        ]
        if len(inside) and inside.mean() > most and sum(map(len, heights)):
            most = float(inside.mean())
            strong = LOW * float(np.median(np.concatenate(heights)))
            best = BlobLabeller(rough.channel, rough.bright, rough.sigma_um, ground, radius, strong)
    return best


def fit_tubes(images: Sequence[Float32], spacing_um_zyx: Spacing, bright: bool | None = None) -> TubeLabeller:
    """Fit the tube pipeline to parts of a volume (float32 czyx): size from the rough mask, least response by Otsu.

    `bright` is the polarity, where it is known.

    References
    ----------
    Otsu, doi:10.1109/TSMC.1979.4310076.
    """
    rough, unit = fit_threshold(images, spacing_um_zyx, bright), finest(spacing_um_zyx)
    radius = object_radius(rough, images, spacing_um_zyx, TUBE, LARGEST)
    largest = max(2 * unit, radius / TUBE_SIGMA)
    scales = (unit, (unit * largest) ** 0.5, largest)
    responses = [ridges(_signed(i, rough.channel, rough.bright), scales, spacing_um_zyx, "tubes") for i in images]
    return TubeLabeller(rough, scales, float("inf") if rough.rule == "none" else _strong(responses))


def fit_membranes(images: Sequence[Float32], spacing_um_zyx: Spacing, bright: bool | None = None) -> MembraneLabeller:
    """Fit the membrane pipeline to parts of a volume (float32 czyx).

    The most stable threshold may well be of the cells: the polarity, where it is not known, is the one whose ridges hold
    more contrast.
    """
    rough = fit_threshold(images, spacing_um_zyx)
    scales = tuple(s * finest(spacing_um_zyx) for s in MEMBRANE_SCALES)
    best, most = MembraneLabeller(rough.channel, True, scales, float("inf")), 0.0
    for side in ((True, False) if bright is None else (bright,)) if rough.rule != "none" else ():
        responses = [ridges(_signed(i, rough.channel, side), scales, spacing_um_zyx, "membranes") for i in images]
        strong = _strong(responses, power=1.0)
        contrast = float(sum(f[f > strong].sum() for f in responses))
        if contrast > most:
            best, most = MembraneLabeller(rough.channel, side, scales, strong), contrast
    return best


def object_radius(
    rough: ThresholdLabeller, images: Sequence[Float32], spacing_um_zyx: Spacing, shape: float, largest: float
) -> float:
    """Return the typical radius of what a threshold finds, in micrometre.

    Parameters
    ----------
    rough : ThresholdLabeller
        The threshold.
    images : sequence of ndarray of float32, czyx
        Parts of a volume.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.
    shape : float
        Radius over the mean distance of an object's voxels to its surface: `BALL` or `TUBE`.
    largest : float
        Limit, in multiples of the finest voxel size; the least is 1.
    """
    unit = finest(spacing_um_zyx)
    distances = []
    for image in images:
        mask = rough.label(image, spacing_um_zyx).labels > 0
        distances.append(ndimage.distance_transform_edt(mask, sampling=spacing_um_zyx)[mask])
    inside = np.concatenate(distances)
    # the distance of a voxel is to the centre of the next one outside: half a voxel more than to the surface
    radius = shape * (float(inside.mean()) - unit / 2) if len(inside) else 3 * unit
    return float(np.clip(radius, unit, largest * unit))


def _strong(responses: Sequence[Float32], power: float = 0.5) -> float:
    """Return Otsu's threshold of the positive responses, of a power of them; infinite when they are all alike.

    The root keeps a few very strong responses from setting the threshold alone.
    """
    values = np.concatenate([r[r > LEAST_RESPONSE] for r in responses]) ** np.float32(power)
    return float(threshold_otsu(values)) ** (1 / power) if len(values) > 1 and np.ptp(values) > 0 else float("inf")


def _signed(image: Float32, channel: int, bright: bool) -> Float32:
    return np.asarray(image[channel] if bright else -image[channel], np.float32)
