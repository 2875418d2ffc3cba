"""Intensity scaling, and reading boxes that reach beyond the volume."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rescueseg.geometry import Box, partition, zyx
from rescueseg.randomness import seeded_generator
from rescueseg.records import Normalisation

_PERCENTILES = (0.5, 99.5)
LINEAR = 10.0
"""`Normalisation.linear` of what is imported now: sparse bright structure keeps its amplitude, and a saturated voxel of a
16-bit image stays within thirty standard deviations, or fifty where it lies in the farthest limits.
tests/benchmarks/intensities.py compares rules."""
_CURVE = 0.2
"""Part of what `Normalisation.linear` means: a value ``d`` standard deviations beyond it adds ``s * log(1 + d / s)``, s this
share of it."""
_WIDEST = 3.0
"""Limits beyond this many times `Normalisation.linear` hold nothing back any more: a network would overflow."""
_FAR = 10.0
"""Of the brightest value from all others, in ranges of those: then it is that of saturated voxels."""
_SAMPLE_BOXES = 64
_SAMPLE_STEP = 3
_SAMPLE_SEED = 0x5EED


class Array(Protocol):
    """What `read_box` and `measure` need: a NumPy or Zarr array whose last axes are z, y, x."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape, the last three axes being z, y, x."""
        ...

    @property
    def ndim(self) -> int:
        """Number of axes."""
        ...

    def __getitem__(self, selection: Any, /) -> Any:
        """Return the voxels of a basic selection."""
        ...


def read_box(array: Array, box: Box) -> npt.NDArray[Any]:
    """Read a box; where it reaches beyond the volume, the image is mirrored at its border.

    Parameters
    ----------
    array : zarr.Array or ndarray
        ``(…, z, y, x)``.
    box : Box
        May start below zero, end beyond the volume, or be larger than it.

    Returns
    -------
    ndarray
        ``(…, *box.shape_zyx)``, the leading axes kept whole. Mirroring does not repeat the border voxel.

    Examples
    --------
    A line of four voxels along x, read from two voxels before it to one behind it:

    >>> line = np.array([[[10, 11, 12, 13]]])
    >>> read_box(line, Box((0, 0, -2), (1, 1, 7))).tolist()
    [[[12, 11, 10, 11, 12, 13, 12]]]
    """
    indices = [_mirrored(o, s, n) for o, s, n in zip(box.offset_zyx, box.shape_zyx, array.shape[-3:], strict=True)]
    first = [int(i.min()) for i in indices]
    lead = (slice(None),) * (array.ndim - 3)
    inside = tuple(slice(f, int(i.max()) + 1) for f, i in zip(first, indices, strict=True))
    voxels = np.asarray(array[(*lead, *inside)])
    for axis, (index, start) in enumerate(zip(indices, first, strict=True)):
        if len(index) != inside[axis].stop - start or np.any(np.diff(index) != 1):
            voxels = np.take(voxels, index - start, axis=axis - 3)
    return voxels


def _mirrored(offset: int, length: int, size: int) -> npt.NDArray[np.int64]:
    """Return the indices in [0, size) that a mirrored axis shows from `offset` on."""
    period = max(1, 2 * (size - 1))
    index = np.arange(offset, offset + length) % period
    return np.where(index >= size, period - index, index).astype(np.int64)


def normalise(voxels: npt.NDArray[Any], normalisation: Normalisation) -> npt.NDArray[np.float32]:
    """Scale intensities: subtract the mean, divide by the standard deviation, and hold back what is far off.

    Parameters
    ----------
    voxels : ndarray
        ``czyx``, any real dtype.
    normalisation : Normalisation
        As measured at import; where it has one entry per channel, each channel gets its own.

    Returns
    -------
    ndarray
        float32, same shape.

    Examples
    --------
    Counts of a camera. From ten standard deviations on, values grow by their logarithm, so that the brightest is not lost and
    does not outweigh the rest:

    >>> scaling = Normalisation(low=100, high=500, mean=300, std=100, linear=10)
    >>> normalise(np.array([[[[0, 100, 300, 400, 1300, 2300, 60000]]]], np.uint16), scaling).astype(float).round(1).tolist()
    [[[[-3.0, -2.0, 0.0, 1.0, 10.0, 13.6, 21.4]]]]

    A volume that an earlier version imported is clipped to the limits 100 and 500:

    >>> normalise(np.array([[[[0, 100, 300, 400, 900]]]], np.uint16), with_linear(scaling, 0)).tolist()
    [[[[-2.0, -2.0, 0.0, 1.0, 2.0]]]]
    """
    scaled = np.empty(voxels.shape, np.float32)
    for out, channel, part in zip(scaled, voxels, parts_of(normalisation, len(voxels)), strict=True):
        values = channel.astype(np.float32)
        if not part.linear:
            np.clip(values, part.low, part.high, out=values)
        np.subtract(values, np.float32(part.mean), out=out)
        out /= np.float32(part.std)
        if part.linear:
            low, high = _linear_range(part)
            far = np.nonzero((out < low) | (out > high))
            near = np.clip(out[far], low, high)
            curve = np.float32(_CURVE * part.linear)
            out[far] = near + np.copysign(curve * np.log1p(np.abs(out[far] - near) / curve), out[far] - near)
    return scaled


