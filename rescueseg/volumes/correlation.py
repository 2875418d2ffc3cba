"""Normalised correlation of two arrays over all shifts, each over what overlaps.

References
----------
Padfield, Masked object registration in the Fourier domain, IEEE Transactions on Image Processing 2012,
doi:10.1109/TIP.2011.2181402; here the masks are the arrays' own borders, so that their sums need no transform.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage

from rescueseg.geometry import ZYX, Floats, zyx

_LOW = 1.5
"""Cells: structure coarser than a Gaussian of this width is taken away, such as uneven illumination."""
_MOST_SPREADS = 3.0
"""Standard deviations at which values are cut: no single bright spot decides."""
_FEWEST = 48
"""Cells of an overlap below which a correlation is not looked at."""


@dataclass(frozen=True)
class Peak:
    """Where two arrays agree.

    Parameters
    ----------
    score : float
        Standard deviations above what unlike images reach (Fisher's z).
    correlation : float
        Between −1 and 1.
    signs : tuple of int
        −1 along the axes on which the second array is mirrored.
    shift : tuple of int
        Where the second array, mirrored, begins in the first.
    """

    score: float
    correlation: float
    signs: tuple[int, int, int]
    shift: ZYX


def without_low_frequencies(cells: Floats, *, pattern: bool = False) -> Floats:
    """Return an array without its coarse structure, of variance about 1; zeros where nothing remains.

    Parameters
    ----------
    cells : ndarray, zyx
        Any values.
    pattern : bool
        Take away, too, what is the same along a whole axis: stripes of a camera.
    """
    widths = [_LOW if n >= 4 else 0 for n in cells.shape]
    margin = [min(n - 1, 4) if n >= 4 else 0 for n in cells.shape]
    padded = np.pad(cells, [(m, m) for m in margin], mode="reflect", reflect_type="odd")  # slopes go on
    inside = tuple(slice(m, m + n) for m, n in zip(margin, cells.shape, strict=True))
    fine = cells - ndimage.gaussian_filter(padded, widths)[inside] if any(widths) else cells - cells.mean()
    for axis, n in enumerate(cells.shape if pattern else ()):
        fine = fine - fine.mean(axis=axis, keepdims=True) if n >= 8 else fine
    spread = float(fine.std())
    if spread <= 1e-9 * max(1.0, float(np.abs(cells).max())):
        return np.zeros(fine.shape)
    scaled: Floats = np.clip(fine / spread, -_MOST_SPREADS, _MOST_SPREADS)
    return scaled


def correlations(
    one: Floats, other: Floats, signs: Sequence[Sequence[int]] = ((1, 1, 1),)
) -> Iterator[tuple[Sequence[int], Floats, Floats]]:
    """Yield, for each way to mirror the second array, the correlation and its score at every shift.

    Parameters
    ----------
    one, other : ndarray, zyx
        From `without_low_frequencies`.
    signs : sequence
        Ways to mirror `other`.

    Yields
    ------
    signs, correlation, score
        Index i along an axis is the shift i − (length of `other` − 1). The score is Fisher's z times the square root of
        the independent cells of the overlap, which neighbours that are alike make fewer (Bartlett 1946).
    """
    size = [fft.next_fast_len(a + b - 1, real=True) for a, b in zip(one.shape, other.shape, strict=True)]
    ahead = np.ix_(*(np.arange(1 - b, a) % n for a, b, n in zip(one.shape, other.shape, size, strict=True)))
    spectrum = fft.rfftn(one.astype(np.float32), size)
    count = np.array(1.0)
    for a, b in zip(one.shape, other.shape, strict=True):
        shift = np.arange(1 - b, a)
        count = np.multiply.outer(count, np.minimum(a, shift + b) - np.maximum(0, shift))
    energy = _overlap_sums(one**2, zyx(other.shape), first=True)
    other_energy = _overlap_sums(other**2, zyx(one.shape), first=False)
    independent = np.sqrt(np.maximum(count * _independence(one, other) - 3, 0)) * (count >= _FEWEST)
    for sign in signs:
        mirror = tuple(slice(None, None, s) for s in sign)
        product = spectrum * np.conj(fft.rfftn(other[mirror].astype(np.float32), size))
        cross = fft.irfftn(product, size)[ahead]
        norm = np.sqrt(np.maximum(energy * other_energy[mirror], 1e-6))
        correlation = np.clip(cross / norm, -0.9999, 0.9999)
        yield sign, correlation, np.arctanh(np.abs(correlation)) * independent


def peaks(one: Floats, other: Floats, least: float, most: int) -> list[Peak]:
    """Return the best agreements of two arrays over all shifts and all ways to mirror the second, best first."""
    found: list[Peak] = []
    for sign, correlation, score in correlations(one, other, list(itertools.product((1, -1), repeat=3))):
        index = np.unravel_index(int(np.argmax(score)), score.shape)
        if score[index] >= least:
            shift = zyx(int(i) - (n - 1) for i, n in zip(index, other.shape, strict=True))
            found.append(
                Peak(float(score[index]), float(correlation[index]), (sign[0], sign[1], sign[2]), shift)
            )  # fmt: skip
    return sorted(found, key=lambda peak: -peak.score)[:most]


def _overlap_sums(squares: Floats, beside: ZYX, *, first: bool) -> Floats:
    """Return the sums over what overlaps at each shift, of the first array or of the second."""
    result = squares
    for axis, (n, m) in enumerate(zip(squares.shape, beside, strict=True)):
        a, b = (n, m) if first else (m, n)
        shift = np.arange(1 - b, a)
        low = np.maximum(0, shift) if first else np.maximum(0, -shift)
        high = np.minimum(a, shift + b) if first else np.minimum(b, a - shift)
        start = np.zeros([1 if i == axis else k for i, k in enumerate(result.shape)])
        total = np.concatenate([start, np.cumsum(result, axis=axis)], axis=axis)
        result = np.take(total, high, axis=axis) - np.take(total, low, axis=axis)
    return result


def _independence(one: Floats, other: Floats) -> float:
    """Return the share of independent cells, by how alike neighbours are in both arrays."""
    share = 1.0
    for axis in range(3):
        alike = _likeness(one, axis) * _likeness(other, axis)
        share *= (1 - alike) / (1 + alike) if alike > 0 else 1.0
    return share


def _likeness(cells: npt.NDArray[np.float64], axis: int) -> float:
    if cells.shape[axis] < 2:
        return 0.0
    lines = np.moveaxis(cells, axis, 0)
    return float(np.clip((lines[1:] * lines[:-1]).mean() / max(1e-12, float((cells**2).mean())), 0, 0.999))
