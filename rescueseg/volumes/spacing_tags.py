"""Finds volumes whose stated spacing cannot be true: implausible values, and tags that similar volumes contradict.

Two volumes of one kind (alike in intensities, noise, blur and texture, all counted in voxels) were sampled alike. When
their tags differ all the same, so that their structures would differ in micrometre, one of the tags is wrong. A volume
that truly has another spacing differs in voxels instead, and agrees in micrometre.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import wasserstein_distance

from rescueseg.geometry import SAME_SPACING, Spacing
from rescueseg.volumes import texture
from rescueseg.volumes.describe import Measurement
from rescueseg.volumes.limits import limit

_PRINT_DPI = (72, 96, 150, 300, 600)
_UM_PER_INCH = 25_400.0
_POINTS = 12
_ADD = "add the volume again under another name with --spacing Z,Y,X"


def implausibility(spacing: Spacing) -> str:
    """Say why a spacing (micrometre, zyx) cannot be that of a microscope's volume; empty when it can.

    Examples
    --------
    >>> implausibility((0.3, 0.1, 0.1))
    ''
    >>> implausibility((300.0, 100.0, 100.0)).split("; ")[0]
    'the spacing 300 × 100 × 100 µm is above 100 µm, as when µm are read as mm'
    >>> implausibility((1.0, 352.7778, 352.7778)).split("; ")[0]
    'the spacing 1 × 352.8 × 352.8 µm is a print resolution of 72 dpi'
    """
    sizes = " × ".join(f"{s:.4g}" for s in spacing)
    dpi = [d for d in _PRINT_DPI if all(abs(s * d / _UM_PER_INCH - 1) < 1e-3 for s in spacing[1:])]
    if dpi:
        return f"the spacing {sizes} µm is a print resolution of {dpi[0]} dpi; {_ADD}"
    if max(spacing) > limit("coarsest"):
        return f"the spacing {sizes} µm is above {limit('coarsest'):g} µm, as when µm are read as mm; {_ADD}"
    if min(spacing) < limit("finest"):
        return f"the spacing {sizes} µm is below {limit('finest'):g} µm, as when mm are read as µm; {_ADD}"
    return ""


def is_default(spacing: Spacing) -> bool:
    """Tell whether a spacing is what programs write where nobody said: 1 × 1 × 1."""
    return spacing == (1.0, 1.0, 1.0)


def tag_ratio(a: Spacing, b: Spacing) -> float:
    """Return the largest ratio between two spacings along an axis, at least 1.

    Examples
    --------
    >>> tag_ratio((0.5, 0.1, 0.1), (0.25, 0.1, 0.1))
    2.0
    """
    return max(max(p / q, q / p) for p, q in zip(a, b, strict=True))


def shape_distance(a: Measurement, b: Measurement) -> float:
    """Return the Wasserstein distance of the standardised quantiles, the largest over the channels."""
    return max(
        float(wasserstein_distance(_standard(p), _standard(q))) for p, q in zip(a.quantiles, b.quantiles, strict=True)
    )


def _standard(quantiles: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    spread = quantiles.std()
    return np.asarray((quantiles - quantiles.mean()) / spread) if spread > 0 else np.zeros_like(quantiles)


def texture_distance(a: Measurement, b: Measurement, *, in_um: bool, axes: Sequence[int] = (0, 1, 2)) -> float:
    """Return the mean distance of two volumes' variograms along some axes, by lags in voxels or in micrometre.

    Infinite where they have no lags in common.
    """
    distances: list[float] = []
    for axis in axes:
        curves = [np.asarray(m.description.variogram[axis]) for m in (a, b)]
        scales = [m.spacing[axis] if in_um else 1.0 for m in (a, b)]
        lags = [np.array(texture.LAGS[: len(c)]) * s for c, s in zip(curves, scales, strict=True)]
        if min(map(len, lags)) < 2:
            continue
        low, high = max(lag[0] for lag in lags), min(lag[-1] for lag in lags)
        if low >= high:
            continue
        at = np.geomspace(low, high, _POINTS)
        first, second = (np.interp(at, lag, curve) for lag, curve in zip(lags, curves, strict=True))
        distances.append(float(np.mean(np.abs(first - second))))
    return float(np.mean(distances)) if distances else math.inf


def alike_in_voxels(a: Measurement, b: Measurement) -> bool:
    """Tell whether two volumes cannot be told apart when lengths are counted in voxels."""
    if a.record.channels != b.record.channels or shape_distance(a, b) > limit("alike_shape"):
        return False
    p, q = a.description, b.description
    if abs(p.noise_share - q.noise_share) > limit("alike_noise") or not (_structured(a) and _structured(b)):
        return False
    if p.blur_pixels is not None and q.blur_pixels is not None:
        blurs = sorted(max(v, limit("edges") / 2) for v in (p.blur_pixels, q.blur_pixels))
        if blurs[1] > limit("alike_blur") * blurs[0]:
            return False
    return texture_distance(a, b, in_um=False) <= limit("alike_texture")


def _structured(measurement: Measurement) -> bool:
    """Tell whether there is structure along some axis that could be measured: noise alone is no evidence."""
    return any(n is not None for n in measurement.description.structure_voxels)


def contradict(a: Measurement, b: Measurement) -> bool:
    """Tell whether the tags of two volumes cannot both be true."""
    if tag_ratio(a.spacing, b.spacing) < limit("tag") or not alike_in_voxels(a, b):
        return False
    voxels, lengths = _distances(a, b)
    return lengths >= 2 * voxels and lengths - voxels >= limit("tag_texture")


def _distances(a: Measurement, b: Measurement) -> tuple[float, float]:
    """Return the distance in voxels and in micrometre along the axes whose spacings differ."""
    axes = [
        i for i, (p, q) in enumerate(zip(a.spacing, b.spacing, strict=True)) if max(p / q, q / p) > 1 + SAME_SPACING
    ]
    voxels, lengths = (texture_distance(a, b, in_um=in_um, axes=axes) for in_um in (False, True))
    return voxels, lengths


def wrong_tags(volumes: Sequence[Measurement], trusted: Iterable[str] = ()) -> dict[str, str]:
    """Return the volumes whose spacing is not to be believed, each with the reason.

    Of two that contradict each other the one with less evidence is doubted: 1 × 1 × 1 against a measured spacing, a
    spacing of few volumes of the campaign against one of many. Where the evidence is equal, both are.

    Parameters
    ----------
    volumes : sequence of Measurement
        All volumes of the campaign.
    trusted : iterable of str
        Ids of volumes whose spacing a person has verified, or that a model was trained with.
    """
    trusted_ids = set(trusted)
    wrong = {m.volume_id: why for m in volumes if m.volume_id not in trusted_ids and (why := implausibility(m.spacing))}
    others = [m for m in volumes if m.volume_id not in wrong]
    ranks = {m.volume_id: _rank(m, others, trusted_ids) for m in others}
    for m in others:
        against = [o for o in others if o is not m and contradict(m, o)]
        above = [o for o in against if ranks[o.volume_id] > ranks[m.volume_id]]
        equal = [o for o in against if ranks[o.volume_id] == ranks[m.volume_id]]
        if m.volume_id in trusted_ids or not (above or equal):
            continue
        wrong[m.volume_id] = _reason(m, (above or equal)[0], sure=bool(above))
    return wrong


def _rank(measurement: Measurement, volumes: Sequence[Measurement], trusted: set[str]) -> tuple[bool, bool, int]:
    """Return the evidence for a volume's spacing, to be compared."""
    same = sum(tag_ratio(measurement.spacing, o.spacing) <= 1 + SAME_SPACING for o in volumes)
    return measurement.volume_id in trusted, not is_default(measurement.spacing), same


def _reason(m: Measurement, other: Measurement, *, sure: bool) -> str:
    ratio = tag_ratio(m.spacing, other.spacing)
    voxels, lengths = _distances(m, other)
    own_spacing, other_spacing = (" × ".join(f"{s:.4g}" for s in v.spacing) for v in (m, other))
    apart = f"{lengths:.2f}" if math.isfinite(lengths) else "beyond comparison"
    contradiction = (
        f"its texture is that of '{other.volume_id}' in voxels (variograms {voxels:.2f} apart) but not in µm ({apart}): "
        f"the spacing {own_spacing} µm differs from {other_spacing} by {ratio:.3g}×"
    )
    if sure:
        return f"{contradiction} and is most likely wrong; {_ADD}, or list it in consistency.checked_spacing"
    return (
        f"{contradiction}, and one of the two is wrong; {_ADD}, and list the right one in consistency.checked_spacing of "
        "campaign.toml"
    )