def denormalise(scaled: npt.NDArray[np.float32], normalisation: Normalisation) -> npt.NDArray[np.float32]:
    """Return the intensities that `normalise` made these of; what it clipped stays clipped.

    Examples
    --------
    >>> scaling = Normalisation(low=100, high=500, mean=300, std=100, linear=10)
    >>> counts = np.array([[[[0, 100, 300, 400, 1300, 2300, 60000]]]], np.uint16)
    >>> denormalise(normalise(counts, scaling), scaling).round().tolist()
    [[[[0.0, 100.0, 300.0, 400.0, 1300.0, 2300.0, 60000.0]]]]
    """
    voxels = np.empty(scaled.shape, np.float32)
    for out, channel, part in zip(voxels, scaled, parts_of(normalisation, len(scaled)), strict=True):
        values = channel.astype(np.float64)
        if part.linear:
            near = np.clip(values, *_linear_range(part))
            curve = _CURVE * part.linear
            values = near + np.copysign(curve * np.expm1(np.abs(values - near) / curve), values - near)
        out[...] = values * part.std + part.mean
    return voxels


def _linear_range(part: Normalisation) -> tuple[np.float32, np.float32]:
    """Return between which scaled values nothing is held back."""
    (low, high), widest = limits(part), _WIDEST * part.linear
    return np.float32(max(min(low, -part.linear), -widest)), np.float32(min(max(high, part.linear), widest))


def limits(normalisation: Normalisation) -> tuple[float, float]:
    """Return what the limits become: the grey values between which a picture shows most of the image.

    Examples
    --------
    >>> limits(Normalisation(low=100, high=500, mean=300, std=100))
    (-2.0, 2.0)
    """
    low, high = ((v - normalisation.mean) / normalisation.std for v in (normalisation.low, normalisation.high))
    return low, high


def parts_of(normalisation: Normalisation, channels: int) -> Sequence[Normalisation]:
    """Return the scaling of each channel."""
    return normalisation.per_channel or (normalisation,) * channels


def common_linear(scalings: Iterable[Normalisation]) -> float:
    """Return `Normalisation.linear` of a campaign: that of its oldest volume, so that its models see all volumes alike.

    Examples
    --------
    >>> old, new = (Normalisation(low=0, high=1, mean=0, std=1, linear=linear) for linear in (0, 10))
    >>> common_linear([new, new]), common_linear([new, old]), common_linear([])
    (10.0, 0.0, 10.0)
    """
    return min((scaling.linear for scaling in scalings), default=LINEAR)


def with_linear(normalisation: Normalisation, linear: float) -> Normalisation:
    """Return the same scaling by another rule for what is far off, in all channels; 0 gives that of earlier versions.

    Examples
    --------
    >>> with_linear(Normalisation(low=0, high=1, mean=0, std=1, linear=10), 0).linear
    0.0
    """
    parts = tuple(part.model_copy(update={"linear": float(linear)}) for part in normalisation.per_channel)
    return normalisation.model_copy(update={"linear": float(linear), "per_channel": parts})


