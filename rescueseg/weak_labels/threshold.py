"""Thresholds, global and local: many are tried, the one whose mask changes least when it is disturbed is taken."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from skimage import filters

from rescueseg.geometry import ZYX, Spacing, zyx
from rescueseg.weak_labels.base import Float32, WeakLabel, empty_label, from_decision
from rescueseg.weak_labels.filters import filter_reach, finest, smooth

RULES: dict[str, Callable[[npt.NDArray[np.float32]], float]] = {
    "otsu": lambda values: float(filters.threshold_otsu(values)),
    "li": lambda values: float(filters.threshold_li(values)),
    "triangle": lambda values: float(filters.threshold_triangle(values)),
    "multiotsu": lambda values: float(filters.threshold_multiotsu(values, 3)[-1]),
}
"""Thresholds of the compressed values; structure is above them."""
SMOOTHING = (1.0, 2.0)
"""Standard deviations in multiples of the finest voxel size."""
WINDOWS = (8.0, 16.0)
"""Standard deviations of a local threshold's window, in multiples of the finest voxel size."""
WINDOW_TRUNCATE = 2.0
"""The window is cut at this many standard deviations: less context to read, at hardly another mean."""
SURROUNDINGS = 4.0
"""Standard deviation, in multiples of the finest voxel size, of what a voxel is compared with to tell the polarity."""
LEAST_SHARE, MOST_SHARE = 0.001, 0.5
"""Share of the voxels that a structure takes: it is what is rarer; hardly anything at all is noise."""
SHIFT = 0.05
"""The threshold is moved up and down by this share of the range between the percentiles 0.5 and 99.5."""
STRETCH = 1.5
"""The smoothing is made wider and narrower by this factor."""
KNEE = 2.0
"""Contrasts above this many standard deviations of the ground are compressed: a dim object counts like a bright one."""
MOST_VALUES = 300_000


@dataclass(frozen=True)
class ThresholdLabeller:
    """Foreground is what is brighter (or darker) than a threshold, after a little smoothing.

    Parameters
    ----------
    channel : int
        Image channel.
    bright : bool
        Whether structure is brighter than its surroundings.
    sigma_um : float
        Smoothing.
    window_um : float
        Standard deviation of the Gaussian window whose mean is subtracted first; 0 for a global threshold.
    ground, spread : float
        Median of the image (negated when dark, less the local mean) and robust standard deviation below it.
    rule : str
        What set the threshold; "none" when nothing stands out.
    level : float
        The threshold of asinh((value − ground) / (`KNEE` · spread)).
    width : float
        By how much it was moved to measure the stability; the confidence grows over this distance.
    stability : float
        Mean agreement (Cohen's kappa) with the masks of disturbed thresholds; 0 where nothing was found.
    """

    channel: int
    bright: bool
    sigma_um: float
    window_um: float
    ground: float = 0.0
    spread: float = 1.0
    rule: str = "none"
    level: float = 0.0
    width: float = 1.0
    stability: float = 0.0

    name = "threshold"
    n_classes = 1

    def margin_zyx(self, spacing_um_zyx: Spacing) -> ZYX:
        """Return the reach of the smoothing and of the window, in voxels."""
        fine = filter_reach(self.sigma_um, spacing_um_zyx)
        wide = filter_reach(self.window_um, spacing_um_zyx, WINDOW_TRUNCATE) if self.window_um else (0, 0, 0)
        return zyx(a + b for a, b in zip(fine, wide, strict=True))

    def label(self, image: Float32, spacing_um_zyx: Spacing) -> WeakLabel:
        """Label an image (float32 czyx); see `WeakLabeller`."""
        if self.rule == "none":
            return empty_label(image.shape[1:])
        return from_decision(self.decision(image, spacing_um_zyx), self.width)

    def decision(self, image: Float32, spacing_um_zyx: Spacing) -> Float32:
        """Return how far each voxel is above the threshold, float32 zyx."""
        return self.compressed(self.flattened(image, spacing_um_zyx)) - np.float32(self.level)

    def flattened(self, image: Float32, spacing_um_zyx: Spacing) -> Float32:
        """Return the channel with structure bright, smoothed, less the local mean."""
        fine = smooth(image[self.channel], self.sigma_um, spacing_um_zyx)
        flat = fine - smooth(fine, self.window_um, spacing_um_zyx, WINDOW_TRUNCATE) if self.window_um else fine
        return flat if self.bright else -flat

    def compressed(self, flat: Float32) -> Float32:
        """Return the values that are thresholded."""
        return np.asarray(np.arcsinh((flat - np.float32(self.ground)) / np.float32(KNEE * self.spread)), np.float32)


def fit_threshold(images: Sequence[Float32], spacing_um_zyx: Spacing, bright: bool | None = None) -> ThresholdLabeller:
    """Choose a threshold by its stability.

    Tried are the thresholds of Otsu [1]_, Li [2]_, the triangle [3]_ and the upper one of two after Otsu [4]_, each on
    the image and on what remains of it when a local mean is subtracted (two windows), with two smoothings, on every
    channel, all on an asinh scale. Taken is the mask that changes least, by Cohen's kappa, when the threshold is moved up and
    down and the smoothing made wider and narrower: the idea of maximally stable extremal regions [5]_, with a
    measure that does not favour large masks. Structure lies on the side of the longer tail of the local contrasts,
    and is what is rarer: masks of more than half of the voxels are left out.

    Parameters
    ----------
    images : sequence of ndarray of float32, czyx
        Normalised; parts of one volume.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.
    bright : bool, optional
        The polarity, where it is known.

    Returns
    -------
    ThresholdLabeller
        With the rule "none" and an empty mask where nothing stands out, as in a constant image.

    References
    ----------
    .. [1] Otsu, doi:10.1109/TSMC.1979.4310076.
    .. [2] Li and Tam, doi:10.1016/S0167-8655(98)00057-9.
    .. [3] Zack et al., doi:10.1177/25.7.70454.
    .. [4] Liao et al., A fast algorithm for multilevel thresholding, JISE 17 (2001).
    .. [5] Matas et al., doi:10.1016/j.imavis.2004.02.006.
    """
    best = ThresholdLabeller(0, bright is not False, 0.0, 0.0)
    unit = finest(spacing_um_zyx)
    for channel in range(images[0].shape[0]):
        is_bright = _is_bright(channel, images, spacing_um_zyx) if bright is None else bright
        for sigma, window in itertools.product(SMOOTHING, (0.0, *WINDOWS)):
            start = ThresholdLabeller(channel, is_bright, sigma * unit, window * unit)
            for candidate in _scored(start, images, spacing_um_zyx):
                if candidate.stability > best.stability:
                    best = candidate
    return best


def rough_mask(image: Float32, spacing_um_zyx: Spacing) -> WeakLabel:
    """Return the mask of the threshold that is most stable on this image.

    Parameters
    ----------
    image : ndarray of float32, czyx
        Normalised.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.
    """
    return fit_threshold([image], spacing_um_zyx).label(image, spacing_um_zyx)


def _is_bright(channel: int, images: Sequence[Float32], spacing_um_zyx: Spacing) -> bool:
    """Tell the polarity of a channel: structure is on the side of the longer tail of its local contrasts."""
    unit = finest(spacing_um_zyx)
    values = _values(ThresholdLabeller(channel, True, unit, SURROUNDINGS * unit), images, spacing_um_zyx)
    low, middle, high = (float(v) for v in np.percentile(values, (1, 50, 99)))
    return high - middle >= middle - low


def _scored(
    start: ThresholdLabeller, images: Sequence[Float32], spacing_um_zyx: Spacing
) -> Iterator[ThresholdLabeller]:
    """Yield the candidates of one channel, smoothing and window with their stability."""
    widths = (start.sigma_um, start.sigma_um / STRETCH, start.sigma_um * STRETCH)
    flat = [_values(replace(start, sigma_um=w), images, spacing_um_zyx) for w in widths]
    low, ground, high = (float(v) for v in np.percentile(flat[0], (0.5, 50, 99.5)))
    if not high > low:
        return
    below = ground - flat[0][flat[0] <= ground]
    # not less than a hundredth of the range: the ground of a denoised volume may not vary at all
    spread = max(1.4826 * float(np.median(below)), 0.01 * (high - low))
    start = replace(start, ground=ground, spread=spread)
    values, *disturbed = (start.compressed(np.clip(f, low, high)) for f in flat)
    shift = SHIFT * float(np.ptp(values))
    for rule, threshold in RULES.items():
        try:
            level = threshold(values)
        except (ValueError, RuntimeError):  # too few distinct values for this rule
            continue
        mask = values > level
        if not LEAST_SHARE < mask.mean() <= MOST_SHARE:
            continue
        others = [values > level - shift, values > level + shift, *(d > level for d in disturbed)]
        stability = float(np.mean([_kappa(mask, other) for other in others]))
        yield replace(start, rule=rule, level=level, width=shift, stability=stability)


def _values(labeller: ThresholdLabeller, images: Sequence[Float32], spacing_um_zyx: Spacing) -> Float32:
    """Return what is thresholded as one line of values, evenly thinned."""
    values = np.concatenate([labeller.flattened(image, spacing_um_zyx).ravel() for image in images])
    return values[:: 1 + len(values) // MOST_VALUES]


def _kappa(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> float:
    """Return Cohen's kappa of two masks; a mask and its complement give the same."""
    a, b = first.mean(), second.mean()
    expected = a * b + (1 - a) * (1 - b)
    return float(((first == second).mean() - expected) / (1 - expected)) if expected < 1 else 1.0