def measure(array: Array, chunk_zyx: Sequence[int], linear: float = LINEAR) -> Normalisation:
    """Measure the intensity scaling of a ``czyx`` image from a fixed sample of its chunks.

    Percentiles 0.5 and 99.5 are the limits, of all voxels but the saturated; mean and standard deviation are those of the
    clipped sample, so that no hot pixel counts. Where both limits are the same value, those of the other voxels are taken
    in. Every third voxel of at most 64 chunks is taken, the same ones for the same shape.

    Parameters
    ----------
    array : zarr.Array or ndarray
        ``czyx``.
    chunk_zyx : sequence of int
        Shape of the boxes sampled.
    linear : float
        0 for what earlier versions made: see `Normalisation.linear`.

    Returns
    -------
    Normalisation
        With one entry per channel where there are several.
    """
    boxes = partition(array.shape[-3:], zyx(chunk_zyx))
    if len(boxes) > _SAMPLE_BOXES:
        indices = seeded_generator(_SAMPLE_SEED).choice(len(boxes), _SAMPLE_BOXES, replace=False)
        boxes = [boxes[i] for i in sorted(indices.tolist())]
    samples = [
        np.concatenate([np.ravel(array[(c, *box.slices)])[::_SAMPLE_STEP].astype(np.float32) for box in boxes])
        for c in range(array.shape[0])
    ]
    return measure_samples(samples, linear)


def measure_samples(samples: Sequence[npt.NDArray[np.float32]], linear: float = LINEAR) -> Normalisation:
    """Return the intensity scaling of samples of voxels, one for each channel; see `measure`."""
    overall = _measure(np.concatenate(samples) if len(samples) > 1 else samples[0], linear)
    if len(samples) == 1:
        return overall
    return overall.model_copy(update={"per_channel": tuple(_measure(sample, linear) for sample in samples)})


def rescaled(normalisation: Normalisation, maps: Sequence[tuple[float, float]]) -> Normalisation:
    """Return the scaling of a volume whose intensities have to be mapped first.

    Parameters
    ----------
    normalisation : Normalisation
        Of a domain.
    maps : sequence of (float, float)
        Gain (positive) and offset of each channel: ``gain * v + offset`` is on the domain's scale.

    Returns
    -------
    Normalisation
        Gives for ``v`` what `normalisation` gives for the mapped value.

    Examples
    --------
    A volume of half the gain: 200 counts there mean what 400 mean in its domain.

    >>> domain = Normalisation(low=0, high=1000, mean=400, std=100)
    >>> own = rescaled(domain, [(2.0, 0.0)])
    >>> own.low, own.high, own.mean, own.std
    (0.0, 500.0, 200.0, 50.0)
    """
    if all(m == (1.0, 0.0) for m in maps):
        return normalisation
    parts = normalisation.per_channel or (normalisation,) * len(maps)
    mapped = tuple(_unmapped(p, gain, offset) for p, (gain, offset) in zip(parts, maps, strict=True))
    if len(mapped) == 1:
        return mapped[0]
    return _unmapped(normalisation, *maps[0]).model_copy(update={"per_channel": mapped})


def _unmapped(part: Normalisation, gain: float, offset: float) -> Normalisation:
    low, high, mean = ((v - offset) / gain for v in (part.low, part.high, part.mean))
    return Normalisation(low=low, high=high, mean=mean, std=part.std / gain, linear=part.linear)


def _measure(sample: npt.NDArray[np.float32], linear: float) -> Normalisation:
    low, high = (float(v) for v in np.percentile(sample, _PERCENTILES))
    if high <= low and linear:
        low, high = _limits_of_others(sample, low)
    elif high <= low:
        low, high = float(sample.min()), float(sample.max())
    elif linear:
        low, high = _without_saturated(sample, low, high)
    clipped = np.clip(sample, low, high)
    std = float(clipped.std(dtype=np.float64))
    mean = float(clipped.mean(dtype=np.float64))
    return Normalisation(low=low, high=high, mean=mean, std=std if std > 0 else 1.0, linear=linear)


def _without_saturated(sample: npt.NDArray[np.float32], low: float, high: float) -> tuple[float, float]:
    """Return the percentiles of all voxels but the brightest, where these have one value far beyond all others."""
    brightest = sample.max()
    others = sample[sample < brightest]
    if not len(others):
        return low, high
    below, above = (float(v) for v in np.percentile(others, _PERCENTILES))
    is_saturated = above > below and brightest - above > _FAR * (above - below)
    return (below, above) if is_saturated else (low, high)


def _limits_of_others(sample: npt.NDArray[np.float32], ground: float) -> tuple[float, float]:
    """Return limits that hold the value of nearly all voxels, and the percentiles of the others: a hot one does not count."""
    others = sample[sample != ground]
    if not len(others):
        return ground, ground
    low = float(np.percentile(others, _PERCENTILES[0], method="higher"))
    high = float(np.percentile(others, _PERCENTILES[1], method="lower"))
    return min(low, ground), max(high, ground)
